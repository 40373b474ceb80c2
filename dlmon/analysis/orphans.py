"""Workers that outlived their training process: pure functions of a Snapshot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from dlmon.analysis.sizes import size
from dlmon.observe.snapshot import Finding, Rank, Snapshot, Worker

AFTER_SECONDS = 10.0
"""Workers that look whether their rank lives, every 5 s, have ended by then."""


def findings(snapshot: Snapshot) -> Iterator[Finding]:
    """Yield one finding for each run and rank whose dead processes have left workers behind.

    Processes that others have replaced count as much as the one that is shown.
    """
    left: defaultdict[tuple[str, str], list[Rank]] = defaultdict(list)
    for rank in (*snapshot.ranks, *snapshot.superseded):
        died = rank.died or snapshot.time
        if not rank.up and rank.orphan_workers and snapshot.time - died >= AFTER_SECONDS:
            left[rank.run, rank.rank].append(rank)
    living = {(rank.run, rank.rank) for rank in snapshot.ranks if rank.up}
    for who, dead in left.items():
        yield _finding(dead, snapshot.time, replaced=who in living)


def _finding(dead: Sequence[Rank], now: float, *, replaced: bool) -> Finding:
    orphans = [
        (loader.name, worker)
        for rank in dead
        for loader in rank.loaders
        for worker in loader.workers
        if worker.orphan
    ]
    listed: dict[str, str] = {}
    for loader, worker in orphans:
        name = f"worker {worker.slot} of {loader}"
        listed[_unlike(name, listed)] = _described(worker)
    held = size(sum(worker.resident_bytes or 0 for _, worker in orphans))
    count, run, rank = sum(one.orphan_workers for one in dead), dead[0].run, dead[0].rank
    whose = f"rank {rank} of run {run}, which is dead,"
    if replaced:
        whose = f"an earlier process of rank {rank} of run {run}"
    words = ("worker", "lives", "holds") if count == 1 else ("workers", "live", "hold")
    sentence = f"{count} {words[0]} of {whose} {words[1]} on and {words[2]} {held}"
    since = min(one.died or now for one in dead)
    return Finding("orphan_workers", run, rank, "", "", since, sentence, listed)


def _unlike(name: str, taken: dict[str, str]) -> str:
    """Return a name that is not taken: two processes of a rank each have a worker 0."""
    unlike, number = name, 1
    while unlike in taken:
        number += 1
        unlike = f"{name} ({number})"
    return unlike


def _described(worker: Worker) -> str:
    memory = "" if worker.resident_bytes is None else f", RSS {size(worker.resident_bytes)}"
    return f"pid {worker.pid}, state {worker.process_state or 'not known'}{memory}"
