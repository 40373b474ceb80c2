"""Jobs that hang on purpose, and what an agent finds about them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.agents import Agent
from tests.conftest import ROOT
from tests.jobs import wait_for

HANGING = Path(__file__).with_name("hanging_job.py")

VFORK = """
#include <unistd.h>
/* Its caller is in state D until the child ends: a vfork cannot be interrupted. */
void wait_in_vfork(int fd) { char c; if (vfork() == 0) { while (read(fd, &c, 1) != 1); _exit(0); } }
"""

NAMES = {
    "stopped": "worker_stopped",
    "endless_read": "worker_stuck_in_fetch",
    "gil_held": "worker_stuck_in_fetch",
    "lock_across_fork": "worker_stuck_in_fetch",
    "before_fetch": "worker_stuck_before_fetch",
    "unpicklable": "batch_not_handed_over",
    "step": "rank_stuck_in_step",
    "alone": "rank_stuck_in_next",
    "sampler": "rank_stuck_in_next",
    "kernel": "worker_blocked_in_kernel",
    "pin_thread": "pin_memory_thread_dead",
}
Finding = dict[str, Any]


def kind(run: str) -> str:
    """What a run does, which its name begins with."""
    return run.partition("-")[0]


class Scene:
    """One job with a run for each kind of hang, and an agent that watches it.

    Attributes:
        names: The runs that hang.
        found: What was found about each.
        hangs: What was kept of each, with all stacks.
        ranks: As the snapshot had them then, by run.
    """

    def __init__(self, agent: Agent, folder: Path, names: list[str]) -> None:
        self.agent = agent
        self.folder = folder
        self.names = names
        self.found: dict[str, Finding] = {}
        self.hangs: dict[str, Any] = {}
        self.ranks: dict[str, Any] = {}

    def happen(self) -> None:
        """Wait until all hang and are looked into."""
        for run in self.names:
            if kind(run) == "stopped":
                wait_for(lambda run=run: self.batches(run, 1) > 30, "batches")  # type: ignore[misc]
                os.kill(self.workers(run)[1]["pid"], signal.SIGSTOP)
        for run in self.names:
            found = wait_for(functools.partial(self.only, run, NAMES[kind(run)]), f"{run} found")
            assert found is not None
            self.found[run] = found
        for run in self.names:
            stacked = functools.partial(self.hang, run, NAMES[kind(run)])
            self.hangs[run] = wait_for(stacked, f"stacks of {run}")
            self.ranks[run] = self.rank(run)

    def read(self, path: str) -> Any:
        return json.loads(self.agent.get(path)[1])

    def about(self, run: str) -> list[Finding]:
        """What is found about a run now."""
        every = self.read("/api/v1/findings")["findings"]
        return [one for one in every if one["run"] == run]

    def only(self, run: str, name: str) -> Finding | None:
        """What is found about a run, if that is one thing of this name."""
        about = self.about(run)
        return about[0] if [one["name"] for one in about] == [name] else None

    def kept(self, run: str) -> list[Any]:
        """All hangs of a run that are remembered."""
        hangs = self.read("/api/v1/hangs")["hangs"]
        return [hang for hang in hangs if hang["finding"]["run"] == run]

    def hang(self, run: str, name: str) -> Any:
        """What is kept of a hang; None before its stacks are complete."""
        for hang in self.kept(run):
            seen = hang["processes"]
            if hang["finding"]["name"] == name and seen:
                return hang if all(len(one["stacks"]) == 3 for one in seen) else None
        return None

    def rank(self, run: str) -> Any:
        ranks = self.read("/api/v1/snapshot")["ranks"]
        return next((one for one in ranks if one["run"] == run and one["loaders"]), None)

    def workers(self, run: str) -> list[Any]:
        rank = self.rank(run)
        return list(rank["loaders"][0]["workers"]) if rank else []

    def batches(self, run: str, slot: int) -> int:
        workers = self.workers(run)
        return int(workers[slot]["batches"]) if workers and workers[slot]["pid"] else 0

    def go_on(self, name: str) -> None:
        fd = os.open(self.folder / f"{name}.fifo", os.O_RDWR)
        os.write(fd, b"\n")
        os.close(fd)


def line_of(run: str) -> int:
    """The number of the line at which a run is stuck."""
    lines = HANGING.read_text().splitlines()
    return next(n for n, line in enumerate(lines, 1) if line.endswith(f"# GUILTY {run}"))


def library(folder: Path) -> str:
    """A library with a function that waits in the kernel; "" where none can be built."""
    if shutil.which("gcc") is None:
        return ""
    source, built = folder / "vfork.c", folder / "vfork.so"
    source.write_text(VFORK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", built, source], check=True)
    return str(built)


def source(folder: Path, *names: str) -> str:
    """The source of a job of runs of these names, for which it makes FIFOs."""
    built = library(folder)
    for name in names:
        for fifo in (name, f"{name}-peer"):
            os.mkfifo(folder / f"{fifo}.fifo")
    return f"""
        import runpy, sys
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv = {[str(HANGING), str(folder), built, *names]!r}
        runpy.run_path(sys.argv[0], run_name="__main__")
    """


def possible() -> list[str]:
    """The kinds of hangs that can be made on this machine."""
    return [name for name in NAMES if name != "kernel" or shutil.which("gcc")]
