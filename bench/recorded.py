"""What was really recorded: a variant that records nothing costs wonderfully little.

After each block every variant has to show that it saw all of it, by counts of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlmon.segment import meaning, reader
from dlmon.shim import _guard, _patch


class NotRecordedError(Exception):
    """A variant did not record what was iterated, so that its figures would mean nothing."""


def require(variant: str, what: str, counted: int, expected: int) -> None:
    """Make sure that a count is what it must be.

    Raises:
        NotRecordedError: It is not.
    """
    if counted != expected:
        raise NotRecordedError(
            f"{variant} recorded {counted} {what}, the loop had {expected}: it did not measure "
            "what this compares, and no figure of it is of any use"
        )


def require_by_dlmon(iterator: Iterator[Any], delivered: int, fetched: int) -> None:
    """Make sure that dlmon recorded an iteration, exactly, and without an error of its own.

    The cells are decoded as the agent decodes them. They are taken from this process's mapping:
    closing the file after reading it would drop the lock that says who lives.

    Args:
        iterator: The DataLoader's, alive.
        delivered: Batches that the loop got from it.
        fetched: Batches that were fetched for it, by whoever fetches; 0 with no hook there.

    Raises:
        NotRecordedError: Something differs.
    """
    session = _patch.session()
    recorder = session.live.get(id(iterator)) if session is not None else None
    if recorder is None:
        raise NotRecordedError(
            "dlmon does not observe the iterator: it is switched off (DLMON_DISABLE) or could not "
            "make a segment; run again with DLMON_STRICT=1 to see the error"
        )
    segment = recorder.segment
    data = bytes(segment.bytes)
    layout = reader.parse(segment.path, data, len(data))
    rank, *workers = (layout.cells(data, slot) for slot in range(layout.workers + 1))
    iteration = rank["iterations"]
    seen = sum(
        meaning.fetched(slot) - slot["fetched_before"]
        for slot in (workers or [rank])
        if slot["fetch_iteration"] == iteration
    )
    require("dlmon", "batches delivered", meaning.batches(rank) - rank["batches_before"], delivered)
    require("dlmon", "batches fetched", seen, fetched)
    require("dlmon", "errors of its own", _guard.errors + rank["shim_errors"], 0)
