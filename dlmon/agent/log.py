"""Logging to standard error, one line a message, as journals and people want it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress


class _OneLine(logging.Formatter):
    """Formats a record, its traceback included, without a line break."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines())


def configure(level: int = logging.INFO, limit: int | None = None) -> None:
    """Send what the agent logs to standard error.

    Args:
        level: The least that is logged.
        limit: Bytes at which to begin anew, if standard error is a file opened for appending.
    """
    handler = logging.StreamHandler(sys.stderr)
    if limit is not None:
        handler.addFilter(_emptying(limit))
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("dlmon")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False


def _emptying(limit: int) -> Callable[[logging.LogRecord], bool]:
    def empty(_: logging.LogRecord) -> bool:
        with suppress(OSError):
            if os.fstat(sys.stderr.fileno()).st_size >= limit:
                os.ftruncate(sys.stderr.fileno(), 0)
        return True

    return empty
