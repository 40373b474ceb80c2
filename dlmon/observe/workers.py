"""What a loader's segments, and the operating system, say of its workers. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from dlmon.observe.parts import NANOSECONDS, Clock, Part
from dlmon.observe.snapshot import Worker, WorkerState
from dlmon.observe.usage import Usage
from dlmon.segment import meaning
from dlmon.segment.layout import Phase
from dlmon.segment.reader import Reading

_LIVELINESS = {None: 0, False: 1, True: 2}
_NO_USAGE = Usage()


def workers(parts: Sequence[Part], clock: Clock) -> tuple[Worker, ...]:
    """Return a loader's workers, one per slot, in order.

    Args:
        parts: Its segments, at least one.
        clock: When they were read.
    """
    counts = [part.reading.layout.workers for part in parts]
    most = max(counts)
    if min(counts) == most:
        return tuple(_worker(slot, parts, clock) for slot in range(most))
    return tuple(
        _worker(
            slot, [part for part, count in zip(parts, counts, strict=True) if slot < count], clock
        )
        for slot in range(most)
    )


def _worker(slot: int, parts: Sequence[Part], clock: Clock) -> Worker:
    """Sum one slot over a loader's segments; its state is that of the liveliest, then newest.

    What a cell or the operating system says below zero, or not at all, is left out.
    """
    batches = samples = failed = fetch_ns = progress = 0
    cpu: float | None = None
    read: int | None = None
    faults: int | None = None
    for part in parts:
        reading, seen = part.reading, part.workers[slot]
        cells = reading.workers[slot]
        if (fetched := meaning.fetched(cells)) > 0:
            batches += fetched
        if (more := meaning.samples(cells)) > 0:
            samples += more
        if (raised := cells["fetch_failed"]) > 0:
            failed += raised
        fetch_ns += _fetch_ns(reading, slot)
        if (moved := meaning.last_progress(cells)) > progress:
            progress = moved
        if seen.cpu_seconds is not None:
            cpu = seen.cpu_seconds + (cpu or 0.0)
        usage = seen.usage
        if usage.read_bytes is not None:
            read = usage.read_bytes + (read or 0)
        if usage.major_faults is not None:
            faults = usage.major_faults + (faults or 0)
    up, shown = _liveliest(slot, parts)
    cells, seen = shown.reading.workers[slot], shown.workers[slot]
    at_work = up is not None
    since = meaning.fetching_since(cells) if at_work else None
    usage = seen.usage if up else _NO_USAGE
    scanned = usage.scanned
    return Worker(
        slot=slot,
        up=up,
        state=_state(up, shown, slot, fetching=since is not None),
        pid=seen.pid if up else None,
        last_progress=clock.moment(progress),
        batches=batches,
        samples=samples,
        failed=failed,
        fetch_seconds=fetch_ns / NANOSECONDS,
        cpu_seconds=cpu,
        resident_bytes=seen.resident_bytes if up else None,
        orphan=bool(up) and shown.reading.rank_holder is None,
        process_state=seen.process_state if up else None,
        started=seen.started if up else None,
        fetching_since=None if since is None else clock.moment(since),
        fetch_index=meaning.fetch_index(cells) if at_work else None,
        fetch_samples=max(0, cells["samples_each"]) if at_work else 0,
        owed=_owed(shown, slot) if at_work else None,
        handed=shown.fetched[slot] if at_work else 0,
        proportional_bytes=scanned.rollup.proportional if scanned else None,
        unique_bytes=scanned.rollup.unique if scanned else None,
        scanned=scanned.time if scanned else None,
        read_bytes=read,
        major_faults=faults,
        open_fds=usage.open_fds,
        max_fds=usage.max_fds,
        anonymous_bytes=usage.anonymous_bytes,
        shm_bytes=usage.shm_bytes,
        copied_bytes=scanned.copied if scanned else None,
    )


def _fetch_ns(reading: Reading, slot: int) -> int:
    """Return the time in fetches; an open one counts, if its worker lives."""
    cells = reading.workers[slot]
    spent = max(0, cells["fetch_ns"])
    since = meaning.fetching_since(cells)
    if since is not None and reading.worker_holders[slot] is not None and reading.now_ns > since:
        spent += reading.now_ns - since
    return spent


def _liveliest(slot: int, parts: Sequence[Part]) -> tuple[bool | None, Part]:
    """Return the segment whose worker counts, and whether that worker lives."""
    if len(parts) == 1:
        return worker_up(parts[0], slot), parts[0]
    return max(
        ((worker_up(part, slot), part) for part in parts),
        key=lambda pair: (_LIVELINESS[pair[0]], pair[1].rank["last_iteration_ns"]),
    )


def worker_up(part: Part, slot: int) -> bool | None:
    """Return whether a worker lives: True, False if it died, None if none is expected now.

    The kernel's answer counts. A byte that is free although the process that attested to it still
    lives was lost, by something closing a descriptor of the segment in the worker. Workers that did
    not say goodbye but whose iteration is over, with no abnormal exit, were ended by torch.
    """
    cells, rank = part.reading.workers[slot], part.rank
    attested = cells["attested_generation"]
    if attested == 0 or attested != rank["generation"]:
        return None  # starting, or of an iterator that is over
    if cells["goodbye_generation"] == attested:
        return None
    if part.reading.worker_holders[slot] is not None or part.workers[slot].lives:
        return True
    over = part.phase is Phase.IDLE and rank["last_abnormal_exit_ns"] <= rank["last_iteration_ns"]
    return None if over else False


def _owed(part: Part, slot: int) -> int | None:
    """Return the tasks given to a worker and not done, where it is plain who was given which.

    That is where torch gives task t to worker t mod n.
    """
    if part.dispatched is None:
        return None
    count = part.reading.layout.workers
    given = max(0, (part.dispatched - slot + count - 1) // count)
    return max(0, given - part.fetched[slot])


def _state(up: bool | None, part: Part, slot: int, *, fetching: bool) -> WorkerState | None:
    seen = part.workers[slot]
    if up is None:
        return None
    if not up:
        return WorkerState.ZOMBIE if seen.zombie else WorkerState.DEAD
    if seen.stopped:
        return WorkerState.STOPPED
    if fetching:
        return WorkerState.FETCHING
    return WorkerState.HANDING_OVER if _handing_over(part, slot) else WorkerState.IDLE


def _handing_over(part: Part, slot: int) -> bool:
    """Return whether the rank waits for a batch that this worker has fetched."""
    if part.phase not in (Phase.WAIT, Phase.STARTUP):
        return False
    task, count = part.consumed, part.reading.layout.workers
    return task % count == slot and part.fetched[slot] > task // count
