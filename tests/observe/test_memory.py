"""PSS and USS of real processes, and how seldom a scanner asks for them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlmon.observe import memory
from dlmon.observe.memory import Rollup, Scanner
from tests.jobs import Job, JobStarter

MB = 1_000_000
INTERVAL = 60.0

ROLLUP = Rollup(
    resident=300 * MB,
    proportional=150 * MB,
    unique=50 * MB,
    anonymous=250 * MB,
    private_dirty=40 * MB,
)


# --- one scan ---


def test_of_this_process_all_sizes_are_known_and_none_is_above_the_resident() -> None:
    seen = memory.scan(os.getpid())
    assert seen is not None
    assert 1 * MB < seen.unique <= seen.proportional <= seen.resident
    assert 1 * MB < seen.private_dirty <= seen.unique
    assert 1 * MB < seen.anonymous <= seen.resident


@pytest.mark.parametrize("pid", [2**31 - 1, 2**40, -1, 0])
def test_a_process_that_is_not_there_has_no_memory(pid: int) -> None:
    assert memory.scan(pid) is None


@pytest.mark.parametrize("text", ["", "x", "a\nRss: 1 kB\n", "a\nRss: one kB\n", "a\nRss 4 kB\n"])
def test_what_is_no_rollup_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Pss|Private|invalid literal"):
        memory.parse(text)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_users_process_may_not_be_scanned_and_is_not_asked_twice() -> None:
    looks = (
        "import os, sys; from dlmon.observe import memory\n"
        "os.setuid(65534)\n"
        "asked = []; scan = memory.scan\n"
        "memory.scan = lambda pid: asked.append(pid) or scan(pid)\n"
        "now = [0.0]\n"
        "scanner = memory.Scanner(1, 1, clock=lambda: now[0])\n"
        "for now[0] in range(100):\n"
        "    assert scanner.note('w', (int(sys.argv[1]), 1), 0) is None\n"
        "    scanner.run()\n"
        "print(len(asked))"
    )
    command = [sys.executable, "-c", looks, str(os.getpid())]
    assert subprocess.check_output(command, text=True, timeout=60) == "1\n"


# --- what a worker shares with its parent ---

FORKS = """
    import os, sys

    shared = bytearray(b"x") * 64_000_000

    def told():
        line = sys.stdin.readline().strip()
        print("told", line, flush=True)
        return line

    if os.fork():
        os.wait()
    else:
        print("child", os.getpid(), flush=True)
        kept = []
        while True:
            line = told()
            if line == "write":
                for at in range(0, len(shared), 4096):
                    shared[at] = 1
            if line == "allocate":
                kept.append(bytearray(b"y") * 64_000_000)
            print("done", line, flush=True)
"""


def child(job: Job) -> int:
    return int(job.wait_for_output("\n").split()[1])


def do(job: Job, what: str) -> None:
    job.tell(what)
    job.wait_for_output(f"done {what}\n")


def test_what_a_child_writes_to_is_copied_and_what_it_allocates_is_not(run_job: JobStarter) -> None:
    job = run_job(FORKS)
    pid = child(job)
    now = [0.0]
    scanner = Scanner(INTERVAL, 1, clock=lambda: now[0])

    def scanned() -> memory.Scanned:
        scanner.note("worker", (pid, 1), 0)
        now[0] += INTERVAL
        scanner.run()
        found = scanner.note("worker", (pid, 1), 0)
        assert found is not None
        return found

    first = scanned()
    assert first.copied == 0
    assert first.rollup.shared_anonymous > 60 * MB
    do(job, "allocate")
    grown = scanned()
    assert grown.copied < 1 * MB
    assert grown.rollup.unique - first.rollup.unique > 60 * MB
    do(job, "write")
    eroded = scanned()
    assert 60 * MB < eroded.copied < 70 * MB
    assert abs(eroded.rollup.resident - grown.rollup.resident) < 1 * MB


# --- when ---


class World:
    """A clock, and processes whose scans take as long as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ratio: float = 1.0) -> None:
        self.now = 1000.0
        self.cpu = 0.0
        self.cost = 0.001
        self.scans: list[tuple[float, int]] = []
        self.rollup = ROLLUP
        self.scanner = Scanner(INTERVAL, ratio, clock=lambda: self.now, cpu_clock=lambda: self.cpu)
        monkeypatch.setattr(memory, "scan", self.scan)

    def scan(self, pid: int) -> Rollup:
        self.scans.append((self.now, pid))
        self.now += self.cost
        self.cpu += self.cost
        return self.rollup

    def run(self, seconds: float, *pids: int, resident: int = 300 * MB, key: str = "") -> list[int]:
        """Look once a second; return who was scanned."""
        before = len(self.scans)
        end = self.now + seconds
        while self.now < end:
            for pid in pids:
                self.scanner.note(key or f"worker {pid}", (pid, 1), resident)
            self.scanner.run()
            self.now += 1
        return [pid for _, pid in self.scans[before:]]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_worker_is_scanned_soon_and_then_once_an_interval(world: World) -> None:
    assert world.run(5, 7) == [7]
    assert world.run(50, 7) == []
    assert world.run(10 * INTERVAL, 7) == [7] * 10


def test_what_grows_is_scanned_four_times_as_often(world: World) -> None:
    world.run(5, 7)
    assert world.run(15, 7, resident=400 * MB) == [7], "the resident memory has grown"
    world.rollup = dataclasses.replace(ROLLUP, unique=100 * MB)
    assert world.run(INTERVAL, 7) == [7]
    assert world.run(15, 7) == [7], "it had more of its own than at the scan before"
    assert world.run(45, 7) == []


def test_a_process_whose_scans_take_long_is_left_alone_for_long(world: World) -> None:
    world.cost = 0.3
    assert world.run(INTERVAL, 7) == [7]
    assert world.run(INTERVAL * (0.3 / memory.SLOW_SECONDS - 1) - 5, 7) == []
    assert world.run(10, 7) == [7]


def test_a_new_process_in_a_slot_waits_a_quarter_of_the_interval(world: World) -> None:
    assert world.run(5, 7, key="slot") == [7]
    assert world.run(8, 8, key="slot") == []
    assert world.run(10, 8, key="slot") == [8]


def test_of_a_new_process_nothing_of_the_one_before_is_told(world: World) -> None:
    world.run(5, 7, key="slot")
    assert world.scanner.note("slot", (7, 1), 0) is not None
    assert world.scanner.note("slot", (7, 2), 0) is None


def test_all_scans_together_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ratio=0.005)
    world.cost = 0.02
    world.run(1000, *range(1, 65))
    assert 0.004 < world.cpu / 1000 < 0.006
    counts = [sum(pid == one for _, pid in world.scans) for one in range(1, 65)]
    assert max(counts) - min(counts) <= 1, "nobody is passed over"


def test_without_a_budget_nothing_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World(monkeypatch, ratio=0).run(100, 7) == []


def test_a_scan_at_once_ends_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.cost = 0.2
    world.scanner = Scanner.at_once(0.5)
    world.scanner.clock, world.scanner.cpu_clock = lambda: world.now, lambda: world.cpu
    assert world.run(1, *range(1, 10)) == [1, 2, 3]


def test_who_is_spared_is_scanned_once_it_is_not_any_more(world: World) -> None:
    world.run(1, 7)
    world.now += INTERVAL
    world.scanner.spare(["worker 7"])
    world.scanner.run()
    assert world.scans == []
    world.scanner.spare([])
    world.scanner.run()
    assert len(world.scans) == 1


def test_who_is_gone_is_forgotten(world: World) -> None:
    world.run(5, 7)
    world.scanner.keep([])
    assert world.scanner.note("worker 7", (7, 1), 0) is None


def test_the_kernels_file_is_understood_as_it_is() -> None:
    text = Path("/proc/self/smaps_rollup").read_text()
    assert memory.parse(text).resident > 0
