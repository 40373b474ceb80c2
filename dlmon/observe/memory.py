"""PSS and USS of processes, from /proc/<pid>/smaps_rollup, as seldom as they are dear.

The kernel walks every page that the process has: 14 ms per GB of the agent's CPU time. For that
long it holds the process's mmap lock, and what the process maps meanwhile waits. Hence a budget.
And it waits for that lock, which a process that is stuck may hold for ever: an agent scans in a
thread of its own (`dlmon.observe.scans`), while its clock goes on taking notes.
Source: kernel Documentation/filesystems/proc.rst.

Runs in: agent. On failure: what may not be read is None.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

SLOW_SECONDS = 0.03
"""A scan that takes longer, as one of 2 GB does, makes the next one wait longer in proportion: so
scans hold a process up for at most 0.05 % of its time at the default interval."""

_SOONER = 4
"""A process that is new or grows is scanned this many times as often."""

_SAVED_SECONDS = 10.0
"""Budget not used is saved for this long: workers that start together are scanned soon."""

_SETTLE_SHARE = 1 / 30
"""A process is left alone for this share of the interval after it was first seen: it starts up."""

_SUSPICIOUS_BYTES = 16_000_000
_SUSPICIOUS_RATIO = 0.05

ProcessId = tuple[int, int]
"""A pid and the process's start time in ticks."""


@dataclass(frozen=True, slots=True)
class Rollup:
    """The memory of a process, in bytes.

    Attributes:
        resident: RSS.
        proportional: PSS: every page divided by how many processes map it.
        unique: USS: pages that it alone maps.
        anonymous: Pages that no file holds, shared with a parent or child or not.
        private_dirty: Of the unique ones those written to: with anonymous ones nearly all are, with
            those of files it reads none.
    """

    resident: int
    proportional: int
    unique: int
    anonymous: int
    private_dirty: int

    @property
    def shared_anonymous(self) -> int:
        """Anonymous pages that it shares, so that a write to one makes a copy."""
        return max(0, self.anonymous - self.private_dirty)


@dataclass(frozen=True, slots=True)
class Scanned:
    """The last scan of a process.

    Attributes:
        time: Unix time of it.
        rollup: What it said.
        copied: Bytes that the process shared at its first scan and has a copy of now.
    """

    time: float
    rollup: Rollup
    copied: int


@dataclass(slots=True)
class _Slot:
    """What is known of the process that a key has now, and when its last scan was."""

    process: ProcessId
    resident: int
    since: float
    first: Rollup | None = None
    latest: Scanned | None = None
    grows: bool = False
    denied: bool = False
    scanned: float | None = None
    """Of this key, whichever process it had then; as `cost`."""
    cost: float = 0.0


def parse(text: str) -> Rollup:
    """Return what a smaps_rollup says.

    Raises:
        ValueError: It is none.
    """
    kilobytes: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, value = line.partition(":")
        kilobytes[name] = int(value.removesuffix("kB"))
    try:
        clean, dirty = kilobytes["Private_Clean"], kilobytes["Private_Dirty"]
        return Rollup(
            resident=kilobytes["Rss"] << 10,
            proportional=kilobytes["Pss"] << 10,
            unique=(clean + dirty + kilobytes.get("Private_Hugetlb", 0)) << 10,
            anonymous=kilobytes["Anonymous"] << 10,
            private_dirty=dirty << 10,
        )
    except KeyError as error:
        raise ValueError(f"smaps_rollup without {error}") from None


def scan(pid: int) -> Rollup | None:
    """Walk a process's memory once; None if it is gone.

    Raises:
        PermissionError: It may not be read.
    """
    try:
        fd = os.open(f"/proc/{pid}/smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return parse(os.read(fd, 1 << 14).decode("ascii"))  # one read has it whole
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM):
            raise PermissionError from None
        return None


@dataclass(slots=True)
class Scanner:
    """Scans processes one after the other, within a budget.

    One thread may `run` it while another one does everything else, which never takes long.

    Attributes:
        interval_seconds: Between two scans of a process; a quarter of it while it grows.
        cpu_budget_ratio: The share of one core that all scans take, 0 for none.
        clock: Seconds that do not jump.
        cpu_clock: Seconds of CPU time that the thread that runs it has used.
        under_way: Who is being scanned, and the clock when that began; None while nobody is.
    """

    interval_seconds: float
    cpu_budget_ratio: float
    clock: Callable[[], float] = time.monotonic
    cpu_clock: Callable[[], float] = time.thread_time
    under_way: tuple[int, float] | None = None
    _slots: dict[Hashable, _Slot] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    """Held for as long as `_slots` is changed or copied, but not for a scan."""
    _spared: frozenset[Hashable] = frozenset()
    _credit: float = 0.0
    _counted: float | None = None

    @classmethod
    def at_once(cls, cpu_seconds: float) -> Scanner:
        """Return one for a single run, which may take so long."""
        return cls(0.0, cpu_seconds / _SAVED_SECONDS)

    def note(self, key: Hashable, process: ProcessId, resident: int) -> Scanned | None:
        """Take note of the process that a key has now; return its last scan."""
        slot = self._slots.get(key)
        if slot is None or slot.process != process:
            new = _Slot(process, resident, self.clock())
            if slot is not None:
                new.scanned, new.cost = slot.scanned, slot.cost
            with self._lock:
                self._slots[key] = new
            return None
        slot.resident = resident
        return slot.latest

    def spare(self, keys: Collection[Hashable]) -> None:
        """Leave these processes alone until others are named.

        The scanning thread may be in the same cgroup: throttled in the middle of a scan, it would
        hold the mmap lock until it may go on.
        """
        self._spared = frozenset(keys)

    def keep(self, keys: Collection[Hashable]) -> None:
        """Forget every key not among `keys`."""
        gone = self._slots.keys() - set(keys)
        if gone:
            with self._lock:
                for key in gone:
                    del self._slots[key]

    def run(self) -> None:
        """Scan what is due, what has been due longest first, as far as the budget goes.

        It takes for ever where a process that is scanned is stuck.
        """
        now = self.clock()
        saved = self.cpu_budget_ratio * _SAVED_SECONDS
        earned = saved if self._counted is None else (now - self._counted) * self.cpu_budget_ratio
        self._credit = min(saved, self._credit + earned)
        self._counted = now
        with self._lock:
            slots = list(self._slots.items())
        due = [
            (when, key, slot)
            for key, slot in slots
            if not slot.denied and (when := self._due(slot)) <= now
        ]
        for _, key, slot in sorted(due, key=lambda entry: entry[0]):
            if self._credit <= 0:
                return
            # Both may have changed since, if the scan before took long.
            if key not in self._spared and self._slots.get(key) is slot:
                self._scan(slot)

    def _due(self, slot: _Slot) -> float:
        settled = slot.since + self.interval_seconds * _SETTLE_SHARE
        if slot.scanned is None:
            return settled
        wait = self.interval_seconds * max(1.0, slot.cost / SLOW_SECONDS)
        latest = slot.latest
        if latest is None or slot.grows or _suspicious(latest.rollup.resident, slot.resident):
            wait /= _SOONER
        return max(settled, slot.scanned + wait)

    def _scan(self, slot: _Slot) -> None:
        began, cpu = self.clock(), self.cpu_clock()
        self.under_way = (slot.process[0], began)
        try:
            seen = scan(slot.process[0])
        except PermissionError:
            slot.denied, seen = True, None
        finally:
            self.under_way = None
        slot.scanned = self.clock()
        slot.cost = slot.scanned - began
        self._credit -= self.cpu_clock() - cpu
        if seen is None:
            return
        first = slot.first = slot.first or seen
        before = slot.latest
        slot.grows = before is not None and _suspicious(before.rollup.unique, seen.unique)
        slot.latest = Scanned(time.time(), seen, _copied(first, seen))


def _copied(first: Rollup, now: Rollup) -> int:
    """Return what is shared no longer and private instead: neither freed nor newly allocated."""
    lost = first.shared_anonymous - now.shared_anonymous
    return max(0, min(lost, now.private_dirty - first.private_dirty))


def _suspicious(before: int, now: int) -> bool:
    return now - before > max(_SUSPICIOUS_BYTES, _SUSPICIOUS_RATIO * before)
