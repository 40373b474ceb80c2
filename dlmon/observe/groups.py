"""The memory of the cgroups that ranks are in, and for a while of those that they were in.

The kernel counts an OOM kill before the process is gone, and the counter may be gone soon after:
with the last process of a job its cgroup goes too. So it is read at once when somebody is missing,
and shown for as long as a dead rank is, or for some scrapes if nobody is left.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dlmon.observe import cgroups, ranks
from dlmon.observe.cgroups import Cgroup
from dlmon.observe.snapshot import CgroupMemory, Ended, Rank

KEPT_SECONDS = 60.0
"""So long after an OOM kill a cgroup is shown though no rank is left in it: four scrapes."""

_KILLED = "oom_kill"


@dataclass(slots=True)
class _Group:
    """What is known of one cgroup.

    Attributes:
        cgroup: Where its files are, or were.
        due: CLOCK_MONOTONIC seconds when to read it again.
        memory: As it was read last; without a number for what is gone with it.
        begun: OOM kills when it was first read.
        killed: Keys of those whose OOM kill was confirmed since then.
        kill: CLOCK_MONOTONIC seconds of the last OOM kill seen, None before.
    """

    cgroup: Cgroup
    due: float
    memory: CgroupMemory
    begun: int
    killed: set[str] = field(default_factory=set)
    kill: float | None = None

    def read(self, now: float) -> None:
        """Read it, or count on what is known if it is not there any more."""
        before, directory = self.memory.oom_kills, self.cgroup.memory_directory
        self.due = now + ranks.SELDOM_SECONDS
        if directory is None or os.path.isdir(directory):
            self.memory = self.cgroup.memory()
        elif before is not None:
            self.memory = CgroupMemory(oom_kills=max(before, self.begun + len(self.killed)))
        kills = self.memory.oom_kills or 0
        if before is not None and kills > before:
            self.kill = now
        elif before is not None and kills < before:  # another one of the same path
            self.begun = kills
            self.killed.clear()


class Groups:
    """Remembers each cgroup, and who is or was in it."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._members: dict[str, str] = {}
        self._living: set[str] = set()

    def look(self, members: Iterable[Rank], ended: Sequence[Ended]) -> dict[str, CgroupMemory]:
        """Return the memory of cgroups by path, each read once for all that are in it.

        Args:
            members: The living ranks, and the dead ones that are shown.
            ended: Workers that were noticed to have died.
        """
        now = time.monotonic()
        shown = {rank.key: rank for rank in members}
        for rank in shown.values():
            self._enter(rank, now)
        missing = self._missing(shown, ended)
        self._members = {key: path for key, path in self._members.items() if key in shown}
        for path, group in self._groups.items():
            if now >= group.due or path in missing:
                group.read(now)
        inside = set(self._members.values())
        self._groups = {
            path: group
            for path, group in self._groups.items()
            if path in inside or (group.kill is not None and now - group.kill < KEPT_SECONDS)
        }
        return {path: group.memory for path, group in self._groups.items()}

    def _enter(self, rank: Rank, now: float) -> None:
        """Know which cgroup a living rank is in."""
        path = rank.process.cgroup
        # With v1 whoever is ending is said to be in the root.
        if path is None or (path == "/" and rank.key in self._members):
            return
        self._members[rank.key] = path
        if path not in self._groups:
            cgroup = cgroups.of(rank.pid)
            memory = cgroup.memory()
            due, begun = now + ranks.SELDOM_SECONDS, memory.oom_kills or 0
            self._groups[path] = _Group(cgroup, due, memory, begun)

    def _missing(self, shown: Mapping[str, Rank], ended: Sequence[Ended]) -> set[str]:
        """Return the cgroups in which somebody died or ended since the last look."""
        living = {key for key, rank in shown.items() if rank.up}
        who = (self._living - living) | {one.rank_key for one in ended}
        self._living = living
        missing = {self._members[key] for key in who if key in self._members}
        killed = [(key, key) for key, rank in shown.items() if rank.died_of == _KILLED]
        killed += [(one.key, one.rank_key) for one in ended if one.reason == _KILLED]
        for key, member in killed:
            path = self._members.get(member, "")
            if path in self._groups and key not in self._groups[path].killed:
                self._groups[path].killed.add(key)
                missing.add(path)
        return missing
