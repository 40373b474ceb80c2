"""What a snapshot says of the memory of a real job: workers' PSS and USS, and the cgroup's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlmon.observe import memory, processes, ranks
from dlmon.observe.memory import Rollup, Scanner
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Process, Snapshot, Worker
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import facts, loader, only_rank

JOB = """
    import os, sys
    import dlmon
    dlmon.instrument()
    import torch
    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        open_ones = [open(os.devnull) for _ in range(50)]
        train = DataLoader(list(range(100_000)), num_workers=2)
        iterator = iter(train)
        for _ in range(4):
            next(iterator)
        print("FACTS {}", flush=True)
        input()
"""


@pytest.fixture
def job(run_job: JobStarter) -> Job:
    job = run_job(JOB)
    facts(job)
    return job


@contextmanager
def observing(directory: Path, scanner: Scanner | None = None) -> Iterator[Observer]:
    observer = Observer([str(directory)], scanner=scanner)
    try:
        yield observer
    finally:
        observer.close()


def workers(snapshot: Snapshot) -> tuple[Worker, ...]:
    return loader(snapshot, "train").workers


def scanned(observer: Observer) -> Snapshot:
    """Observe until all workers are scanned."""

    def look() -> Snapshot | None:
        snapshot = observer.observe()
        return snapshot if all(worker.scanned for worker in workers(snapshot)) else None

    found = wait_for(look, "scans")
    assert found is not None
    return found


def test_workers_have_their_sizes_and_share_most_of_it(job: Job, segment_dir: Path) -> None:
    with observing(segment_dir, Scanner(0.1, 1.0)) as observer:
        snapshot = scanned(observer)
    for worker in workers(snapshot):
        assert worker.unique_bytes is not None
        assert worker.proportional_bytes is not None
        assert worker.resident_bytes is not None
        assert 0 < worker.unique_bytes < worker.proportional_bytes < worker.resident_bytes
        assert worker.unique_bytes < worker.resident_bytes / 2
        assert worker.anonymous_bytes is not None
        assert worker.anonymous_bytes <= worker.resident_bytes
        assert worker.copied_bytes is not None
        assert worker.open_fds is not None
        assert worker.open_fds > 50
        assert worker.max_fds is None or worker.max_fds >= worker.open_fds
        assert worker.read_bytes is not None
        assert worker.major_faults is not None
    path = only_rank(snapshot).process.cgroup
    assert path is not None
    assert path in Path(f"/proc/{job.pid}/cgroup").read_text()
    assert set(snapshot.cgroups) == {path}
    with observing(segment_dir) as observer:  # without a scanner there is no PSS and no USS
        snapshots = [observer.observe() for _ in range(3)]
    assert {worker.unique_bytes for worker in workers(snapshots[-1])} == {None}
    assert all(worker.anonymous_bytes for worker in workers(snapshots[-1]))


def test_workers_of_a_rank_are_not_scanned_while_it_is_throttled(
    job: Job, segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    throttled = [0.0]
    asked: list[int] = []
    real = processes.rank_process, memory.scan

    def rank_process(pid: int) -> Process:
        throttled[0] += 0.1
        return dataclasses.replace(real[0](pid), cpu_throttled_seconds=throttled[0])

    def scan(pid: int) -> Rollup | None:
        asked.append(pid)
        return real[1](pid)

    monkeypatch.setattr(ranks, "SELDOM_SECONDS", 0.0)
    monkeypatch.setattr(processes, "rank_process", rank_process)
    monkeypatch.setattr(memory, "scan", scan)
    scanner = Scanner(0.1, 0.0)
    with observing(segment_dir, scanner) as observer:
        observer.observe()  # that it is more than before is known from the second look on
        scanner.cpu_budget_ratio = 1.0
        for _ in range(20):
            observer.observe()
        assert asked == []
        monkeypatch.setattr(processes, "rank_process", real[0])
        scanned(observer)
        assert job.pid not in asked
