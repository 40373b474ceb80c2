"""What dlmon may cost, and whether it costs no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.results import PLACES, UNMEASURABLE, Row
from bench.variants import DLMON, DLMON_NEXT

NEXT_MICROSECONDS = 1.0
FETCH_MICROSECONDS = 0.5

Rows = Mapping[str, Sequence[Row]]
"""By the name of a measurement."""


@dataclass(frozen=True, slots=True)
class Aim:
    """One aim.

    Attributes:
        of: What must not cost more.
        row: What was measured.
        microseconds: The most it may add; None if it must make no measurable difference: the
            interval includes 0 or is all under 1 %.
    """

    of: str
    row: Row
    microseconds: float | None = None

    @property
    def text(self) -> str:
        """The aim in words."""
        if self.microseconds is None:
            return f"0 or under {100 * UNMEASURABLE:.0f} %"
        return f"at most {self.microseconds:.1f} µs"

    @property
    def verdict(self) -> str:
        """How what was measured compares: `met`, or what stands against it."""
        added, bare = self.row.added, self.row.bare
        if added is None or added.low is None or added.high is None:
            return "too few blocks"
        if self.microseconds is not None:
            if added.high <= self.microseconds:
                return "met"
            return "missed" if added.low > self.microseconds else "not decided"
        if added.high < UNMEASURABLE * bare:
            return "met: under 1 %"
        return "met: includes 0, resolves no 1 %" if added.low <= 0 else "missed"


def aims(rows: Rows) -> list[Aim]:
    """Return the aims for what was measured."""
    found = []
    for name, own in rows.items():
        for row in own:
            if (name, row.variant) == ("inline", DLMON_NEXT.name):
                found.append(Aim("next() alone", row, NEXT_MICROSECONDS))
            elif (name, row.variant) == ("fetch", DLMON.name):
                found.append(Aim("a fetch alone", row, FETCH_MICROSECONDS))
            elif name in ("workers", "work") and row.variant == DLMON.name:
                found.append(Aim(f"{name}: {PLACES[row.where]}", row))
    return found
