"""Segments made by hand: right ones of any minor version, and such as are wrong in one place."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlmon.segment import layout
from dlmon.segment.layout import CELL, ENTRY, FIELDS, HEADER, LINE, Scope
from dlmon.segment.reader import Reading, SegmentFile

HEADER_NAMES = (
    "magic",
    "major",
    "minor",
    "header_size",
    "size",
    "table",
    "entries",
    "entry_size",
    "info_offset",
    "info_size",
    "slots",
    "rank_slot_size",
    "worker_slot_size",
    "workers",
    "reserved",
    "ready",
    "created",
)

Row = tuple[bytes, bytes, int, int, int]
"""An entry of the table: name, unit, scope, offset, count."""

CellValues = Mapping[tuple[int, str], "int | Sequence[int]"]
"""By slot and field; several for a run of cells."""

INFO: dict[str, Any] = {
    "run": "forged",
    "rank": "0",
    "root": "4000-5000",
    "pid": 4000,
    "start_ticks": 5000,
    "loader": "train",
    "user": "ada",
    "script": "train.py",
    "iterable": False,
    "config": {"dataset": "Photos", "num_workers": "2", "prefetch_factor": "2", "in_order": "true"},
}
CREATED = 1_750_000_000_000_000_000
"""2025-06-15 15:06:40 UTC."""


def rows() -> list[Row]:
    """Return the table of this release."""
    return [
        (field.name.encode(), field.unit.encode(), int(scope), field.offset, field.count)
        for scope in Scope
        for field in FIELDS[scope].values()
    ]


def forge(
    *,
    workers: int = 2,
    info: Mapping[str, Any] | bytes = INFO,
    table: Sequence[Row] | None = None,
    slot_sizes: tuple[int, int] = (layout.RANK_SLOT_SIZE, layout.WORKER_SLOT_SIZE),
    header_size: int = layout.HEADER_SIZE,
    entry_size: int = layout.ENTRY_SIZE,
    cells: CellValues | None = None,
    header: Mapping[str, Any] | None = None,
) -> bytes:
    """Return the bytes of a segment.

    Args:
        workers: Worker slots that are really there.
        info: The info text, or values for one.
        table: Entries, those of this release by default.
        slot_sizes: Bytes of the rank's and of a worker's slot.
        header_size, entry_size: Larger than today's, as a later minor version may have them.
        cells: What they hold.
        header: What the header says instead of the truth, by `HEADER_NAMES`.
    """
    entries = rows() if table is None else list(table)
    text = info if isinstance(info, bytes) else json.dumps(info).encode()
    info_size = max(layout.INFO_SIZE, len(text))
    info_offset = layout.align(header_size + len(entries) * entry_size)
    slots = layout.align(info_offset + info_size)
    data = bytearray(slots + slot_sizes[0] + workers * slot_sizes[1])
    for i, entry in enumerate(entries):
        ENTRY.pack_into(data, header_size + i * entry_size, *entry)
    data[info_offset : info_offset + len(text)] = text
    for (slot, name), values in (cells or {}).items():
        start = slots + (slot_sizes[0] + (slot - 1) * slot_sizes[1] if slot else 0)
        place = (name.encode(), min(slot, 1))
        offset = start + next(e[3] for e in entries if (e[0], e[2]) == place)
        run = [values] if isinstance(values, int) else values
        struct.pack_into(f"<{len(run)}q", data, offset, *run)
    truth = {
        "magic": layout.MAGIC,
        "major": layout.MAJOR,
        "minor": layout.MINOR,
        "header_size": header_size,
        "size": len(data),
        "table": header_size,
        "entries": len(entries),
        "entry_size": entry_size,
        "info_offset": info_offset,
        "info_size": info_size,
        "slots": slots,
        "rank_slot_size": slot_sizes[0],
        "worker_slot_size": slot_sizes[1],
        "workers": workers,
        "reserved": 0,
        "ready": 1,
        "created": CREATED,
    }
    HEADER.pack_into(data, 0, *{**truth, **(header or {})}.values())
    return bytes(data)


def future_minor() -> bytes:
    """Return a segment of a later minor version: fields, header, table and slots have grown."""
    table = rows()
    ends = {scope: max(e[3] + e[4] * CELL for e in table if e[2] == scope) for scope in (0, 1)}
    table.insert(3, (b"gpu_copy_ns", b"ns", 0, ends[0], 1))
    table.append((b"temperature", b"kelvin", 1, ends[1], 1))
    table.append((b"pages", b"count", 1, ends[1] + CELL, 3))
    return forge(
        header={"minor": layout.MINOR + 1},
        table=table,
        header_size=layout.HEADER_SIZE + LINE,
        entry_size=layout.ENTRY_SIZE + 32,
        slot_sizes=(layout.RANK_SLOT_SIZE + 5 * LINE, layout.WORKER_SLOT_SIZE + 3 * LINE),
        info={**INFO, "cluster": {"node": "n17", "cards": [0, 1]}},
        cells={
            **busy(),
            (0, "gpu_copy_ns"): 1_500_000,
            (1, "temperature"): 310,
            (1, "pages"): (1, 2, 3),
            (2, "pages"): (4, 5, 6),
        },
    )


NOW_NS = 1_000_000_000_000
"""When the cells of `busy` were so, on CLOCK_MONOTONIC."""


def busy() -> CellValues:
    """Return the cells of a loader that waits: worker 0 ended an epoch ago, worker 1 fetches."""
    delivered, entered = NOW_NS - 2_000_000_000, NOW_NS - 1_900_000_000
    return {
        (0, "updating"): delivered,
        (0, "updated"): delivered,
        (0, "entered_ns"): entered,
        (0, "phase"): delivered << layout.STATE_BITS | layout.LOOP,
        (0, "startup_ns"): 350_000_000,
        (0, "wait_ns"): 60_000_000,
        (0, "step_ns"): 1_200_000_000,
        (0, "pause_ns"): 65_000_000_000,
        (0, "generation"): 2,
        (0, "iterations"): 2,
        (0, "startups"): 2,
        (0, "batches_before"): 10,
        (0, "last_delivery_ns"): NOW_NS - 73_000_000_000,
        (0, "last_iteration_ns"): NOW_NS - 3_000_000_000,
        (0, "dispatched"): 7,
        (0, "errors"): (1, 0, 0, 0, 0),
        (0, "worker_starts"): 4,
        (0, "worker_exits"): (1, 0, 1),
        (0, "last_abnormal_exit_ns"): NOW_NS - 90_000_000_000,
        (0, "hooks"): 0b1011111,
        (0, "wait_histogram"): [0] * 21 + [8, 0, 4],
        (0, "step_histogram"): [0] * 27 + [12],
        (1, "attested_generation"): 1,
        (1, "goodbye_generation"): 1,
        (1, "pid"): 4001,
        (1, "start_ticks"): 5001,
        (1, "fetch_updating"): NOW_NS - 4_000_000_000,
        (1, "fetch_updated"): NOW_NS - 4_000_000_000,
        (1, "fetch_begun"): NOW_NS - 4_040_000_000,
        (1, "samples_each"): 4,
        (1, "fetch_ns"): 240_000_000,
        (1, "fetch_iteration"): 1,
        (1, "fetch_histogram"): [0] * 26 + [6],
        (2, "attested_generation"): 2,
        (2, "goodbye_generation"): 1,
        (2, "pid"): 4012,
        (2, "start_ticks"): 5040,
        (2, "fetch_updating"): NOW_NS - 1_950_000_000,
        (2, "fetch_updated"): NOW_NS - 1_950_000_000,
        (2, "fetch_begun"): NOW_NS - 1_940_000_000,
        (2, "fetch_failed"): 1,
        (2, "samples_each"): 4,
        (2, "samples_base"): -2,
        (2, "fetch_ns"): 410_000_000,
        (2, "fetch_iteration"): 2,
        (2, "fetched_before"): 6,
        (2, "fetch_histogram"): [0] * 26 + [8, 1],
    }


def read(path: Path, now_ns: int = NOW_NS) -> Reading:
    """Read a segment once."""
    file = SegmentFile(str(path))
    try:
        return file.read(now_ns)
    finally:
        file.close()


def put(directory: Path, data: bytes, name: str = "forged.seg") -> Path:
    """Write a segment's bytes to a private file and return its path."""
    path = directory / name
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    return path
