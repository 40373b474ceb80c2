"""Jobs that hang on purpose, and what an agent finds about them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from dlmon.analysis import thresholds
from dlmon.analysis.stalls import GAP_SECONDS
from dlmon.analysis.thresholds import Limits
from dlmon.observe.snapshot import Histogram, Loader
from dlmon.segment.layout import Phase
from tests.agent.samples import make_loader, make_worker
from tests.agents import Agent, running
from tests.conftest import ROOT
from tests.e2e.looks import noting
from tests.jobs import JobStarter, wait_for

FLOOR, CEILING = 2.0, 6.0
SOON_SECONDS = 2.0
LIMITS = Limits(FLOOR, CEILING)
NEXT_BUCKET = 2.0
"""What few more fetches can make of a threshold, whose durations are known in powers of two."""
START_SECONDS = 150.0
"""A dozen processes import torch at once."""

FOR_EVER = {"lock_across_fork", "deadlock", "unpicklable", "pin_thread"}

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
    "deadlock": "worker_stuck_in_fetch",
    "gil_after": "batch_not_handed_over",
    "gil_between": "worker_stuck_before_fetch",
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
        file: Where the runs are written down.
        names: The runs that hang.
        found: What was found about each.
        hangs: What was kept of each, with all stacks.
        ranks: As the snapshot had them then, by run.
        times: When the agent looked, as far as was seen.
    """

    def __init__(self, agent: Agent, folder: Path, file: Path, names: list[str]) -> None:
        self.agent = agent
        self.folder = folder
        self.file = file
        self.names = names
        self.found: dict[str, Finding] = {}
        self.hangs: dict[str, Any] = {}
        self.ranks: dict[str, Any] = {}
        self.times: set[float] = set()

    def timed(self) -> AbstractContextManager[None]:
        """Note meanwhile when the agent looks."""
        return noting(lambda: self.times.add(self.read("/api/v1/findings")["time"]))

    def happen(self) -> None:
        """Wait until all hang and are looked into."""
        wait_for(self.agent.ready, "ready")
        for run in self.names:
            if kind(run) == "stopped":
                begun = functools.partial(lambda run: self.batches(run, 1) > 30, run)
                wait_for(begun, "batches", deadline=START_SECONDS)
                os.kill(self.workers(run)[1]["pid"], signal.SIGSTOP)
        for run in self.names:
            is_found = functools.partial(self.only, run, NAMES[kind(run)])
            found = wait_for(is_found, f"{run} found", deadline=START_SECONDS)
            assert found is not None
            self.found[run] = found
        for run in self.names:
            stacked = functools.partial(self.hang, run, NAMES[kind(run)])
            self.hangs[run] = wait_for(stacked, f"stacks of {run}")
            self.ranks[run] = self.rank(run)

    def wait(self) -> None:
        """Wait until rank 1 of the run `ranks` is found to wait for rank 0."""

        def both() -> bool:
            found = {(one["name"], one["rank"], one["worker"]) for one in self.about("ranks")}
            return found == {("worker_stuck_in_fetch", "0", "0"), ("ranks_wait_for_rank", "0", "")}

        wait_for(both, "the worker, and who waits for its rank", deadline=START_SECONDS)
        found = functools.partial(self.hang, "ranks", "ranks_wait_for_rank")
        self.hangs["ranks"] = wait_for(found, "stacks of the rank that is waited for")

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

    def _ranks(self, run: str) -> list[Any]:
        ranks = self.read("/api/v1/snapshot")["ranks"]
        return [one for one in ranks if one["run"] == run and one["loaders"]]

    def rank(self, run: str) -> Any:
        return next(iter(self._ranks(run)), None)

    def workers(self, run: str) -> list[Any]:
        rank = self.rank(run)
        return list(rank["loaders"][0]["workers"]) if rank else []

    def batches(self, run: str, slot: int) -> int:
        workers = self.workers(run)
        return int(workers[slot]["batches"]) if workers and workers[slot]["pid"] else 0

    def go_on(self, run: str) -> None:
        if kind(run) == "stopped":
            os.kill(self.workers(run)[1]["pid"], signal.SIGCONT)
            return
        fd = os.open(self.folder / f"{run}.fifo", os.O_RDWR)
        os.write(fd, b"\n")
        os.close(fd)

    # What must hold of any scene. A busy machine makes the agent look late, and the test still
    # later: times are those of the agent's looks.

    def check_noticed(self) -> None:
        """No look that was later than it should be noticed came before the one that did."""
        for run in self.names:
            first = self._of_the_hang(run)[-1]  # a sampler has another name before its stack
            finding = first["finding"]
            self._check_threshold(finding, self.ranks[run])
            self._check_in_time(first, finding["since"] + _threshold(finding))

    def check_waiting_noticed(self) -> None:
        """That a rank waits for another is noticed once both have been at it for long enough."""
        (peer,) = (one for one in self._ranks("ranks") if one["rank"] == "1")
        (waited,) = (one for one in self._ranks("ranks") if one["rank"] == "0")
        kept = [one for one in self._of_the_hang("ranks") if one["finding"]["worker"] == ""]
        finding = kept[-1]["finding"]
        self._check_threshold(finding, waited)
        loader = peer["loaders"][0]
        in_step = loader["phase_since"] + thresholds.of_fetch(_loader(loader), LIMITS)
        self._check_in_time(kept[-1], max(in_step, finding["since"] + _threshold(finding)))

    def _check_threshold(self, finding: Finding, rank: Any) -> None:
        """No more was waited for than the loader's own fetches give reason for."""
        reason = _reasonable(finding, _loader(rank["loaders"][0]), rank["loaders"][0]["workers"])
        assert FLOOR <= _threshold(finding) <= min(CEILING, NEXT_BUCKET * reason), (finding, reason)

    def _check_in_time(self, hang: Any, due: float) -> None:
        """No look that was later than `due` came before the one that noticed."""
        since, noticed = hang["finding"]["since"], hang["noticed"]
        looks = sorted(time for time in self.times if since < time < noticed)
        assert looks, hang["finding"]
        # Of the time between looks that are so far apart the agent knows nothing.
        unseen = sum(b - a for a, b in pairwise(looks) if b - a > GAP_SECONDS)
        assert looks[-1] - unseen - due < SOON_SECONDS, (hang["finding"], due, noticed)

    def check_one_cause(self) -> None:
        for run in self.names:
            names = {hang["finding"]["name"] for hang in self._of_the_hang(run)}
            # That the loop is in its sampler and waits for no batch only its stack shows.
            also = {"batch_not_handed_over"} if run == "sampler" else set()
            assert names - {NAMES[kind(run)]} <= also, run

    def _of_the_hang(self, run: str) -> list[Any]:
        """What is kept of a run, the newest first, less what was over before it hung.

        With limits of seconds workers that start on a busy machine are late: one may hang while the
        loop still waits for another's first batch, and has waited since before.
        """
        since = self.hangs[run]["finding"]["since"]
        kept = [one for one in self.kept(run) if one["ended"] is None or one["ended"] > since]
        return [one for one in kept if one["ended"] is None or not _is_a_late_start(one, since)]

    def check_stacks(self) -> None:
        for run in self.names:
            if kind(run) in ("stopped", "unpicklable", "pin_thread"):
                continue  # no line of theirs is to blame
            frames = [
                (frame["file"], frame["line"])
                for stack in self.hangs[run]["processes"][0]["stacks"]
                for thread in stack["threads"]
                for frame in thread["frames"]
            ]
            assert guilty_line(self.file, run) in frames, run

    def check_untouched(self) -> None:
        """Nobody was stopped, traced or started by being looked at."""
        states = {"stopped": "T", "kernel": "D"}  # who wants the interpreter asks again and again
        for run in self.names:
            for seen in self.hangs[run]["processes"]:
                status = Path(f"/proc/{seen['pid']}/status").read_text()
                assert "TracerPid:\t0\n" in status
                if seen["role"] != "rank":
                    state = status.partition("State:\t")[2][0]
                    assert state in states.get(kind(run), "SR"), run

    def check_over(self) -> None:
        """Each that can goes on, and is no hang any more soon after that shows."""
        going = [run for run in self.names if kind(run) not in FOR_EVER]
        for run in going:
            before = self.rank(run)["loaders"][0]["batches"]
            self.go_on(run)
            moved = self._moved(run, before)
            while self.about(run):
                document = self.read("/api/v1/findings")
                over = not any(one["run"] == run for one in document["findings"])
                assert over or document["time"] < moved + SOON_SECONDS, run
            assert all(hang["ended"] is not None for hang in self.kept(run))
            assert not any(worker["hung"] for worker in self.workers(run))
        for run in set(self.names) - set(going):
            assert self.only(run, NAMES[kind(run)])

    def _moved(self, run: str, before: int) -> float:
        """When the agent first saw a batch more than before."""

        def moved() -> float | None:
            snapshot = self.read("/api/v1/snapshot")
            (rank,) = (one for one in snapshot["ranks"] if one["run"] == run)
            more = rank["loaders"] and rank["loaders"][0]["batches"] > before
            return float(snapshot["time"]) if more else None

        at = wait_for(moved, f"batches of {run}")
        assert at is not None
        return at


def _is_a_late_start(hang: Any, since: float) -> bool:
    """It is a loop's that waited already when the hang began."""
    return bool(
        hang["finding"]["name"] == "rank_stuck_in_next" and hang["finding"]["since"] < since
    )


def _threshold(finding: Finding) -> float:
    return float(finding["evidence"]["threshold_seconds"])


def _loader(seen: Any) -> Loader:
    """A loader of a snapshot, with what thresholds are made from."""
    durations: dict[str, Any] = {
        name: Histogram(tuple(seen[name]["counts"]), seen[name]["sum_seconds"])
        for name in ("fetch", "wait", "step")
    }
    return make_loader(
        phase=Phase[seen["phase"].upper()],
        phase_seconds={Phase[name.upper()]: took for name, took in seen["phase_seconds"].items()},
        startups=seen["startups"],
        **durations,
    )


def _reasonable(finding: Finding, loader: Loader, workers: list[Any]) -> float:
    """The threshold that a loader's durations give for what is found of it."""
    if finding["name"] == "worker_stopped":
        return FLOOR
    if finding["name"] == "rank_stuck_in_step":
        return thresholds.of_step(loader, LIMITS)
    if finding["name"] in ("rank_stuck_in_next", "ranks_wait_for_rank"):
        return thresholds.of_next(loader, LIMITS)
    if finding["worker"] == "":
        return thresholds.of_fetch(loader, LIMITS)
    (seen,) = (one for one in workers if str(one["slot"]) == finding["worker"])
    worker = make_worker(batches=seen["batches"], failed=seen["failed"])
    return thresholds.of_worker(worker, loader, LIMITS)


def guilty_line(file: Path, run: str) -> tuple[str, int]:
    """The file and the number of the line at which a run is stuck."""
    lines = file.read_text().splitlines()
    words = f"# GUILTY {kind(run)}"
    return str(file), next(n for n, line in enumerate(lines, 1) if line.endswith(words))


def library(folder: Path) -> str:
    """A library with a function that waits in the kernel; "" where none can be built."""
    if shutil.which("gcc") is None:
        return ""
    source, built = folder / "vfork.c", folder / "vfork.so"
    source.write_text(VFORK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", built, source], check=True)
    return str(built)


def source(folder: Path, *names: str) -> str:
    """The source of a job of runs of these names."""
    built = library(folder)
    return f"""
        import runpy, sys
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv = {[str(HANGING), str(folder), built, *names]!r}
        runpy.run_path(sys.argv[0], run_name="__main__")
    """


def make_fifos(folder: Path, *names: str) -> None:
    """Make what tells runs of these names to go on."""
    for name in names:
        for fifo in (name, f"{name}-peer"):
            os.mkfifo(folder / f"{fifo}.fifo")


def possible() -> list[str]:
    """The kinds of hangs that can be made on this machine."""
    return [
        name for name in NAMES if name != "deadlock" and (name != "kernel" or shutil.which("gcc"))
    ]


@contextmanager
def happening(folder: Path, file: Path, names: list[str], job: str, *more: str) -> Iterator[Scene]:
    """Have runs hang under the eyes of an agent.

    Args:
        folder: For the job, its agent and a FIFO for each run.
        file: Where the runs are written down.
        names: Of the runs that hang.
        job: Source of the job.
        more: Runs that are not waited for.
    """
    config = folder / "agent.yml"
    config.write_text(
        "interval_seconds: 0.5\nweb: {listen_address: 127.0.0.1:0}\n"
        f"hangs: {{floor_seconds: {FLOOR}, ceiling_seconds: {CEILING}}}\n"
        "stacks: {enabled: true, per_hour: 1000}\n"
    )
    make_fifos(folder, *names, *more)
    segments = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    starter = JobStarter(folder, segments)
    with running("--config", str(config), "--dir", str(segments)) as agent:
        try:
            starter(job)
            scene = Scene(agent, folder, file, names)
            with scene.timed():
                scene.happen()
                if "ranks" in more:
                    scene.wait()
            yield scene
        finally:
            starter.close()
            shutil.rmtree(segments, ignore_errors=True)
