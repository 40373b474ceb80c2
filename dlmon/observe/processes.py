"""What the operating system says of ranks and workers: CPU, memory, descriptors, CPUs granted.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import psutil

from dlmon.observe import cgroups
from dlmon.observe.snapshot import Process

UNREADABLE = (psutil.Error, OSError)


@dataclass(slots=True)
class Sample:
    """One look at a process.

    Attributes:
        status: A letter as in /proc/<pid>/stat: R, S, D, T, t, Z, …
        cpu_seconds, resident_bytes: As in `Process`.
        start_ticks: Its start time, field 22 of /proc/<pid>/stat.
        parent, group: pids of its parent and of its process group's leader.
        major_faults: Page faults that needed storage.
    """

    status: str
    cpu_seconds: float
    resident_bytes: int | None
    start_ticks: int
    parent: int = 0
    group: int = 0
    major_faults: int = 0

    def started(self, booted: float) -> float:
        """Return the Unix time of its start.

        Args:
            booted: What `booted` says.
        """
        return booted + self.start_ticks / _TICKS


_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHARE = 4
"""One in so many of the files that this process may open is for one way to look at others."""
_MOST = 4096
"""Of more processes no file is kept open, whatever the limit."""


def booted() -> float:
    """Return the Unix time at which this machine was started, by the clock as it is set now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def most_kept() -> int:
    """Return for how many processes one way to look at them may keep a file open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if limit == resource.RLIM_INFINITY else min(limit // _SHARE, _MOST)


def sample(pid: int) -> Sample | None:
    """Look at a process once, with one read of /proc/<pid>/stat; None if there is none."""
    try:
        fd = _open_stat(pid)
        try:
            return _parse(os.read(fd, 4096))
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return None


class Sampler:
    """Looks at the same processes again and again: to open a file costs as much as to read it."""

    def __init__(self) -> None:
        self._most = most_kept()
        self._fds: dict[int, int] = {}

    def sample(self, pid: int) -> Sample | None:
        """Look at a process, as `sample` does."""
        fd = self._fds.get(pid)
        if fd is None:
            if len(self._fds) >= self._most:
                return sample(pid)
            try:
                fd = self._fds[pid] = _open_stat(pid)
            except (OSError, ValueError):
                return None
        try:
            return _parse(os.pread(fd, 4096, 0))
        except (OSError, ValueError, IndexError):  # gone; its pid may be another process's by now
            os.close(self._fds.pop(pid))
            return sample(pid)

    def keep(self, pids: Collection[int]) -> None:
        """Close the files of all other processes."""
        for gone in self._fds.keys() - pids:
            os.close(self._fds.pop(gone))


def _open_stat(pid: int) -> int:
    return os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)


def _parse(stat: bytes) -> Sample:
    fields = stat.rpartition(b")")[2].split(None, 22)
    return Sample(
        fields[0].decode("ascii"),
        (int(fields[11]) + int(fields[12])) / _TICKS,
        int(fields[21]) * _PAGE,
        int(fields[19]),
        int(fields[1]),
        int(fields[2]),
        int(fields[9]),
    )


def numbers(path: str, *names: str) -> dict[str, int]:
    """Return those of these numbers that a file of lines "name: number" or "name: number kB" has.

    kB, which in /proc are units of 1,024, become bytes.
    """
    found = {}
    with suppress(OSError, ValueError, IndexError):
        text = "\n" + _read(path).decode("ascii", "replace")
        for name in names:
            _, there, rest = text.partition(f"\n{name}:")
            if there:
                value, *unit = rest.partition("\n")[0].split()
                found[name] = int(value) << (10 if unit == ["kB"] else 0)
    return found


def _read(path: str) -> bytes:
    """Read a file of /proc that one read has whole; a file object takes twice as long."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 14)
    finally:
        os.close(fd)


def capabilities() -> int:
    """Return this process's effective capabilities, a bit each; 0 where /proc does not tell."""
    with suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


Number = TypeVar("Number", int, float)


@dataclass(slots=True)
class _Total(Generic[Number]):
    """What the process that a key has now has counted so far, and all before it had; None: none."""

    process: tuple[int, int]
    last: Number
    before: Number | None = None


class Totals(Generic[Number]):
    """A counter of processes per key, over all processes that a key has had."""

    def __init__(self) -> None:
        self._totals: dict[Hashable, _Total[Number]] = {}

    def add(self, key: Hashable, process: tuple[int, int], value: Number) -> Number:
        """Take the counter of the process that `key` has now and return the sum.

        Args:
            key: Whose processes they are.
            process: Pid and start time.
            value: What the process has counted so far.
        """
        total = self._totals.get(key)
        if total is None:
            self._totals[key] = _Total(process, value)
            return value
        if total.process != process:
            total.before = total.last if total.before is None else total.before + total.last
            total.process = process
        total.last = value
        return value if total.before is None else total.before + value

    def total(self, key: Hashable) -> Number | None:
        """Return the sum, None before the first value."""
        total = self._totals.get(key)
        if total is None or total.before is None:
            return None if total is None else total.last
        return total.before + total.last

    def keep(self, keys: set[Hashable]) -> None:
        """Forget every key not among `keys`."""
        for gone in self._totals.keys() - keys:
            del self._totals[gone]


def open_fds(pid: int) -> int:
    """Count a process's descriptors; since Linux 6.2 the size of the directory is their number.

    Raises:
        OSError: It may not be read, or there is no such process.
    """
    return os.stat(f"/proc/{pid}/fd").st_size or len(os.listdir(f"/proc/{pid}/fd"))


def rank_process(pid: int) -> Process:
    """Return what the operating system says of a rank; what may not be read is None.

    The /dev/shm that it sees is for `dlmon.observe.shm` to say.
    """
    seen = sample(pid)
    if seen is None:
        return Process()
    fds = limit = affinity = None
    with suppress(*UNREADABLE):
        process = psutil.Process(pid)
        affinity = len(process.cpu_affinity() or ()) or None
        limit = process.rlimit(psutil.RLIMIT_NOFILE)[0]
    with suppress(OSError):
        if os.access(f"/proc/{pid}/fd", os.R_OK, effective_ids=True):
            fds = open_fds(pid)
    group = cgroups.of(pid)
    quota = group.cpu_quota()
    cpus = [float(c) for c in (affinity, quota) if c is not None]
    return Process(
        cpu_seconds=seen.cpu_seconds,
        resident_bytes=seen.resident_bytes,
        open_fds=fds,
        max_fds=limit,
        cpus=min(cpus) if cpus else None,
        cpu_throttled_seconds=group.cpu_throttled_seconds(),
        cgroup=group.path,
        shm_bytes=numbers(f"/proc/{pid}/status", "RssShmem").get("RssShmem"),
        state=seen.status,
        frozen=group.frozen(),
    )
