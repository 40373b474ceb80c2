"""`dlmon run --serve`: one agent however many jobs there are, and none where none is wanted."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlmon.agent import jobs
from dlmon.agent.lock import find
from dlmon.commands.run import BOOTSTRAP
from tests.agents import running
from tests.commands.launching import (
    AT,
    FREE,
    LOADER,
    agents,
    announced,
    beside,
    dlmon,
    fetch,
    is_empty,
    launch,
)
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import observe

pytestmark = pytest.mark.usefixtures("no_agent_is_left")

# ── One, however many ────────────────────────────────────────────────────────────────────────────

AT_ONCE = """
import os, sys
from dlmon.cli import main
from dlmon.commands import _serve  # so that nobody is late

_serve.START_SECONDS = 60.0

gate, open_gate = os.pipe()
ranks = []
for rank in range(8):
    if not (pid := os.fork()):
        os.close(open_gate)
        os.environ["SLURM_LOCALID"] = str(rank)
        os.read(gate, 1)
        sys.exit(main(["run", "--serve=127.0.0.1:0", "sh", "-c", "echo STARTED; read line"]))
    ranks.append(pid)
os.close(open_gate)
print([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks])
"""


def test_eight_that_start_at_the_same_instant_have_one_agent(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(AT_ONCE)
    job.wait_for(lambda: job.output().count("STARTED") == 8, "8 jobs")
    url = announced(job)  # which is said once
    (agent,) = agents(segment_dir)
    running_agent = find(str(segment_dir))
    assert running_agent is not None
    assert (running_agent.pid, f"http://{running_agent.address}") == (agent, url)
    assert len(list((segment_dir / f"{jobs.PREFIX}{os.geteuid()}").iterdir())) == 8
    for _ in range(8):
        job.tell()
    assert str([0] * 8) in job.finish()
    assert agents(segment_dir) == [agent]


def test_the_first_rank_of_a_later_launch_says_where_the_agent_is(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    url = announced(waiting())
    lines = [waiting(env={"SLURM_LOCALID": rank}).output() for rank in (None, "0", "1")]
    said = f"dlmon: agent at {url}/, already running\n"
    assert lines == [f"{said}READY\n", f"{said}READY\n", "READY\n"]
    assert len(agents(segment_dir)) == 1


def test_it_ends_after_the_last_job_and_leaves_nothing(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    first, second = waiting(), waiting()
    (agent,) = agents(segment_dir)
    first.tell()
    first.finish()
    second.kill()
    second.finish(status=-signal.SIGKILL)
    wait_for(lambda: is_empty(segment_dir), "removal of everything")
    wait_for(lambda: not agents(segment_dir), f"end of agent {agent}")


def test_it_stays_for_a_rank_that_outlives_the_job_that_was_entered(
    run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "train.py").write_text(LOADER)
    background = f"exec 3<&0; {sys.executable} train.py <&3 &"
    until = "until ls $DLMON_DIR/*.seg >/dev/null 2>&1; do sleep 0.1; done"
    job = launch(run_job, FREE, "sh", "-c", f"{background} {until}")
    job.finish()
    url = announced(job)

    def entries() -> list[str]:
        return os.listdir(segment_dir / f"{jobs.PREFIX}{os.geteuid()}")

    wait_for(lambda: not entries(), "removal of the entry")
    wait_for(lambda: "READY" in job.output(), "the rank")
    assert "healthy" in fetch(f"{url}/-/healthy")
    assert len(agents(segment_dir)) == 1


def test_a_job_that_dies_in_its_first_moment_leaves_nothing(
    tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "job.py").write_text("import os; os.kill(os.getpid(), 9)")
    result = beside(FREE, "job.py", cwd=tmp_path, status=-signal.SIGKILL)
    assert re.fullmatch(AT, result.stderr)
    wait_for(lambda: is_empty(segment_dir), "removal of everything")


def test_after_a_killed_agent_the_next_job_starts_one_for_all(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    first = waiting()
    (agent,) = agents(segment_dir)
    os.kill(agent, signal.SIGKILL)
    wait_for(lambda: find(str(segment_dir)) is None, "end of the agent")
    assert not first.ended()
    second = waiting()
    assert announced(second)
    (other,) = agents(segment_dir)
    assert other != agent
    second.tell()
    second.finish()
    first.tell()
    first.finish()
    wait_for(lambda: is_empty(segment_dir), "removal of everything")


def test_told_to_end_the_agent_does_and_the_jobs_go_on(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    job = waiting()
    (agent,) = agents(segment_dir)
    os.kill(agent, signal.SIGTERM)
    wait_for(lambda: not agents(segment_dir), "end of the agent")
    assert [path.name for path in segment_dir.iterdir()] == [f"{jobs.PREFIX}{os.geteuid()}"]
    job.tell()
    assert "END" in job.finish()


@pytest.mark.parametrize("status", [0, 3, -signal.SIGTERM])
def test_the_exit_status_is_the_jobs(status: int, tmp_path: Path) -> None:
    end = f"os.kill(os.getpid(), {-status})" if status < 0 else f"os._exit({status})"
    (tmp_path / "job.py").write_text(f"import os; {end}")
    beside(FREE, "job.py", cwd=tmp_path, status=status)


# ── None where none is wanted ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("below", [False, True], ids=["its directory", "a user's below it"])
def test_beside_an_agent_that_was_started_by_hand_there_is_no_second(
    below: bool, waiting: Callable[..., Job], segment_dir: Path
) -> None:
    own = segment_dir / f"dlmon-{os.geteuid()}" if below else segment_dir
    with running("--dir", str(segment_dir)) as agent:
        wait_for(agent.ready, "ready")
        job = waiting("--serve", env={"DLMON_DIR": str(own)})
        assert job.output() == f"dlmon: agent at {agent.url}/, already running\nREADY\n"
        assert agents(own) == []


def test_a_second_agent_of_a_directory_says_so_and_takes_over_when_the_first_has_ended(
    segment_dir: Path,
) -> None:
    words = ("--dir", str(segment_dir), "--interval", "100ms")
    with running(*words) as first:
        wait_for(first.ready, "ready")
        with running(*words) as second:
            said = f"INFO another agent at {first.url}/ reads {segment_dir} too\n"
            assert second.greeting.endswith(said) or second.line().endswith(said)
            wait_for(second.ready, "ready")
            first.process.terminate()
            assert first.process.wait(60) == 0
            wait_for(
                lambda: (other := find(str(segment_dir))) and other.pid == second.process.pid,
                "the second agent's lock",
            )


def test_an_agent_that_reads_a_directory_by_two_names_keeps_its_lock(
    segment_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(segment_dir)
    dirs = ("--dir", str(segment_dir), "--dir", str(tmp_path / "link"), "--dir", f"{segment_dir}/.")
    with running(*dirs, "--interval", "100ms") as agent:
        wait_for(agent.ready, "ready")
        shown = "dlmon_agent_snapshot_timestamp_seconds"

        def looked() -> float:
            return float(json.loads(agent.get("/api/v1/snapshot")[1])["time"])

        before = looked()
        wait_for(lambda: looked() > before, f"another look {shown}")
        other = find(str(segment_dir))
        assert other is not None
        assert other.pid == agent.process.pid


def test_a_directory_that_comes_later_is_locked_then(segment_dir: Path) -> None:
    later = segment_dir / "later"
    with running("--dir", str(later), "--interval", "100ms") as agent:
        wait_for(agent.ready, "ready")
        later.mkdir()
        wait_for(lambda: find(str(later)), "the lock")
        agent.process.terminate()
        assert agent.process.wait(60) == 0
    assert is_empty(later)


def test_disabled_there_is_none(tmp_path: Path, segment_dir: Path) -> None:
    result = dlmon("run", "--serve", "true", cwd=tmp_path, env={"DLMON_DISABLE": "1"})
    assert result.stderr == ""
    assert is_empty(segment_dir)


def test_a_job_that_cannot_start_gets_none(tmp_path: Path, segment_dir: Path) -> None:
    result = dlmon("run", "--serve", "no-such", cwd=tmp_path, status=2)
    assert result.stderr.startswith("dlmon run: no-such: no such command")
    assert is_empty(segment_dir)


def test_where_segments_cannot_be_kept_it_is_one_line(tmp_path: Path) -> None:
    result = beside("--serve", "echo", "fine", cwd=tmp_path, env={"DLMON_DIR": "/proc"})
    assert result.stdout == "fine\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith("dlmon: no agent: directory /proc")
    assert line.endswith("; the job runs on without one")


def test_an_agent_that_breaks_at_once_costs_the_job_one_line(
    tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "yaml.py").write_text("1/0")  # a broken installation
    result = beside("--serve", "echo", "fine", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.stdout == "fine\n"
    log = segment_dir / f"dlmon-agent-{os.geteuid()}.log"
    assert result.stderr == (
        f"dlmon: no agent: it ended at once, its log is {log}; the job runs on without one\n"
    )
    assert "ZeroDivisionError" in log.read_text()
    assert BOOTSTRAP not in log.read_text()


def test_an_installation_that_lacks_something_costs_the_job_one_line(tmp_path: Path) -> None:
    (tmp_path / "psutil.py").write_text("raise ImportError('no such library\\nhere')")
    env = {"PYTHONPATH": str(tmp_path)}
    result = dlmon("run", "--serve", "echo", "fine", cwd=tmp_path, env=env)
    assert result.stdout == "fine\n"
    assert result.stderr == ("dlmon: no agent: no such library here; the job runs on without one\n")


def test_an_agent_that_is_slow_to_start_does_not_hold_the_job_up(
    tmp_path: Path, segment_dir: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    (tmp_path / "prometheus_client.py").write_text(f"open({str(gate)!r}).read()")  # for ever
    env = {"PYTHONPATH": str(tmp_path)}
    result = dlmon("run", "--serve", "echo", "fine", cwd=tmp_path, env=env)
    assert result.stdout == "fine\n"
    log = segment_dir / f"dlmon-agent-{os.geteuid()}.log"
    assert result.stderr == f"dlmon: an agent is starting; its log is {log}\n"
    assert len(agents(segment_dir)) == 1


def test_readers_of_segments_see_none_in_what_an_agent_keeps_there(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    waiting()
    assert len(list(segment_dir.iterdir())) == 3
    snapshot = observe(segment_dir)
    assert (snapshot.segments, snapshot.refused, snapshot.ranks) == (0, (), ())
