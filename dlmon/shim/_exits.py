"""Count how an iterator's workers ended, from the exit codes that their parent has.

Runs in: rank. `Process.exitcode` asks without waiting, as torch itself does all the time.
"""

from __future__ import annotations

from time import monotonic_ns, sleep
from typing import Any

from dlmon.segment import layout
from dlmon.segment.exits import reason
from dlmon.segment.layout import EXIT_REASONS
from dlmon.segment.writer import Segment
from dlmon.shim._cells import EXITS, LAST_ABNORMAL_EXIT

PATIENCE, PATIENCE_SECONDS = 10, 0.0001
"""How often, and after how long each time, a worker without an exit code is asked again when torch
has shut it down; those that still have none are asked when the segment is used again."""


class WorkerExits:
    """Counts each worker's end once, whichever threads and signal handlers ask for it at once."""

    __slots__ = ("_cells", "_counted", "_left", "_segment", "_shut_down")

    def __init__(self, segment: Segment, cells: memoryview[int]) -> None:
        self._segment = segment
        self._cells = cells  # the rank's slot
        self._counted: dict[int, object] = {}  # by whom
        self._left: list[tuple[int, Any]] = []
        self._shut_down = False

    def record(self, iterator: Any) -> None:
        """Count the workers of `iterator` that have ended since the last call."""
        for worker, process in enumerate(getattr(iterator, "_workers", ())):
            if worker not in self._counted:
                self._count(worker, process)

    def leave(self, iterator: Any) -> None:
        """Do so a last time while the iterator is there, after torch has shut its workers down.

        Whom torch had to terminate has not ended abnormally. Before 2.13 torch does not wait for
        such a worker: its process is kept. And whoever starts a process reaps all that have ended:
        for the moment in which another thread does that there is no exit code.
        """
        self._shut_down = True
        self._left = list(enumerate(getattr(iterator, "_workers", ())))
        self.settle()
        for _ in range(PATIENCE):
            if not self._left:
                return
            sleep(PATIENCE_SECONDS)
            self.settle()

    def settle(self) -> None:
        """Count those that were left and have ended since."""
        for worker, process in self._left:
            self._count(worker, process)
        self._left = [pair for pair in self._left if pair[0] not in self._counted]

    def _count(self, worker: int, process: Any) -> None:
        """Count the end of a process, if it has ended and nobody else has counted it."""
        exitcode = getattr(process, "exitcode", None)
        mine = object()
        if exitcode is None or self._counted.setdefault(worker, mine) is not mine:
            return
        kind = reason(exitcode)
        if kind == "error" and self._said_goodbye(worker):
            kind = "normal"  # a worker forked by a thread of a pool has exit code 1 all the same
        self._cells[EXITS + EXIT_REASONS.index(kind)] += 1
        if kind != "normal" and not (kind == "sigterm" and self._shut_down):
            self._cells[LAST_ABNORMAL_EXIT] = monotonic_ns()

    def _said_goodbye(self, worker: int) -> bool:
        """Return whether a worker's loop ended in order, in the generation that it attested."""
        cells = self._segment.cells
        attested = cells[layout.cell_index(worker + 1, "attested_generation")]
        return cells[layout.cell_index(worker + 1, "goodbye_generation")] == attested != 0
