"""What a segment's cells mean: readings become the values of a Loader. Pure functions.

Several segments can belong to one loader (two iterators at once, or another num_workers later):
their counters are summed, and what is a state is taken from the one that iterated last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlmon.observe.parts import NANOSECONDS, Clock, Part
from dlmon.observe.snapshot import Histogram, Loader
from dlmon.observe.workers import workers
from dlmon.segment import layout, meaning, phases
from dlmon.segment.cells import Cells
from dlmon.segment.layout import ERRORS, EXIT_REASONS, Phase


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
    newest = max(parts, key=lambda part: part.rank["last_iteration_ns"])
    active = [part for part in parts if part.phase is not Phase.IDLE]
    shown = max(active, key=lambda p: p.rank["last_iteration_ns"]) if active else newest
    fills = [fill(part) for part in active] or [Fill(0, 0, newest.capacity, None, 0)]
    ranks = [part.rank for part in parts]
    groups = [group for part in parts for group in part.groups]
    reorders = [f.reorder for f in fills]
    its_workers = workers(parts, clock)
    alone = [part.rank for part in parts if not part.reading.workers]
    found = Loader(
        name=name,
        config=newest.config,
        phase=shown.phase,
        phase_seconds=_sum_phases([phase_seconds(p.rank, p.now_ns) for p in parts]),
        epochs=_total(ranks, "iterations"),
        startups=_total(ranks, "startups"),
        batches=sum(max(0, meaning.batches(rank)) for rank in ranks),
        samples=sum(w.samples for w in its_workers)
        + sum(max(0, meaning.samples(rank)) for rank in alone),
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
        workers=its_workers,
        missing_hooks=tuple(sorted(set().union(*(part.missing_hooks for part in parts)))),
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
    consumed, limit = part.consumed, part.capacity
    ready = sum(part.fetched) - consumed
    outstanding = part.rank["dispatched"] - consumed
    bounded = max(0, min(ready, limit))
    held = max(bounded, min(outstanding, limit))
    reorder = bounded - min(bounded, _next_in_order(part)) if part.in_turn else None
    starting = part.phase is Phase.STARTUP  # dispatched is told at the first next() only
    clamped = 0 if starting else (bounded != ready) + (held != outstanding)
    return Fill(bounded, held, limit, reorder, clamped)


def _next_in_order(part: Part) -> int:
    """Return how many batches could be delivered one after the other now.

    torch gives task t to worker t mod n: the first task that worker w has not done is its number
    of tasks done, times n, plus w.
    """
    fetched = part.fetched
    undone = (done * len(fetched) + worker for worker, done in enumerate(fetched))
    return max(0, min(undone, default=part.consumed) - part.consumed)


def discarded(part: Part) -> int:
    """Return the batches that were fetched in iterations that have ended and never delivered."""
    rank = part.rank
    if part.phase is Phase.IDLE:
        return max(0, sum(map(meaning.fetched, part.groups)) - meaning.batches(rank))
    now = rank["iterations"]
    before = sum(
        group["fetched_before"] if group["fetch_iteration"] == now else meaning.fetched(group)
        for group in part.groups
    )
    return max(0, before - rank["batches_before"])


def _phase_since(part: Part, clock: Clock) -> float | None:
    phase, since = meaning.phase(part.rank)
    return None if phase is Phase.IDLE else clock.moment(since)


def _exits(parts: Sequence[Part]) -> dict[str, int]:
    counted = _by_name([part.rank for part in parts], "worker_exits", EXIT_REASONS)
    return {
        reason: max(0, count + sum(part.exits.get(reason, 0) for part in parts))
        for reason, count in counted.items()
    }


def _last_abnormal(part: Part) -> int:
    return max(part.rank["last_abnormal_exit_ns"], part.last_abnormal_ns)


def _total(cells: Sequence[Cells], name: str) -> int:
    return sum(max(0, c[name]) for c in cells)


def _sum_phases(parts: Sequence[Mapping[Phase, float]]) -> dict[Phase, float]:
    return {phase: sum(p[phase] for p in parts) for phase in parts[0]}


def _histogram(cells: Sequence[Cells], counts: str, total: str) -> Histogram:
    most = layout.HISTOGRAM_BUCKETS
    none = (0,) * most
    runs = [none, *(c.run(counts) for c in cells)]
    if any(len(run) != most for run in runs) or any(c.below_zero(counts) for c in cells):
        runs = [tuple(max(0, number) for number in (*run, *none)[:most]) for run in runs]
    buckets = tuple(map(sum, zip(*runs, strict=True)))
    return Histogram(buckets, _total(cells, total) / NANOSECONDS)


def _by_name(cells: Sequence[Cells], run: str, names: Sequence[str]) -> dict[str, int]:
    runs = [c.run(run) for c in cells]
    return {
        name: sum(max(0, cells[i]) for cells in runs if i < len(cells))
        for i, name in enumerate(names)
    }
