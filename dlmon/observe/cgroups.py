"""Which cgroup a process is in, and what CPU that grants, by cgroup v2 or v1.

Source: kernel Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/, scheduler/sched-bwc.rst.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

ROOT = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The cgroups of one process.

    Attributes:
        path: Its path in the memory hierarchy (v1) or the only one (v2), None if unknown.
        cpu_directory: Where its CPU controller's files are, None if unknown.
        unified: Whether that is a v2 hierarchy.
    """

    path: str | None = None
    cpu_directory: str | None = None
    unified: bool = True

    def cpu_quota(self) -> float | None:
        """Return how many CPUs the tightest quota of all levels grants; None without one."""
        quotas = [quota for d in self._levels() if (quota := self._quota(d)) is not None]
        return min(quotas, default=None)

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

    def _levels(self) -> list[str]:
        levels = []
        directory = self.cpu_directory
        while directory is not None and f"{directory}/".startswith(f"{ROOT}/"):
            levels.append(directory)  # ROOT too: a container's own cgroup is mounted there
            directory = os.path.dirname(directory)
        return levels

    def _quota(self, directory: str) -> float | None:
        if self.unified:
            quota, _, period = _read(f"{directory}/cpu.max").strip().partition(" ")
        else:
            quota = _read(f"{directory}/cpu.cfs_quota_us").strip()
            period = _read(f"{directory}/cpu.cfs_period_us").strip()
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            return int(quota) / int(period)
        return None  # "max", -1, or no such file: no quota at this level


def of(pid: int) -> Cgroup:
    """Return the cgroups of a process, from /proc/<pid>/cgroup."""
    by_controller = {}
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                by_controller[controller] = parts[2]
    unified = by_controller.get("")
    cpu = by_controller.get("cpu")
    path = by_controller.get("memory") or unified or cpu
    if cpu is not None:
        return Cgroup(path, _directory(f"{ROOT}/cpu", cpu), unified=False)
    if unified is not None:
        return Cgroup(path, _directory(ROOT, unified), unified=True)
    return Cgroup(path)


def _directory(hierarchy: str, path: str) -> str | None:
    """Return where a cgroup's files are; in a container its own cgroup is mounted as the root.

    One outside of this process's cgroup namespace, whose path goes up, is not to be seen.
    """
    if ".." in path.split("/"):
        return None
    found = (d.rstrip("/") for d in (hierarchy + path, hierarchy) if os.path.isdir(d))
    return next(found, None)


def _read(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return ""
