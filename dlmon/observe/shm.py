"""How large the /dev/shm is that a process sees, and how much of it is in use.

In another mount namespace, or below another root, that may be on storage that does not answer. So
threads of their own look there, each namespace's one at a time, and who wants to know has the last
answer.

Runs in: agent and the commands. On failure: what may not be read, or does not answer, is None.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from dlmon.observe.aside import Aside

LOOK_SECONDS = 2.0
"""From one look to the next."""

MOST_THREADS = 4
"""Fewer mount namespaces than that, whose storage does not answer, cost only their own values."""

STALE_SECONDS = 30.0
"""An answer is told for so long, and a process remembered for so long after it was asked about."""

_View = tuple[str, str]
"""A mount namespace and a root in it."""


class Shm(NamedTuple):
    """A /dev/shm: its size and what is used of it, in bytes."""

    size: int
    used: int


@dataclass(slots=True)
class _Asked:
    """What is known of a /dev/shm.

    Attributes:
        pid: A process that sees it, the one that was asked about last.
        when: CLOCK_MONOTONIC seconds of that.
        answer: When it was looked at, and what was seen.
        under_way: Some thread is looking.
    """

    pid: int = 0
    when: float = 0.0
    answer: tuple[float, Shm | None] = (-math.inf, None)
    under_way: bool = False


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
        self._lock = threading.Lock()
        """Held for as long as it takes to note who looks where, but not for a look."""
        self._views: dict[_View, _Asked] = {}
        self._asides: list[Aside] = []

    def seen_by(self, pid: int) -> Shm | None:
        """Return what a process sees; elsewhere than here, what was seen a few seconds ago."""
        view = _view(pid)
        if view is None:
            return None
        if view == _view("self"):
            return seen_by(pid)
        now = time.monotonic()
        with self._lock:
            asked = self._views.setdefault(view, _Asked())
            asked.pid, asked.when = pid, now
            views = len(self._views)
        if len(self._asides) < min(views, MOST_THREADS):
            self._asides.append(Aside("dlmon-shm", self._turn))
            self._asides[-1].start()
        answered, answer = asked.answer
        return answer if now - answered < STALE_SECONDS else None

    def close(self) -> None:
        """Look no more."""
        for aside in self._asides:
            aside.close()

    def _turn(self) -> float:
        for view in self._forget():
            asked = self._take(view)
            if asked is not None:
                try:
                    began = time.monotonic()
                    asked.answer = (began, self._look(asked.pid))
                finally:
                    asked.under_way = False
        return LOOK_SECONDS

    def _forget(self) -> list[_View]:
        """Forget who was not asked about for long, and return the others."""
        with self._lock:
            now = time.monotonic()
            for view, asked in list(self._views.items()):
                if now - asked.when >= STALE_SECONDS and not asked.under_way:
                    del self._views[view]
            return list(self._views)

    def _take(self, view: _View) -> _Asked | None:
        """Return whom to ask, unless another thread does or has lately."""
        with self._lock:
            asked = self._views.get(view)
            if asked is None or asked.under_way:
                return None
            if time.monotonic() - asked.answer[0] < 0.9 * LOOK_SECONDS:
                return None
            asked.under_way = True
            return asked


def _view(pid: int | str) -> _View | None:
    """Return what two processes have in common that see the same files, if that may be known."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt"), os.readlink(f"/proc/{pid}/root")
    return None
