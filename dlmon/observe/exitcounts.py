"""Count each worker's exit once, although two count: the rank's shim, and who looks from outside.

The shim counts an exit when it has the exit code, which may be later than it is seen from here, or
never; and it cannot know that a kill was for lack of memory. What is shown is what the shim counts
plus corrections, and no sum of the two ever goes down. Pure data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from dlmon.segment.layout import EXIT_REASONS

ABNORMAL = tuple(reason for reason in EXIT_REASONS if reason not in ("normal", "sigterm"))
"""How no worker ends that torch shuts down."""


class ExitCounts:
    """The exits of one segment's workers.

    Attributes:
        corrections: What to add to the shim's counts.
        unclaimed: What the shim has counted since the last look and nobody saw from here.
    """

    def __init__(self) -> None:
        self.corrections: Counter[str] = Counter()
        self.unclaimed: Counter[str] = Counter()
        self._shim: Mapping[str, int] | None = None
        self._ahead: Counter[str] = Counter()

    @property
    def first(self) -> bool:
        """Nothing was taken before this look."""
        return self._shim is None

    def take(self, shim: Mapping[str, int], *, recent: bool) -> None:
        """Take what the shim has counted by now.

        Args:
            shim: By `layout.EXIT_REASONS`.
            recent: At the first look, whether the last of them was in the iteration at hand. Which
                one that was is plain if there is only one reason.
        """
        if self._shim is None:
            found = Counter({r: shim[r] for r in ABNORMAL if shim.get(r)})
            self.unclaimed = found if recent and len(found) == 1 else Counter()
        else:
            self.unclaimed = Counter(shim) - Counter(self._shim)
            for reason, count in self._ahead.items():
                counted = min(count, self.unclaimed[reason])
                self._ahead[reason] -= counted
                self.unclaimed[reason] -= counted
                self.corrections[reason] -= counted
        self._shim = dict(shim)

    def claim(self) -> str | None:
        """Return the reason of an abnormal exit that the shim counted, for one seen from here."""
        for reason in ABNORMAL:
            if self.unclaimed[reason] > 0:
                self.unclaimed[reason] -= 1
                return reason
        return None

    def rename(self, reason: str, shown: str) -> None:
        """Show one exit that the shim counted under another reason."""
        self.corrections[reason] -= 1
        self.corrections[shown] += 1

    def add(self, reason: str, shown: str, *, coming: bool) -> None:
        """Count an exit that was seen from here.

        Args:
            reason: What the shim will count it under, or has.
            shown: What it is shown under.
            coming: The rank lives, so that the shim can still count it.
        """
        if self.unclaimed[reason] > 0:
            self.unclaimed[reason] -= 1
            self.rename(reason, shown)
            return
        self.corrections[shown] += 1
        if coming:
            self._ahead[reason] += 1
