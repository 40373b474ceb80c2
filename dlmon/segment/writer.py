"""Make a segment (rank) and join one (worker): open once, map, lock, and never let go.

Closing any descriptor of the file would drop this process's lock on it, and a mapping holds a
descriptor of its own; a `Segment` is therefore kept for the life of the process (`_kept`).
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, locks
from dlmon.segment.layout import ENTRY, FIELDS, HEADER, Scope

_kept: list[Segment] = []


class Segment:
    """A mapped segment that this process writes to.

    Attributes:
        path: Where the file is.
        bytes: The mapping.
        cells: The whole file as signed 64-bit cells; index with `layout.cell_index`.
        workers: Number of worker slots.
    """

    __slots__ = ("bytes", "cells", "fd", "path", "workers")

    def __init__(self, path: str, fd: int, size: int, workers: int) -> None:
        self.path = path
        self.fd = fd
        self.workers = workers
        self.bytes = mmap.mmap(fd, size)
        self.cells = memoryview(self.bytes).cast("q")
        status = os.fstat(fd)
        files.own.add((status.st_dev, status.st_ino))
        _kept.append(self)

    def worker_held(self) -> bool:
        """Return whether another process holds the byte of any worker slot."""
        return any(
            locks.holder(self.fd, layout.slot_offset(slot)) is not None
            for slot in range(1, self.workers + 1)
        )

    def set_info(self, info: Mapping[str, object]) -> None:
        """Write the info text, if it is another; slot 0 must be marked as changing, once `ready`.

        Raises:
            SegmentError: It is too long.
        """
        text = json.dumps(info, ensure_ascii=True, separators=(",", ":")).encode()
        if len(text) > layout.INFO_SIZE:
            raise SegmentError(
                f"segment {self.path}: info has {len(text)} bytes, at most {layout.INFO_SIZE} fit",
                "info",
            )
        text = text.ljust(layout.INFO_SIZE, b"\0")
        if self.bytes[layout.INFO_OFFSET : layout.SLOTS_OFFSET] != text:
            self.bytes[layout.INFO_OFFSET : layout.SLOTS_OFFSET] = text


def create(directory: str, info: Mapping[str, object], workers: int) -> Segment:
    """Make a segment whose slot 0 this process holds.

    Runs in: rank. On failure: nothing is left behind. The file appears under its name only when
    it is complete and locked, so that no reader sees it unlocked or half made.

    Args:
        directory: From `files.choose`.
        info: Who and how configured; JSON values.
        workers: Number of worker slots, 0 to `layout.MAX_WORKERS`.

    Raises:
        SegmentError: The directory is full, gone or not writable, or the info does not fit.
    """
    if not 0 <= workers <= layout.MAX_WORKERS:
        raise SegmentError(
            f"{workers} workers asked for, a segment holds 0 to {layout.MAX_WORKERS}", "limit"
        )
    size = layout.file_size(workers)
    name = f"{os.getpid()}-{secrets.token_hex(6)}{layout.SUFFIX}"
    temporary = os.path.join(directory, files.TEMPORARY_PREFIX + name)
    path = os.path.join(directory, name)
    try:
        fd = _reserve(temporary, files.file_mode(directory), size)
        try:
            segment = Segment(path, fd, size, workers)
            if not locks.hold(fd, layout.slot_offset(0)):
                raise SegmentError(f"segment {temporary}: slot 0 is locked already", "io")
            _initialise(segment, info, size)
            os.rename(temporary, path)
        except BaseException:
            _discard(fd)
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise SegmentError(
            f"directory {directory}: no segment can be made ({error.strerror}); "
            "free some space there or set DLMON_DIR to another directory on tmpfs",
            "io",
        ) from None
    return segment


def attach(path: str, worker: int, generation: int) -> Segment | None:
    """Join a segment as worker `worker`, if it still is what this worker was started for.

    Runs in: worker. On failure: returns None, having written nothing; the worker then runs
    unobserved. The byte is taken first and the generation compared after, as the rank raises the
    generation first and looks at the bytes after: whatever the order of events, one of the two sees
    the other.

    Raises:
        OSError: It cannot be locked or mapped.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # gone, or this worker has become another user
        return None
    size = os.fstat(fd).st_size
    workers = (size - layout.slot_offset(1)) // layout.WORKER_SLOT_SIZE
    offset = layout.slot_offset(worker + 1)
    if worker >= workers or not locks.hold(fd, offset):
        os.close(fd)
        return None
    segment = Segment(path, fd, size, workers)
    if segment.cells[layout.cell_index(0, "generation")] != generation:
        _discard(fd)
        return None
    return segment


def _initialise(segment: Segment, info: Mapping[str, object], size: int) -> None:
    view = segment.bytes
    offset = layout.TABLE_OFFSET
    for scope in Scope:
        for field in FIELDS[scope].values():
            ENTRY.pack_into(
                view,
                offset,
                field.name.encode(),
                field.unit.encode(),
                scope,
                field.offset,
                field.count,
            )
            offset += layout.ENTRY_SIZE
    segment.set_info(info)
    HEADER.pack_into(
        view,
        0,
        layout.MAGIC,
        layout.MAJOR,
        layout.MINOR,
        layout.HEADER_SIZE,
        size,
        layout.TABLE_OFFSET,
        layout.TABLE_ENTRIES,
        layout.ENTRY_SIZE,
        layout.INFO_OFFSET,
        layout.INFO_SIZE,
        layout.SLOTS_OFFSET,
        layout.RANK_SLOT_SIZE,
        layout.WORKER_SLOT_SIZE,
        segment.workers,
        0,
        0,
        time.time_ns(),
    )
    segment.cells[layout.READY_OFFSET // layout.CELL] = 1


def _discard(fd: int) -> None:
    """Close what was made of a file that did not become a segment: a job may try again often."""
    status = os.fstat(fd)
    files.own.discard((status.st_dev, status.st_ino))
    for segment in [segment for segment in _kept if segment.fd == fd]:
        _kept.remove(segment)
        segment.cells.release()
        segment.bytes.close()
    os.close(fd)


def _reserve(path: str, mode: int, size: int) -> int:
    """Make a file with `size` bytes really there: no room is an error now, not a SIGBUS later."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.fchmod(fd, mode)  # the umask must not decide who may read
        os.posix_fallocate(fd, 0, size)
    except BaseException:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
        raise
    return fd
