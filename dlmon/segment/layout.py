"""Where every byte of a segment is: the only place that states an offset.

A segment is one file in shared memory for one live DataLoader iterator::

    0        header     128 bytes: magic, version, where the rest is, ready
    128      table      one 64-byte entry per field: name, unit, scope, offset, count
    ...      info       JSON text: who and how configured; changes with slot 0, if at all
    ...      slot 0     the rank's cells                     64-byte aligned
    ...      slot 1..n  worker 0..n-1's cells                64-byte aligned

    slot     | lock cell | updating | updated | cell | ...   8 bytes each, one writer per slot

Every cell is a little-endian signed 64-bit integer at a multiple of 8, so that a store is one
machine store and no reader sees half of it. Times are nanoseconds of CLOCK_MONOTONIC, the one clock
that all processes of a boot share.

A writer holds a POSIX record lock on the first byte of its slot for as long as it lives: that, not
anything written here, says who is alive (`dlmon.segment.locks`).

Cells that must agree with each other are written between two stores of one and the same, ever
growing time: first to `updating`, last to `updated`. A reader takes them if both are equal, and the
same in the read before and in the next one. All others are single stores.

What a batch costs is counted in stores, so what can be derived is not stored
(`dlmon.segment.meaning`).

The first four bytes are fixed for ever. A new field is appended and raises MINOR; readers find
fields by name in the table. Anything else raises MAJOR.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

MAGIC = b"DLMONSEG"
MAJOR = 1
MINOR = 1

SUFFIX = ".seg"

CELL = 8
LINE = 64
HISTOGRAM_BUCKETS = 64
"""Bucket b counts durations whose `int.bit_length()` in nanoseconds is b: 2^(b-1) <= d < 2^b."""

HEADER = struct.Struct("<8sHHIQQIIQQQIIIIqQ")
"""magic, major, minor, header bytes, file bytes, table offset, table entries, entry bytes,
info offset, info bytes, slots offset, rank slot bytes, worker slot bytes, workers, reserved,
ready, creation time (CLOCK_REALTIME, nanoseconds)."""
HEADER_SIZE = 128
READY_OFFSET = struct.calcsize("<8sHHIQQIIQQQIIII")
ENTRY = struct.Struct("<40s12sIII")
"""name, unit, scope, offset within the slot, number of consecutive cells."""
ENTRY_SIZE = 64

INFO_SIZE = 8192
MAX_FILE_SIZE = 4 << 20
MAX_WORKERS = 4096
MAX_ENTRIES = 1024


class Scope(enum.IntEnum):
    """Which kind of slot a field is in."""

    RANK = 0
    WORKER = 1


class Phase(enum.IntEnum):
    """What a loader does now; values are those of `dlmon_loader_phase`."""

    IDLE = 0
    STARTUP = 1
    WAIT = 2
    STEP = 3
    PAUSE = 4
    TEARDOWN = 5


LOOP = 6
"""State of the cell `phase` while batches are delivered one after the other: Phase.WAIT since
`entered_ns` if that is after `updated`, else Phase.STEP since `updated`, the last delivery."""

NO_INDEX = -(1 << 63)
"""What the cell `fetch_index` holds if that fetch has no integer index: a stream's, or a key."""

STATE_BITS = 3
STATE_MASK = (1 << STATE_BITS) - 1
"""A state cell is `since << STATE_BITS | state`: both change in one store and always agree."""

ERRORS = ("fetch", "timeout", "worker_died", "pin_memory", "other")
"""Exceptions that reached the loop, by origin; the order is that of the cells `errors`."""

EXIT_REASONS = (
    "normal",
    "error",
    "sigkill",
    "sigsegv",
    "sigbus",
    "sigabrt",
    "sigterm",
    "other_signal",
    "oom_kill",
    "lost",
)
"""How workers ended; the order is that of the cells `worker_exits`."""

HOOKS = ("build", "iterator", "shutdown", "worker_loop", "map_fetch", "iterable_fetch", "dispatch")
"""What the shim could hook into this torch; bit i of the cell `hooks` is HOOKS[i]."""


@dataclass(frozen=True, slots=True)
class Field:
    """One named run of cells.

    Attributes:
        name: Unique within its scope.
        unit: `ns`, `count`, `state`, `id`, `bits` or `ticks`.
        scope: The kind of slot it is in.
        offset: Bytes from the start of the slot, a multiple of 8.
        count: Number of consecutive cells, 1 or more.
        meaning: One sentence for docs/segment.md.
    """

    name: str
    unit: str
    scope: Scope
    offset: int
    count: int
    meaning: str


_FETCH = (
    ("fetch_updating", "ns", 1, "stored first when the cells of this fetch group change"),
    ("fetch_updated", "ns", 1, "stored last, with the same time: when a fetch last ended"),
    ("fetch_begun", "ns", 1, "when the last fetch began; it is open if that is after the above"),
    ("fetch_failed", "count", 1, "fetches that raised an exception"),
    ("samples_each", "count", 1, "samples in the last batch; all batches having as many, plus …"),
    (
        "samples_base",
        "count",
        1,
        "… this, which corrects for those that had others, is all samples",
    ),
    ("fetch_ns", "ns", 1, "time in closed fetches, successful or not"),
    ("fetch_iteration", "id", 1, "the rank's `iterations` when this iteration's first fetch began"),
    ("fetched_before", "count", 1, "batches fetched when this iteration's first fetch began"),
    ("failed_before", "count", 1, "`fetch_failed` when this iteration's first fetch began"),
    ("fetch_histogram", "count", HISTOGRAM_BUCKETS, "batches fetched, by duration"),
    ("fetch_index", "id", 1, "the first sample index of the last fetch begun, or NO_INDEX"),
)

_RANK = (
    ("lock", "id", 1, "its first byte is locked while the rank lives; the value is not used"),
    ("updating", "ns", 1, "stored first when cells that must agree change"),
    ("updated", "ns", 1, "stored last, with the same time"),
    ("entered_ns", "ns", 1, "in state LOOP: when `next()` was last entered"),
    ("phase", "state", 1, "since << 3 | Phase, or LOOP"),
    ("startup_ns", "ns", 1, "closed time in phase startup"),
    ("wait_ns", "ns", 1, "closed time in phase wait"),
    ("step_ns", "ns", 1, "closed time in phase step"),
    ("pause_ns", "ns", 1, "closed time in phase pause"),
    ("teardown_ns", "ns", 1, "closed time in phase teardown"),
    ("gap_ns", "ns", 1, "step time of the open gap before `phase` began"),
    ("generation", "id", 1, "raised each time the segment is taken for a new iterator"),
    ("iterations", "count", 1, "iterations (epochs) started"),
    ("startups", "count", 1, "iterations whose first batch was delivered"),
    ("batches_before", "count", 1, "batches delivered when this iteration began"),
    ("last_delivery_ns", "ns", 1, "when the last batch was delivered; in state LOOP see `updated`"),
    ("last_iteration_ns", "ns", 1, "when the last iteration began"),
    ("dispatched", "count", 1, "tasks given to workers in this iteration"),
    ("raised", "count", 1, "tasks of this iteration that came back and gave the loop no batch"),
    ("timeouts", "count", 1, "expiries of the loader's `timeout`"),
    ("errors", "count", len(ERRORS), "exceptions that reached the loop, by ERRORS"),
    ("worker_starts", "count", 1, "worker processes started"),
    ("worker_exits", "count", len(EXIT_REASONS), "worker processes ended, by EXIT_REASONS"),
    ("last_abnormal_exit_ns", "ns", 1, "when a worker last ended abnormally, 0 if never"),
    ("goodbye", "state", 1, "1 once the rank has ended in order"),
    ("hooks", "bits", 1, "hooks in place, bit i for HOOKS[i]"),
    ("shim_errors", "count", 1, "errors inside the shim, swallowed"),
    ("wait_histogram", "count", HISTOGRAM_BUCKETS, "waits that delivered a batch, by duration"),
    ("step_histogram", "count", HISTOGRAM_BUCKETS, "steps a next() followed, by duration"),
    *_FETCH,
)

_WORKER = (
    ("lock", "id", 1, "its first byte is locked while the worker lives; the value is not used"),
    ("attested_generation", "id", 1, "the generation this worker was started for"),
    ("goodbye_generation", "id", 1, "equal to `attested_generation` once it ended in order"),
    ("pid", "id", 1, "the worker's pid in its own pid namespace"),
    ("start_ticks", "ticks", 1, "its start time, field 22 of /proc/<pid>/stat"),
    *_FETCH,
)


def _place(scope: Scope, rows: tuple[tuple[str, str, int, str], ...]) -> dict[str, Field]:
    fields = {}
    offset = 0
    for name, unit, count, meaning in rows:
        fields[name] = Field(name, unit, scope, offset, count, meaning)
        offset += count * CELL
    return fields


FIELDS: dict[Scope, dict[str, Field]] = {
    Scope.RANK: _place(Scope.RANK, _RANK),
    Scope.WORKER: _place(Scope.WORKER, _WORKER),
}


def align(offset: int, to: int = LINE) -> int:
    """Round `offset` up to a multiple of `to`."""
    return -(-offset // to) * to


def _slot_size(scope: Scope) -> int:
    return align(sum(field.count * CELL for field in FIELDS[scope].values()))


RANK_SLOT_SIZE = _slot_size(Scope.RANK)
WORKER_SLOT_SIZE = _slot_size(Scope.WORKER)
TABLE_OFFSET = HEADER_SIZE
TABLE_ENTRIES = sum(len(fields) for fields in FIELDS.values())
INFO_OFFSET = align(TABLE_OFFSET + TABLE_ENTRIES * ENTRY_SIZE)
SLOTS_OFFSET = INFO_OFFSET + INFO_SIZE


def slot_offset(slot: int) -> int:
    """Return the offset in bytes of slot `slot`: 0 is the rank's, i + 1 worker i's."""
    if slot == 0:
        return SLOTS_OFFSET
    return SLOTS_OFFSET + RANK_SLOT_SIZE + (slot - 1) * WORKER_SLOT_SIZE


def file_size(workers: int) -> int:
    """Return the size in bytes of a segment for `workers` workers."""
    return slot_offset(workers + 1)


def cell_index(slot: int, name: str) -> int:
    """Return where a field of a slot begins, counted in cells from the start of the file."""
    scope = Scope.RANK if slot == 0 else Scope.WORKER
    return (slot_offset(slot) + FIELDS[scope][name].offset) // CELL
