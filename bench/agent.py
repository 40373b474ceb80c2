"""What the agent costs, and what its scans cost who is scanned: `python -m bench.agent`.

Real processes, the real `dlmon agent` at one look a second. Figures only: what is good enough is
for the reader to say, for they are of this machine and of what else it does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.progress import Progress

WORKERS = 128
RANKS, RANK_WORKERS = 8, 125
TARGET_MEGABYTES = 1000
SETTLE_SECONDS = 35.0
"""Not counted: an agent's first look imports and opens what it needs, and for half a minute it asks
every process that is new to it more than later."""

PSS = {"without PSS": "pss_cpu_budget_ratio: 0", "with PSS": "pss_cpu_budget_ratio: 0.005"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What an agent took.

    Attributes:
        cpu: Share of a core.
        resident, peak: RSS in bytes, at the end and at its highest.
    """

    cpu: float
    resident: int
    peak: int


@dataclass(frozen=True, slots=True)
class Crowd:
    """What is watched.

    Attributes:
        title: What it is called.
        processes: How often it is started.
        module: Of `bench`, which is run with the arguments and a directory for segments.
    """

    title: str
    processes: int
    module: str
    arguments: tuple[object, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; always 0."""
    options = _parser().parse_args(arguments)
    seconds, ranks, workers = options.seconds, options.ranks, options.workers
    progress = Progress(sys.stderr)
    real = Crowd(f"{workers} workers of a real DataLoader", 1, "sleepers", (workers,))
    many = min(RANK_WORKERS, workers)
    title = f"{ranks * many} workers of {ranks} ranks, simulated"
    simulated = Crowd(title, ranks, "crowd", ("slots", many))
    target = Crowd("a target", 1, "crowd", ("target", options.megabytes))
    with tempfile.TemporaryDirectory(prefix="dlmon-bench-", dir="/dev/shm") as directory:
        print(f"the agent, one look a second, {seconds:.0f} s each")
        print(f"{'watched':<40}{'':<14}{'CPU':>7} {'RSS':>9}{'peak':>9}")
        for crowd in (real, simulated):
            _costs(crowd, directory, options, progress)
        print(f"\nmmap and munmap of a page in a worker of {options.megabytes} MB, microseconds")
        print(f"{'':<39}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9}")
        _latency(target, directory, options, progress)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.agent", description=__doc__)
    for name, default, kind, what in (
        ("seconds", 60.0, float, "each figure is measured for so long"),
        ("settle", SETTLE_SECONDS, float, "that an agent has run before its cost is measured"),
        ("workers", WORKERS, int, "of the real DataLoader"),
        ("ranks", RANKS, int, f"that are simulated, each of {RANK_WORKERS} workers at most"),
        ("megabytes", TARGET_MEGABYTES, int, "that the worker has whose mmap is timed"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"{what}; default {default}"
        )
    return parser


def _costs(crowd: Crowd, directory: str, options: argparse.Namespace, progress: Progress) -> None:
    progress.say(f"{crowd.title}: about {2 * (options.seconds + options.settle) + 20:.0f} s")
    with contextlib.ExitStack() as stack:
        for _ in range(crowd.processes):
            stack.enter_context(_running(crowd, directory))
        for name, setting in PSS.items():
            with _agent(setting, directory) as agent:
                time.sleep(options.settle)
                cost = _cost(agent.pid, options.seconds)
            sizes = f"{cost.resident / 1e6:>6.0f} MB{cost.peak / 1e6:>6.0f} MB"
            print(f"{crowd.title:<40}{name:<14}{cost.cpu:>7.2%} {sizes}", flush=True)


def _latency(crowd: Crowd, directory: str, options: argparse.Namespace, progress: Progress) -> None:
    progress.say(f"mmap latency: about {3 * options.seconds:.0f} s")
    for name, setting in {"no agent": None, **{f"agent {n}": s for n, s in PSS.items()}}.items():
        with contextlib.ExitStack() as stack:
            target = stack.enter_context(_running(crowd, directory))
            if setting is not None:
                stack.enter_context(_agent(setting, directory))
            time.sleep(options.seconds)
            found = _answer(target)
            row = "".join(f"{found[key]:>9.1f}" for key in ("p50", "p99", "p99.9", "max"))
            print(f"{name:<39}{row}", flush=True)


@contextlib.contextmanager
def _running(crowd: Crowd, directory: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", f"bench.{crowd.module}", *map(str, crowd.arguments), directory]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        if not one.stdout.readline():
            raise RuntimeError(f"{' '.join(command)} ended before it was ready")
        yield one
        _end(one)


def _answer(target: subprocess.Popen[str]) -> dict[str, Any]:
    """End a target's standard input and return what it says then."""
    _end(target)
    assert target.stdout is not None
    found: dict[str, Any] = json.loads(target.stdout.readline())
    return found


def _end(one: subprocess.Popen[str]) -> None:
    if one.stdin is not None and not one.stdin.closed:
        one.stdin.close()


@contextlib.contextmanager
def _agent(setting: str, directory: str) -> Iterator[subprocess.Popen[str]]:
    with tempfile.NamedTemporaryFile("w", suffix=".yml") as config:
        config.write(f"web: {{listen_address: '127.0.0.1:0'}}\nmemory: {{{setting}}}\n")
        config.flush()
        command = [sys.executable, "-m", "dlmon", "agent", "--dir", directory]
        command += ["--config", config.name]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True) as agent:
            try:
                yield agent
            finally:
                agent.terminate()


def _cost(pid: int, seconds: float) -> Cost:
    began, before = time.monotonic(), _cpu_seconds(pid)
    time.sleep(seconds)
    cpu = (_cpu_seconds(pid) - before) / (time.monotonic() - began)
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    resident, peak = (int(status[name].split()[0]) << 10 for name in ("VmRSS", "VmHWM"))
    return Cost(cpu, resident, peak)


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
