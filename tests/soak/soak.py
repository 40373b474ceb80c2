"""Healthy and hung jobs side by side, one agent, and what it says of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.job import FAULTS, HEALTHY, HUNG, SLOWEST

ROOT = Path(__file__).resolve().parents[2]
CEILING = 20.0
"""The agent's `hangs.ceiling_seconds`, in floors: the longest that a threshold becomes. On a busy
machine a fetch is slow now and then, and the threshold follows."""

LATE = 10.0
"""Seconds after the ceiling within which a hang must be reported, on a machine that is busy."""

CLOCK_STEPS = (2, -3, 0)
"""Hours that the agent's wall clock is off by, in turn."""

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
"""What makes it so, if it is there: Debian's package faketime."""


@dataclass
class Running:
    """One job.

    Attributes:
        kind: Of `HEALTHY` or `FAULTS`.
        hung: Unix time at which it said that it hangs.
        found: What was reported of it and when, by finding.
        sentences: And in which words.
    """

    kind: str
    process: subprocess.Popen[bytes]
    log: Path
    hung: float | None = None
    found: dict[str, float] = field(default_factory=dict)
    sentences: dict[str, str] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The label."""
        return f"{self.kind}-{self.process.pid}"

    def look(self) -> None:
        """See whether it hangs by now."""
        if self.hung is None:
            for line in self.log.read_text(errors="replace").splitlines():
                word, _, moment = line.partition(" ")
                if word == HUNG:
                    self.hung = float(moment)

    def end(self) -> None:
        """Kill all of its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Soak:
    """One run.

    Attributes:
        false_alarms, missed, wrong: Sentences; empty if all is well.
        reported: Hangs reported by their right name, and after how many seconds.
        clock: Hours that the agent's clock was seen to be off by.
    """

    def __init__(self, floor: float, seed: int, say: Callable[[str], None]) -> None:
        """Prepare.

        Args:
            floor: The agent's `hangs.floor_seconds`.
            seed: Of what is random.
            say: Told what happens.
        """
        self._floor = floor
        self._random = random.Random(seed)
        self._say = say
        self._jobs: list[Running] = []
        self.false_alarms: list[str] = []
        self.missed: list[str] = []
        self.wrong: list[str] = []
        self.reported: list[tuple[str, float]] = []
        self.healthy_batches = 0
        self.clock: set[int] = set()

    @property
    def passed(self) -> bool:
        """Nothing was reported that is healthy, all was reported that hangs, the clock jumped."""
        jumped = self.clock >= set(CLOCK_STEPS) or FAKETIME is None
        wrong = self.false_alarms or self.missed or self.wrong
        return bool(self.reported) and jumped and not wrong

    def summary(self) -> str:
        """Say what was found."""
        delays = sorted(delay for _, delay in self.reported)
        counts = (
            f"{len(self.reported)} hangs reported by name, {len(self.missed)} missed,"
            f" {len(self.wrong)} by another name, {len(self.false_alarms)} false alarms;"
            f" {self.healthy_batches} healthy batches;"
            f" the agent's clock was off by {sorted(self.clock)} hours"
        )
        lines = [counts, *self.missed, *self.wrong, *self.false_alarms]
        if delays:
            middle = delays[len(delays) // 2]
            lines.insert(
                1,
                f"seconds from hang to report, with a floor of {self._floor:g}:"
                f" median {middle:.1f}, longest {delays[-1]:.1f}",
            )
        return "\n".join(lines)

    def run(self, seconds: float, hangs: int) -> None:
        """Have healthy jobs run for so long, and so many hung ones beside them."""
        with contextlib.ExitStack() as stack:
            shm = tempfile.TemporaryDirectory(prefix="dlmon-soak-", dir="/dev/shm")
            folder = Path(stack.enter_context(shm))
            url = stack.enter_context(self._agent(folder))
            stack.callback(self._end_all)
            for _ in range(os.cpu_count() or 1):
                burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                os.setpriority(os.PRIO_PROCESS, burner.pid, 10)
                stack.callback(burner.wait)
                stack.callback(burner.kill)
            for kind in HEALTHY:
                self._start(kind, folder)
            self._watch(url, seconds, hangs, folder)

    def _watch(self, url: str, seconds: float, hangs: int, folder: Path) -> None:
        began = time.monotonic()
        starts = [began + 0.8 * seconds * i / hangs for i in range(hangs)]
        kinds = itertools.cycle(self._in_turn())
        steps = itertools.cycle(CLOCK_STEPS)
        next_step = began + self._floor
        while time.monotonic() < began + seconds or any(job.kind in FAULTS for job in self._jobs):
            if starts and time.monotonic() >= starts[0]:
                starts.pop(0)
                self._start(next(kinds), folder)
            if time.monotonic() >= next_step:
                next_step += 4 * self._floor
                (folder / "clock").write_text(f"{next(steps):+}h")
            self._look(url)
            time.sleep(0.5)

    def _in_turn(self) -> list[str]:
        """Return the kinds of hangs in a random order, the slowest to be found first."""
        kinds = self._random.sample(sorted(FAULTS), len(FAULTS))
        return sorted(kinds, key=lambda kind: kind != SLOWEST)

    def _look(self, url: str) -> None:
        with urllib.request.urlopen(f"{url}/api/v1/snapshot", timeout=30) as answer:
            snapshot = json.load(answer)
        now = time.time()
        self.clock.add(round((snapshot["time"] - now) / 3600))
        jobs = {job.run: job for job in self._jobs}  # not those that were ended: they are dead
        for finding in snapshot["findings"]:
            if (job := jobs.get(finding["run"])) is not None:
                job.look()
                if finding["name"] not in job.found:
                    self._say(f"found {finding['name']} of {job.run}: {finding['sentence']}")
                    job.found[finding["name"]] = now
                    job.sentences[finding["name"]] = finding["sentence"]
        self.healthy_batches = sum(
            loader["batches"]
            for rank in snapshot["ranks"]
            if rank["run"].rpartition("-")[0] in HEALTHY
            for loader in rank["loaders"]
        )
        for job in list(self._jobs):
            self._judge(job, now)

    def _judge(self, job: Running, now: float) -> None:
        job.look()
        if job.process.poll() is not None:
            self.missed.append(f"{job.run} ended by itself: {job.log.read_text()[-2000:]}")
            self._jobs.remove(job)
            return
        if job.found and job.hung is None:
            said = "; ".join(f"{name}: {job.sentences[name]}" for name in job.found)
            self.false_alarms.append(f"{job.run} is healthy, and was reported: {said}")
            job.found.clear()
        if job.hung is None:
            return
        wanted = FAULTS[job.kind][1]
        if wanted in job.found and now > job.found[wanted] + 1.5:  # what else is said of it?
            self.reported.append((job.kind, job.found[wanted] - job.hung))
            if len(job.found) > 1:
                self.wrong.append(f"{job.run} was reported as {[*job.found]}, not {wanted} alone")
        elif now < job.hung + CEILING * self._floor + LATE:
            return
        else:
            found = f"was reported as {[*job.found]}" if job.found else "was not reported"
            (self.wrong if job.found else self.missed).append(f"{job.run} {found}, not {wanted}")
        job.end()
        self._jobs.remove(job)

    def _start(self, kind: str, folder: Path) -> None:
        seed = self._random.randrange(1 << 30)
        log = folder / f"{len(self._jobs)}-{kind}-{seed}.log"
        command = 'export DLMON_RUN="$0-$$"; exec "$@"'
        job = [sys.executable, "-m", "tests.soak.job", kind, str(self._floor), str(seed)]
        launcher = [sys.executable, "-m", "dlmon", "run", *job[1:]]
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command, kind, *launcher],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "DLMON_DIR": str(folder / "segments"), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._jobs.append(Running(kind, process, log))
        self._say(f"started {self._jobs[-1].run}")

    def _end_all(self) -> None:
        for job in self._jobs:
            job.end()
        self._jobs.clear()

    @contextlib.contextmanager
    def _agent(self, folder: Path) -> Iterator[str]:
        """Start the agent with a low floor, on a clock that jumps."""
        (folder / "segments").mkdir(mode=0o700)
        (folder / "clock").write_text("+0h")
        config = folder / "agent.yml"
        config.write_text(
            f"dirs: [{folder / 'segments'}]\n"
            f"hangs: {{floor_seconds: {self._floor}, ceiling_seconds: {CEILING * self._floor}}}\n"
            f"memory: {{pss_interval_seconds: {self._floor}}}\n"
            "stacks: {enabled: false}\nweb: {listen_address: '127.0.0.1:0'}\n"
        )
        env = dict(os.environ)
        if FAKETIME is not None:
            env |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "NO_FAKE_STAT": "1",
            }
        else:
            self._say("no libfaketime: the agent's clock does not jump (apt-get install faketime)")
        log = folder / "agent.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dlmon", "agent", "--config", str(config)],
                stderr=output,
                env=env,
            )
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for word in log.read_text(errors="replace").split():
            if word.startswith("http://"):
                return word.rstrip("/,")
        time.sleep(0.1)
    raise RuntimeError(f"the agent did not start:\n{log.read_text(errors='replace')}")
