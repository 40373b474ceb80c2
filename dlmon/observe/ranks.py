"""Look at training processes again and again.

What each look needs costs one read of /proc/<pid>/stat. Limits, quotas, descriptors and whether a
cgroup is frozen take a hundred times as long, and are asked for every few seconds.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from dlmon.observe import processes
from dlmon.observe.snapshot import Process

SELDOM_SECONDS = 5.0
"""From one time that everything is asked to the next."""

_TURNS = 8
"""Processes seen first at the same time are asked again at so many different ones."""


@dataclass(slots=True)
class _Known:
    """What was seen when everything was asked.

    Attributes:
        due: CLOCK_MONOTONIC seconds from when on to ask again.
        throttled: Its cgroup was throttled between the last two times.
    """

    start_ticks: int
    due: float
    process: Process
    throttled: bool = False


class Ranks:
    """Remembers what was seen of each process, until it is time to look again."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def look(self, pid: int) -> tuple[Process, bool]:
        """Return what is known of a process, and whether its cgroup was throttled lately.

        CPU time, RSS and state are as they are now. The /dev/shm that it sees is for
        `dlmon.observe.shm` to say.
        """
        seen = processes.sample(pid)
        if seen is None:
            return Process(), False
        now = time.monotonic()
        known = self._known.get(pid)
        if known is None or known.start_ticks != seen.start_ticks:
            due = now + SELDOM_SECONDS * (pid % _TURNS + 1) / _TURNS
            known = _Known(seen.start_ticks, due, processes.rank_process(pid))
            self._known[pid] = known
        elif now >= known.due or known.process.frozen:  # it goes on when that ends, and at once
            before = known.process.cpu_throttled_seconds or 0.0
            known.process, known.due = processes.rank_process(pid), now + SELDOM_SECONDS
            known.throttled = (known.process.cpu_throttled_seconds or 0.0) > before
        process = replace(
            known.process,
            cpu_seconds=seen.cpu_seconds,
            resident_bytes=seen.resident_bytes,
            state=seen.status,
        )
        return process, known.throttled

    def keep(self, pids: Collection[int]) -> None:
        """Forget every other process."""
        for gone in self._known.keys() - pids:
            del self._known[gone]
