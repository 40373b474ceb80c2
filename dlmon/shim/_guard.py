"""What keeps an error of ours from becoming an error of the job's.

Runs in: rank, worker. Every entry into the shim ends with `except Exception: swallow()`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

strict = os.environ.get("DLMON_STRICT") == "1"
"""In tests: raise what would be swallowed."""

errors = 0
"""Errors swallowed in this process."""

_log = logging.getLogger("dlmon")
_said: set[str] = set()


def swallow() -> None:
    """Count the exception being handled and go on; raise it again when `strict`.

    What a signal handler raised while one of ours ran is not ours: it is raised again.
    """
    global errors
    pass_on_a_signal_handlers()
    errors += 1
    if strict:
        raise  # noqa: PLE0704
    kind = type(sys.exc_info()[1]).__name__
    try:
        warn_once(
            f"an error inside dlmon ({kind}): the job is not affected, but may be observed in part "
            "only; the logger `dlmon` has the traceback at level DEBUG",
            kind="error",
        )
        _log.debug("error inside dlmon, the job is not affected", exc_info=True)
    except Exception:  # a handler of the job's that fails, an exception that cannot be shown
        pass_on_a_signal_handlers()


def pass_on_a_signal_handlers() -> None:
    """Raise the exception being handled again if a signal handler raised it."""
    if _from_signal_handler():
        raise  # noqa: PLE0704  # called from except blocks only


def _from_signal_handler() -> bool:
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    trace = sys.exc_info()[2]
    while trace is not None:
        if trace.tb_frame.f_code in handlers:
            return True
        trace = trace.tb_next
    return False


def _code(handler: object) -> object:
    """Return the code that a handler (function, method, partial, object) runs, None if none."""
    call = getattr(handler, "func", handler)
    method = vars(type(call)).get("__call__")
    return getattr(call, "__code__", None) or getattr(method, "__code__", None)


def warn_once(message: str, kind: str = "") -> None:
    """Say something once per process, by logging, which no filter turns into an error.

    Args:
        message: What to say.
        kind: Say only one message of this kind.
    """
    if (kind or message) not in _said:
        _said.add(kind or message)
        _log.warning("dlmon: %s", message)
