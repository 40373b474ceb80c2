"""Run one job of a framework without dlmon and with it, and look at it from outside meanwhile.

A job is a script that knows nothing of dlmon. Wherever it calls `tell(...)` it prints facts about
itself and waits, while the test takes a snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlmon.observe.snapshot import Loader, Snapshot
from tests.commands.launching import launch
from tests.jobs import Job, JobStarter
from tests.observing import FACTS, loader, observe, only_rank

PREAMBLE = """
import hashlib
import json
import os
import sys

import torch


class Digest:
    '''The content and order of everything added.'''

    def __init__(self):
        self._sha = hashlib.sha256()

    def add(self, *values):
        plain = [v.tolist() if hasattr(v, "tolist") else v for v in values]
        self._sha.update(json.dumps(plain).encode())

    def __str__(self):
        return self._sha.hexdigest()[:16]


def tell(**facts):
    print("FACTS", json.dumps(facts, default=str), flush=True)
    input()

"""
"""What every job begins with."""

BY_CALL = "import dlmon\n\ndlmon.instrument()\n"

DEADLINE_SECONDS = 240.0
"""For a job to go on: several processes may import a framework first, on a busy machine."""

WAYS = ("instrument", "run")
"""A line at the top of the script, or `dlmon run` and an unchanged script."""


@dataclass(frozen=True)
class Stop:
    """A moment at which a job waited.

    Attributes:
        facts: What it said.
        snapshot: What was to be seen from outside.
    """

    facts: dict[str, Any]
    snapshot: Snapshot

    def loader(self, name: str) -> Loader:
        """Return a loader of the only rank."""
        return loader(self.snapshot, name)

    def names(self) -> list[str]:
        """Return the names of the only rank's loaders."""
        return sorted(one.name for one in only_rank(self.snapshot).loaders)


class Watch:
    """Runs jobs with and without dlmon and holds them to saying the same.

    Attributes:
        launcher: The words of a command to which the script's path is added; it may start several
            ranks, of which one tells.
    """

    def __init__(self, run_job: JobStarter, segment_dir: Path, folder: Path) -> None:
        self.launcher: tuple[str, ...] = ()
        self._run_job = run_job
        self._segment_dir = segment_dir
        self._folder = folder

    def __call__(
        self,
        source: str,
        *,
        ways: tuple[str, ...] = WAYS,
        env: Mapping[str, str | None] | None = None,
    ) -> list[Stop]:
        """Run a job without dlmon and then each way with it; return the stops of the last.

        The job must say the same at every stop, end well, keep dlmon out of its output, and have
        loaders of the same names each way.

        Args:
            source: The job, after PREAMBLE.
            ways: Of WAYS.
            env: As of `JobStarter`.
        """
        script = self._folder / "train.py"
        script.write_text(PREAMBLE + textwrap.dedent(source))
        expected = [stop.facts for stop in self._run(self._start(script, "", env))]
        assert expected, "the job told nothing"
        names: list[list[str]] = []
        stops: list[Stop] = []
        for way in ways:
            stops = self._run(self._start(script, way, env))
            assert [stop.facts for stop in stops] == expected, way
            assert list(self._segment_dir.iterdir()) == []
            ranks = [rank for stop in stops for rank in stop.snapshot.ranks]
            assert [rank.shim_errors for rank in ranks] == [0] * len(ranks)
            names.append([one.name for rank in ranks for one in rank.loaders])
        assert all(names[0] == others for others in names), names
        return stops

    def close(self) -> None:
        """Kill what a failed test left behind: launchers give each rank a process group."""
        script = str(self._folder / "train.py").encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if script in (process / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(process.name), signal.SIGKILL)

    def _start(self, script: Path, way: str, env: Mapping[str, str | None] | None) -> Job:
        words = [*self.launcher, str(script)]
        if way == "run":
            return launch(self._run_job, *words, env=env)
        if self.launcher:
            return self._run_job(f"import os\n\nos.execvp({words[0]!r}, {words!r})\n", env=env)
        source = script.read_text()
        return self._run_job(BY_CALL + source if way == "instrument" else source, env=env)

    def _run(self, job: Job) -> list[Stop]:
        """Let a job go from stop to stop until it ends."""
        stops: list[Stop] = []
        while (facts := next_facts(job, len(stops))) is not None:
            stops.append(Stop(facts, observe(self._segment_dir)))
            job.tell()
        assert_unmentioned(job.finish())
        return stops


def next_facts(job: Job, number: int) -> dict[str, Any] | None:
    """Return the facts that a job tells after `number` others, None if it ends instead."""

    def told() -> list[str]:
        complete = job.output().rpartition("\n")[0].splitlines()
        return [line for line in complete if line.startswith(FACTS)][number:]

    job.wait_for(lambda: told() or job.ended(), f"facts number {number}", deadline=DEADLINE_SECONDS)
    if not (lines := told()):
        return None
    facts: dict[str, Any] = json.loads(lines[0].removeprefix(FACTS))
    return facts


def assert_unmentioned(output: str) -> None:
    """Check that dlmon left no trace in what a job printed: no warning, no frame of its own."""
    assert "dlmon" not in output, output
