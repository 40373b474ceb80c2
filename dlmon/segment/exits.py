"""How a process ended: which of `layout.EXIT_REASONS` an exit code is. Standard library only."""

from __future__ import annotations

import signal

_BY_SIGNAL = {
    signal.SIGKILL: "sigkill",
    signal.SIGSEGV: "sigsegv",
    signal.SIGBUS: "sigbus",
    signal.SIGABRT: "sigabrt",
    signal.SIGTERM: "sigterm",
}


def reason(exitcode: int) -> str:
    """Return which of `layout.EXIT_REASONS` an exit code as of `multiprocessing` is.

    Runs in: rank, agent.

    Args:
        exitcode: 0 to 255, or the negative number of the signal that ended it.
    """
    if exitcode == 0:
        return "normal"
    if exitcode > 0:
        return "error"
    return next((r for s, r in _BY_SIGNAL.items() if s == -exitcode), "other_signal")
