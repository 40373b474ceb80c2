"""Agents for tests: the real `dlmon agent` on a free port."""

from __future__ import annotations

import contextlib
import re
import select
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

DEADLINE_SECONDS = 60.0


class Agent:
    """A running `dlmon agent` on a free port, or a script of a test's that runs it."""

    def __init__(self, *arguments: str, script: Path | None = None) -> None:
        program = [str(script)] if script else ["-m", "dlmon", "agent"]
        command = [sys.executable, *program, *arguments]
        if "--config" not in arguments:
            command += ["--web.listen-address", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1)
        self.greeting = self.line()
        found = re.search(r"http://\S+:\d+", self.greeting)
        assert found, self.greeting
        self.url = found[0]

    def line(self) -> str:
        """The next line of its log."""
        assert self.process.stderr is not None
        ready, _, _ = select.select([self.process.stderr], [], [], DEADLINE_SECONDS)
        assert ready, "the agent says nothing"
        return self.process.stderr.readline()

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=DEADLINE_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def ready(self) -> bool:
        return self.get("/-/ready")[0] == 200

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


@contextlib.contextmanager
def running(*arguments: str, script: Path | None = None) -> Iterator[Agent]:
    agent = Agent(*arguments, script=script)
    try:
        yield agent
    finally:
        agent.close()
