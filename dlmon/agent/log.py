"""Logging to standard error, one line a message, as journals and people want it."""

from __future__ import annotations

import logging
import sys


class _OneLine(logging.Formatter):
    """Formats a record, its traceback included, without a line break."""

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(line.strip() for line in super().format(record).splitlines())


def configure(level: int = logging.INFO) -> None:
    """Send what the agent logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("dlmon")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False
