"""What processes read, hold open and map, asked for in turns."""

from __future__ import annotations

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dlmon.observe import usage
from dlmon.observe.memory import Scanner
from dlmon.observe.processes import Sample, numbers
from dlmon.observe.usage import Usage, Usages
from tests.jobs import wait_for

MB = 1_000_000


def sampled(start_ticks: int = 1, major_faults: int = 0) -> Sample:
    return Sample("S", 1.0, 4096, start_ticks, major_faults=major_faults)


def test_of_this_process_everything_is_known() -> None:
    seen = usage.look_at(os.getpid())
    assert seen.read_bytes is not None
    assert seen.read_bytes >= 0
    assert seen.open_fds is not None
    assert abs(seen.open_fds - len(os.listdir("/proc/self/fd"))) <= 1
    assert seen.max_fds == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert seen.anonymous_bytes is not None
    assert seen.anonymous_bytes > MB


def test_what_is_in_shared_memory_is_told_apart_from_the_rest() -> None:
    before = usage.look_at(os.getpid())
    with mmap.mmap(-1, 16 * MB) as shared:
        shared.write(b"x" * 16 * MB)
        after = usage.look_at(os.getpid())
    assert before.shm_bytes is not None
    assert after.shm_bytes is not None
    assert 15 * MB < after.shm_bytes - before.shm_bytes < 18 * MB


def test_of_a_process_that_is_gone_everything_is_absent() -> None:
    assert usage.look_at(2**31 - 1) == Usage()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_of_another_users_process_is_absent() -> None:
    looks = (
        "import os, sys; from dlmon.observe import usage\n"
        "os.setuid(65534)\n"
        "seen = usage.look_at(int(sys.argv[1]))\n"
        "print(seen.read_bytes, seen.max_fds, seen.anonymous_bytes > 0)"
    )
    looked = subprocess.check_output(
        [sys.executable, "-c", looks, str(os.getpid())], text=True, timeout=60
    )
    assert looked == "None None True\n"


def test_counts_go_on_over_the_processes_of_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    read = {10: 500, 11: 70}
    monkeypatch.setattr(usage, "look_at", lambda pid: Usage(read_bytes=read[pid], open_fds=pid))
    usages = Usages()
    assert usages.gone("slot") == Usage()
    first = usages.add("slot", (10, 1), sampled(major_faults=4))
    assert first == Usage(read_bytes=500, major_faults=4, open_fds=10)
    assert usages.gone("slot") == Usage(read_bytes=500, major_faults=4)
    second = usages.add("slot", (11, 1), sampled(major_faults=1))
    assert second == Usage(read_bytes=570, major_faults=5, open_fds=11)
    usages.keep(set())
    assert usages.gone("slot") == Usage()


def test_workers_that_start_together_are_looked_at_in_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    looks: list[tuple[float, int]] = []

    def look_at(pid: int) -> Usage:
        looks.append((now[0], pid))
        return Usage()

    monkeypatch.setattr("dlmon.observe.usage.time.monotonic", lambda: now[0])
    monkeypatch.setattr(usage, "look_at", look_at)
    usages = Usages()
    for second in range(31):
        now[0] = 100.0 + second
        for pid in range(1, 129):
            usages.add(f"slot {pid}", (pid, 1), sampled())
    assert [pid for when, pid in looks if when == 100] == list(range(1, 129)), "all at first"
    later = [when for when, _ in looks if when > 120]
    assert 110 <= len(later) <= 146, "then each one every ten seconds"
    assert max(later.count(when) for when in set(later)) < 40


def test_what_a_scan_found_is_told_and_forgotten_with_the_process() -> None:
    usages = Usages(Scanner(0.1, 1))
    pid = os.getpid()
    assert usages.add("slot", (pid, 1), sampled()).scanned is None

    def seen() -> bool:
        usages.finish()
        return usages.add("slot", (pid, 1), sampled()).scanned is not None

    wait_for(seen, "scan")
    assert usages.add("slot", (pid, 2), sampled(start_ticks=2)).scanned is None


def test_numbers_of_a_file_are_found_by_name(tmp_path: Path) -> None:
    file = tmp_path / "status"
    file.write_text("a: 5\nab: 6 kB\nb:\t  7 kB\nc: x\nd:\n")
    assert numbers(str(file), "a", "b") == {"a": 5, "b": 7168}
    assert numbers(str(file), "ab", "missing") == {"ab": 6144}
    assert numbers(str(file), "a", "c") == {"a": 5}
    assert numbers(str(file), "d") == {}
    assert numbers(str(tmp_path / "none"), "a") == {}
