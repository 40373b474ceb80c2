"""What processes do to storage, memory and descriptors: read in turns, not at every look.

Each of these files costs as much to read as /proc/<pid>/stat, which has what must be fresh.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass, replace

from dlmon.observe.memory import ProcessId, Scanned, Scanner
from dlmon.observe.processes import Sample, Totals, numbers, open_fds

INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses.

    Attributes:
        read_bytes, major_faults: As in `Worker`: over all processes seen under one key.
        open_fds, max_fds, anonymous_bytes, shm_bytes: As in `Worker`.
        scanned: The last scan of this process.
    """

    read_bytes: int | None = None
    major_faults: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    anonymous_bytes: int | None = None
    shm_bytes: int | None = None
    scanned: Scanned | None = None


_NOTHING = Usage()


@dataclass(slots=True)
class _Known:
    """What is known of the process that a key has now.

    Attributes:
        due: CLOCK_MONOTONIC seconds when to look again.
        faults: Its own major faults at its last sample.
        told: What was last told of it: the same until something changes.
    """

    process: ProcessId
    due: float
    faults: int = -1
    told: Usage = _NOTHING


class Usages:
    """Remembers what each process uses, and looks again when it is time to."""

    def __init__(
        self, scanner: Scanner | None = None, scan: Callable[[], None] | None = None
    ) -> None:
        """Start with nothing.

        Args:
            scanner: Scans for PSS and USS; None for neither.
            scan: Has the scanner run, elsewhere if `finish` must not wait; None to run it there.
        """
        self._scanner = scanner
        self._scan = scan or (scanner.run if scanner else lambda: None)
        self._spared: set[Hashable] = set()
        interval = scanner.interval_seconds if scanner else INTERVAL_SECONDS
        self._interval = min(INTERVAL_SECONDS, interval)
        self._known: dict[Hashable, _Known] = {}
        self._read: Totals[int] = Totals()
        self._faults: Totals[int] = Totals()

    def add(self, key: Hashable, process: ProcessId, sample: Sample) -> Usage:
        """Take a sample of the process that `key` has now and return what it uses."""
        now = time.monotonic()
        known = self._known.get(key)
        if known is None or known.process != process:
            # Many workers start at once: from the second time on they are looked at in turns.
            turn = self._interval * (hash((key, process)) % 1024) / 1024
            known = self._known[key] = _Known(process, now + turn)
            self._look(key, known)
        elif now >= known.due:
            known.due = now + self._interval
            self._look(key, known)
        if sample.major_faults != known.faults:
            known.faults = sample.major_faults
            faults = self._faults.add(key, process, sample.major_faults)
            known.told = replace(known.told, major_faults=faults)
        if self._scanner is not None:
            scanned = self._scanner.note(key, process, sample.resident_bytes or 0)
            if scanned is not known.told.scanned:
                known.told = replace(known.told, scanned=scanned)
        return known.told

    def gone(self, key: Hashable) -> Usage:
        """Return what stays of a key that has no process now."""
        return Usage(read_bytes=self._read.total(key), major_faults=self._faults.total(key))

    def spare(self, keys: Collection[Hashable]) -> None:
        """Have none of these scanned from the next `finish` to the one after it."""
        self._spared.update(keys)

    def finish(self) -> None:
        """Do what is dear, after all that others wait for."""
        if self._scanner is not None:
            self._scanner.spare(self._spared)
            self._spared.clear()
        self._scan()

    def keep(self, keys: set[Hashable]) -> None:
        """Forget every key not among `keys`."""
        self._read.keep(keys)
        self._faults.keep(keys)
        for gone in self._known.keys() - keys:
            del self._known[gone]
        if self._scanner is not None:
            self._scanner.keep(keys)

    def _look(self, key: Hashable, known: _Known) -> None:
        """Look at a process, and count what it has read with what those before it have."""
        seen, told = look_at(known.process[0]), known.told
        if seen.read_bytes is not None:
            self._read.add(key, known.process, seen.read_bytes)
        known.told = replace(
            seen,
            read_bytes=self._read.total(key),
            major_faults=told.major_faults,
            scanned=told.scanned,
        )


def look_at(pid: int) -> Usage:
    """Look at a process once; `read_bytes` is its own."""
    status = numbers(f"/proc/{pid}/status", "RssAnon", "RssShmem")
    fds = limit = None
    with suppress(OSError):
        fds = open_fds(pid)
    with suppress(OSError, ValueError):
        limit = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    return Usage(
        read_bytes=numbers(f"/proc/{pid}/io", "read_bytes").get("read_bytes"),
        open_fds=fds,
        max_fds=limit if limit != resource.RLIM_INFINITY else None,
        anonymous_bytes=status.get("RssAnon"),
        shm_bytes=status.get("RssShmem"),
    )
