"""Looking at jobs from outside, as the agent does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Loader, Rank, Snapshot
from dlmon.segment.layout import Phase
from tests.jobs import Job

FACTS = "FACTS "


@contextmanager
def observer(directory: Path) -> Iterator[Observer]:
    """Observe one directory for a while."""
    observing = Observer([str(directory)])
    try:
        yield observing
    finally:
        observing.close()


def observe(directory: Path) -> Snapshot:
    """Look once."""
    with observer(directory) as observing:
        return observing.observe()


def only_rank(snapshot: Snapshot) -> Rank:
    """Return the one rank there is."""
    assert not snapshot.refused
    assert len(snapshot.ranks) == 1, snapshot
    return snapshot.ranks[0]


def loader(snapshot: Snapshot, name: str) -> Loader:
    """Return a loader of the only rank by its name."""
    found = {one.name: one for one in only_rank(snapshot).loaders}
    return found[name]


def facts(job: Job, number: int = 1) -> dict[str, Any]:
    """Wait for a job's line number `number` of facts, which it prints as FACTS and JSON."""

    def lines() -> list[str]:
        complete = job.output().rpartition("\n")[0].splitlines()
        return [line for line in complete if line.startswith(FACTS)]

    job.wait_for(lambda: len(lines()) >= number, f"facts number {number}")
    found: dict[str, Any] = json.loads(lines()[number - 1].removeprefix(FACTS))
    return found


def counters(one: Loader) -> dict[str, float]:
    """Return everything of a loader that must never go down."""
    values: dict[str, float] = {
        f"seconds {phase.name}": seconds for phase, seconds in one.phase_seconds.items()
    }
    assert set(one.phase_seconds) == set(Phase) - {Phase.IDLE}
    for name in ("epochs", "startups", "batches", "samples", "discarded", "timeouts"):
        values[name] = getattr(one, name)
    for name in ("wait", "step", "fetch"):
        values[f"{name} count"] = sum(getattr(one, name).counts)
        values[f"{name} sum"] = getattr(one, name).sum_seconds
    values["starts"] = one.worker_starts
    values.update({f"exit {reason}": count for reason, count in one.worker_exits.items()})
    values.update({f"error {kind}": count for kind, count in one.errors.items()})
    for worker in one.workers:
        values[f"worker {worker.slot} batches"] = worker.batches
        values[f"worker {worker.slot} fetch"] = worker.fetch_seconds
    return values
