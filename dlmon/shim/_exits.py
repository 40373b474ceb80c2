"""Count how an iterator's workers ended, from the exit codes that their parent has.

Runs in: rank. `Process.exitcode` asks without waiting, as torch itself does all the time.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.segment.exits import reason
from dlmon.segment.layout import EXIT_REASONS
from dlmon.segment.writer import Segment
from dlmon.shim._cells import EXITS, LAST_ABNORMAL_EXIT


class WorkerExits:
    """Counts each worker's end once."""

    __slots__ = ("_cells", "_left", "_seen", "_segment", "_shut_down")

    def __init__(self, segment: Segment, cells: memoryview[int]) -> None:
        self._segment = segment
        self._cells = cells  # the rank's slot
        self._seen: set[int] = set()
        self._left: list[tuple[int, Any]] = []
        self._shut_down = False

    def record(self, iterator: Any) -> None:
        """Count the workers of `iterator` that have ended since the last call."""
        for worker, process in enumerate(getattr(iterator, "_workers", ())):
            if worker not in self._seen and self._count(worker, process):
                self._seen.add(worker)

    def leave(self, iterator: Any) -> None:
        """Do so a last time while the iterator is there, after torch has shut its workers down.

        Whom torch had to terminate has not ended abnormally. Before 2.13 torch does not wait for
        such a worker: its process is kept.
        """
        self._shut_down = True
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
        if kind != "normal" and not (kind == "sigterm" and self._shut_down):
            self._cells[LAST_ABNORMAL_EXIT] = monotonic_ns()
        return True

    def _said_goodbye(self, worker: int) -> bool:
        """Return whether a worker's loop ended in order, in the generation that it attested."""
        cells = self._segment.cells
        attested = cells[layout.cell_index(worker + 1, "attested_generation")]
        return cells[layout.cell_index(worker + 1, "goodbye_generation")] == attested != 0
