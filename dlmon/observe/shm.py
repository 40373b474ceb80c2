"""How large the /dev/shm is that a process sees, and how much of it is in use.

In another mount namespace, or below another root, that may be on storage that does not answer. So a
thread of its own looks there, and who wants to know has the last answer.

Runs in: agent and the commands. On failure: what may not be read, or does not answer, is None.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from dlmon.observe.aside import Aside

LOOK_SECONDS = 2.0
"""From one look to the next."""

STALE_SECONDS = 30.0
"""An answer is told for so long, and a process remembered for so long after it was asked about."""


class Shm(NamedTuple):
    """A /dev/shm: its size and what is used of it, in bytes."""

    size: int
    used: int


def seen_by(pid: int) -> Shm | None:
    """Return the /dev/shm that a process sees; this may take for ever."""
    with suppress(OSError):
        found = os.statvfs(f"/proc/{pid}/root/dev/shm")
        return Shm(
            found.f_blocks * found.f_frsize, (found.f_blocks - found.f_bfree) * found.f_frsize
        )
    return None


class SharedMemory:
    """Says at once which /dev/shm processes see."""

    def __init__(self, look: Callable[[int], Shm | None] = seen_by) -> None:
        """Start no thread before one is needed.

        Args:
            look: What may take for ever.
        """
        self._look = look
        self._asked: dict[int, float] = {}
        self._answers: dict[int, tuple[float, Shm | None]] = {}
        self._aside: Aside | None = None

    def seen_by(self, pid: int) -> Shm | None:
        """Return what a process sees; elsewhere than here, what it saw a few seconds ago."""
        if _sees_ours(pid):
            return seen_by(pid)
        now = self._asked[pid] = time.monotonic()
        if self._aside is None:
            self._aside = Aside("dlmon-shm", self._turn)
            self._aside.start()
        answered, answer = self._answers.get(pid, (-math.inf, None))
        return answer if now - answered < STALE_SECONDS else None

    def close(self) -> None:
        """Look no more."""
        if self._aside is not None:
            self._aside.close()

    def _turn(self) -> float:
        now = time.monotonic()
        for pid, asked in list(self._asked.items()):
            if now - asked < STALE_SECONDS:
                self._answers[pid] = (now, self._look(pid))
            else:
                self._asked.pop(pid, None)
                self._answers.pop(pid, None)
        return LOOK_SECONDS


def _sees_ours(pid: int) -> bool:
    """Return whether a process sees the files that this one does, as far as that may be known."""
    with suppress(OSError):
        return all(
            os.readlink(f"/proc/{pid}/{what}") == os.readlink(f"/proc/self/{what}")
            for what in ("ns/mnt", "root")
        )
    return False
