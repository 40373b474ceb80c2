"""Read segments from outside, trusting nothing in them.

Files are read with pread into this process's memory, never mapped: a file cut short under a mapping
kills the reader with SIGBUS. Every count and offset is checked before it is used.

Runs in: agent and the commands. On failure: SegmentError, nothing else.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, locks
from dlmon.segment.cells import Cells, Layout, Places, Units, stamps
from dlmon.segment.layout import CELL, ENTRY, HEADER, Scope

ATTEMPTS = 3
"""How often a slot is read again while its writer is in the middle of an update."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One segment as it was at one moment.

    Attributes:
        path: The file.
        layout: How it is laid out.
        info: Who and how configured, as the rank wrote it.
        rank: Slot 0.
        workers: Slots 1 to n, each read before slot 0 was, so that what workers have fetched is
            never newer than what the rank has taken.
        rank_holder: pid that holds slot 0's byte, 0 for one not visible from here, None for nobody.
        worker_holders: The same per worker.
        now_ns: CLOCK_MONOTONIC before anything was read.
        stale: Slots served from an earlier read, or as found, because a writer was in the middle.
    """

    path: str
    layout: Layout
    info: Mapping[str, object]
    rank: Cells
    workers: tuple[Cells, ...]
    rank_holder: int | None
    worker_holders: tuple[int | None, ...]
    now_ns: int
    stale: int


class SegmentFile:
    """One open segment, read again and again.

    Attributes:
        path: For messages.
        uid: The file's owner.
    """

    def __init__(self, path: str, *, owner: int | None = None, dir_fd: int | None = None) -> None:
        """Open and check a segment.

        Args:
            path: The file; only its last part is used when `dir_fd` is given.
            owner: The uid the file must belong to, None for any.
            dir_fd: The directory to open it in.

        Raises:
            SegmentError: It is not a readable segment of a release this one knows.
        """
        self.path = path
        self._good: dict[int, Cells] = {}
        self._info_text = b""
        self._info: Mapping[str, object] = {}
        name = os.path.basename(path) if dir_fd is not None else path
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            _check_file(path, status, owner)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self.fd = os.open(name, flags, dir_fd=dir_fd)
        except OSError as error:
            raise SegmentError(f"segment {path}: {error.strerror}", "io") from None
        try:
            status = os.fstat(self.fd)
            _check_file(path, status, owner)
            self.uid = status.st_uid
            self.layout = parse(path, self._pread(status.st_size), status.st_size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; reading it again raises."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, now_ns: int) -> Reading:
        """Read every slot once, each consistent in itself.

        Args:
            now_ns: CLOCK_MONOTONIC in nanoseconds, taken before the call.

        Raises:
            SegmentError: The file was cut short or its info is not readable.
        """
        plan = self.layout
        reads = [self._whole() for _ in range(4)]
        still = reads[0] == reads[1] == reads[2] == reads[3]
        unsettled: list[tuple[int, list[bytes]]] = []
        cells = {}
        for slot in range(plan.workers, -1, -1):
            if still:
                raws = [plan.raw(reads[0], slot)]
                known = self._good.get(slot)
                if known is not None and known.raw == raws[0]:
                    cells[slot] = known  # nothing was written since it was settled
                    continue
            else:
                raws = [plan.raw(read, slot) for read in (reads[:3] if slot else reads[1:])]
            if plan.settled(raws, slot):
                cells[slot] = self._good[slot] = plan.made_of(raws[len(raws) // 2], slot)
            else:
                unsettled.append((slot, (raws * 2)[-2:]))
        stale = 0
        for slot, window in unsettled:
            cells[slot], missed = self._again(slot, window)
            stale += missed
        if not self._info_text or all(slot != 0 for slot, _ in unsettled):
            self._read_info(reads[2])  # changed together with slot 0, if at all
        holders = [locks.holder(self.fd, plan.slot_offset(i)) for i in range(plan.workers + 1)]
        workers = tuple(cells[slot] for slot in range(1, plan.workers + 1))
        return Reading(
            path=self.path,
            layout=plan,
            info=self._info,
            rank=cells[0],
            workers=workers,
            rank_holder=holders[0],
            worker_holders=tuple(holders[1:]),
            now_ns=now_ns,
            stale=stale,
        )

    def _read_info(self, data: bytes) -> None:
        offset, size = self.layout.info
        text = data[offset : offset + size]
        if text != self._info_text:
            self._info = parse_info(self.path, text)
            self._info_text = text

    def _again(self, slot: int, last_two: list[bytes]) -> tuple[Cells, int]:
        """Read one slot until it settles; else serve what was read last (missed: 1)."""
        plan = self.layout
        window = last_two
        for _ in range(ATTEMPTS):
            window = [*window[-2:], plan.raw(self._whole(), slot)]
            if plan.settled(window, slot):
                self._good[slot] = found = plan.made_of(window[1], slot)
                return found, 0
        return self._good.get(slot, plan.made_of(window[-1], slot)), 1

    def _whole(self) -> bytes:
        data = self._pread(self.layout.size)
        if len(data) != self.layout.size:
            raise _cut_short(self.path, len(data), self.layout.size)
        return data

    def _pread(self, size: int) -> bytes:
        try:
            return os.pread(self.fd, size, 0)
        except OSError as error:
            raise SegmentError(f"segment {self.path}: {error.strerror}", "io") from None


def parse(path: str, data: bytes, file_size: int) -> Layout:
    """Check a segment's header and table and return what they say.

    Args:
        path: For messages.
        data: The file's bytes.
        file_size: The file's size in bytes, as it was before `data` was read.

    Raises:
        SegmentError: Anything is not as `dlmon.segment.layout` defines it.
    """
    header = _parse_identity(path, data, file_size)
    _, _, minor, header_size, size, table, entries, entry_size = header[:8]
    info_offset, info_size, slots, rank_size, worker_size, workers, _, _, created = header[8:]
    _bound(path, "header size", header_size, layout.HEADER_SIZE, file_size)
    if size != file_size:
        raise SegmentError(
            f"segment {path}: header says {size} bytes, the file has {file_size}", "bounds"
        )
    _bound(path, "workers", workers, 0, layout.MAX_WORKERS)
    _bound(path, "table entries", entries, 1, layout.MAX_ENTRIES)
    _bound(path, "table entry size", entry_size, ENTRY.size, 4096)
    _bound(path, "table offset", table, header_size, size - entries * entry_size)
    _bound(path, "info size", info_size, 2, 1 << 20)
    _bound(path, "info offset", info_offset, header_size, size - info_size)
    for name, slot_size in (("rank slot size", rank_size), ("worker slot size", worker_size)):
        _bound(path, name, slot_size, CELL, size)
        _aligned(path, name, slot_size, layout.LINE)
    _bound(path, "slots offset", slots, header_size, size)
    _aligned(path, "slots offset", slots, layout.LINE)
    end = slots + rank_size + workers * worker_size
    if end != size:
        raise SegmentError(f"segment {path}: slots end at {end}, the file at {size}", "bounds")
    places, units = _parse_table(path, data, table, entries, entry_size, (rank_size, worker_size))
    return Layout(
        size,
        workers,
        minor,
        (info_offset, info_size),
        slots,
        (rank_size, worker_size),
        places,
        units,
        (stamps(places[0]), stamps(places[1])),
        created,
    )


def _parse_identity(path: str, data: bytes, file_size: int) -> tuple[Any, ...]:
    """Return the header's fields, if the file is a finished segment of this layout."""
    if len(data) < layout.HEADER_SIZE:
        raise SegmentError(
            f"segment {path}: has {len(data)} bytes, a header has {layout.HEADER_SIZE}", "bounds"
        )
    if len(data) != file_size:
        raise _cut_short(path, len(data), file_size)
    header = HEADER.unpack_from(data)
    magic, major, minor = header[:3]
    ready = header[-2]
    if magic != layout.MAGIC:
        raise SegmentError(f"segment {path}: magic {magic!r}, expected {layout.MAGIC!r}")
    if major != layout.MAJOR:
        raise SegmentError(
            f"segment {path}: layout {major}.{minor}, this release reads {layout.MAJOR}.x; "
            f"upgrade {'the agent' if major > layout.MAJOR else 'dlmon in the job'}",
            "version",
        )
    if ready != 1:
        raise SegmentError(f"segment {path}: ready is {ready}, expected 1", "not_ready")
    return header


def parse_info(path: str, data: bytes) -> dict[str, object]:
    """Decode the info text.

    Raises:
        SegmentError: It is not a JSON object.
    """
    try:
        info = json.loads(data.rstrip(b"\0"))
    except (ValueError, RecursionError) as error:
        raise SegmentError(f"segment {path}: info is not JSON ({error})", "info") from None
    if not isinstance(info, dict):
        raise SegmentError(
            f"segment {path}: info is a {type(info).__name__}, expected an object", "info"
        )
    return info


def _parse_table(
    path: str, data: bytes, table: int, entries: int, entry_size: int, slot_sizes: tuple[int, int]
) -> tuple[tuple[Places, Places], tuple[Units, Units]]:
    firsts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    runs: tuple[dict[str, slice], dict[str, slice]] = ({}, {})
    units: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for i in range(entries):
        raw, unit, scope, offset, count = ENTRY.unpack_from(data, table + i * entry_size)
        name = raw.rstrip(b"\0").decode("ascii", "replace")
        if scope not in (Scope.RANK, Scope.WORKER):
            raise SegmentError(f"segment {path}: field {name!r} has scope {scope}, expected 0 or 1")
        _aligned(path, f"offset of field {name!r}", offset, CELL)
        _bound(path, f"cells of field {name!r}", count, 1, slot_sizes[scope] // CELL)
        _bound(path, f"offset of field {name!r}", offset, 0, slot_sizes[scope] - count * CELL)
        if name in firsts[scope]:
            raise SegmentError(f"segment {path}: field {name!r} stands twice in the table")
        first = firsts[scope][name] = offset // CELL
        runs[scope][name] = slice(first, first + count)
        units[scope][name] = unit.rstrip(b"\0").decode("ascii", "replace")
    return (Places(firsts[0], runs[0]), Places(firsts[1], runs[1])), units


def _check_file(path: str, status: os.stat_result, owner: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise SegmentError(f"segment {path}: not a regular file", "owner")
    if status.st_nlink != 1:
        raise SegmentError(f"segment {path}: has {status.st_nlink} links, expected 1", "owner")
    if owner is not None and status.st_uid != owner:
        raise SegmentError(
            f"segment {path}: belongs to uid {status.st_uid}, expected {owner}", "owner"
        )
    if (status.st_dev, status.st_ino) in files.own:
        raise SegmentError(
            f"segment {path}: is written by this very process, whose locks reading would drop; "
            "read it from another process",
            "owner",
        )
    if not layout.HEADER_SIZE <= status.st_size <= layout.MAX_FILE_SIZE:
        raise SegmentError(
            f"segment {path}: has {status.st_size} bytes, "
            f"expected {layout.HEADER_SIZE} to {layout.MAX_FILE_SIZE}",
            "bounds",
        )


def _cut_short(path: str, size: int, expected: int) -> SegmentError:
    return SegmentError(
        f"segment {path}: has {size} bytes, expected {expected}; it was cut short", "bounds"
    )


def _bound(path: str, what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise SegmentError(f"segment {path}: {what} is {value}, expected {low} to {high}", "bounds")


def _aligned(path: str, what: str, value: int, to: int) -> None:
    if value % to:
        raise SegmentError(f"segment {path}: {what} is {value}, expected a multiple of {to}")
