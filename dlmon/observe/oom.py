"""Whether a process that was killed was killed for lack of memory: its cgroup's counter tells.

`oom_kill` counts the processes of a cgroup that the kernel killed, before they end. Source: kernel
Documentation/admin-guide/cgroup-v2.rst (memory.events, descendants included) and
cgroup-v1/memory.rst (memory.oom_control).

Runs in: agent and the commands. On failure: nothing is confirmed.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress

from dlmon.observe import cgroups
from dlmon.observe.cgroups import Cgroup
from dlmon.observe.statuses import Process

FRESH_SECONDS = 10.0
"""So long before a death is noticed its kill may have been counted: what is large ends slowly."""


class OomKills:
    """Follows the counters of the cgroups that processes are in."""

    def __init__(self) -> None:
        self._files: dict[Process, tuple[str, ...]] = {}
        self._found: dict[Cgroup, tuple[str, ...]] = {}
        self._counts: dict[str, int] = {}
        self._fresh: dict[str, list[float]] = defaultdict(list)
        self._confirmed: set[Process] = set()

    def follow(self, process: Process) -> None:
        """Know which cgroup a living process is in now."""
        group = cgroups.of(process[0])
        # With v1 whoever is ending is said to be in the root, where no limit kills anybody.
        if group.path == "/" and process in self._files:
            return
        found = self._found.get(group)
        if found is None:
            found = self._found[group] = _counters(group)
        if found:
            self._files[process] = found

    def read(self) -> None:
        """Read the counters: after it was seen who is dead, because they are raised before that."""
        now = time.monotonic()
        self._found.clear()  # by the next look there may be others
        wanted = {path for paths in self._files.values() for path in paths}
        for path in wanted:
            count = _count(path)
            if count is None:
                continue
            rise = min(count - self._counts.get(path, count), 1000)
            self._counts[path] = count
            recent = [at for at in self._fresh[path] if now - at <= FRESH_SECONDS]
            self._fresh[path] = recent + [now] * max(0, rise)
        for path in self._counts.keys() - wanted:
            del self._counts[path]
            self._fresh.pop(path, None)

    def confirms(self, process: Process) -> bool:
        """Return whether a kill was counted in a process's cgroup; one counts for one process."""
        if process in self._confirmed:
            return True
        own, *above = self._files.get(process, ("",))
        told = own if os.path.exists(own) or not above else above[0]
        counted = bool(self._fresh.get(told))
        for path in (own, *above):
            del self._fresh.get(path, [])[:1]
        if counted:
            self._confirmed.add(process)
        return counted

    def keep(self, wanted: Collection[Process]) -> None:
        """Follow no others any more."""
        self._confirmed.intersection_update(wanted)
        for gone in self._files.keys() - wanted:
            del self._files[gone]


def _counters(group: Cgroup) -> tuple[str, ...]:
    """Return the files that count OOM kills in a cgroup: its own, with v2 its parent's too.

    The runtime of a container removes its cgroup at once when all in it is dead; the parent's
    counter then has what its own had.
    """
    name = "memory.events" if group.memory_unified else "memory.oom_control"
    counting = (d for d in cgroups.levels(group.memory_directory) if os.path.exists(f"{d}/{name}"))
    own = next(counting, None)  # with v2 a level may have no memory controller: the next one counts
    if own is None:
        return ()
    parent = f"{os.path.dirname(own)}/{name}"
    above = group.memory_unified and os.path.exists(parent)
    return (f"{own}/{name}", parent) if above else (f"{own}/{name}",)


def _count(path: str) -> int | None:
    with suppress(OSError, ValueError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return None
