"""What is asked of a training process at every look, and what only now and then."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dlmon.observe import ranks
from dlmon.observe.ranks import Ranks
from dlmon.observe.snapshot import Process
from tests.jobs import JobStarter, wait_for
from tests.memory_cgroups import freezer_cgroup


@pytest.fixture
def files() -> Iterator[list[int]]:
    """Descriptors that a test opens."""
    opened: list[int] = []
    yield opened
    for fd in opened:
        os.close(fd)


def test_cpu_time_and_memory_are_those_of_now(run_job: JobStarter) -> None:
    job = run_job(
        """
        memory = []
        print("up", flush=True)
        while True:
            memory.append(bytearray(1 << 20))
            input()
        """
    )
    job.wait_for_output("up")
    looked = Ranks()
    first, _ = looked.look(job.pid)
    for _ in range(64):
        job.tell()
    wait_for(
        lambda: (
            (looked.look(job.pid)[0].resident_bytes or 0) > (first.resident_bytes or 0) + (32 << 20)
        ),
        "memory to grow",
    )
    assert looked.look(job.pid)[0].state in {"R", "S"}


def test_what_is_dear_is_asked_again_after_a_while(
    files: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Ranks()
    first, _ = looked.look(os.getpid())
    assert first.open_fds is not None
    files += [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    assert looked.look(os.getpid())[0].open_fds == first.open_fds
    now = time.monotonic() + ranks.SELDOM_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: now)
    later = looked.look(os.getpid())[0].open_fds
    assert later is not None
    assert later >= first.open_fds + 10


def test_who_is_frozen_is_seen_to_be_and_that_it_goes_on_at_once(
    run_job: JobStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with freezer_cgroup() as directory:
        job = run_job("input()")
        (directory / "cgroup.procs").write_text(str(job.pid))
        looked = Ranks()
        assert looked.look(job.pid)[0].frozen is False
        (directory / "freezer.state").write_text("FROZEN")
        now = time.monotonic() + ranks.SELDOM_SECONDS
        with monkeypatch.context() as later:
            later.setattr(time, "monotonic", lambda: now)
            process, _ = looked.look(job.pid)
        assert (process.frozen, process.state in ("T", "t")) == (True, False)
        (directory / "freezer.state").write_text("THAWED")
        assert looked.look(job.pid)[0].frozen is False


def test_another_process_of_the_same_pid_is_asked_at_once(files: list[int]) -> None:
    looked = Ranks()
    first, _ = looked.look(os.getpid())
    files += [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    looked._known[os.getpid()].start_ticks -= 1  # as if the pid had been another's
    again, throttled = looked.look(os.getpid())
    assert (again.open_fds or 0) >= (first.open_fds or 0) + 10
    assert not throttled


def test_who_is_gone_is_forgotten(run_job: JobStarter) -> None:
    job = run_job("print('up', flush=True); input()")
    job.wait_for_output("up")
    looked = Ranks()
    assert looked.look(job.pid)[0].resident_bytes
    job.kill()
    job.finish(status=None)  # no zombie either
    assert looked.look(job.pid) == (Process(), False)
    looked.keep(())
    assert looked._known == {}
