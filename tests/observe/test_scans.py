"""Scans in a thread of their own: whom they wait for keeps nobody else waiting."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dlmon.observe import memory, scans
from dlmon.observe.memory import Rollup, Scanner
from dlmon.observe.observer import Observer
from dlmon.observe.scans import Scans
from tests.jobs import JobStarter, wait_for
from tests.observing import facts, loader

STUCK = 2**31 - 2
"""No process has that pid."""

JOB = """
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        train = DataLoader(list(range(100_000)), num_workers=2)
        iterator = iter(train)
        print("FACTS {}", flush=True)
        while input():
            next(iterator)
            print("FACTS {}", flush=True)
"""


class Lock:
    """The mmap lock of every process, as far as scans know; held until it is let go."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.free = threading.Event()
        self._scan = memory.scan

    def scan(self, pid: int) -> Rollup | None:
        self.asked.append(pid)
        self.free.wait(60)
        return self._scan(pid)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lock]:
    held = Lock()
    monkeypatch.setattr(memory, "scan", held.scan)
    yield held
    held.free.set()


def test_snapshots_go_on_while_the_scan_of_a_worker_waits(
    run_job: JobStarter, segment_dir: Path, lock: Lock
) -> None:
    job = run_job(JOB)
    facts(job)
    scanner = Scanner(0.1, 1.0)
    scanning = Scans(scanner)
    observer = Observer([str(segment_dir)], scanner=scanner, scan=scanning.run)

    def asked() -> bool:
        observer.observe()
        return bool(lock.asked)

    with closing(scanning), closing(observer):
        wait_for(asked, "a scan")
        for number in range(2, 5):
            job.tell("next")
            facts(job, number)
            train = loader(observer.observe(), "train")
            assert train.batches == number - 1
            assert all(worker.resident_bytes for worker in train.workers)
            assert [worker.unique_bytes for worker in train.workers] == [None, None]
        assert len(lock.asked) == 1, "the others wait too"
        lock.free.set()
        wait_for(
            lambda: all(w.unique_bytes for w in loader(observer.observe(), "train").workers),
            "scans of all workers",
        )


def test_who_holds_up_the_scans_is_logged_once(
    lock: Lock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr("dlmon.observe.scans.time.monotonic", lambda: now[0])
    scanner = Scanner(0.0, 1.0, clock=lambda: now[0])
    scanner.note("worker", (STUCK, 1), 0)
    with closing(Scans(scanner)) as scanning:
        scanning.run()
        wait_for(lambda: lock.asked, "the scan")
        now[0] += scans.STUCK_SECONDS - 1
        scanning.run()
        assert caplog.records == []
        for _ in range(3):
            now[0] += 2
            scanning.run()
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"the scan of process {STUCK} has been waiting for 61 s" in record.message


def test_notes_are_taken_while_a_scan_waits_and_nothing_of_it_is_told_of_another_process(
    lock: Lock,
) -> None:
    scanner = Scanner(0.0, 1.0)
    scanner.note("gone", (os.getpid(), 1), 0)
    scanner.note("kept", (os.getpid(), 1), 0)
    with closing(Scans(scanner)) as scanning:
        scanning.run()
        wait_for(lambda: lock.asked, "the scan")
        assert scanner.note("kept", (os.getpid(), 2), 0) is None
        scanner.note("new", (os.getpid(), 1), 0)
        scanner.keep(["kept", "new"])
        lock.free.set()

        def all_scanned() -> bool:
            scanning.run()
            return all(
                scanner.note(key, (os.getpid(), ticks), 0)
                for key, ticks in (("kept", 2), ("new", 1))
            )

        wait_for(all_scanned, "scans of those that are left")
        assert scanner.note("gone", (os.getpid(), 1), 0) is None


def test_scans_that_fail_are_logged_once_and_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    nobody = STUCK - 1

    def fails(pid: int) -> Rollup | None:
        if pid != nobody:  # the thread of another test, which is not waited for
            return None
        asked.append(pid)
        raise RuntimeError("no scan")

    monkeypatch.setattr(memory, "scan", fails)
    scanner = Scanner(0.0, 1.0)
    scanner.note("worker", (nobody, 1), 0)
    with closing(Scans(scanner)) as scanning:

        def again() -> bool:
            scanning.run()
            return len(asked) > 2

        wait_for(again, "further scans")
    assert len(caplog.records) == 1
