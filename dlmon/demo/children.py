"""The processes that `dlmon demo` starts, and how all of them are brought to an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dlmon.demo import keeper
from dlmon.errors import UsageError

GRACE_SECONDS = 3.0
"""How long a process has to end in order before it is killed."""

KEEPER_SECONDS = keeper.KILL_SECONDS + 10


class Children:
    """Child processes and two private directories for them; once closed, nothing of them is left.

    Each process leads a session of its own, so that Ctrl-C in the terminal reaches the parent only.

    Args:
        parent: A directory on a tmpfs, for that of the segments.

    Attributes:
        folder: A private directory for any files; the children's TMPDIR, too.
        segments: A private directory for segments.

    Raises:
        UsageError: A directory cannot be made.
    """

    def __init__(self, parent: Path) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "dlmon.demo.keeper", str(parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._keeper.stdout is not None
        line = self._keeper.stdout.readline()
        if not line:
            _, problem = self._keeper.communicate()
            raise UsageError(
                f"cannot make a private directory: {problem.decode(errors='replace').strip()}; "
                "name a directory on tmpfs that you may write to with --dir"
            )
        self.folder, self.segments = (Path(text) for text in json.loads(line))

    def start(
        self, module: str, *arguments: str, log: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `python -m module arguments`.

        Args:
            module: Name of a module.
            arguments: Its arguments.
            log: As for `run`.
        """
        return self.run([sys.executable, "-m", module, *arguments], log=log)

    def run(self, command: Sequence[str], log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a program.

        Args:
            command: The program and its arguments.
            log: A file for what it prints; by default it prints where this process does.
        """
        environment = {
            **os.environ,
            "DLMON_DIR": str(self.segments),
            keeper.MARK: str(self.segments),  # by this it knows what to end
            "DLMON_DISABLE": "",  # what is shown here must be observed
            "TMPDIR": str(self.folder),
        }
        output = log.open("wb") if log is not None else None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                env=environment,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        self._started.append(process)
        return process

    def close(self) -> None:
        """End all processes, within GRACE_SECONDS in order and then by force; remove all files."""
        try:
            self._ask_to_end()
        finally:
            self._end()

    def _ask_to_end(self) -> None:
        for process in reversed(self._started):
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def _end(self) -> None:
        try:
            self._keeper.communicate(timeout=KEEPER_SECONDS)  # closes its standard input first
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        if self._keeper.returncode != 0:  # somebody ended it: do its work
            keeper.clean([self.folder, self.segments])
        for process in self._started:
            process.wait()
