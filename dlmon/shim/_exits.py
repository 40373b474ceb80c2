"""Count how an iterator's workers ended, from the exit codes that their parent has.

Runs in: rank. `Process.exitcode` asks without waiting, as torch itself does all the time.
"""

from __future__ import annotations

import signal
from time import monotonic_ns
from typing import Any

from dlmon.segment.layout import EXIT_REASONS
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

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def record(self, cells: memoryview[int], iterator: Any) -> None:
        """Count the workers of `iterator` that have ended since the last call."""
        for worker, process in enumerate(getattr(iterator, "_workers", ())):
            exitcode = getattr(process, "exitcode", None)
            if exitcode is None or worker in self._seen:
                continue
            self._seen.add(worker)
            kind = reason(exitcode)
            cells[EXITS + EXIT_REASONS.index(kind)] += 1
            if kind != "normal":
                cells[LAST_ABNORMAL_EXIT] = monotonic_ns()
