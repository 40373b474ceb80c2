"""`dlmon stacks` of real jobs: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlmon.observe import stacks
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import loader, observe, only_rank

JOB = """
    import os, sys, time

    import dlmon

    dlmon.instrument(run="stuck-run", rank=0)

    from torch.utils.data import DataLoader, Dataset

    class Stuck(Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, index):
            if index == 7:
                time.sleep(600)  # here
            return index

    if __name__ == "__main__":
        for batch in dlmon.name(DataLoader(Stuck(), num_workers=2, batch_size=1), "train"):
            pass
"""
HERE = 1 + next(n for n, line in enumerate(JOB.splitlines()) if line.endswith("# here"))


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlmon", "stacks", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, **options
    )


@pytest.fixture(scope="module")
def segments() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory, segments: Path) -> Iterator[Job]:
    """A job whose worker 1 has been in its fetch for a moment; the tests only look at it."""
    starter = JobStarter(tmp_path_factory.mktemp("stuck"), segments)
    job = starter(JOB)

    def fetches() -> bool:
        ranks = observe(segments).ranks
        workers = ranks[0].loaders[0].workers if ranks and ranks[0].loaders else ()
        return len(workers) == 2 and workers[1].fetch_index == 7 and workers[0].batches >= 4

    try:
        job.wait_for(fetches, "the fetch that does not end")
        yield job
    finally:
        starter.close()


def test_a_run_shows_its_rank_and_workers_with_their_stacks(stuck: Job, segments: Path) -> None:
    shown = run("stuck-run", "--dir", str(segments))
    assert (shown.returncode, shown.stderr) == (0, "")
    rank, first, second = shown.stdout.split("\n\n")
    assert rank.startswith(f"rank 0 of stuck-run, pid {stuck.pid}: state S")
    assert "train: wait for " in rank
    assert "_try_get_data (" in rank
    assert first.startswith("worker 0 of train, rank 0 of stuck-run, pid ")
    assert "does not fetch, owes 0" in first
    assert "in clock_nanosleep()" in second or os.uname().machine != "x86_64"
    assert "has been fetching a batch that begins with sample 7 for " in second
    assert f"    at Stuck.__getitem__ ({stuck.log.with_suffix('.py')}:{HERE})" in second


def test_json_has_the_same_and_a_pid_means_its_rank_or_worker(stuck: Job, segments: Path) -> None:
    def pids(target: object) -> list[int]:
        shown = run(str(target), "--json", "--dir", str(segments))
        return [one["pid"] for one in json.loads(shown.stdout)]

    workers = [worker.pid for worker in loader(observe(segments), "train").workers]
    assert pids("stuck-run") == pids("stuck") == pids(stuck.pid) == [stuck.pid, *workers]
    assert pids(workers[1]) == [workers[1]]
    (seen,) = json.loads(run(str(workers[1]), "--json", "--dir", str(segments)).stdout)
    assert (seen["worker"], seen["loader"], seen["fetch_index"]) == (1, "train", 7)
    assert any(frame["line"] == HERE for one in seen["threads"] for frame in one["frames"])
    assert '"locals"' not in json.dumps(seen)


def test_a_stopped_worker_has_a_stack_and_stays_stopped(stuck: Job, segments: Path) -> None:
    pid = loader(observe(segments), "train").workers[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    stat = Path(f"/proc/{pid}/stat")
    wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "stopped")
    shown = run(str(pid), "--dir", str(segments))
    assert f":{HERE})" in shown.stdout
    assert ": state T" in shown.stdout
    assert stat.read_text().rpartition(")")[2].split()[0] == "T"
    os.kill(pid, signal.SIGCONT)


def test_what_is_not_there_is_wrong_use(segments: Path) -> None:
    for target, what in (
        ("no-such-run", "run 'no-such-run'"),
        ("2147483647", "process 2147483647"),
    ):
        shown = run(target, "--dir", str(segments))
        assert shown.returncode == 2
        assert shown.stderr.startswith(f"dlmon stacks: there is no {what}; ")
        assert shown.stderr.count("\n") == 1


def test_a_rank_that_is_not_there_is_wrong_use(stuck: Job, segments: Path) -> None:
    assert run("stuck-run", "--rank", "0", "--dir", str(segments)).returncode == 0
    shown = run("stuck-run", "--rank", "5", "--dir", str(segments))
    assert shown.returncode == 2
    assert "there is no rank 5 of it that lives; there are stuck-run" in shown.stderr
    assert only_rank(observe(segments)).pid == stuck.pid


def test_a_process_that_is_not_python_has_no_stack() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        shown = run(str(process.pid))
        process.kill()
    assert shown.returncode == 1
    assert f"a process that dlmon does not observe, pid {process.pid}: state S" in shown.stdout
    assert "dlmon stacks: py-spy: " in shown.stderr


Fake = Callable[[str], None]


@pytest.fixture
def py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Put a script in the place of py-spy."""

    def put(script: str) -> None:
        program = tmp_path / "py-spy"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(stacks, "program", lambda: str(program))

    return put


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_is_not_permitted_is_said_with_what_it_needs(stuck: Job, py_spy: Fake) -> None:
    somebody = "setpriv --reuid 65534 --regid 65534 --clear-groups"
    py_spy(f'exec {somebody} {Path(sys.executable).with_name("py-spy")} "$@"')
    stack = stacks.take(stuck.pid)
    assert stack.refused
    assert stack.trouble.startswith(f"not permitted to look into process {stuck.pid}: ")
    assert "CAP_SYS_PTRACE" in stack.trouble


def test_a_py_spy_that_hangs_is_ended_with_all_it_started(py_spy: Fake, tmp_path: Path) -> None:
    py_spy(f"sleep 600 & echo $! > {tmp_path}/child; wait")
    assert stacks.take(os.getpid()).trouble == "py-spy did not end within 5 s"
    child = (tmp_path / "child").read_text().strip()
    wait_for(lambda: not _lives(child), "end of what it started")


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "answer", ["", "no json", "{}", "[1]", '[{"frames": 5}]', "[" * 100_000, '[{"frames": [3]}]']
)
def test_an_answer_that_makes_no_sense_is_no_stack(
    py_spy: Fake, tmp_path: Path, answer: str
) -> None:
    (tmp_path / "answer").write_text(answer)
    py_spy(f"cat {tmp_path}/answer")
    assert stacks.take(os.getpid()) == stacks.Stack(trouble="py-spy's answer makes no sense")


def test_names_of_functions_and_files_are_cleaned_and_cut(py_spy: Fake, tmp_path: Path) -> None:
    frame = {"name": "a\x1b[31m\n" + "x" * 300, "filename": None, "line": "1"}
    answer = [{"thread_name": None, "os_thread_id": 1, "frames": [frame] * 130}] * 70
    (tmp_path / "answer").write_text(json.dumps(answer))
    py_spy(f"cat {tmp_path}/answer")
    stack = stacks.take(os.getpid())
    assert len(stack.threads) == stacks.MAX_THREADS
    assert len(stack.threads[0].frames) == stacks.MAX_FRAMES
    function = stack.threads[0].frames[0].function
    assert len(function) == stacks.MAX_TEXT
    assert function.isprintable()
    assert stack.threads[0].frames[0].file == ""
    assert stack.threads[0].frames[0].line == 0
