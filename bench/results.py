"""What blocks say: medians, what a variant adds to the bare loop, and how sure that is."""

from __future__ import annotations

import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.measure import Series
from bench.variants import BARE

PLACES = {"main": "main process", "worker": "worker", "job": "both together"}
RESAMPLES = 2000
FEWEST_FOR_INTERVAL = 5
UNMEASURABLE = 0.01
"""A share of the bare loop that counts as no difference, if all of the interval is below it."""


@dataclass(frozen=True, slots=True)
class Added:
    """What a variant adds to the bare loop, in CPU microseconds per batch.

    Attributes:
        median: Of the differences between its blocks and their neighbours.
        low, high: The median's 95 % interval, by bootstrap; None with too few blocks.
    """

    median: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One variant in one place.

    Attributes:
        variant: Its name.
        where: A key of PLACES.
        blocks: How many were measured.
        median: CPU microseconds per batch.
        bare: The same of the bare loop in that process.
        added: To the bare loop; None for that itself.
    """

    variant: str
    where: str
    blocks: int
    median: float
    bare: float
    added: Added | None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Row:
        """Return what `dataclasses.asdict` made into a mapping."""
        added = fields["added"]
        return cls(**{**fields, "added": added and Added(**added)})


def rows(series: Series) -> list[Row]:
    """Return a row for every variant and place, in the order of a table: by place, bare first."""
    names = list(dict.fromkeys(name for name, _ in series))
    places = list(series[0][1])
    return [_row(series, name, where) for where in places for name in names]


def _row(series: Series, name: str, where: str) -> Row:
    own = [block[where] for variant, block in series if variant == name]
    bare = statistics.median(block[where] for variant, block in series if variant == BARE.name)
    added = None
    if name != BARE.name:
        differences = _differences(series, where)[name]
        added = Added(statistics.median(differences), *interval(differences))
    return Row(name, where, len(own), statistics.median(own), bare, added)


def _differences(series: Series, where: str) -> dict[str, list[float]]:
    """Return by variant what each of its blocks has more than the bare ones beside it."""
    found = defaultdict(list)
    for before, (name, block), after in zip(series, series[1:], series[2:], strict=False):
        if name != BARE.name:
            found[name].append(block[where] - (before[1][where] + after[1][where]) / 2)
    return found


def interval(differences: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the 95 % confidence interval of the median, by bootstrap; None with too few."""
    if len(differences) < FEWEST_FOR_INTERVAL:
        return None, None
    source = random.Random(0)
    medians = sorted(
        statistics.median(source.choices(differences, k=len(differences))) for _ in range(RESAMPLES)
    )
    return medians[round(0.025 * RESAMPLES)], medians[round(0.975 * RESAMPLES) - 1]
