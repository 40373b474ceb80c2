"""The segments of other processes in this one's directory: whose child it is, what nobody uses.

Runs in: rank, when its first iterator is made. On failure: they are left as they are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from time import monotonic_ns
from typing import Any

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, locks, reader
from dlmon.shim import _run

STALE_SECONDS = 3600
HALF_MADE_SECONDS = 60


def root_of_ancestor(identity: Mapping[str, Any]) -> str | None:
    """Return the root of a living ancestor that is in the same run and has the same rank."""
    with suppress(SegmentError, OSError, ValueError):
        directory = files.choose(identity["dir"])
        names = files.segment_names(directory)
        for pid in _run.ancestors():
            theirs = [name for name in names if name.startswith(f"{pid}-")]
            infos = (_living_info(os.path.join(directory, name)) for name in theirs)
            info = next(filter(None, infos), {})  # all of one process say the same
            if info and all(info.get(key) == identity[key] for key in ("run", "rank")):
                return str(info.get("root"))
    return None


def _living_info(path: str) -> Mapping[str, Any]:
    """Return the info text of a segment whose rank lives, {} if it does not."""
    with suppress(OSError, SegmentError):
        reading = _read(path)
        if reading.rank_holder is not None:
            return reading.info
    return {}


def _read(path: str) -> reader.Reading:
    segment = reader.SegmentFile(path, owner=os.getuid())
    try:
        return segment.read(monotonic_ns())
    finally:
        segment.close()


def remove_stale(directory: str) -> None:
    """Remove this user's segments whose writers are all gone: ended in order, or long ago.

    Segments of this process are not opened: closing one again would drop its locks.
    """
    now = time.time()
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            half_made = entry.name.startswith(files.TEMPORARY_PREFIX)
            if not entry.name.endswith(layout.SUFFIX):
                continue
            with suppress(OSError, SegmentError):
                status = entry.stat(follow_symlinks=False)
                age = now - status.st_ctime
                if status.st_uid != os.getuid() or (status.st_dev, status.st_ino) in files.own:
                    continue
                if (half_made and age <= HALF_MADE_SECONDS) or _locked(entry.path):
                    continue  # most of them: what its rank still writes need not be read
                if half_made or _unused(entry.path, age):
                    os.unlink(entry.path)


def _locked(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return locks.holder(fd, layout.slot_offset(0)) is not None
    finally:
        os.close(fd)


def _unused(path: str, age: float) -> bool:
    reading = _read(path)
    pid, began = reading.info.get("pid"), reading.info.get("start_ticks")
    lost_its_lock = isinstance(pid, int) and began and began == _run.start_ticks(pid)
    held = (reading.rank_holder, *reading.worker_holders)
    alive = lost_its_lock or any(holder is not None for holder in held)
    return not alive and (bool(reading.rank["goodbye"]) or age > STALE_SECONDS)
