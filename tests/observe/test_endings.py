"""How processes end, as it is seen from outside: exit codes, OOM kills, and what is no death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlmon.observe import cgroups, oom, processes, statuses
from dlmon.observe.cgroups import Cgroup
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Ended, Snapshot
from dlmon.segment.layout import Phase
from tests.jobs import JobStarter, wait_for
from tests.observing import facts, loader, observer, only_rank

JOB = """
    import os, signal, time
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader

    class Numbers:
        def __len__(self):
            return 400

        def __getitem__(self, i):
            if i >= 28:
                time.sleep(100)
            return i

    if __name__ == "__main__":
        train = DataLoader(Numbers(), batch_size=4, num_workers=2)
        iterator = iter(train)
        for _ in range(5):
            next(iterator)
        print("FACTS {}", flush=True)
        while command := input():
            if command == "kill":  # here, for torch's handler of SIGCHLD raises wherever this is
                try:
                    os.kill(iterator._workers[0].pid, signal.SIGKILL)
                    while True:
                        try:
                            next(iterator)
                        except (OSError, EOFError):  # a batch of the dead one
                            pass
                except RuntimeError:
                    pass
            if command == "wait":
                try:
                    while True:
                        next(iterator)
                except RuntimeError:
                    pass
            if command == "break":
                del iterator
            print("FACTS {}", flush=True)
"""


def pids(snapshot: Snapshot) -> list[int]:
    return [worker.pid for worker in loader(snapshot, "train").workers if worker.pid is not None]


def watched(observing: Observer, *, until: object, what: str) -> tuple[Snapshot, list[Ended]]:
    """Look until something is so; return the last snapshot and whose end was told."""
    assert callable(until)
    ended: list[Ended] = []

    def look() -> Snapshot | None:
        snapshot = observing.observe()
        ended.extend(snapshot.ended)
        return snapshot if until(snapshot, ended) else None

    found = wait_for(look, what)
    assert found is not None
    return found, ended


def abnormal(snapshot: Snapshot) -> dict[str, int]:
    exits = loader(snapshot, "train").worker_exits
    return {reason: count for reason, count in exits.items() if count and reason != "normal"}


@pytest.fixture
def older_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that tells no exit codes, nor may this process read those of zombies."""

    def no_such_question(_: int) -> int | None:
        raise OSError("as before Linux 6.13")

    monkeypatch.setattr(statuses, "_reaped", no_such_question)
    monkeypatch.setattr(statuses, "_zombie", lambda *_: None)


def test_without_exit_codes_the_shim_tells_the_reason_and_it_is_counted_once(
    run_job: JobStarter, segment_dir: Path, older_kernel: None
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        worker = pids(observing.observe())[0]
        job.tell("kill")
        facts(job, 2)
        snapshot, ended = watched(observing, until=lambda _, e: e, what="death")
        assert [(one.worker, one.pid, one.reason) for one in ended] == [(0, worker, "sigkill")]
        assert abnormal(snapshot) == {"sigkill": 1}


def test_without_exit_codes_the_workers_of_a_dead_rank_are_lost(
    run_job: JobStarter, segment_dir: Path, older_kernel: None
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        workers = pids(observing.observe())
        job.kill()
        job.process.wait()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        snapshot, ended = watched(observing, until=lambda _, e: len(e) == 2, what="deaths")
        assert {one.reason for one in ended} == {"lost"}
        assert {one.pid for one in ended} == set(workers)
        assert abnormal(snapshot) == {"lost": 2}
        assert only_rank(snapshot).died_of == "lost"
        assert abnormal(observing.observe()) == {"lost": 2}


@pytest.mark.slow
def test_who_is_ended_after_another_died_has_not_died_though_both_are_seen_at_once(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        worker = pids(observing.observe())[1]
        job.tell("wait")
        watched(observing, until=lambda s, _: blocked(s), what="a loop that waits")
        os.kill(worker, signal.SIGKILL)
        facts(job, 2)
        job.tell("break")  # the other one sleeps in a fetch
        facts(job, 3)
        ended = observing.observe().ended
        assert [(one.worker, one.pid, one.reason) for one in ended] == [(1, worker, "sigkill")]


def blocked(snapshot: Snapshot) -> bool:
    train = loader(snapshot, "train")
    return train.phase is Phase.WAIT and all(worker.fetching_since for worker in train.workers)


@pytest.mark.slow
def test_a_worker_that_torch_terminates_has_not_died(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        assert len(pids(observing.observe())) == 2
        job.tell("break")  # both workers sleep in a fetch; torch waits 5 s for each
        facts(job, 2)
        over = [None, None]
        snapshot, ended = watched(
            observing,
            until=lambda s, _: [w.up for w in loader(s, "train").workers] == over,
            what="the end of the workers",
        )
        ended += observing.observe().ended
        assert ended == []
        assert abnormal(snapshot) == {}, "torch has not asked yet how they ended"
        assert loader(snapshot, "train").last_abnormal_exit is None
        job.tell()
        job.finish()
        assert observing.observe().ended == ()


# ── exit codes ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "exitcode"),
    [("import os; os._exit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11)],
)
def test_an_exit_code_is_known_while_a_zombie_and_after(code: str, exitcode: int) -> None:
    following = statuses.ExitStatuses()
    child = subprocess.Popen([sys.executable, "-c", f"input()\n{code}"], stdin=subprocess.PIPE)
    sample = processes.sample(child.pid)
    assert sample is not None
    process = (child.pid, sample.start_ticks)
    following.follow(process)
    assert following.exitcode(process) is None
    assert child.stdin is not None
    child.stdin.write(b"\n")
    child.stdin.close()
    wait_for(lambda: following.exitcode(process) == exitcode, "exit code of the zombie")
    child.wait()
    if following._supported and _release() >= (6, 15):
        assert following.exitcode(process) == exitcode
    following.keep({process})
    following.close()
    assert following.exitcode(process) is None, "it may be another process by now"


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def test_a_pid_that_is_another_process_is_not_followed() -> None:
    following = statuses.ExitStatuses()
    following.follow((os.getpid(), 1))
    assert following._fds == {}


# ── OOM kills ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup v2 hierarchy in which every process is in /pod/job."""
    job = tmp_path / "pod/job"
    job.mkdir(parents=True)
    for group in ("pod", "pod/job"):
        count(tmp_path / group, 5)
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path))
    monkeypatch.setattr(cgroups, "of", lambda _: Cgroup("/pod/job", memory_directory=str(job)))
    return tmp_path


def count(group: Path, kills: int) -> None:
    (group / "memory.events").write_text(f"low 0\nhigh 3\nmax 9\noom 7\noom_kill {kills}\n")


ONE, TWO = (100, 1), (200, 1)


def test_each_kill_counted_confirms_one_process(tree: Path) -> None:
    kills = oom.OomKills()
    kills.follow(ONE)
    kills.follow(TWO)
    kills.read()
    assert not kills.confirms(ONE), "those were before"
    count(tree / "pod/job", 6)
    kills.read()
    assert kills.confirms(ONE)
    assert kills.confirms(ONE), "the same process again"
    assert not kills.confirms(TWO)


def test_of_a_cgroup_that_is_gone_the_parent_tells(tree: Path) -> None:
    kills = oom.OomKills()
    kills.follow(ONE)
    kills.read()
    count(tree / "pod", 6)
    kills.read()
    assert not kills.confirms(ONE), "a sibling's"
    count(tree / "pod", 7)
    (tree / "pod/job/memory.events").unlink()
    kills.read()
    assert kills.confirms(ONE)


def test_a_kill_long_ago_confirms_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = oom.OomKills()
    kills.follow(ONE)
    kills.read()
    count(tree / "pod/job", 6)
    kills.read()
    later = time.monotonic() + oom.FRESH_SECONDS + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    kills.read()
    assert not kills.confirms(ONE)
    kills.keep(())
    assert not kills.confirms(ONE)
