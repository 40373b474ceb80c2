"""What keeps an error of ours from becoming an error of the job's.

Runs in: rank, worker. Every entry into the shim ends with `except Exception: swallow()`.
"""

from __future__ import annotations

import logging
import os

strict = os.environ.get("DLMON_STRICT") == "1"
"""In tests: raise what would be swallowed."""

errors = 0
"""Errors swallowed in this process."""

_log = logging.getLogger("dlmon")
_said: set[str] = set()


def swallow() -> None:
    """Count the exception being handled and go on; raise it again when `strict`."""
    global errors
    errors += 1
    if strict:
        raise  # noqa: PLE0704  # called from except blocks only
    _log.debug("error inside dlmon, the job is not affected", exc_info=True)


def warn_once(message: str) -> None:
    """Say something once per process, by logging, which no filter turns into an error."""
    if message not in _said:
        _said.add(message)
        _log.warning("dlmon: %s", message)
