"""Workers and ranks of real jobs die in every way there is; what the agent says of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlmon import cli
from tests.agents import Agent, running
from tests.e2e.looks import Look, Looks, end_of_one
from tests.jobs import Job, JobStarter, wait_for

JOB = """
    import ctypes, os, signal, sys, time

    import dlmon

    dlmon.instrument(run="r", rank=0)

    import torch
    from torch.utils.data import DataLoader, Dataset

    HOW, METHOD, GROUP = os.environ["HOW"], os.environ["METHOD"], os.environ["GROUP"]
    FATAL = 83
    kept = []


    def eat():
        while True:
            kept.append(bytearray(os.urandom(1 << 20)))
            time.sleep(0.01)


    DEATHS = {
        "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "_exit": lambda: os._exit(3),
        "segfault": lambda: ctypes.string_at(0),
        "oom": eat,
        "sys.exit": lambda: sys.exit(4),
        "exception": lambda: [][0],
        "block": signal.pause,
    }


    class Numbers(Dataset):
        def __len__(self):
            return 100_000

        def __getitem__(self, index):
            time.sleep(0.001)
            while index >= FATAL - 43 and not os.path.exists("go"):
                time.sleep(0.01)
            if index == FATAL or (HOW == "block" and index > FATAL):
                DEATHS[HOW]()
            return torch.tensor(index)


    def enter(_):
        if GROUP:
            with open(GROUP + "/cgroup.procs", "w") as procs:
                procs.write("0")


    def main():
        train = dlmon.name(
            DataLoader(
                Numbers(), batch_size=8, num_workers=2, multiprocessing_context=METHOD,
                worker_init_fn=enter,
            ),
            "train",
        )
        error = None
        try:
            try:
                for _ in train:
                    pass
            except (RuntimeError, IndexError, OSError, EOFError) as first:  # or batches are lost
                error = first
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError as again:  # torch's handler of SIGCHLD, when there was an error already
            error = error or again
        if error is not None:
            print("TOLD", time.time(), flush=True)
            if os.environ.get("AGAIN"):
                for _ in zip(train, range(3)):  # not as far as where they die
                    pass
                print("AGAIN", flush=True)
            if os.environ.get("RAISE") == "later":
                input()
            if os.environ.get("RAISE"):
                raise error
        del error  # and with it the iterator
        print("WAITS", flush=True)
        input()


    if __name__ == "__main__":
        main()
"""

SOON_SECONDS = 30.0
"""For what takes two seconds when nobody else uses the machine."""

LIMIT_BYTES = 100 << 20
"""Of what a worker allocates once it is in the cgroup: what it has then is counted elsewhere."""


def start(run_job: JobStarter, how: str, method: str = "fork", **env: str) -> Job:
    return run_job(JOB, env={"HOW": how, "METHOD": method, "GROUP": "", **env})


def answer(agent: Agent, path: str) -> dict[str, Any]:
    status, body = agent.get(path)
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found


def deaths(agent: Agent) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer(agent, "/api/v1/deaths")["deaths"]
    return found


def findings(agent: Agent) -> dict[str, dict[str, Any]]:
    wait_for(agent.ready, "ready")
    return {one["name"]: one for one in answer(agent, "/api/v1/snapshot")["findings"]}


def finding(agent: Agent, name: str) -> dict[str, Any]:
    """Wait for a finding: a death is known a moment before the snapshot with it is."""
    return wait_for(lambda: findings(agent).get(name, {}), name)


def train(agent: Agent) -> dict[str, Any]:
    wait_for(agent.ready, "ready")
    return loader_of(answer(agent, "/api/v1/snapshot"))


def abnormal(loader: dict[str, Any]) -> dict[str, int]:
    exits: dict[str, int] = loader.get("worker_exits", {})
    return {reason: count for reason, count in exits.items() if count and reason != "normal"}


def both_workers_up(agent: Agent) -> bool:
    return [worker["up"] for worker in train(agent).get("workers", ())] == [True, True]


def blocked(agent: Agent) -> bool:
    """Both workers are in the fetch in which they stay."""
    found = [(worker["state"], worker["fetch_index"]) for worker in train(agent)["workers"]]
    return sorted(found) == [("fetching", 80), ("fetching", 88)]


def let_go(job: Job, agent: Agent, tmp_path: Path) -> None:
    """Have the job come to where it dies, once the agent has seen its workers."""
    job.wait_for(lambda: both_workers_up(agent), "both workers")
    (tmp_path / "go").touch()


def let_die(job: Job, agent: Agent, tmp_path: Path) -> float:
    """Let go where a worker dies; return when it had."""
    job.wait_for(lambda: both_workers_up(agent), "both workers")
    workers = [worker["pid"] for worker in train(agent)["workers"]]
    return end_of_one(workers, (tmp_path / "go").touch)


def loader_of(look: Look) -> dict[str, Any]:
    """The only loader of a look's only rank."""
    return next((one for rank in look["ranks"] for one in rank["loaders"]), {})


def reasons(look: Look) -> list[str]:
    """Of what workers died, as a look's findings have it."""
    found = [one for one in look["findings"] if one["name"] == "worker_died"]
    return [one["evidence"]["reason"] for one in found]


@contextlib.contextmanager
def memory_group(name: str) -> Iterator[str]:
    """A memory cgroup (v1) of the test's own, with a small limit and no swap."""
    group = Path(f"/sys/fs/cgroup/memory/{name}-{os.getpid()}")
    if os.geteuid() != 0 or not Path("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists():
        pytest.skip("needs root and the memory controller of cgroup v1")
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        (group / "memory.swappiness").write_text("0")
        yield str(group)
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "an empty cgroup")
        wait_for(lambda: _removed(group), "removal of the cgroup")


def _removed(group: Path) -> bool:
    with contextlib.suppress(OSError):
        group.rmdir()
    return not group.exists()


RELEASE = tuple(int(part) for part in os.uname().release.split(".")[:2])
TOLD_TO_STRANGERS = pytest.mark.skipif(
    RELEASE < (6, 15), reason="Linux before 6.15 tells exit codes to parents only"
)


def marks(how: str, method: str) -> list[pytest.MarkDecorator]:
    slow = [] if (how, method) in QUICK else [pytest.mark.slow]
    return slow + ([TOLD_TO_STRANGERS] if method == "forkserver" else [])


REASONS = {
    "sigkill": "sigkill",
    "_exit": "error",
    "sys.exit": "error",
    "segfault": "sigsegv",
    "oom": "oom_kill",
}
STATUS = {"_exit": 3, "sys.exit": 4}
QUICK = {("segfault", "fork"), ("oom", "fork")}


@pytest.mark.parametrize(
    ("how", "method"),
    [
        pytest.param(how, method, marks=marks(how, method))
        for how in REASONS
        for method in ("fork", "spawn", "forkserver")
    ],
)
def test_the_reason_of_a_workers_death_is_told_and_counted_once(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path, how: str, method: str
) -> None:
    reason = REASONS[how]
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(memory_group("dlmon-test")) if how == "oom" else ""
        agent = stack.enter_context(running("--dir", str(segment_dir)))
        job = start(run_job, how, method, GROUP=group)
        stack.callback(job.process.wait)
        stack.callback(job.kill)
        looks = Looks(agent)
        stack.enter_context(looks.noted())
        died = let_die(job, agent, tmp_path)
        (death,) = wait_for(lambda: deaths(agent), "death", deadline=SOON_SECONDS)
        assert (death["kind"], death["loader"], death["reason"]) == ("worker", "train", reason)
        assert death["worker"] in ("0", "1")
        if how != "sys.exit":  # which ends the fetch, and then the worker
            assert death["doing"] == "fetching"
            assert (death["fetch_index"], death["fetch_samples"]) == (80, 8)
            assert "fetching a batch that begins with sample 80 (8 a batch)" in death["sentence"]
        assert death["private"]["script"].endswith(".py")
        assert how not in STATUS or f"exited with status {STATUS[how]}" in death["sentence"]
        looks.check_told(died, lambda look: reasons(look) == [reason], "the reason")
        looks.check_told(died, lambda look: abnormal(loader_of(look)) == {reason: 1}, "the count")
        assert finding(agent, "worker_died")["sentence"] == death["sentence"]
        assert abnormal(train(agent)) == {reason: 1}
        job.wait_for_output("TOLD")  # by now the shim has counted it too
        job.wait_for_output("WAITS")
        settled = time.time()
        wait_for(lambda: answer(agent, "/api/v1/snapshot")["time"] > settled, "a further look")
        assert abnormal(train(agent)) == {reason: 1}
        assert [one["reason"] for one in deaths(agent)] == [reason]


def test_a_job_that_ends_of_a_workers_death_within_seconds_still_shows(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        job = start(run_job, "sigkill", RAISE="1")
        let_go(job, agent, tmp_path)
        job.finish(status=1)
        (death,) = wait_for(lambda: deaths(agent), "death", deadline=SOON_SECONDS)
        assert (death["kind"], death["reason"]) == ("worker", "sigkill")
        assert finding(agent, "worker_died")["since"] == pytest.approx(death["died"])
        wait_for(lambda: answer(agent, "/api/v1/snapshot")["ranks"] == [], "the end of the job")


@pytest.mark.parametrize(
    "method",
    [
        "fork",
        pytest.param("spawn", marks=pytest.mark.slow),
        pytest.param("forkserver", marks=pytest.mark.slow),
    ],
)
def test_an_exception_of_the_dataset_is_told_as_an_error_and_is_no_death(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path, method: str
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        looks = Looks(agent)
        job = start(run_job, "exception", method, RAISE="later")
        with looks.noted():
            let_go(job, agent, tmp_path)
            told = job.wait_for_output("TOLD").partition("TOLD ")[2]
            looks.check_told(float(told), lambda look: errors(look) == {"fetch": 1}, "the error")
        job.tell()
        job.finish(status=1)
        check_nobody_died(agent)


def errors(look: Look) -> dict[str, int]:
    counted: dict[str, int] = loader_of(look).get("errors", {})
    return {name: count for name, count in counted.items() if count}


def check_nobody_died(agent: Agent) -> None:
    wait_for(lambda: answer(agent, "/api/v1/snapshot")["ranks"] == [], "the end of the job")
    assert deaths(agent) == []
    assert findings(agent) == {}


@pytest.mark.parametrize("end", ["exception", "interrupt"])
def test_a_job_that_an_exception_or_an_interrupt_ends_has_no_deaths(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path, end: str
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        job = start(run_job, "exception" if end == "exception" else "block", RAISE="1")
        let_go(job, agent, tmp_path)
        if end == "interrupt":
            wait_for(lambda: blocked(agent), "blocked workers")
            os.killpg(job.pid, signal.SIGINT)
        job.finish(status=None)
        check_nobody_died(agent)


@pytest.mark.slow
@TOLD_TO_STRANGERS
def test_a_killed_rank_leaves_last_words_orphans_and_what_is_kept_on_disk(
    run_job: JobStarter,
    segment_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evidence = tmp_path / "evidence"
    config = tmp_path / "agent.yml"
    config.write_text(f"web: {{listen_address: 127.0.0.1:0}}\nkeep: {{evidence_dir: {evidence}}}\n")
    arguments = ("--config", str(config), "--dir", str(segment_dir))
    with running(*arguments) as agent:
        job = start(run_job, "block")
        let_go(job, agent, tmp_path)
        wait_for(lambda: blocked(agent), "blocked workers")
        workers = [worker["pid"] for worker in train(agent)["workers"]]
        job.kill()
        job.process.wait()
        wait_for(lambda: deaths(agent), "death of the rank", deadline=SOON_SECONDS)
        # Only by what somebody who waited for it left: `lost` is said before.
        wait_for(lambda: deaths(agent)[0]["reason"] == "sigkill", "its reason")
        (rank,) = deaths(agent)
        assert (rank["kind"], rank["rank"], rank["pid"]) == ("rank", "0", job.pid)
        assert rank["sentence"].startswith("rank 0 of run r was killed (SIGKILL) in wait of train")
        assert "2 of its workers live on" in rank["sentence"]
        assert [(o["state"], o["fetch_samples"]) for o in rank["others"][1:]] == [
            ("fetching", 8)
        ] * 2
        assert finding(agent, "rank_died")["sentence"] == rank["sentence"]
        orphans = finding(agent, "orphan_workers")
        assert set(orphans["evidence"]) == {"worker 0 of train", "worker 1 of train"}
        for pid in workers:
            assert any(f"pid {pid}, state S, RSS " in one for one in orphans["evidence"].values())
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(deaths(agent)) == 3, "deaths of the workers")
        known = deaths(agent)
        assert {one["reason"] for one in known} == {"sigkill"}
        for one in known[:2]:
            assert "while fetching a batch that begins with sample " in one["sentence"]
            assert one["memory"]["resident_bytes"][-1] == one["resident_bytes"] > 1_000_000
        wait_for(lambda: abnormal(train(agent)) == {"sigkill": 2}, "the count")
        wait_for(lambda: "orphan_workers" not in findings(agent), "the end of the orphans")
        history = answer(agent, "/api/v1/history?run=r&rank=0&loader=train&worker=0")["points"]
        assert len({len(column) for column in history.values()}) == 1
        # A thread of its own writes them.
        wait_for(lambda: len(list(evidence.glob("death-*.json"))) == 3, "files")
        agent.close()
        assert listed_dead(segment_dir, capsys) == {("rank", "lost"), ("worker", "lost")}
    assert [oct(path.stat().st_mode & 0o777) for path in evidence.iterdir()] == ["0o600"] * 3
    with running(*arguments) as agent:
        wait_for(agent.ready, "ready")
        assert {one["key"]: one for one in deaths(agent)} == {one["key"]: one for one in known}
        assert finding(agent, "rank_died")["sentence"] == rank["sentence"]
        assert listed_dead(segment_dir, capsys) == {("rank", "sigkill"), ("worker", "sigkill")}
        assert cli.main(["ps", "--dead", "--dir", str(segment_dir)]) == 0
        assert f"\n    {rank['sentence']}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rank_that_another_process_has_replaced_is_told_with_the_orphans_it_left(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        old = start(run_job, "block")
        let_go(old, agent, tmp_path)
        wait_for(lambda: blocked(agent), "blocked workers")
        workers = [worker["pid"] for worker in train(agent)["workers"]]
        new = start(run_job, "block")

        def shown() -> list[int]:
            return [rank["pid"] for rank in answer(agent, "/api/v1/snapshot")["ranks"]]

        new.wait_for(lambda: shown() == [new.pid], "the other process")
        old.kill()
        old.process.wait()
        new.wait_for(lambda: "rank_died" in findings(agent), "death", deadline=SOON_SECONDS)
        new.wait_for(lambda: "orphan_workers" in findings(agent), "orphans")
        orphans = finding(agent, "orphan_workers")
        assert "2 workers of an earlier process of rank 0 of run r live on" in orphans["sentence"]
        for pid in workers:
            assert any(f"pid {pid}, " in one for one in orphans["evidence"].values())
        page = agent.get("/metrics")[1]
        assert 'dlmon_rank_orphan_workers{rank="0",run="r"} 2.0\n' in page
        assert 'dlmon_rank_up{rank="0",run="r"} 1.0\n' in page


def listed_dead(directory: Path, capsys: pytest.CaptureFixture[str]) -> set[tuple[str, str]]:
    """What `dlmon ps --dead --json` says of who died and of what."""
    assert cli.main(["ps", "--dead", "--json", "--dir", str(directory)]) == 0
    return {(one["kind"], one["reason"]) for one in json.loads(capsys.readouterr().out)}


@pytest.mark.slow
def test_a_death_is_told_until_the_loader_goes_on(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        job = start(run_job, "sigkill", AGAIN="1")
        let_go(job, agent, tmp_path)
        job.wait_for(lambda: "worker_died" in findings(agent), "finding")
        job.wait_for_output("AGAIN")
        job.wait_for(lambda: "worker_died" not in findings(agent), "its end")
        assert [one["reason"] for one in deaths(agent)] == ["sigkill"], "it is kept"
