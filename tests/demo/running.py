"""A demo as a user starts it, in a process of its own, and what belongs to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.jobs import wait_for

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
MARK = "DLMON_TEST_MARK"

FEW = ("--images", "12", "--port", "0")
"""Enough for three batches an epoch, so that epochs are short."""


class Demo:
    """One run of `dlmon demo`.

    Args:
        log: A file for its output.
        temporary: Its TMPDIR.
        segment_dir: The parent for its private directory of segments.
        arguments: Those of the command, `--dir` excepted.
    """

    def __init__(self, log: Path, temporary: Path, segment_dir: Path, *arguments: str) -> None:
        self.temporary = temporary
        self.segment_dir = segment_dir
        self.log = log
        self._mark = f"{MARK}={uuid.uuid4()}".encode()
        name, _, value = self._mark.decode().partition("=")
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dlmon", "demo", "--dir", str(segment_dir), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(temporary), name: value},
                cwd=ROOT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return what it and its children have printed so far."""
        return self.log.read_text()

    def wait_for_output(self, pattern: str) -> re.Match[str]:
        """Wait until it has printed what the regular expression finds."""
        found = self._wait_for(lambda: re.search(pattern, self.output()), f"output {pattern!r}")
        assert found is not None
        return found

    def wait_for_metric(self, name: str, above: float = 0, **labels: str) -> float:
        """Wait until /metrics shows a sample above a value; return its value."""

        def found() -> list[float]:
            return [value for value in self.metric(name, **labels) if value > above]

        return self._wait_for(found, f"{name} {labels} above {above}")[0]

    def metric(self, name: str, **labels: str) -> list[float]:
        """Return the values that /metrics shows now for samples with these labels."""
        url = self.wait_for_output(r"http://\S+/metrics")[0]
        with urllib.request.urlopen(url, timeout=60) as answer:
            page = answer.read().decode()
        return [
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]

    def processes(self, command: str = "") -> list[int]:
        """Return the pids of all its processes whose command line has `command` in it."""
        return list(self._processes(command))

    def end(self, number: signal.Signals) -> int:
        """Send the command a signal and wait for its end; return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def nothing_left(self) -> bool:
        """Say whether no process and no file of it is left."""
        files = [*self.temporary.iterdir(), *self.segment_dir.iterdir()]
        return not self.processes() and not files

    def close(self) -> None:
        """End what a failed test has left."""
        while pids := self.processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.poll()
        self.process.wait()

    def _wait_for(self, predicate: Callable[[], T], what: str) -> T:
        def holds() -> T:
            result = predicate()
            if not result and self.process.poll() is not None:
                pytest.fail(f"the demo ended before {what}:\n{self.output()}")
            return result

        return wait_for(holds, f"{what}; so far:\n{self.output()}")

    def _processes(self, command: str) -> Iterator[int]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (
                    self._mark in (folder / "environ").read_bytes().split(b"\0")
                    and command.encode() in (folder / "cmdline").read_bytes()
                ):
                    yield int(folder.name)
