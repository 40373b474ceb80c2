"""What a snapshot says of real jobs that are killed, stopped, fork, end or claim the same rank."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Rank, Snapshot, Worker, WorkerState
from tests.jobs import JobStarter, wait_for
from tests.observing import counters, facts, loader, observer, only_rank

JOB = """
    import os, signal
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader

    class Numbers:
        def __len__(self):
            return 400

        def __getitem__(self, i):
            if os.environ.get("BLOCK") and i >= 28:
                signal.pause()
            return i

    if __name__ == "__main__":
        train = DataLoader(Numbers(), batch_size=4, num_workers=2)
        iterator = iter(train)
        for _ in range(5):
            next(iterator)
        print("FACTS {}", flush=True)
        input()
"""


def workers(snapshot: Snapshot) -> tuple[Worker, ...]:
    return loader(snapshot, "train").workers


def pids(snapshot: Snapshot) -> list[int]:
    found = [worker.pid for worker in workers(snapshot)]
    assert None not in found
    return [pid for pid in found if pid is not None]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def seen(observing: Observer, predicate: object, what: str) -> Snapshot:
    """Observe until something is so."""
    assert callable(predicate)

    def look() -> Snapshot | None:
        snapshot = observing.observe()
        return snapshot if predicate(snapshot) else None

    found = wait_for(look, what)
    assert found is not None
    return found


def test_a_living_rank_is_up_and_so_are_its_workers(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(JOB, env={"DLMON_RUN": "living", "RANK": "3"})
    facts(job)
    with observer(segment_dir) as observing:
        snapshot = observing.observe()
        rank = only_rank(snapshot)
        assert (rank.run, rank.rank, rank.pid, rank.up) == ("living", "3", job.pid, True)
        assert rank.died is None
        assert rank.process.cpu_seconds is not None
        assert rank.process.cpu_seconds > 0
        assert rank.process.resident_bytes is not None
        assert all(rank.hooks.values())
        assert abs(rank.started - segment(segment_dir).stat().st_ctime) < 60
        for worker in workers(snapshot):
            assert worker.up
            assert not worker.orphan
            assert Path(f"/proc/{worker.pid}/stat").read_text().split()[3] == str(job.pid)


def segment(directory: Path) -> Path:
    (path,) = directory.glob("*.seg")
    return path


def test_a_killed_rank_is_down_at_the_next_look_and_keeps_its_last_counters(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        before = observing.observe()
        killed, stopped = pids(before)
        os.kill(stopped, signal.SIGSTOP)  # else its watchdog ends it soon after its rank
        os.kill(killed, signal.SIGKILL)
        job.kill()
        job.finish(status=-signal.SIGKILL)
        after = observing.observe()
        rank = only_rank(after)
        assert (rank.up, rank.pid) == (False, job.pid)
        assert rank.died is not None
        assert before.time < rank.died <= after.time
        assert rank.process.cpu_seconds is None
        then, now = counters(loader(before, "train")), counters(loader(after, "train"))
        assert {name: now[name] for name in now if now[name] < then[name]} == {}
        after = seen(observing, lambda s: workers(s)[0].up is False, "dead worker")
        assert rank.died == only_rank(after).died, "the moment it was noticed first"
        first, second = workers(after)
        assert (first.up, first.orphan, first.pid) == (False, False, None)
        assert first.state in (WorkerState.DEAD, WorkerState.ZOMBIE)
        assert (second.up, second.orphan, second.pid) == (True, True, stopped)
        assert second.state is WorkerState.STOPPED
        assert only_rank(after).orphan_workers == 1
        assert counters(loader(observing.observe(), "train")) == counters(loader(after, "train"))


def test_a_dead_ranks_file_goes_after_dead_seconds_once_nobody_holds_it(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    patient = Observer([str(segment_dir)], dead_seconds=3600)
    hasty = Observer([str(segment_dir)], dead_seconds=0)
    first, second = pids(patient.observe())
    os.kill(second, signal.SIGSTOP)
    job.kill()
    job.finish(status=-signal.SIGKILL)
    os.kill(first, signal.SIGKILL)
    assert only_rank(hasty.observe()).orphan_workers > 0
    assert len(files(segment_dir)) == 1, "a worker still has it"
    os.kill(second, signal.SIGKILL)
    seen(patient, lambda s: only_rank(s).orphan_workers == 0, "end of the orphan")
    assert len(files(segment_dir)) == 1, "its time is not over"
    assert hasty.observe().ranks == ()
    assert files(segment_dir) == []
    assert not only_rank(patient.observe()).up, "what one observer removes another still has"
    for observing in (patient, hasty):
        observing.close()


def test_a_rank_that_ended_in_order_is_gone_and_so_is_its_file(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        assert only_rank(observing.observe()).up
        job.tell()
        job.finish()
        assert observing.observe().ranks == ()
        assert files(segment_dir) == []


def test_a_file_unlinked_while_its_job_lives_is_still_observed(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        observing.observe()
        segment(segment_dir).unlink()
        snapshot = observing.observe()
        assert only_rank(snapshot).up
        assert [worker.up for worker in workers(snapshot)] == [True, True]
        job.kill()
        job.finish(status=-signal.SIGKILL)
        assert not only_rank(observing.observe()).up


# ── workers ──────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_is_stopped_and_then_killed_under_a_rank_that_does_not_look(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    facts(job)
    with observer(segment_dir) as observing:
        first, second = pids(observing.observe())
        os.kill(first, signal.SIGSTOP)
        seen(observing, lambda s: workers(s)[0].state is WorkerState.STOPPED, "stopped worker")
        job.kill(signal.SIGSTOP)  # so that it does not reap its children
        os.kill(first, signal.SIGKILL)
        snapshot = seen(observing, lambda s: workers(s)[0].up is False, "dead worker")
        assert workers(snapshot)[0].state is WorkerState.ZOMBIE
        assert workers(snapshot)[0].batches > 0
        assert (workers(snapshot)[1].up, workers(snapshot)[1].pid) == (True, second)
        assert only_rank(snapshot).up, "stopped is alive"


def test_an_open_fetch_counts_and_shows(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(JOB, env={"BLOCK": "1"})
    with observer(segment_dir) as observing:
        facts(job)
        blocked = [WorkerState.FETCHING] * 2
        snapshot = seen(
            observing, lambda s: [w.state for w in workers(s)] == blocked, "both fetching"
        )
        then = [worker.fetch_seconds for worker in workers(snapshot)]
        now = [worker.fetch_seconds for worker in workers(observing.observe())]
        assert all(later > earlier for later, earlier in zip(now, then, strict=True))


LOSES = """
    import os
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader

    def lose(who):
        directory = os.environ["DLMON_DIR"]
        if os.environ["LOSER"] == who:
            for name in os.listdir(directory):
                open(os.path.join(directory, name)).close()  # a backup, say

    if __name__ == "__main__":
        train = DataLoader(
            range(400), batch_size=4, num_workers=2, worker_init_fn=lambda _: lose("worker")
        )
        iterator = iter(train)
        for _ in range(5):
            next(iterator)
        lose("rank")
        print("FACTS {}", flush=True)
        input()
"""


@pytest.mark.parametrize("loser", ["worker", "rank"])
def test_who_lost_its_lock_but_lives_is_not_called_dead(
    run_job: JobStarter, segment_dir: Path, loser: str
) -> None:
    job = run_job(LOSES, env={"LOSER": loser})
    facts(job)
    hasty = Observer([str(segment_dir)], dead_seconds=0)
    for _ in range(2):
        snapshot = hasty.observe()
        rank = only_rank(snapshot)
        assert (rank.up, rank.pid, rank.died) == (True, job.pid, None)
        assert [worker.up for worker in workers(snapshot)] == [True, True]
        assert [worker.orphan for worker in workers(snapshot)] == [False, False]
        assert None not in [worker.pid for worker in workers(snapshot)]
    job.kill()
    job.finish(status=-signal.SIGKILL)
    for pid in pids(snapshot):
        os.kill(pid, signal.SIGKILL)
    seen(hasty, lambda s: s.ranks == (), "its end")
    hasty.close()


# ── several processes ────────────────────────────────────────────────────────────────────────────


def shown(snapshot: Snapshot) -> tuple[list[tuple[int, bool]], list[tuple[int, bool]]]:
    def brief(ranks: tuple[Rank, ...]) -> list[tuple[int, bool]]:
        return [(rank.pid, rank.up) for rank in ranks]

    return brief(snapshot.ranks), brief(snapshot.superseded)


def test_of_two_that_claim_one_rank_the_living_then_the_newest_is_shown(
    run_job: JobStarter, segment_dir: Path
) -> None:
    env = {"DLMON_RUN": "claimed", "RANK": "0"}
    older, newer = run_job(JOB, env=env), None
    facts(older)
    newer = run_job(JOB, env=env)
    facts(newer)
    with observer(segment_dir) as observing:
        assert shown(observing.observe()) == ([(newer.pid, True)], [(older.pid, True)])
        newer.kill()
        newer.finish(status=-signal.SIGKILL)
        assert shown(observing.observe()) == ([(older.pid, True)], [(newer.pid, False)])
        older.kill()
        older.finish(status=-signal.SIGKILL)
        assert shown(observing.observe()) == ([(newer.pid, False)], [(older.pid, False)])


FORKS = """
    import os, signal
    from multiprocessing import get_context
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader

    def child():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        for _ in train:
            pass
        print("FACTS {}", flush=True)
        signal.sigwait({signal.SIGUSR1})

    if __name__ == "__main__":
        train = DataLoader(range(40), batch_size=4, num_workers=1)
        list(train)
        print("FACTS {}", flush=True)
        while command := input():
            if command == "fork":
                forked = get_context("fork").Process(target=child)
                forked.start()
            else:
                os.kill(forked.pid, getattr(signal, command))
                forked.join()
                print("FACTS {}", flush=True)
"""

KILL, END = "SIGKILL", "SIGUSR1"


def test_a_forked_child_is_part_of_its_parents_rank_and_loader(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(FORKS)
    facts(job)
    with observer(segment_dir) as observing:
        assert loader(observing.observe(), "train").batches == 10
        job.tell("fork")
        facts(job, 2)
        snapshot = observing.observe()
        assert snapshot.segments == 2
        assert only_rank(snapshot).pid == job.pid
        assert loader(snapshot, "train").batches == 20
        assert loader(snapshot, "train").epochs == 2
        job.tell(KILL)
        facts(job, 3)
        snapshot = observing.observe()
        assert only_rank(snapshot).up
        assert loader(snapshot, "train").batches == 20


@pytest.mark.parametrize("how", [KILL, END])
def test_what_a_child_counted_stays_counted_when_its_segment_is_gone(
    run_job: JobStarter, segment_dir: Path, how: str
) -> None:
    job = run_job(FORKS)
    facts(job)
    hasty = Observer([str(segment_dir)], dead_seconds=0)
    for child in (1, 2):
        job.tell("fork")
        facts(job, 2 * child)
        before = counters(loader(hasty.observe(), "train"))
        job.tell(how)
        facts(job, 2 * child + 1)
        for _ in range(2):
            after = counters(loader(hasty.observe(), "train"))
            assert {name for name in after if after[name] < before[name]} == set()
        assert after["batches"] == 10 + 10 * child
        assert after["worker 0 batches"] == 10 + 10 * child
        assert len(files(segment_dir)) == 1
    hasty.close()
