"""Jobs for tests: real Python processes that are watched, told to go on, and always cleaned up."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")

DEADLINE_SECONDS = 60.0
"""How long a test waits for what should happen at once: generous, because machines are busy."""

LOOK_EVERY_MS = 10


def wait_for(
    predicate: Callable[[], T],
    what: str = "",
    *,
    deadline: float = DEADLINE_SECONDS,
    job: Job | None = None,
) -> T:
    """Return what `predicate` returns as soon as that is true.

    Args:
        predicate: Asked again and again; it should be quick.
        what: What is waited for, for the failure's message.
        deadline: Seconds until the test fails.
        job: One that must live on meanwhile; its end is noticed at once.
    """
    what = what or getattr(predicate, "__name__", "the predicate")
    end = time.monotonic() + deadline
    while not (result := predicate()):
        if job is not None and job.ended(within_ms=LOOK_EVERY_MS):
            if result := predicate():  # it became true as the job's last act
                break
            pytest.fail(f"the job ended ({job.process.returncode}) before {what}:\n{job.output()}")
        elif job is None:
            time.sleep(LOOK_EVERY_MS / 1000)
        if time.monotonic() > end:
            seen = f":\n{job.output()}" if job is not None else ""
            pytest.fail(f"no {what} within {deadline:g} s{seen}")
    return result


def open_files(pid: int) -> set[str]:
    """Return what a process has open, as `/proc` names it."""
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            names.add(os.readlink(link))
    return names


class Job:
    """A Python script running in a process group of its own.

    Its standard output and error go to one file, so that no full pipe ever blocks it; its standard
    input is a pipe, so that a script can wait in `input()` until the test calls `tell`.

    Attributes:
        process: The process, leader of its group.
        log: The file with its output.
    """

    def __init__(self, script: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.log = script.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-u", str(script)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self._pidfd = os.pidfd_open(self.process.pid)

    @property
    def pid(self) -> int:
        """The script's process id, which is also its process group's."""
        return self.process.pid

    def output(self) -> str:
        """Return what the job and its children have written so far."""
        return self.log.read_text(errors="replace")

    def ended(self, *, within_ms: int = 0) -> bool:
        """Say if the script's process has ended, waiting up to `within_ms` for that."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(within_ms)) and self.process.wait() is not None

    def wait_for(
        self, predicate: Callable[[], T], what: str = "", *, deadline: float = DEADLINE_SECONDS
    ) -> T:
        """Return what `predicate` returns once that is true; fail if the job ends before."""
        return wait_for(predicate, what, deadline=deadline, job=self)

    def wait_for_output(self, text: str, *, deadline: float = DEADLINE_SECONDS) -> str:
        """Return the output once it contains `text`; fail if the job ends without."""
        self.wait_for(lambda: text in self.output(), f"output {text!r}", deadline=deadline)
        return self.output()

    def tell(self, line: str = "") -> None:
        """Write a line to the job's standard input, where its `input()` waits."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Send a signal to the script's process only, not to its children."""
        self.process.send_signal(sig)

    def finish(self, *, status: int | None = 0, deadline: float = DEADLINE_SECONDS) -> str:
        """Wait for the job's end and return its output.

        Args:
            status: The exit status it must end with, negative for a signal; None for any.
            deadline: Seconds until the test fails.
        """
        wait_for(self.ended, "end of the job", deadline=deadline)
        if status is not None and self.process.returncode != status:
            pytest.fail(f"the job ended with {self.process.returncode}:\n{self.output()}")
        return self.output()

    def close(self) -> None:
        """Kill every process of the group that still lives, stopped ones too.

        All but multiprocessing's resource tracker, which then removes the semaphores that the
        killed left in /dev/shm, and ends by itself.
        """
        wait_for(self._nobody_left, f"end of process group {self.pid}")
        self.process.wait()
        os.close(self._pidfd)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()

    def _nobody_left(self) -> bool:
        left = list(_living(group=self.pid))
        for pid in left:
            with contextlib.suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        return not left


def _living(*, group: int) -> Iterator[int]:
    """Find the processes of a process group, zombies excepted."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                yield int(folder.name)


class JobStarter:
    """Starts jobs that share a segment directory, and ends them all."""

    def __init__(self, folder: Path, segment_dir: Path) -> None:
        self._folder = folder
        self._segment_dir = segment_dir
        self._jobs: list[Job] = []

    def __call__(
        self, source: str, *, env: Mapping[str, str | None] | None = None, name: str = ""
    ) -> Job:
        """Start a script.

        Args:
            source: The script; common indentation is removed. It is a real file, so that spawn and
                forkserver workers can import it: guard its body with `if __name__ == "__main__"`.
            env: Variables to set, or with None to remove, on top of this process's environment
                and `DLMON_DIR`.
            name: The script's file name, where a test needs one that no other job has.
        """
        script = self._folder / (name or f"job{len(self._jobs)}.py")
        script.write_text(textwrap.dedent(source))
        changes = {"DLMON_DIR": str(self._segment_dir), "OMP_NUM_THREADS": "1", **(env or {})}
        environment = {**os.environ, **changes}
        job = Job(script, {k: v for k, v in environment.items() if v is not None}, self._folder)
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """End all jobs."""
        for job in self._jobs:
            job.close()
