"""What the clock's thread publishes and the server's threads read: frozen, replaced as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dlmon.agent.admission import Admitted, Detail, admit
from dlmon.observe.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class Latest:
    """The last good snapshot.

    Attributes:
        snapshot: What was seen.
        admitted: What of it `/metrics` shows.
        taken: `time.monotonic()` when it was published.
    """

    snapshot: Snapshot
    admitted: Admitted
    taken: float

    def age_seconds(self) -> float:
        """Return how long ago it was published, 0 or more."""
        return max(0.0, time.monotonic() - self.taken)


@dataclass(frozen=True, slots=True)
class Status:
    """Everything the server may tell.

    Attributes:
        latest: None before the first snapshot.
        errors: Snapshots that failed since the agent began, those of which a part failed included.
        last_error: What the last failure said; "" once a snapshot succeeded.
        series_dropped: By reason, summed over all snapshots.
    """

    latest: Latest | None = None
    errors: int = 0
    last_error: str = ""
    series_dropped: Mapping[str, int] = field(default_factory=dict)


class Board:
    """Holds the current `Status`. One thread writes; any thread reads, without a lock.

    Replacing one reference is atomic, so a reader sees the old status or the new one.
    """

    def __init__(self, detail: Detail, series_limit: int) -> None:
        """Start empty.

        Args:
            detail: How many series a worker has.
            series_limit: Series shown at most, 1 or more.
        """
        self._detail = detail
        self._series_limit = series_limit
        self._status = Status()

    @property
    def status(self) -> Status:
        """What is known now."""
        return self._status

    def publish(self, snapshot: Snapshot) -> None:
        """Make a new snapshot the one that is served."""
        admitted = admit(snapshot, self._detail, self._series_limit)
        before = self._status.series_dropped
        self._status = replace(
            self._status,
            latest=Latest(snapshot, admitted, time.monotonic()),
            last_error="",
            series_dropped={
                reason: before.get(reason, 0) + count for reason, count in admitted.dropped.items()
            },
        )

    def fail(self, error: str) -> None:
        """Count a snapshot that failed; the last one that was published stays.

        That may be the one which failed, where only who looks for trouble in it did.
        """
        status = self._status
        self._status = replace(status, errors=status.errors + 1, last_error=error)
