"""What waits in the prefetch queue is what torch's queues hold, and the books always balance."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.observe.snapshot import Loader
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import counters, facts, loader, observer

JOB = """
    import json
    import random
    import sys
    import time

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Uneven(Dataset):
        def __len__(self):
            return 4000

        def __getitem__(self, index):
            time.sleep(0.03 if index % 3 else 0.001)  # worker 0 falls behind: batches are held
            return torch.tensor(index)


    def held(iterator):
        # What was fetched and not delivered: in the result queue, or here out of order.
        waiting = [task for task in iterator._task_info.values() if len(task) == 2]
        return iterator._worker_result_queue.qsize() + len(waiting)


    def main():
        loader = dlmon.name(
            DataLoader(
                Uneven(), batch_size=1, num_workers=3, prefetch_factor=4, persistent_workers=True
            ),
            "train",
        )
        for epoch in range(2):
            number = 0
            for batch in loader:
                number += 1
                time.sleep(0.005)
                if number % 10 == 0 and number <= 30:
                    print("FACTS {}", flush=True)
                    while input() == "stopped":  # the workers are
                        print("FACTS", json.dumps({"held": held(loader._iterator)}), flush=True)
                if number == 35:
                    break
        print("FACTS {}", flush=True)
        input()


    if __name__ == "__main__":
        main()
"""


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop processes for a while, with SIGSTOP."""
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: all(_state(pid) == "T" for pid in pids), "stopped workers")
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_ready_is_what_the_queues_hold_also_after_a_broken_epoch(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    numbers = itertools.count(1)
    reordered = 0
    with observer(segment_dir) as observing:

        def balanced(workers: list[int]) -> list[Loader]:
            """Compare while nothing moves; what a worker has counted it may not have sent yet."""
            stale = observing.observe().stale_reads_total
            with stopped(workers):
                job.tell("stopped")
                held = facts(job, next(numbers))["held"]
                snapshot = observing.observe()
            if snapshot.stale_reads_total > stale:  # one was stopped while it counted
                return []
            seen = loader(snapshot, "train")
            assert held <= seen.ready <= held + len(workers)
            assert seen.ready <= seen.outstanding <= seen.capacity == 12
            return [seen] if seen.ready == held else []

        for _ in range(6):  # three times in each of two epochs
            facts(job, next(numbers))
            workers = [w.pid for w in loader(observing.observe(), "train").workers if w.pid]
            assert len(workers) == 3
            (seen,) = wait_for(functools.partial(balanced, workers), "balance of stopped workers")
            reordered += seen.reorder or 0
            job.tell()
        facts(job, next(numbers))
    assert reordered > 0  # the uneven worker did hold some back
    job.tell()
    job.finish()


BALANCE = """
    import json
    import time

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Quick(Dataset):
        def __len__(self):
            return 120

        def __getitem__(self, index):
            time.sleep(0.001)
            return torch.tensor(index)


    def main():
        loader = DataLoader(Quick(), batch_size=2, num_workers=2, persistent_workers=PERSISTENT)
        delivered = 0
        for epoch in range(5):
            for number, batch in enumerate(loader):
                delivered += 1
                time.sleep(0.004)
                if epoch % 2 and number == 20:
                    break
        print("FACTS", json.dumps({"delivered": delivered}), flush=True)
        input()


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("persistent", [False, True], ids=["fresh", "persistent"])
def test_books_balance_at_every_look_and_no_counter_goes_down(
    persistent: bool, run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(BALANCE.replace("PERSISTENT", repr(persistent)))
    before: dict[str, float] = {}
    labels: set[str] = set()
    with observer(segment_dir) as observing:
        job.wait_for(lambda: observing.observe().ranks, "rank")
        while not _delivered(job):
            seen = loader(observing.observe(), "loader")
            assert 0 <= seen.ready <= seen.outstanding <= seen.capacity == 4
            now = counters(seen)
            assert [name for name in before if now[name] < before[name]] == []
            labels = labels or set(now)
            assert set(now) == labels
            before = now
        delivered = facts(job)["delivered"]
        seen = loader(observing.observe(), "loader")
        snapshot = observing.observe()
    assert seen.batches == delivered == 3 * 60 + 2 * 21
    assert sum(seen.fetch.counts) == _fetched(seen) == seen.batches + seen.discarded
    assert seen.epochs == 5
    assert seen.discarded > 0
    assert snapshot.segments == 1  # one, recycled
    job.tell()
    job.finish()


def _delivered(job: Job) -> bool:
    return "FACTS" in job.output()


def _fetched(seen: Loader) -> int:
    return sum(worker.batches for worker in seen.workers)
