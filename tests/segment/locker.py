"""Another process that holds bytes of a file locked, as a writer or as a stranger would."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_CODE = """
import fcntl, json, os, sys
fd = None
for line in sys.stdin:
    path, offsets, exclusive = json.loads(line)
    if fd is not None:
        os.close(fd)
    fd = os.open(path, os.O_RDWR if exclusive else os.O_RDONLY)
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        for offset in offsets:
            fcntl.lockf(fd, kind | fcntl.LOCK_NB, 1, offset)
        print("held", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


class Locker:
    """Holds locks on one file at a time, in a process of its own.

    Attributes:
        process: It.
        pid: Its process id.
    """

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.pid = self.process.pid

    def hold(self, path: Path | str, offsets: Sequence[int], *, exclusive: bool = True) -> str:
        """Lock these bytes of this file and none else; return "held", or what the kernel said."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(path), list(offsets), exclusive]) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """End it at once and wait until it has ended."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it and its pipes."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
