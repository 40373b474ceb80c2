"""Starting things through `dlmon run`, as a user does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.jobs import DEADLINE_SECONDS, Job, JobStarter, wait_for

FREE = "--serve=127.0.0.1:0"
"""With an agent beside it, on any free port: other tests have theirs."""

DLMON = (sys.executable, "-m", "dlmon")
"""The command, as a user starts it."""

PATIENT = (sys.executable, str(Path(__file__).with_name("patient.py")))
"""The same, but that it waits for its agent for as long as a test does."""

AT = r"dlmon: agent at http://127\.0\.0\.1:\d+/\n"
"""What a job with FREE writes first."""

LOADER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        return torch.tensor(index)

if __name__ == "__main__":
    context = sys.argv[1] if len(sys.argv) > 1 else "fork"
    val = DataLoader(Numbers(), batch_size=200)
    list(val)
    train = DataLoader(Numbers(), batch_size=2, num_workers=2, multiprocessing_context=context)
    for number, batch in enumerate(train, 1):
        if number == 3:
            print("READY", flush=True)
            input()
            break
    print("END")
"""
"""A job that is in its third batch of `train`, with two workers, from READY until it is told."""


STATE = """
import json, os, signal, sys

def children():
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return "none"

print(json.dumps({
    "argv": sys.argv,
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "children": children(),
    "cwd": os.getcwd(),
    "environ": {k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    "executable": sys.executable,
    "files": sorted(os.listdir("/proc/self/fd")),
    "finders": len(sys.meta_path),
    "main": sys.modules["__main__"].__file__,
    "modules": sorted(set(sys.modules) & {"dlmon", "torch", "typing", "logging"}),
    "path": sys.path,
    "session": [os.getsid(0), os.getpgrp(), os.getppid()],
    "signals": [str(signal.getsignal(s)) for s in sorted(signal.valid_signals())],
    "sitecustomize": getattr(sys.modules.get("sitecustomize"), "__file__", None),
}))
"""
"""What a job can see of what it was started with, as JSON."""


def dlmon(
    *words: str,
    cwd: Path,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    status: int = 0,
    command: Sequence[str] = DLMON,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must be with `status`."""
    result = subprocess.run(
        [*command, *words],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


beside = partial(dlmon, "run", command=PATIENT)
"""Run a job beside an agent, both of which have all the time they need."""


def seen(
    words: list[str],
    cwd: Path,
    env: dict[str, str] | None = None,
    stderr: str = "",
) -> dict[str, object]:
    """Return what STATE prints when `words` run it; `stderr` is a pattern of what else is said."""
    printed = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.fullmatch(stderr, printed.stderr), printed.stderr
    state: dict[str, object] = json.loads(printed.stdout)
    return state


def launch(run_job: JobStarter, *words: str, env: Mapping[str, str | None] | None = None) -> Job:
    """Start `dlmon run` with these words: the process becomes the job."""
    return run_job(
        f"import runpy, sys\nsys.argv[1:] = {['run', *words]!r}\n"
        f"runpy.run_path({PATIENT[-1]!r}, run_name='__main__')\n",
        env=env,
    )


def address(output: str) -> str:
    """Return where the only agent that was announced serves."""
    (found,) = re.findall(r"^dlmon: agent at (http://\S+)/$", output, re.MULTILINE)
    return str(found)


def announced(job: Job) -> str:
    """Wait until a job's agent is announced and return where it serves."""
    job.wait_for(lambda: re.search(r"dlmon: agent at .*\n", job.output()), "an agent's address")
    return address(job.output())


def fetch(url: str) -> str:
    """Return what a server answers, which must be with status 200."""
    with urllib.request.urlopen(url, timeout=DEADLINE_SECONDS) as answer:
        return str(answer.read().decode())


def agents(directory: Path) -> list[int]:
    """Return the pids of the agents that `--serve` has started for a directory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"dlmon.agent.beside" in words and os.fsencode(directory) in words:
                found.append(int(folder.name))
    return found


@contextmanager
def ending_agents(directory: Path) -> Iterator[None]:
    """Kill what `--serve` has left of agents for a directory: their jobs are not waited for."""
    try:
        yield
    finally:
        for pid in agents(directory):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not agents(directory), "end of the agents")


def is_empty(directory: Path) -> bool:
    return not list(directory.iterdir())
