"""Runs cases in jobs, with and without dlmon, and looks at what dlmon counts in them."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from dlmon.commands.run import BOOTSTRAP
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Loader, Rank
from tests.conftest import ROOT
from tests.jobs import Job, JobStarter, wait_for
from tests.shapes.job import MARK, READY
from tests.shapes.table import Case

SCRIPT = """
    from tests.shapes.job import main

    if __name__ == "__main__":
        main()
"""

COUNTED = ("batches", "samples", "epochs", "errors", "timeouts", "starts", "exits")
GAUGES = ("outstanding", "ready", "capacity", "alive")
"""What is, not what was added; compared only where a case names them, as is the rest below."""

START_SECONDS = 120.0
STACKS_SECONDS = 5.0

Counts = Mapping[str, Any]


@dataclass
class Outcome:
    """What came of a case in one job.

    Attributes:
        same: What must be the same without dlmon: `job.run`'s record, or how the job ended.
        swallowed: Errors inside the shim.
        own_frames: Of dlmon's in the traceback of what the case raised.
        wrong: What dlmon counted and should not have, or the other way round.
        hangs: There is no end.
    """

    same: dict[str, Any] | str = ""
    swallowed: int = 0
    own_frames: int = 0
    wrong: list[str] = field(default_factory=list)
    hangs: bool = False


class Way:
    """One way to run cases: a job, started when it is needed and again when a case has ended it."""

    def __init__(self, name: str, starter: JobStarter, strict: str | None) -> None:
        """Set the way up.

        Args:
            name: For messages.
            starter: Starts the jobs.
            strict: DLMON_STRICT, or None for a job without dlmon.
        """
        self.name = name
        self._starter = starter
        self._strict = strict
        self._running: _Running | None = None

    def begin(self, case: Case) -> None:
        """Start a case; `finish` waits for its end."""
        if self._running is None:
            self._running = _Running(self.name, self._starter, self._strict)
        self._running.begin(case)

    def finish(self, case: Case) -> Outcome:
        """Wait for a case's end."""
        assert self._running is not None
        outcome = self._running.finish(case)
        if isinstance(outcome.same, str):
            self.close()
        return outcome

    def rank(self) -> Rank | None:
        """Return what the agent sees of the job, None without job or without dlmon."""
        return self._running.rank() if self._running is not None else None

    def end(self) -> list[str]:
        """Let the job end in order, if there is one, and return which of its segments are left.

        Those of children that ended by `os._exit` are: nobody could say their goodbye.
        """
        return self._running.end() if self._running is not None else []

    def close(self) -> None:
        """End the job; the next case has a new one."""
        if self._running is not None:
            self._running.close()
            self._running = None


class _Running:
    """A job that runs cases, its segments, and the one who looks at them."""

    def __init__(self, name: str, starter: JobStarter, strict: str | None) -> None:
        self._name = name
        self._segments = tempfile.TemporaryDirectory(prefix="dlt-", dir="/dev/shm")
        self._observer = None
        path = [str(ROOT)]
        if strict is not None:
            self._observer = Observer([self._segments.name], loaders_per_rank=1000)
            path.insert(0, BOOTSTRAP)
        self._job: Job = starter(
            SCRIPT,
            env={
                "PYTHONPATH": os.pathsep.join(path),
                "DLMON_DIR": self._segments.name,
                "DLMON_STRICT": strict,
                "DLMON_RUN": name,
            },
        )
        self._read = 0
        self._before: dict[str, Counts] = {}
        self._ready = False

    def begin(self, case: Case) -> None:
        """Tell the job to run a case."""
        if not self._ready:
            observed = self._next(START_SECONDS)[READY]
            assert observed is (self._observer is not None), self._job.output()
            self._ready = True
        self._before = self._counts() if case.counted else {}
        self._job.tell(case.id)

    def finish(self, case: Case) -> Outcome:
        """Wait for a case's record; look at the counts when the job asks, and at its end."""
        wrong: list[str] = []
        try:
            while "record" not in (said := self._next(case.deadline)):
                wrong += self._wrong(said["look"])
                self._job.tell()
        except pytest.fail.Exception as failure:  # it hangs, or the job has ended
            hangs = not self._job.ended()
            return Outcome(self._last_words(str(failure)), hangs=hangs)
        outcome = Outcome(**said["record"])
        assert isinstance(outcome.same, dict)
        outcome.wrong = wrong + self._wrong(outcome.same["expected"])
        return outcome

    def rank(self) -> Rank | None:
        if self._observer is None:
            return None
        ranks = self._observer.observe().ranks
        return next((rank for rank in ranks if rank.pid == self._job.pid), None)

    def end(self) -> list[str]:
        assert self._job.process.stdin is not None
        self._job.process.stdin.close()
        self._job.finish()
        own = f"{self._job.pid}-"
        return [name for name in os.listdir(self._segments.name) if name.startswith(own)]

    def close(self) -> None:
        self._job.close()
        if self._observer is not None:
            self._observer.close()
        self._segments.cleanup()

    def _next(self, deadline: float) -> dict[str, Any]:
        """Wait for what the job says next."""
        with self._job.log.open() as log:

            def said() -> str:
                log.seek(self._read)
                while (line := log.readline()).endswith("\n"):
                    self._read = log.tell()
                    if line.startswith(MARK):
                        return line
                return ""

            what = f"answer of the {self._name} job"
            line = wait_for(said, what, deadline=deadline, job=self._job)
        answer: dict[str, Any] = json.loads(line.removeprefix(MARK))
        return answer

    def _last_words(self, failure: str) -> str:
        """Return why a job has no answer: what it printed last, and its stacks if it lives."""
        if not self._job.ended():
            self._job.kill(signal.SIGUSR1)
            with contextlib.suppress(pytest.fail.Exception):
                self._job.wait_for_output("Current thread", deadline=STACKS_SECONDS)
        words = [line for line in self._job.output().splitlines() if not line.startswith(MARK)]
        return "\n".join([failure.partition("\n")[0], *words[-60:]])

    def _counts(self) -> dict[str, Counts]:
        rank = self.rank()
        return {} if rank is None else {one.name: counts(one) for one in rank.loaders}

    def _wrong(self, expected: Mapping[str, Counts]) -> list[str]:
        """Compare what dlmon has counted since the case began with what is expected."""
        if self._observer is None or not expected:
            return []
        now = self._counts()
        found = []
        for name, wanted in expected.items():
            since = _added(now.get(name, {}), self._before.get(name, {}))
            for key in dict.fromkeys((*COUNTED, *wanted)):
                value, seen = wanted.get(key, 0), since.get(key, 0)
                if value is not None and (seen or 0) != (value or 0):
                    found.append(f"{self._name}: {name}: {key} is {seen}, expected {value}")
        return found


def differences(bare: object, other: object, where: str = "") -> list[str]:
    """Return where two records differ, a line for each place: what is bare, and what is not."""
    if isinstance(bare, dict) and isinstance(other, dict):
        keys = dict.fromkeys((*bare, *other))
        pairs = [(f"{where}.{key}", bare.get(key), other.get(key)) for key in keys]
    elif isinstance(bare, list) and isinstance(other, list) and len(bare) == len(other):
        pairs = [(f"{where}[{i}]", *pair) for i, pair in enumerate(zip(bare, other, strict=True))]
    elif isinstance(bare, str) and isinstance(other, str) and "\n" in bare:
        lines = difflib.unified_diff(bare.split("\n"), other.split("\n"), where, n=0, lineterm="")
        return list(lines)
    else:
        return [] if bare == other else [f"{where}: bare {bare!r}, with dlmon {other!r}"]
    return [line for place, one, two in pairs for line in differences(one, two, place)]


def counts(loader: Loader) -> Counts:
    """Return what dlmon has counted for a loader, as `job.expect` takes it."""
    return {
        "batches": loader.batches,
        "samples": loader.samples,
        "epochs": loader.epochs,
        "errors": dict(loader.errors),
        "timeouts": loader.timeouts,
        "starts": loader.worker_starts,
        "exits": dict(loader.worker_exits),
        "startups": loader.startups,
        "discarded": loader.discarded,
        "fetched": sum(loader.fetch.counts),
        "outstanding": loader.outstanding,
        "ready": loader.ready,
        "capacity": loader.capacity,
        "alive": sum(worker.up is True for worker in loader.workers),
    }


def _added(now: Counts, before: Counts) -> dict[str, Any]:
    """Return what was added since; of what is counted by kind, the kinds that were."""
    found: dict[str, Any] = {}
    for key, value in now.items():
        if key in GAUGES:
            found[key] = value
        elif isinstance(value, Mapping):
            earlier = before.get(key, {})
            added = {kind: number - earlier.get(kind, 0) for kind, number in value.items()}
            found[key] = {kind: number for kind, number in added.items() if number}
        else:
            found[key] = value - before.get(key, 0)
    return found
