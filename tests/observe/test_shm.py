"""Which /dev/shm processes see, in this mount namespace and in others."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from dlmon.observe import shm
from dlmon.observe.shm import SharedMemory, Shm
from tests.jobs import wait_for

MB = 1 << 20
OTHER = "mount -t tmpfs -o size=3m own /dev/shm && head -c 1048576 /dev/zero > /dev/shm/x && echo"


@contextmanager
def namespace() -> Iterator[int]:
    """Yield the pid of a process with a /dev/shm of its own: 3 MB, 1 MB in use."""
    command = ["unshare", "--mount", "sh", "-c", f"{OTHER}; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                pytest.skip("unshare is not permitted here: no namespace can be made")
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def elsewhere() -> Iterator[int]:
    with namespace() as pid:
        yield pid


def test_who_sees_what_this_process_sees_is_answered_at_once() -> None:
    found = os.statvfs("/dev/shm")
    with closing(SharedMemory(lambda _: Shm(0, 0))) as memory:
        seen = memory.seen_by(os.getpid())
    assert seen is not None
    assert seen.size == found.f_blocks * found.f_frsize
    assert 0 <= seen.used <= seen.size


def test_in_another_mount_namespace_it_is_that_ones(elsewhere: int) -> None:
    with closing(SharedMemory()) as memory:
        wait_for(lambda: memory.seen_by(elsewhere) == Shm(3 * MB, MB), "the answer")


def test_storage_that_does_not_answer_keeps_nobody_waiting(elsewhere: int) -> None:
    asked, answers = threading.Event(), threading.Event()

    def look(_: int) -> Shm | None:
        asked.set()
        answers.wait(60)
        return Shm(2, 1)

    with closing(SharedMemory(look)) as memory:
        assert memory.seen_by(elsewhere) is None
        assert asked.wait(60)
        assert memory.seen_by(elsewhere) is None
        assert memory.seen_by(os.getpid()) is not None
        answers.set()
        wait_for(lambda: memory.seen_by(elsewhere) == Shm(2, 1), "the answer")


def test_a_namespace_whose_storage_does_not_answer_costs_no_other_its_values(
    elsewhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answers = threading.Event()

    def look(pid: int) -> Shm | None:
        asked.append(pid)
        if pid == elsewhere:
            answers.wait(60)
        return Shm(2, 1)

    monkeypatch.setattr(shm, "LOOK_SECONDS", 0.01)
    with namespace() as other, closing(SharedMemory(look)) as memory:
        assert memory.seen_by(elsewhere) is None
        wait_for(lambda: asked == [elsewhere], "a look that hangs")
        wait_for(lambda: memory.seen_by(other) == Shm(2, 1), "the answer of the other")
        wait_for(lambda: asked.count(other) > 3, "further looks")
        assert memory.seen_by(elsewhere) is None
        assert asked.count(elsewhere) == 1, "nobody else is sent where one hangs"
        answers.set()
        wait_for(lambda: memory.seen_by(elsewhere) == Shm(2, 1), "its answer")


def test_an_answer_is_not_told_for_ever(elsewhere: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks, hang = iter(range(10)), threading.Event()

    def look(_: int) -> Shm | None:
        if next(looks) > 0:
            hang.wait(60)
        return Shm(2, 1)

    monkeypatch.setattr(shm, "LOOK_SECONDS", 0.01)
    with closing(SharedMemory(look)) as memory:
        wait_for(lambda: memory.seen_by(elsewhere) == Shm(2, 1), "the answer")
        monkeypatch.setattr(shm, "STALE_SECONDS", 0.1)
        wait_for(lambda: memory.seen_by(elsewhere) is None, "its end")
        hang.set()


def test_of_a_process_that_is_gone_nothing_is_known() -> None:
    with closing(SharedMemory()) as memory:
        assert memory.seen_by(2**31 - 1) is None
    assert shm.seen_by(2**31 - 1) is None
