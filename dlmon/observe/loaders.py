"""What a segment's cells mean: readings become the values of a Loader. Pure functions.

Several segments can belong to one loader (two iterators at once, or another num_workers later):
their counters are summed, and what is a state is taken from the one that iterated last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlmon.catalog import LOADER_INFO, LOADER_LABELS
from dlmon.observe.snapshot import Histogram, Loader, Worker, WorkerState
from dlmon.observe.usage import Usage, of_worker
from dlmon.segment import layout, meaning, phases
from dlmon.segment.cells import Cells
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HOOKS, Phase
from dlmon.segment.reader import Reading

NANOSECONDS = 1_000_000_000
CONFIG = LOADER_INFO.labels[len(LOADER_LABELS) :]
"""What the rank says of a loader's configuration."""


@dataclass(frozen=True, slots=True)
class Clock:
    """One moment on both clocks, to turn CLOCK_MONOTONIC nanoseconds into Unix time."""

    unix: float
    monotonic_ns: int

    def moment(self, nanoseconds: int) -> float | None:
        """Return a Unix time, None for 0, which means never."""
        if nanoseconds <= 0:
            return None
        return self.unix - (self.monotonic_ns - nanoseconds) / NANOSECONDS


@dataclass(frozen=True, slots=True)
class Seen:
    """What the operating system says of one worker.

    Attributes:
        lives: The process that last attested to the slot still lives, whatever became of its lock.
        stopped, zombie: Its process state.
        pid, cpu_seconds, resident_bytes, process_state, started: As in `Worker`.
        usage: What else it uses.
    """

    lives: bool = False
    stopped: bool = False
    zombie: bool = False
    pid: int | None = None
    cpu_seconds: float | None = None
    resident_bytes: int | None = None
    process_state: str | None = None
    started: float | None = None
    usage: Usage = field(default_factory=Usage)


_OF_WORKERS = {"worker_loop", "dispatch", "shutdown"}


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of a loader, with what is known beside it.

    Attributes:
        reading: The segment.
        now_ns: Up to when open intervals count: the reading's time, or when its rank last lived.
        workers: One per worker slot.
        exits: What to add to the shim's `worker_exits`, by reason.
        last_abnormal_ns: When a worker was last noticed from outside to have died, 0 if never.
    """

    reading: Reading
    now_ns: int
    workers: tuple[Seen, ...]
    exits: Mapping[str, int] = field(default_factory=dict)
    last_abnormal_ns: int = 0

    @property
    def phase(self) -> Phase:
        """What the iterator does."""
        return meaning.phase(self.reading.rank)[0]


@dataclass(frozen=True, slots=True)
class Fill:
    """How full the prefetch queue is, in batches; clamped counts values that had to be bounded."""

    ready: int
    outstanding: int
    capacity: int
    reorder: int | None
    clamped: int


def loader(name: str, parts: Sequence[Part], clock: Clock) -> tuple[Loader, int]:
    """Return a loader's values and how many had to be bounded.

    Args:
        name: Its label.
        parts: Its segments, at least one.
        clock: When they were read.
    """
    newest = max(parts, key=lambda part: part.reading.rank["last_iteration_ns"])
    active = [part for part in parts if part.phase is not Phase.IDLE]
    shown = max(active, key=lambda p: p.reading.rank["last_iteration_ns"]) if active else newest
    fills = [fill(part) for part in active] or [Fill(0, 0, capacity(newest), None, 0)]
    ranks = [part.reading.rank for part in parts]
    groups = [group for part in parts for group in _fetch_groups(part)]
    reorders = [f.reorder for f in fills]
    found = Loader(
        name=name,
        config=config(newest.reading),
        phase=shown.phase,
        phase_seconds=_sum_phases([phase_seconds(p.reading.rank, p.now_ns) for p in parts]),
        epochs=_total(ranks, "iterations"),
        startups=_total(ranks, "startups"),
        batches=sum(max(0, meaning.batches(rank)) for rank in ranks),
        samples=sum(max(0, meaning.samples(group)) for group in groups),
        discarded=sum(discarded(part) for part in parts),
        ready=sum(f.ready for f in fills),
        outstanding=sum(f.outstanding for f in fills),
        capacity=sum(f.capacity for f in fills),
        reorder=None if None in reorders else sum(r or 0 for r in reorders),
        last_delivery=clock.moment(max(map(meaning.last_delivery, ranks))),
        last_epoch=clock.moment(max(rank["last_iteration_ns"] for rank in ranks)),
        wait=_histogram(ranks, "wait_histogram", "wait_ns"),
        step=_histogram(ranks, "step_histogram", "step_ns"),
        fetch=_histogram(groups, "fetch_histogram", "fetch_ns"),
        timeouts=_total(ranks, "timeouts"),
        errors=_by_name(ranks, "errors", ERRORS),
        worker_starts=_total(ranks, "worker_starts"),
        worker_exits=_exits(parts),
        last_abnormal_exit=clock.moment(max(map(_last_abnormal, parts))),
        workers=_workers(parts, clock),
        missing_hooks=tuple(sorted(set().union(*map(_missing_hooks, parts)))),
        phase_since=_phase_since(shown, clock),
    )
    return found, sum(f.clamped for f in fills)


def phase_seconds(rank: Cells, now_ns: int) -> dict[Phase, float]:
    """Return the time per phase, with what is certain of the open interval.

    Args:
        rank: Slot 0.
        now_ns: CLOCK_MONOTONIC up to which the open interval counts.
    """
    phase, since = meaning.phase(rank)
    spent = {
        Phase.STARTUP: rank["startup_ns"],
        Phase.WAIT: rank["wait_ns"],
        Phase.STEP: rank["step_ns"],
        Phase.PAUSE: rank["pause_ns"],
        Phase.TEARDOWN: rank["teardown_ns"],
    }
    elapsed = max(0, now_ns - since)
    usual = phases.usual_step(rank["step_ns"], meaning.steps(rank))
    gap = rank["gap_ns"]
    step = pause = 0
    if phase is Phase.WAIT:
        step, pause = phases.split_gap(gap or max(0, since - meaning.last_delivery(rank)), usual)
        spent[Phase.WAIT] += phases.open_wait(elapsed)
    elif phase is Phase.STEP:
        step, pause = phases.open_gap(gap + elapsed, usual)
    elif phase is Phase.PAUSE:
        step, pause = phases.open_gap(gap, usual)
        pause += elapsed
    elif phase is not Phase.IDLE:
        spent[phase] += elapsed
    spent[Phase.STEP] += step
    spent[Phase.PAUSE] += pause
    return {phase: max(0, nanoseconds) / NANOSECONDS for phase, nanoseconds in spent.items()}


def fill(part: Part) -> Fill:
    """Return how full the prefetch queue of one iterating segment is."""
    rank, limit = part.reading.rank, capacity(part)
    consumed = _consumed(rank)
    fetched = [_fetched_now(worker, rank) for worker in part.reading.workers]
    ready = sum(fetched) - consumed
    outstanding = rank["dispatched"] - consumed
    bounded = max(0, min(ready, limit))
    held = max(bounded, min(outstanding, limit))
    reorder = None
    if config(part.reading)["in_order"] == "true" and not part.reading.info.get("iterable"):
        reorder = bounded - min(bounded, _next_in_order(fetched, consumed))
    starting = part.phase is Phase.STARTUP  # dispatched is told at the first next() only
    clamped = 0 if starting else (bounded != ready) + (held != outstanding)
    return Fill(bounded, held, limit, reorder, clamped)


def capacity(part: Part) -> int:
    """Return num_workers x prefetch_factor, 0 without workers."""
    factor = config(part.reading)["prefetch_factor"]
    return part.reading.layout.workers * (min(int(factor), 1 << 20) if factor.isdecimal() else 0)


def discarded(part: Part) -> int:
    """Return the batches that were fetched in iterations that have ended and never delivered."""
    rank = part.reading.rank
    if part.phase is Phase.IDLE:
        return max(0, sum(map(meaning.fetched, _fetch_groups(part))) - meaning.batches(rank))
    now = rank["iterations"]
    before = sum(
        group["fetched_before"] if group["fetch_iteration"] == now else meaning.fetched(group)
        for group in _fetch_groups(part)
    )
    return max(0, before - rank["batches_before"])


def config(reading: Reading) -> dict[str, str]:
    """Return the labels of `dlmon_loader_info`, "" where the rank did not say."""
    return {key: _setting(reading, key) for key in CONFIG}


def _setting(reading: Reading, key: str) -> str:
    given = reading.info.get("config")
    return text(given.get(key, "")) if isinstance(given, dict) else ""


def text(value: object) -> str:
    """Return a value of an info text as at most 1,000 printable characters.

    Nothing and what is not a plain value becomes "": nesting is as deep as its writer wants.
    """
    if value is None or isinstance(value, (dict, list)):
        return ""
    shown = str(value)[:1000]
    return shown if shown.isprintable() else "".join(map(_printable, shown))


def _printable(character: str) -> str:
    return character if character.isprintable() else "\ufffd"


def _fetch_groups(part: Part) -> list[Cells]:
    """Return the slots that fetch: the workers, or the rank itself without any."""
    return list(part.reading.workers) or [part.reading.rank]


def _missing_hooks(part: Part) -> set[str]:
    """Return the hooks that a segment's writer lacks; 0 is one just made, or one without the cell.

    Without workers there is none to be started, to be given tasks or to be shut down.
    """
    bits = part.reading.rank["hooks"]
    without = {hook for i, hook in enumerate(HOOKS) if bits and not bits >> i & 1}
    return without if part.reading.layout.workers else without - _OF_WORKERS


def _consumed(rank: Cells) -> int:
    return meaning.batches(rank) - rank["batches_before"] + rank["raised"]


def _fetched_now(worker: Cells, rank: Cells) -> int:
    """Return how many tasks of the rank's current iteration a worker has done."""
    if worker["fetch_iteration"] != rank["iterations"]:
        return 0
    done = meaning.fetched(worker) + worker["fetch_failed"]
    return max(0, done - worker["fetched_before"] - worker["failed_before"])


def _next_in_order(fetched: Sequence[int], consumed: int) -> int:
    """Return how many batches could be delivered one after the other now.

    torch gives task t to worker t mod n: the first task that worker w has not done is its number
    of tasks done, times n, plus w.
    """
    undone = (done * len(fetched) + worker for worker, done in enumerate(fetched))
    return max(0, min(undone, default=consumed) - consumed)


def _workers(parts: Sequence[Part], clock: Clock) -> tuple[Worker, ...]:
    slots = max(part.reading.layout.workers for part in parts)
    return tuple(_worker(slot, parts, clock) for slot in range(slots))


def _worker(slot: int, parts: Sequence[Part], clock: Clock) -> Worker:
    """Sum one slot over a loader's segments; its state is that of the liveliest, then newest."""
    having = [part for part in parts if slot < part.reading.layout.workers]
    ups = [(worker_up(part, slot), part) for part in having]
    liveliness = {None: 0, False: 1, True: 2}
    up, shown = max(
        ups, key=lambda pair: (liveliness[pair[0]], pair[1].reading.rank["last_iteration_ns"])
    )
    cells = [part.reading.workers[slot] for part in having]
    seen = shown.workers[slot]
    progress = max(map(meaning.last_progress, cells), default=0)
    fetching = sum(_open_fetch(part, slot) for part in having)
    cpu = [p.workers[slot].cpu_seconds for p in having]
    known_cpu = [seconds for seconds in cpu if seconds is not None]
    return Worker(
        slot=slot,
        up=up,
        state=_state(up, shown, slot),
        pid=seen.pid if up else None,
        last_progress=clock.moment(progress),
        batches=sum(max(0, meaning.fetched(c)) for c in cells),
        samples=sum(max(0, meaning.samples(c)) for c in cells),
        failed=_total(cells, "fetch_failed"),
        fetch_seconds=(_total(cells, "fetch_ns") + fetching) / NANOSECONDS,
        cpu_seconds=sum(known_cpu) if known_cpu else None,
        resident_bytes=seen.resident_bytes if up else None,
        orphan=bool(up) and shown.reading.rank_holder is None,
        **_task(shown, slot, clock) if up is not None else {},
        process_state=seen.process_state if up else None,
        started=seen.started if up else None,
        **of_worker([p.workers[slot].usage for p in having], seen.usage if up else None),
    )


def _task(part: Part, slot: int, clock: Clock) -> dict[str, Any]:
    """Return what a worker of an iterating loader has to do, by attribute of `Worker`."""
    reading, cells = part.reading, part.reading.workers[slot]
    since = meaning.fetching_since(cells)
    return {
        "fetching_since": None if since is None else clock.moment(since),
        "fetch_index": meaning.fetch_index(cells),
        "fetch_samples": max(0, cells["samples_each"]),
        "owed": _owed(part, slot),
        "handed": _fetched_now(cells, reading.rank),
    }


def _owed(part: Part, slot: int) -> int | None:
    """Return the tasks given to a worker and not done, where it is plain who was given which.

    That is where torch gives task t to worker t mod n: not with `in_order=False`, and not once the
    streams of some workers have ended.
    """
    reading = part.reading
    known = _setting(reading, "in_order") == "true" and not reading.info.get("iterable")
    if not known or part.phase is Phase.IDLE or "dispatch" in _missing_hooks(part):
        return None
    workers, dispatched = reading.layout.workers, reading.rank["dispatched"]
    given = max(0, (dispatched - slot + workers - 1) // workers)
    return max(0, given - _fetched_now(reading.workers[slot], reading.rank))


def worker_up(part: Part, slot: int) -> bool | None:
    """Return whether a worker lives: True, False if it died, None if none is expected now.

    The kernel's answer counts. A byte that is free although the process that attested to it still
    lives was lost, by something closing a descriptor of the segment in the worker. Workers that did
    not say goodbye but whose iteration is over, with no abnormal exit, were ended by torch.
    """
    cells = part.reading.workers[slot]
    attested = cells["attested_generation"]
    if attested == 0 or attested != part.reading.rank["generation"]:
        return None  # starting, or of an iterator that is over
    if cells["goodbye_generation"] == attested:
        return None
    if part.reading.worker_holders[slot] is not None or part.workers[slot].lives:
        return True
    rank = part.reading.rank
    over = part.phase is Phase.IDLE and rank["last_abnormal_exit_ns"] <= rank["last_iteration_ns"]
    return None if over else False


def _state(up: bool | None, part: Part, slot: int) -> WorkerState | None:
    seen = part.workers[slot]
    if up is None:
        return None
    if not up:
        return WorkerState.ZOMBIE if seen.zombie else WorkerState.DEAD
    if seen.stopped:
        return WorkerState.STOPPED
    if meaning.fetching_since(part.reading.workers[slot]) is not None:
        return WorkerState.FETCHING
    return WorkerState.HANDING_OVER if _handing_over(part, slot) else WorkerState.IDLE


def _phase_since(part: Part, clock: Clock) -> float | None:
    phase, since = meaning.phase(part.reading.rank)
    return None if phase is Phase.IDLE else clock.moment(since)


def _handing_over(part: Part, slot: int) -> bool:
    """Return whether the rank waits for a batch that this worker has fetched."""
    rank = part.reading.rank
    if part.phase not in (Phase.WAIT, Phase.STARTUP):
        return False
    task, workers = _consumed(rank), part.reading.layout.workers
    fetched = _fetched_now(part.reading.workers[slot], rank)
    return task % workers == slot and fetched > task // workers


def _open_fetch(part: Part, slot: int) -> int:
    """Return the nanoseconds of a living worker's open fetch."""
    since = meaning.fetching_since(part.reading.workers[slot])
    if since is None or part.reading.worker_holders[slot] is None:
        return 0
    return max(0, part.reading.now_ns - since)


def _exits(parts: Sequence[Part]) -> dict[str, int]:
    counted = _by_name([part.reading.rank for part in parts], "worker_exits", EXIT_REASONS)
    return {
        reason: max(0, count + sum(part.exits.get(reason, 0) for part in parts))
        for reason, count in counted.items()
    }


def _last_abnormal(part: Part) -> int:
    return max(part.reading.rank["last_abnormal_exit_ns"], part.last_abnormal_ns)


def _total(cells: Sequence[Cells], name: str) -> int:
    return sum(max(0, c[name]) for c in cells)


def _sum_phases(parts: Sequence[Mapping[Phase, float]]) -> dict[Phase, float]:
    return {phase: sum(p[phase] for p in parts) for phase in parts[0]}


def _histogram(cells: Sequence[Cells], counts: str, total: str) -> Histogram:
    buckets = [0] * layout.HISTOGRAM_BUCKETS
    for c in cells:
        run = c.run(counts)[: layout.HISTOGRAM_BUCKETS]
        if any(run):  # of many workers, at every look: most buckets are empty
            buckets[: len(run)] = [
                b + n if n > 0 else b for b, n in zip(buckets, run, strict=False)
            ]
    return Histogram(tuple(buckets), _total(cells, total) / NANOSECONDS)


def _by_name(cells: Sequence[Cells], run: str, names: Sequence[str]) -> dict[str, int]:
    runs = [c.run(run) for c in cells]
    return {
        name: sum(max(0, cells[i]) for cells in runs if i < len(cells))
        for i, name in enumerate(names)
    }
