"""Count how an iterator's workers ended, from the exit codes that their parent has.

Runs in: rank. `Process.exitcode` asks without waiting, as torch itself does all the time.
"""

from __future__ import annotations

import signal
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.segment.layout import EXIT_REASONS
from dlmon.segment.writer import Segment
from dlmon.shim._cells import EXITS, LAST_ABNORMAL_EXIT

_BY_SIGNAL = {
    signal.SIGKILL: "sigkill",
    signal.SIGSEGV: "sigsegv",
    signal.SIGBUS: "sigbus",
    signal.SIGABRT: "sigabrt",
    signal.SIGTERM: "sigterm",
}


def reason(exitcode: int) -> str:
    """Return which of `layout.EXIT_REASONS` an exit code as of `multiprocessing` is."""
    if exitcode == 0:
        return "normal"
    if exitcode > 0:
        return "error"
    return next((r for s, r in _BY_SIGNAL.items() if s == -exitcode), "other_signal")


class WorkerExits:
    """Counts each worker's end once."""

    __slots__ = ("_cells", "_left", "_seen", "_segment")

    def __init__(self, segment: Segment, cells: memoryview[int]) -> None:
        self._segment = segment
        self._cells = cells  # the rank's slot
        self._seen: set[int] = set()
        self._left: list[tuple[int, Any]] = []

    def record(self, iterator: Any) -> None:
        """Count the workers of `iterator` that have ended since the last call."""
        for worker, process in enumerate(getattr(iterator, "_workers", ())):
            if worker not in self._seen and self._count(worker, process):
                self._seen.add(worker)

    def leave(self, iterator: Any) -> None:
        """Do so a last time while the iterator is there.

        Before 2.13 torch does not wait for a worker that it had to terminate: its process is kept.
        """
        self.record(iterator)
        workers = enumerate(getattr(iterator, "_workers", ()))
        self._left = [pair for pair in workers if pair[0] not in self._seen]

    def settle(self) -> None:
        """Count those that were left and have ended since."""
        self._left = [pair for pair in self._left if not self._count(*pair)]

    def _count(self, worker: int, process: Any) -> bool:
        """Count the end of a process; return False if it has not ended."""
        exitcode = getattr(process, "exitcode", None)
        if exitcode is None:
            return False
        kind = reason(exitcode)
        if kind == "error" and self._said_goodbye(worker):
            kind = "normal"  # a worker forked by a thread of a pool has exit code 1 all the same
        self._cells[EXITS + EXIT_REASONS.index(kind)] += 1
        if kind != "normal":
            self._cells[LAST_ABNORMAL_EXIT] = monotonic_ns()
        return True

    def _said_goodbye(self, worker: int) -> bool:
        """Return whether a worker's loop ended in order, in the generation that it attested."""
        cells = self._segment.cells
        attested = cells[layout.cell_index(worker + 1, "attested_generation")]
        return cells[layout.cell_index(worker + 1, "goodbye_generation")] == attested != 0
