"""What Prometheus was told so far, and what its functions make of that: a second opinion.

Prometheus tells when it scraped and when it evaluated rules; what an agent knew at a scrape is kept
by the relay. So what a query must answer is known to the last digit, whatever the hurry that the
machine was in: no tolerance hides a wrong sum.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.dashboards.relay import Look

Labels = frozenset[tuple[str, str]]
Series = dict[Labels, float]
Row = tuple[Mapping[str, str], float | None]

ALL = (".+",)
"""What Grafana puts in place of a variable of which all is chosen."""

SECOND, MINUTE = 1000, 60_000

TIMEOUT = 3 * SECOND
"""After which Prometheus takes a scrape to have failed: then there is nothing until the next."""


@dataclass(frozen=True)
class Scrape:
    """One scrape: of whom, when in ms, and what there was to see; None if it came too late."""

    instance: str
    time: int
    look: Look | None


@dataclass(frozen=True)
class Moment:
    """A time at which something is asked, and what is known then.

    Attributes:
        time: Unix time in ms.
        scrapes: All that there were, the oldest first.
        evaluations: When recording rules were evaluated, in ms.
        chosen: The values of the dashboard's variables.
        alerts: Prometheus' own account of those that are pending or firing, as it is now.
        targets: Whether it could scrape agents last: 1 or 0, by instance.
        rule: A rule is evaluated then, which has what was there at that time.
        late: How long a scrape takes from its answer until its samples are there, in ms.
    """

    time: int
    scrapes: Sequence[Scrape]
    evaluations: Sequence[int]
    chosen: Mapping[str, Sequence[str]]
    alerts: Sequence[Mapping[str, str]] = ()
    targets: Mapping[str, float] = field(default_factory=dict)
    rule: bool = False
    late: int = 0

    def seen(self, seconds: float = 300) -> Iterator[Scrape]:
        """The scrapes of a while whose samples are there."""
        for scrape in self.scrapes:
            there = scrape.time
            if self.rule:
                there = scrape.look.done + self.late if scrape.look else there + TIMEOUT
            if self.time - seconds * SECOND <= scrape.time and there <= self.time:
                yield scrape

    def evaluated(self, seconds: float = 300) -> list[int]:
        """The evaluations of a while."""
        begin = self.time - seconds * SECOND
        return [time for time in self.evaluations if begin <= time <= self.time]

    def chooses(self, labels: Mapping[str, str], *, or_none: bool = False) -> bool:
        """Whether the variables have these labels among their values."""
        return all(
            name not in labels
            or (or_none and not labels[name])
            or (bool(labels[name]) if tuple(values) == ALL else labels[name] in values)
            for name, values in self.chosen.items()
        )


Term = Callable[[Moment], Series]
"""What something is at a moment."""


@dataclass(frozen=True, eq=False)
class Source:
    """Series that agents expose, as the snapshot has them; called: as they are at a moment.

    Attributes:
        rows: From what was seen to labels and values.
        or_none: A variable's values are for those that have its label; one without it is chosen.
    """

    rows: Callable[[Look], Iterable[Row]]
    or_none: bool = False

    def __call__(self, moment: Moment) -> Series:
        last = {scrape.instance: scrape for scrape in moment.seen()}
        found: Series = {}
        for scrape in last.values():
            found.update(self._chosen(moment, scrape))
        return found

    def points(self, moment: Moment, seconds: float) -> dict[Labels, list[tuple[int, float]]]:
        """Times in ms and values of a while."""
        found = defaultdict(list)
        for scrape in moment.seen(seconds):
            for labels, value in self._chosen(moment, scrape).items():
                found[labels].append((scrape.time, value))
        return found

    def only(self, **values: str) -> Source:
        """Those whose labels have one of these values, `|` between them."""
        wanted = {name: text.split("|") for name, text in values.items()}

        def rows(look: Look) -> Iterator[Row]:
            for labels, value in self.rows(look):
                if all(labels[name] in some for name, some in wanted.items()):
                    yield labels, value

        return Source(rows, self.or_none)

    def _chosen(self, moment: Moment, scrape: Scrape) -> Series:
        return {
            frozenset((name, text) for name, text in labels.items() if text): value
            for labels, value in _rows(self, scrape)
            if value is not None and moment.chooses(labels, or_none=self.or_none)
        }


@functools.cache
def _rows(source: Source, scrape: Scrape) -> list[Row]:
    if scrape.look is None:
        return []
    target = {"instance": scrape.instance, "job": "dlmon"}
    return [({**labels, **target}, value) for labels, value in source.rows(scrape.look)]


# --- over time ---


def growth(points: Sequence[tuple[int, float]], begin: int, end: int) -> float:
    """What Prometheus takes a counter to have grown by, as its `extrapolatedRate` does.

    Args:
        points: Times in ms and values, two or more.
        begin, end: What is asked about, in ms.
    """
    (first, least), (last, _) = points[0], points[-1]
    grown = sum(
        after - before if after >= before else after
        for (_, before), (_, after) in itertools.pairwise(points)
    )
    sampled = last - first
    usual = sampled / (len(points) - 1)
    before, behind = float(first - begin), float(end - last)
    if grown > 0:  # a counter was not below 0
        before = min(before, sampled * least / grown)
    gaps = (gap if gap < 1.1 * usual else usual / 2 for gap in (before, behind))
    return grown * (sampled + sum(gaps)) / sampled


def increase(source: Source, seconds: float = 60) -> Term:
    def at(moment: Moment) -> Series:
        begin = round(moment.time - seconds * SECOND)
        return {
            labels: growth(points, begin, moment.time)
            for labels, points in source.points(moment, seconds).items()
            if len(points) > 1
        }

    return at


def rate(source: Source, seconds: float = 60) -> Term:
    return scaled(increase(source, seconds), 1 / seconds)


def recorded(term: Term) -> Term:
    """What a recording rule last made of it, for all; of that, what is chosen."""

    def at(moment: Moment) -> Series:
        found = _evaluated(term, moment, moment.evaluated()[-1]) if moment.evaluated() else {}
        return {labels: value for labels, value in found.items() if moment.chooses(dict(labels))}

    return at


def _evaluated(term: Term, moment: Moment, time: int) -> Series:
    return term(replace(moment, time=time, chosen={}, rule=True))


def usually(term: Term, seconds: float = 300) -> Term:
    """The mean of what a recording rule made of it."""

    def at(moment: Moment) -> Series:
        found = defaultdict(list)
        for time in moment.evaluated(seconds):
            for labels, value in _evaluated(term, moment, time).items():
                found[labels].append(value)
        return {labels: statistics.fmean(values) for labels, values in found.items()}

    return at


def hours(term: Term, seconds: float = 120) -> Term:
    """The hours that it was so: a value at each full minute."""

    def at(moment: Moment) -> Series:
        found: Series = defaultdict(float)
        first = -(-(moment.time - round(seconds * SECOND)) // MINUTE) * MINUTE
        for time in range(first, moment.time + 1, MINUTE):
            for labels, value in term(replace(moment, time=time)).items():
                found[labels] += value / 60
        return dict(found)

    return at


# --- series put together ---


def _grouped(how: Callable[[list[float]], float], term: Term, by: Sequence[str]) -> Term:
    def at(moment: Moment) -> Series:
        groups = defaultdict(list)
        for labels, value in term(moment).items():
            groups[frozenset(pair for pair in labels if pair[0] in by)].append(value)
        return {labels: how(values) for labels, values in groups.items()}

    return at


def total(term: Term, *by: str) -> Term:
    return _grouped(sum, term, by)


def most(term: Term, *by: str) -> Term:
    return _grouped(max, term, by)


def mean(term: Term, *by: str) -> Term:
    return _grouped(statistics.fmean, term, by)


def median(term: Term, *by: str) -> Term:
    return _grouped(statistics.median, term, by)


def count(term: Term, *by: str) -> Term:
    return _grouped(lambda values: float(len(values)), term, by)


def where(term: Term, holds: Callable[[float], bool]) -> Term:
    return lambda moment: {labels: v for labels, v in term(moment).items() if holds(v)}


def some(term: Term) -> Term:
    """What is above 0."""
    return where(term, lambda value: value > 0)


def changed(term: Term, how: Callable[[float], float]) -> Term:
    return lambda moment: {labels: how(v) for labels, v in term(moment).items()}


def scaled(term: Term, factor: float) -> Term:
    return changed(term, lambda value: value * factor)


def at_most_1(term: Term) -> Term:
    return changed(term, lambda value: min(value, 1.0))


def over(term: Term, other: Term, *on: str) -> Term:
    """One by the other, where that is not 0.

    Args:
        term, other: With equal labels.
        on: The labels that `other` has, where it has fewer.
    """

    def at(moment: Moment) -> Series:
        divisors = other(moment)
        found = {}
        for labels, value in term(moment).items():
            key = frozenset(pair for pair in labels if pair[0] in on) if on else labels
            if divisors.get(key):
                found[labels] = value / divisors[key]
        return found

    return at


def times(term: Term, other: Term) -> Term:
    """One by the other's value, of equal labels."""

    def at(moment: Moment) -> Series:
        factors = other(moment)
        return {k: value * factors[k] for k, value in term(moment).items() if k in factors}

    return at


def either(term: Term, other: Term) -> Term:
    return lambda moment: {**other(moment), **term(moment)}


def both(term: Term, other: Term) -> Term:
    """One where the other is, too, by equal labels."""

    def at(moment: Moment) -> Series:
        kept = other(moment)
        return {labels: value for labels, value in term(moment).items() if labels in kept}

    return at


def quantile(part: float, term: Term, *by: str) -> Term:
    """The quantile of a histogram's buckets: they have the label `le`, and `by`."""

    def at(moment: Moment) -> Series:
        groups: dict[Labels, dict[float, float]] = defaultdict(dict)
        for labels, value in total(term, *by, "le")(moment).items():
            key = frozenset(pair for pair in labels if pair[0] in by)
            groups[key][float(dict(labels)["le"])] = value
        return {k: within(part, buckets) for k, buckets in groups.items() if max(buckets.values())}

    return at


def within(part: float, buckets: Mapping[float, float]) -> float:
    """Where a quantile is, of how many are below each bound, taken as even within a bucket."""
    sought, lower, below = part * buckets[float("inf")], 0.0, 0.0
    bounds = sorted(buckets)
    counts = itertools.accumulate((buckets[bound] for bound in bounds), max)  # rates may be uneven
    for bound, number in zip(bounds, counts, strict=True):
        if number >= sought:
            return lower if bound == bounds[-1] else _between(lower, bound, below, sought, number)
        lower, below = bound, number
    raise AssertionError(buckets)


def _between(lower: float, upper: float, below: float, sought: float, number: float) -> float:
    return lower + (upper - lower) * (sought - below) / (number - below)
