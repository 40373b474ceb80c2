"""Which cgroup a process is in, what CPU and memory that grants, and if it is frozen; v2 or v1.

Source: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ (memory.rst,
freezer-subsystem.rst), and scheduler/sched-bwc.rst.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from dlmon.observe.snapshot import CgroupMemory

ROOT = "/sys/fs/cgroup"

_NO_LIMIT = 1 << 60
"""Version 1 says "no limit" with a number near 2^63, in whole pages."""


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroups of one process.

    Attributes:
        path: Its path in the memory hierarchy (v1) or the only one (v2), None if unknown.
        cpu_directory: Where its CPU controller's files are, None if unknown.
        unified: Whether that is a v2 hierarchy.
        memory_directory: Where its memory controller's files are, None if unknown.
        memory_unified: Whether that is a v2 hierarchy.
        freezer_directory: Where the files are that tell if it is frozen, None if unknown.
        freezer_unified: Whether that is a v2 hierarchy.
    """

    path: str | None = None
    cpu_directory: str | None = None
    unified: bool = True
    memory_directory: str | None = None
    memory_unified: bool = True
    freezer_directory: str | None = None
    freezer_unified: bool = True

    def cpu_quota(self) -> float | None:
        """Return how many CPUs the tightest quota of all levels grants; None without one."""
        quotas = (self._quota(directory) for directory in levels(self.cpu_directory))
        return min((quota for quota in quotas if quota is not None), default=None)

    def cpu_throttled_seconds(self) -> float | None:
        """Return how long it was throttled, None where that is not counted."""
        if self.cpu_directory is None:
            return None
        key, unit = ("throttled_usec", 1e-6) if self.unified else ("throttled_time", 1e-9)
        for line in _read(f"{self.cpu_directory}/cpu.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == key and value.isdecimal():
                return int(value) * unit
        return None

    def memory(self) -> CgroupMemory:
        """Return what its memory controller says; what it does not is None."""
        if self.memory_directory is None:
            return CgroupMemory()
        names = _V2 if self.memory_unified else _V1
        own = _Level(self.memory_directory, names)
        limits = [
            (level, limit)
            for directory in levels(self.memory_directory)
            if (limit := (level := _Level(directory, names)).limit()) is not None
        ]
        rooms = [(limit - anon, limit) for lv, limit in limits if (anon := lv.anon()) is not None]
        room, binding = min(rooms, default=(None, None))
        return CgroupMemory(
            limit_bytes=min((limit for _, limit in limits), default=None),
            working_set_bytes=own.working_set(),
            anon_bytes=own.anon(),
            oom_kills=own.oom_kills(),
            room_bytes=None if room is None else max(0, room),
            binding_limit_bytes=binding,
        )

    def frozen(self) -> bool | None:
        """Say if it is frozen, itself or with a cgroup above it; None if that is not known.

        Nothing in it runs then, though its processes are in state D or S.
        """
        if self.freezer_directory is None:
            return None
        if self.freezer_unified:
            return _pairs(f"{self.freezer_directory}/cgroup.events").get("frozen") == 1
        return _read(f"{self.freezer_directory}/freezer.state").strip() in ("FREEZING", "FROZEN")

    def _quota(self, directory: str) -> float | None:
        if self.unified:
            quota, _, period = _read(f"{directory}/cpu.max").strip().partition(" ")
        else:
            quota = _read(f"{directory}/cpu.cfs_quota_us").strip()
            period = _read(f"{directory}/cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return int(quota) / int(period)
        return None  # "max", -1, or no such file: no quota at this level


@dataclass(frozen=True, slots=True)
class _Names:
    """What the files of a memory controller and the keys in its memory.stat are called."""

    limit: str
    usage: str
    events: str
    anon: str
    shmem: str
    inactive_file: str


_V2 = _Names("memory.max", "memory.current", "memory.events", "anon", "shmem", "inactive_file")
_V1 = _Names(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.oom_control",
    "total_rss",
    "total_shmem",
    "total_inactive_file",
)


class _Level:
    """The memory controller's files of one cgroup; its numbers include the cgroups below it."""

    def __init__(self, directory: str, names: _Names) -> None:
        self._directory = directory
        self._names = names
        self._stat: dict[str, int] | None = None

    def limit(self) -> int | None:
        """Return the limit set at this level, None without one."""
        limit = self._number(self._names.limit)
        return limit if limit is not None and limit < _NO_LIMIT else None

    def working_set(self) -> int | None:
        """Return what is used and cannot be dropped at once: usage less inactive file pages."""
        usage, inactive = self._number(self._names.usage), self._counted(self._names.inactive_file)
        return None if usage is None or inactive is None else max(0, usage - inactive)

    def anon(self) -> int | None:
        """Return what only swap could hold: anonymous memory, and shared memory as in /dev/shm."""
        anon, shmem = self._counted(self._names.anon), self._counted(self._names.shmem)
        return None if anon is None else anon + (shmem or 0)

    def oom_kills(self) -> int | None:
        """Return how many processes the kernel has killed for want of memory."""
        return _pairs(f"{self._directory}/{self._names.events}").get("oom_kill")

    def _counted(self, key: str) -> int | None:
        if self._stat is None:
            self._stat = _pairs(f"{self._directory}/memory.stat")
        return self._stat.get(key)

    def _number(self, name: str) -> int | None:
        text = _read(f"{self._directory}/{name}").strip()
        return int(text) if text.isascii() and text.isdecimal() else None


def of(pid: int) -> Cgroup:
    """Return the cgroups of a process, from /proc/<pid>/cgroup."""
    return _found(_read(f"/proc/{pid}/cgroup"), ROOT)


@lru_cache(maxsize=1024)  # most processes are in the same ones
def _found(text: str, root: str) -> Cgroup:
    by_controller = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                by_controller[controller] = parts[2]
    unified = by_controller.get("")

    def of(controller: str) -> tuple[str | None, bool]:
        """Return where a controller's files are, and whether that is a v2 hierarchy."""
        own = by_controller.get(controller)
        if own is not None:
            return _directory(f"{root}/{controller}", own), False
        return None if unified is None else _directory(root, unified), True

    path = by_controller.get("memory") or unified or by_controller.get("cpu")
    return Cgroup(path, *of("cpu"), *of("memory"), *of("freezer"))


def levels(directory: str | None) -> list[str]:
    """Return the directories of a cgroup and of all above it that are to be seen."""
    found = []
    while directory is not None and f"{directory}/".startswith(f"{ROOT}/"):
        found.append(directory)  # ROOT too: a container's own cgroup is mounted there
        directory = os.path.dirname(directory)
    return found


def _pairs(path: str) -> dict[str, int]:
    """Return the numbers of a file of lines "name number"."""
    pairs = (line.partition(" ") for line in _read(path).splitlines())
    return {name: int(text) for name, _, text in pairs if text.isascii() and text.isdecimal()}


def _directory(hierarchy: str, path: str) -> str | None:
    """Return where a cgroup's files are, None where they are not to be seen from here.

    In a container its own cgroup may be mounted as the root, although paths begin further up: one
    that is neither that nor below it has no files here, as one outside of this process's cgroup
    namespace, whose path goes up.
    """
    top = _mounted(os.path.realpath(hierarchy)).rstrip("/")
    if ".." in (path + top).split("/") or not f"{path}/".startswith(f"{top}/"):
        return None
    directory = (hierarchy + path.removeprefix(top)).rstrip("/")
    return directory if os.path.isdir(directory) else None


def _mounted(hierarchy: str) -> str:
    """Return which cgroup is mounted at a directory, "/" if nothing is.

    Source: proc_pid_mountinfo(5).
    """
    tops = [
        fields[3]
        for line in _read("/proc/self/mountinfo").splitlines()
        if len(fields := line.split(" ", 5)) > 4 and fields[4] == hierarchy
    ]
    return tops[-1] if tops else "/"


def _read(path: str) -> str:
    with suppress(OSError), open(path, "rb", buffering=0) as file:  # as text it takes twice as long
        return file.readall().decode("utf-8", "replace")
    return ""
