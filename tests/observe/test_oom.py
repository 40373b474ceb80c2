"""Whether a kill was one for lack of memory: a real one, in a cgroup of the kernel's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.observe import processes
from dlmon.observe.oom import OomKills
from tests.jobs import wait_for
from tests.memory_cgroups import memory_cgroup

EATS = "input(); kept = [bytearray(b'x') * (1 << 20) for _ in range(500)]"


@pytest.fixture
def group() -> Iterator[Path]:
    with memory_cgroup(50 << 20) as directory:
        (directory / "memory.swappiness").write_text("0")
        yield directory


def state(pid: int) -> str:
    sample = processes.sample(pid)
    return "" if sample is None else sample.status


def test_a_kill_is_confirmed_though_the_dying_seem_to_have_left_their_cgroup(group: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", EATS], stdin=subprocess.PIPE) as eater:
        (group / "cgroup.procs").write_text(str(eater.pid))
        sample = processes.sample(eater.pid)
        assert sample is not None
        process = (eater.pid, sample.start_ticks)
        kills = OomKills()
        kills.follow(process)
        kills.read()
        assert eater.stdin is not None
        eater.stdin.write(b"\n")
        eater.stdin.flush()
        wait_for(lambda: state(eater.pid) == "Z", "a killed process that nobody waited for")
        assert "memory:/\n" in Path(f"/proc/{eater.pid}/cgroup").read_text()
        kills.follow(process)
        kills.read()
        assert kills.confirms(process)
