"""The memory of cgroups: read now and then, at once when somebody dies, and kept for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dlmon.observe import cgroups, groups, ranks
from dlmon.observe.cgroups import Cgroup
from dlmon.observe.groups import Groups
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import CgroupMemory, Ended, Process, Rank, Snapshot
from tests.jobs import JobStarter, wait_for
from tests.memory_cgroups import memory_cgroup
from tests.observing import facts, observer

RANK = Rank(
    run="r",
    rank="0",
    pid=1,
    up=True,
    died=None,
    started=0.0,
    info={},
    hooks={},
    shim_errors=0,
    orphan_workers=0,
    process=Process(cgroup="/job"),
    loaders=(),
    key="r/0/1-2",
)
DEAD = replace(RANK, up=False, process=Process(), died=1.0)


def worker(reason: str, key: str = "file/0/1") -> Ended:
    return Ended(key, RANK.key, "r", "0", "train", 0, 2, reason)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let time go on."""
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


class Kernel:
    """A memory controller of version 2 that a test writes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.kills(0)

    def kills(self, count: int) -> None:
        self._directory.mkdir(exist_ok=True)
        (self._directory / "memory.events").write_text(f"oom 9\noom_kill {count}\n")

    def remove(self) -> None:
        (self._directory / "memory.events").unlink()
        self._directory.rmdir()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    directory = tmp_path / "job"
    made = Kernel(directory)
    group = Cgroup(path="/job", memory_directory=str(directory))
    monkeypatch.setattr(cgroups, "of", lambda _: group)
    return made


def kills(found: dict[str, CgroupMemory]) -> dict[str, int | None]:
    return {path: memory.oom_kills for path, memory in found.items()}


def test_a_cgroup_is_read_once_for_all_and_kept_for_a_while(
    kernel: Kernel, later: Callable[[float], None]
) -> None:
    looked = Groups()
    other = replace(RANK, rank="1", key="r/1/1-2")
    first = looked.look([RANK, other], [])
    assert kills(first) == {"/job": 0}
    kernel.kills(1)
    assert looked.look([RANK, other], [])["/job"] is first["/job"]
    later(ranks.SELDOM_SECONDS)
    assert kills(looked.look([RANK, other], [])) == {"/job": 1}


def test_it_is_read_at_once_when_a_worker_or_a_rank_in_it_dies(kernel: Kernel) -> None:
    looked = Groups()
    looked.look([RANK], [])
    kernel.kills(1)
    assert kills(looked.look([RANK], [worker("lost")])) == {"/job": 1}
    kernel.kills(2)
    assert kills(looked.look([DEAD], [])) == {"/job": 2}


def test_it_is_shown_for_as_long_as_a_dead_rank_is(
    kernel: Kernel, later: Callable[[float], None]
) -> None:
    looked = Groups()
    looked.look([RANK], [])
    for _ in range(3):
        later(1000)
        assert kills(looked.look([DEAD], [])) == {"/job": 0}
    assert looked.look([], []) == {}


def test_after_the_end_of_its_last_rank_it_is_shown_for_a_minute_if_there_was_a_kill(
    kernel: Kernel, later: Callable[[float], None]
) -> None:
    looked = Groups()
    looked.look([RANK], [])
    assert looked.look([], []) == {}, "nothing happened in it"
    looked.look([RANK], [])
    kernel.kills(1)
    assert kills(looked.look([], [worker("oom_kill")])) == {"/job": 1}
    later(groups.KEPT_SECONDS - 1)
    assert kills(looked.look([], [])) == {"/job": 1}
    later(2)
    assert looked.look([], []) == {}


def test_kills_that_are_confirmed_count_though_the_cgroup_is_gone_each_once(
    kernel: Kernel,
) -> None:
    looked = Groups()
    kernel.kills(3)
    looked.look([RANK], [])
    kernel.remove()
    assert kills(looked.look([DEAD], [worker("oom_kill")])) == {"/job": 4}
    assert kills(looked.look([DEAD], [worker("oom_kill")])) == {"/job": 4}
    assert kills(looked.look([replace(DEAD, died_of="oom_kill")], [])) == {"/job": 5}


def test_a_kill_that_was_read_before_the_cgroup_went_is_not_counted_again(kernel: Kernel) -> None:
    looked = Groups()
    looked.look([RANK], [])
    kernel.kills(1)
    looked.look([RANK], [worker("lost", "file/1/1")])
    kernel.remove()
    assert kills(looked.look([DEAD], [worker("oom_kill")])) == {"/job": 1}


def test_a_dying_process_that_is_said_to_be_in_the_root_is_where_it_was(kernel: Kernel) -> None:
    looked = Groups()
    looked.look([RANK], [])
    ending = replace(RANK, process=Process(cgroup="/"))
    assert kills(looked.look([ending], [])) == {"/job": 0}


# --- the kernel's ---

JOB = """
    import os, sys, time
    import dlmon
    dlmon.instrument(run="r", rank=0)
    from torch.utils.data import DataLoader

    WHO = os.environ["WHO"]

    class Numbers:
        def __len__(self):
            return 400

        def __getitem__(self, i):
            while WHO == "worker" and not os.path.exists("go"):
                time.sleep(0.01)
            if WHO == "worker":
                eat()
            return i

    def eat():
        kept = [bytearray(b"x") * (1 << 20) for _ in range(1000)]

    if __name__ == "__main__":
        with open(os.environ["GROUP"] + "/cgroup.procs", "w") as procs:
            procs.write("0")
        train = iter(DataLoader(Numbers(), batch_size=4, num_workers=WHO == "worker"))
        print("FACTS {}", flush=True)
        if WHO == "rank":
            next(train)
            sys.stdin.readline()
            eat()
        next(train)  # which raises: the job ends in order
"""
LIMIT_BYTES = 700 << 20


@pytest.fixture
def group() -> Iterator[Path]:
    with memory_cgroup(LIMIT_BYTES) as directory:
        (directory / "memory.swappiness").write_text("0")
        yield directory


def until(observing: Observer, predicate: Callable[[Snapshot], bool], what: str) -> Snapshot:
    found: list[Snapshot] = []

    def so() -> bool:
        found.append(observing.observe())
        return predicate(found[-1])

    wait_for(so, what)
    return found[-1]


@pytest.mark.parametrize("who", ["rank", "worker"])
def test_the_oom_kill_that_ends_a_job_is_counted_in_its_cgroup(
    group: Path, run_job: JobStarter, segment_dir: Path, tmp_path: Path, who: str
) -> None:
    with observer(segment_dir) as observing:
        job = run_job(JOB, env={"WHO": who, "GROUP": str(group)})
        facts(job)
        path = f"/{group.name}"
        before = until(observing, lambda seen: path in seen.cgroups, "its cgroup")
        assert before.cgroups[path].oom_kills == 0
        (tmp_path / "go").touch()
        job.tell()
        job.finish(status=-9 if who == "rank" else 1)
        after = until(observing, lambda seen: not any(r.up for r in seen.ranks), "its end")
        assert len(after.ranks) == (who == "rank")
        assert after.cgroups[path].oom_kills == 1
