"""Remember since when each thing has not moved, in time during which it could have moved.

Durations are of CLOCK_MONOTONIC, so neither a wall clock that is set nor a node that was suspended
makes anything look hung. What passed while nobody looked (an agent that was stopped, a virtual
machine that was paused) or while the training process itself was stopped is left out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

GAP_SECONDS = 5.0
"""Longer than this, nothing is known of the time between two looks."""

_JITTER_SECONDS = 1.0


@dataclass(slots=True)
class Stall:
    """Something that has not moved.

    Attributes:
        marker: Differs once it has moved.
        since: CLOCK_MONOTONIC seconds from which on it has not.
        lost: Seconds since then that do not count.
        looks: How often it was seen like this.
        streak: How often in a row until now `flag` was given.
    """

    marker: Hashable
    since: float
    lost: float = 0.0
    looks: int = 0
    streak: int = 0


@dataclass(slots=True)
class Lasted:
    """For how long something has not moved.

    Attributes:
        seconds: Without the time that does not count; 0 at the first look, whatever it says: one
            look is no evidence of a standstill.
        age: With all time.
        flagged: At most looks, and at the last, `flag` was given.
    """

    seconds: float = 0.0
    age: float = 0.0
    flagged: bool = False


class Stalls:
    """All that is being watched, by key; what is not asked about in one look is forgotten."""

    def __init__(self) -> None:
        self._before: dict[Hashable, Stall] = {}
        self._now: dict[Hashable, Stall] = {}
        self._time: float | None = None
        self._elapsed = 0.0
        self._gap = 0.0

    def look(self, now: float, interval: float) -> None:
        """Begin a look.

        Args:
            now: CLOCK_MONOTONIC seconds.
            interval: Usual seconds from one look to the next.
        """
        self._before, self._now = self._now, {}
        self._elapsed = 0.0 if self._time is None else max(0.0, now - self._time)
        self._gap = max(0.0, self._elapsed - max(GAP_SECONDS, 5 * interval))
        self._time = now

    def lasted(
        self,
        key: Hashable,
        marker: Hashable,
        age: float | None = None,
        *,
        at_first: bool = False,
        frozen: bool = False,
        flag: bool = False,
    ) -> Lasted:
        """Say for how long something has not moved.

        Args:
            key: What it is; once a look.
            marker: Another than in the last look if it has moved since.
            age: For how many seconds it has not moved as far as others know, None if unknown.
            at_first: The age counts in the first look only: later it may have become less, although
                nothing has moved.
            frozen: It could not move since the last look.
            flag: Something that was seen of it in this look.
        """
        assert self._time is not None
        stall = self._before.get(key)
        elapsed = 0.0 if stall is None else self._time - stall.since
        anew = age is not None and not at_first and age < elapsed - _JITTER_SECONDS
        if stall is None or stall.marker != marker or anew:
            stall = Stall(marker, self._time - max(0.0, age or 0.0))
            elapsed = self._time - stall.since
        else:
            stall.lost += self._elapsed if frozen else self._gap
        stall.looks += 1
        stall.streak = stall.streak + 1 if flag else 0
        self._now[key] = stall
        seconds = max(0.0, elapsed - stall.lost) if stall.looks > 1 else 0.0
        return Lasted(seconds, elapsed, 2 * stall.streak >= stall.looks)
