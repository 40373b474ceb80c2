"""`dlmon run --serve`: what it is given, what it serves, and that the job does not feel it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlmon.commands.run import spelled_out
from tests.commands.launching import (
    AT,
    DLMON,
    FREE,
    LOADER,
    PATIENT,
    STATE,
    agents,
    announced,
    beside,
    dlmon,
    fetch,
    is_empty,
    launch,
    seen,
)
from tests.jobs import Job, JobStarter, open_files, wait_for

pytestmark = pytest.mark.usefixtures("no_agent_is_left")

# ── The words ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("--serve train.py", "--serve= train.py"),
        ("--serve", "--serve="),
        ("--serve -- train.py", "--serve= -- train.py"),
        ("--serve -m train", "--serve= -m train"),
        ("--serve --run r train.py", "--serve= --run r train.py"),
        ("--serve 127.0.0.1:9000 train.py", "--serve=127.0.0.1:9000 train.py"),
        ("--serve [::1]:9000 train.py", "--serve=[::1]:9000 train.py"),
        ("--serve :9000 train.py", "--serve=:9000 train.py"),
        ("--serve node-7:9000", "--serve=node-7:9000"),
        ("--serve=node-7:9000 train.py", "--serve=node-7:9000 train.py"),
        ("--run --serve --serve a:1 b:2", "--run --serve --serve=a:1 b:2"),
        ("--run=r --serve torchrun --x a:1", "--run=r --serve= torchrun --x a:1"),
        ("train.py --serve a:1", "train.py --serve a:1"),
        ("-m train --serve a:1", "-m train --serve a:1"),
        ("-mtrain --serve a:1", "-mtrain --serve a:1"),
        ("-- train.py --serve a:1", "-- train.py --serve a:1"),
    ],
)
def test_a_word_after_serve_is_its_address_only_if_it_has_the_form_of_one(
    words: str, meant: str
) -> None:
    assert spelled_out(words.split()) == meant.split()


@pytest.mark.parametrize(
    "options",
    [
        "--serve",
        "--serve --",
        "--serve=127.0.0.1:0",
        "--serve 127.0.0.1:0 --run r",
        "--serve=[::1]:0",
    ],
)
def test_a_job_gets_its_own_words(options: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import sys; print(sys.argv)")
    result = beside(*options.split(), "job.py", "--serve", "a:1", cwd=tmp_path)
    assert result.stdout == "['job.py', '--serve', 'a:1']\n"
    assert result.stderr.startswith("dlmon: agent at http://")


def test_what_is_no_address_is_said_to_be_none(tmp_path: Path) -> None:
    said = dlmon("run", "--serve=9000", "true", cwd=tmp_path, status=2).stderr
    assert said.endswith("'9000' is no address; give HOST:PORT, [IPv6]:PORT or :PORT\n")


# ── What it serves ───────────────────────────────────────────────────────────────────────────────


def test_the_loaders_of_the_job_are_on_its_page_and_in_its_metrics(
    run_job: JobStarter, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(LOADER)
    job = launch(run_job, FREE, "--run", "r", "train.py")
    url = announced(job)
    series = 'dlmon_loader_batches_total{loader="train",rank="0",run="r"} 3.0'
    wait_for(lambda: series in fetch(f"{url}/metrics"), series, job=job)
    (rank,) = json.loads(fetch(f"{url}/api/v1/snapshot"))["ranks"]
    assert {one["name"]: one["batches"] for one in rank["loaders"]} == {"train": 3, "val": 2}
    assert rank["up"] is True
    assert "<title>dlmon</title>" in fetch(f"{url}/")
    assert "healthy" in fetch(f"{url}/-/healthy")
    job.tell()
    job.finish()


def test_a_usual_address_that_is_taken_is_replaced_by_a_free_one(
    waiting: Callable[..., Job],
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        with contextlib.suppress(OSError):  # somebody else's, and so taken as well
            server.bind(("127.0.0.1", 10356))
            server.listen()
        job = waiting("--serve")
        assert not announced(job).endswith(":10356")
        assert "healthy" in fetch(f"{announced(job)}/-/healthy")


def test_an_address_it_cannot_have_costs_the_job_one_line(
    tmp_path: Path, segment_dir: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "job.py").write_text("print('fine'); raise SystemExit(3)")
        result = beside("--serve", taken, "job.py", cwd=tmp_path, status=3)
    assert result.stdout == "fine\n"
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"dlmon: no agent: cannot listen on {taken}: Address already in use")
    assert line.endswith("; the job runs on without one")
    assert "choose another port with --serve" in line
    assert is_empty(segment_dir)


# ── The job is what it would have been ───────────────────────────────────────────────────────────


def test_a_job_sees_what_it_would_have_seen_without_an_agent(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(STATE)
    expected = seen([*DLMON, "run", "job.py"], tmp_path)
    found = seen([*PATIENT, "run", FREE, "job.py"], tmp_path, stderr=AT)
    assert found == expected
    assert found["children"] == "none"


def test_the_agent_has_nothing_of_the_jobs(
    waiting: Callable[..., Job], segment_dir: Path, tmp_path: Path
) -> None:
    job = waiting()
    (agent,) = agents(segment_dir)
    folder = Path(f"/proc/{agent}")
    user = os.geteuid()
    own = {
        "/dev/null",
        f"{segment_dir}/dlmon-agent-{user}.lock",
        f"{segment_dir}/dlmon-agent-{user}.log",
    }

    def only_its_own() -> set[str]:
        """What it has open, unless it is just reading a file."""
        opened = open_files(agent)
        files = {name for name in opened if not re.match(r"socket:|pipe:|anon_inode:", name)}
        return opened if files == own else set()

    opened = wait_for(only_its_own, f"{own} alone")
    assert not opened & open_files(job.pid) - {"/dev/null"}
    assert os.readlink(folder / "cwd") == "/"
    assert os.getsid(agent) not in (os.getsid(job.pid), os.getsid(0))
    assert os.getpgid(agent) != os.getpgid(job.pid)


def test_who_reads_the_jobs_output_sees_its_end_although_the_agent_lives_on(
    waiting: Callable[..., Job], segment_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text("print(input()[::-1])")
    first = subprocess.Popen(
        [*PATIENT, "run", FREE, "job.py"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: agents(segment_dir), "an agent")
        waiting()  # for this one the agent stays
        output, said = first.communicate("tupni\n", timeout=60)
    finally:
        first.kill()
        first.wait()
    assert output == "input\n"
    assert re.fullmatch(AT, said)
    assert len(agents(segment_dir)) == 1


def test_an_interrupt_ends_the_job_and_not_the_agent(
    waiting: Callable[..., Job], segment_dir: Path
) -> None:
    job, other = waiting(), waiting()
    os.killpg(job.pid, signal.SIGINT)  # what Ctrl-C does
    job.finish(status=-signal.SIGINT)
    url = announced(job)
    assert "healthy" in fetch(f"{url}/-/healthy")
    assert not other.ended()


@pytest.mark.parametrize("shadowed", ["yaml.py", "logging.py", "dlmon.py", "prometheus_client.py"])
def test_what_lies_where_the_job_is_started_does_not_matter_to_the_agent(
    shadowed: str, tmp_path: Path
) -> None:
    (tmp_path / shadowed).write_text("raise SystemExit('not yours')")
    result = subprocess.run(
        [*PATIENT, "run", FREE, "echo", "fine"],  # `python -m dlmon` itself looks here first
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout == "fine\n"
    assert re.fullmatch(AT, result.stderr)


def test_signals_that_the_job_ignores_or_blocks_are_the_jobs_business(
    tmp_path: Path, segment_dir: Path
) -> None:
    starter = (
        "import os, signal, sys\n"
        "for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "    signal.signal(number, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])\n"
        f"os.execv(sys.executable, [*{PATIENT!r}, *sys.argv[1:]])\n"
    )
    words = ["run", FREE, "grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]
    result = subprocess.run(
        [sys.executable, "-c", starter, *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    blocked, ignored = (int(line.split()[1], 16) for line in result.stdout.splitlines())
    assert blocked == 1 << signal.SIGTERM - 1 | 1 << signal.SIGUSR1 - 1
    of_libc = 1 << 31 | 1 << 32  # cannot be set from Python
    assert ignored & ~of_libc == 1 << signal.SIGCHLD - 1 | 1 << signal.SIGINT - 1
    assert re.fullmatch(AT, result.stderr)
    (agent,) = agents(segment_dir)
    os.kill(agent, signal.SIGTERM)  # it would not arrive
    wait_for(lambda: not agents(segment_dir), "end of the agent")


def test_without_standard_streams_a_job_runs_beside_an_agent(
    tmp_path: Path, segment_dir: Path
) -> None:
    command = f"{' '.join(PATIENT)} run {FREE} sh -c 'ls -l /proc/self/fd >files' <&- >&- 2>&-"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, timeout=60, check=True)
    assert "pipe:" not in (tmp_path / "files").read_text()
    assert str(segment_dir) not in (tmp_path / "files").read_text()
    assert len(agents(segment_dir)) == 1
