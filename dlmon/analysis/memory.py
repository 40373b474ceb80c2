"""Whether workers' memory grows, and why: a leak, copies of shared pages, or nothing of the kind.

A forked worker has all anonymous pages of its parent from the start, and what it writes to it gets
a copy of, one for one. So its anonymous memory (of which RSS is made) does not grow by
copy-on-write; it grows by what is newly allocated. What shared pages it has copied is counted at
each scan. The two add up, and are told apart where both happen. Files that it maps are neither.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from dlmon.analysis.robust import slope
from dlmon.analysis.sizes import duration, size
from dlmon.observe.snapshot import Finding, Loader, Rank, Snapshot, Worker

POINTS = 64
"""Points kept of a worker; when there are more, every other one goes, or the oldest one."""

MOST_SPACING_SECONDS = 160.0
"""Between two points: they go back two to three hours at most, for what leaks may begin late."""

_RECENT = 5
_FEW_PROCESSES = 2
_FORGET_SECONDS = 600.0
"""What a slot's processes did is of interest for so long after the last of them ended."""

LEAK_BYTES = 32_000_000
LEAK_RATIO = 0.02
"""A leak has added this much, and this share of all it has: buffers and fragmentation come and go
by some MB, more in large processes."""

STEADY = 0.5
"""In its second half a leak still grows at this share of its first half's rate; what fills a cache
or warms up does not."""

LONG_SECONDS = 1800.0
"""After so long in the first epoch its second half counts: some jobs have only one."""

TREND = 3.5
"""Standard deviations by which a trend must differ from chance: workers are many and looked at
often. Nine points do that at least."""

SIGNAL = 3.0
"""Standard deviations of the noise about the fit that the growth must be."""

COPIED_BYTES = 100_000_000
COPIED_RATIO = 0.1
"""Copies are worth a word from here on: one garbage collection writes to every object's header,
which copies 35 MB in a worker that has imported torch, more with frameworks."""


@dataclass(frozen=True, slots=True)
class Point:
    """A worker's memory at one moment.

    Attributes:
        age: Seconds since its process was started: processes that follow each other in a slot are
            compared at the same age.
        grown: Anonymous bytes more than when the process was first seen.
        epoch: Epochs that began since then.
    """

    age: float
    grown: int
    epoch: int


@dataclass(slots=True)
class _Slot:
    """What is remembered of a worker slot; all but `points` and `copied_before` is its process's.

    Attributes:
        last: The worker as it was when its memory was last known.
        points: Of all its processes.
        processes: How many it has had.
        copied_before: What the process before had copied in the end.
        copies: Ages and copied bytes of this one.
    """

    last: Worker
    points: list[Point] = field(default_factory=list)
    processes: int = 0
    copied_before: int = 0
    pid: int = 0
    started: float = 0.0
    seen: float = 0.0
    base: int = 0
    first_epoch: int = 0
    spacing: float = 0.0
    copies: list[tuple[float, int]] = field(default_factory=list)
    rate: float | None = None

    @property
    def copied(self) -> int:
        """Bytes copied by this process so far, or by the one before in its whole life."""
        return max(self.copied_before, self.copies[-1][1] if self.copies else 0)

    def thin(self, interval: float) -> None:
        """Keep as many points as may be."""
        if len(self.points) > POINTS:
            wider = max(interval, self.spacing) * 2
            if wider <= MOST_SPACING_SECONDS:
                self.points, self.spacing = self.points[::2], wider
            else:
                del self.points[0]


@dataclass(frozen=True, slots=True)
class _Case:
    """One loader's workers that have the same trouble, the worst first."""

    rank: Rank
    loader: Loader
    epoch_seconds: float | None
    workers: Sequence[tuple[Worker, _Slot]]


_Key = tuple[str, str, str]


class MemoryWatcher:
    """Remembers workers' memory and finds leaks and copy-on-write erosion."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        """Start with nothing.

        Args:
            interval_seconds: Between two points of a worker: how often its memory is read.
        """
        self._interval = interval_seconds
        self._slots: dict[_Key, dict[int, _Slot]] = {}
        self._epochs: dict[_Key, tuple[int, float | None, float | None]] = {}
        self._since: dict[tuple[str, _Key], float] = {}

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Return the snapshot as it is, and the loaders whose workers leak or copy."""
        found: list[Finding] = []
        seen: set[_Key] = set()
        for rank in snapshot.ranks:
            for loader in rank.loaders if rank.up else ():
                key = (rank.run, rank.rank, loader.name)
                seen.add(key)
                found += self._loader(key, rank, loader, snapshot)
        self._slots = {key: slots for key, slots in self._slots.items() if key in seen}
        self._epochs = {key: epoch for key, epoch in self._epochs.items() if key in seen}
        active = {(one.name, (one.run, one.rank, one.loader)) for one in found}
        self._since = {key: since for key, since in self._since.items() if key in active}
        return snapshot, found

    def _loader(
        self, key: _Key, rank: Rank, loader: Loader, snapshot: Snapshot
    ) -> Iterator[Finding]:
        seconds = self._epoch_seconds(key, loader)
        now = snapshot.time
        known = self._slots.setdefault(key, {})
        noted = [self._note(known, loader, worker, now) for worker in loader.workers]
        slots = [slot for slot in noted if slot is not None]
        leaking = [(slot.last, slot) for slot in slots if slot.rate is not None]
        if leaking:
            leaking.sort(key=lambda pair: -(pair[1].rate or 0))
            case = _Case(rank, loader, seconds, leaking)
            began = min(slot.started for _, slot in leaking)
            yield self._finding("worker_memory_leak", case, began, *_leak(case, snapshot))
        copying = [(slot.last, slot) for slot in slots if _copies_much(slot)]
        if copying:
            copying.sort(key=lambda pair: -pair[1].copied)
            case = _Case(rank, loader, seconds, copying)
            yield self._finding("copy_on_write_erosion", case, now, *_erosion(case))

    def _finding(
        self, name: str, case: _Case, since: float, sentence: str, evidence: dict[str, str]
    ) -> Finding:
        run, rank, loader = case.rank.run, case.rank.rank, case.loader.name
        since = self._since.setdefault((name, (run, rank, loader)), since)
        return Finding(name, run, rank, loader, "", since, sentence, evidence)

    def _epoch_seconds(self, key: _Key, loader: Loader) -> float | None:
        """Return how long an epoch takes, from its begin to that of the next."""
        number, began, seconds = self._epochs.get(key, (-1, None, None))
        if loader.epochs != number:
            if began is not None and loader.last_epoch is not None and loader.epochs > number:
                seconds = max(0.0, loader.last_epoch - began) / (loader.epochs - number)
            self._epochs[key] = (loader.epochs, loader.last_epoch, seconds)
        return seconds

    def _note(
        self, known: dict[int, _Slot], loader: Loader, worker: Worker, now: float
    ) -> _Slot | None:
        """Take what is new of a worker's memory; None if it was not known lately."""
        slot = known.get(worker.slot)
        if worker.pid is None or worker.started is None or worker.anonymous_bytes is None:
            if slot is not None and now - slot.seen > _FORGET_SECONDS:
                del known[worker.slot]
                return None
            return slot
        if slot is None:
            slot = known[worker.slot] = _Slot(worker)
        slot.seen, slot.last = now, worker
        if worker.pid != slot.pid or abs(worker.started - slot.started) > 1:
            slot.copied_before = slot.copies[-1][1] if slot.copies else 0
            slot.copies = []
            slot.processes += 1
            slot.pid = worker.pid
            slot.base, slot.first_epoch = worker.anonymous_bytes, loader.epochs
        slot.started = worker.started  # the same moment; a clock that is set right drifts
        age = now - slot.started
        if worker.scanned is not None and worker.copied_bytes is not None:
            _note_copied(slot, worker.scanned - slot.started, worker.copied_bytes)
        last = slot.points[-1].age if slot.points else None
        if last is None or not 0 <= age - last < max(self._interval, slot.spacing) * 0.9:
            grown = worker.anonymous_bytes - slot.base
            slot.points.append(Point(age, grown, loader.epochs - slot.first_epoch))
            slot.thin(self._interval)
            slot.rate = leak(slot.points, slot.processes, worker.anonymous_bytes)
        return slot


def _note_copied(slot: _Slot, age: float, copied: int) -> None:
    if not slot.copies or abs(age - slot.copies[-1][0]) > 0.05:  # another scan
        slot.copies.append((age, copied))
        if len(slot.copies) > POINTS:
            slot.copies = slot.copies[::2]


def leak(points: Sequence[Point], processes: int, now_bytes: int) -> float | None:
    """Return the bytes per second by which a worker leaks; None if it does not.

    Args:
        points: In the order in which they were seen.
        processes: How many processes they are of.
        now_bytes: Anonymous memory that it has now.
    """
    usable = sorted(_after_warm_up(points, processes), key=lambda point: point.age)
    xy = [(point.age, point.grown) for point in usable]
    if _rise(xy) < max(LEAK_BYTES, LEAK_RATIO * now_bytes):  # cheap, and nearly always so
        return None
    return steady_growth(xy)


def steady_growth(points: Sequence[tuple[float, int]]) -> float | None:
    """Return the rate at which a size grows, if it does so steadily and not by chance.

    Args:
        points: Seconds and bytes, by time.

    Returns:
        Bytes per second, above 0; None if it does not grow, levels off, or may only fluctuate.
    """
    half = len(points) // 2
    earlier = slope(points[: half + 1])
    later = slope(points[half:])
    rate = slope(points)
    if earlier is None or later is None or rate is None or rate <= 0:
        return None
    if later < STEADY * max(earlier, rate) or _trend(points) < TREND:
        return None
    return rate if _rise(points) >= SIGNAL * _spread(points, rate) else None


def _rise(points: Sequence[tuple[float, int]]) -> float:
    """Return by how much the fitted line rises, nearly: cheaper than a fit."""
    third = len(points) // 3
    if not third:
        return 0.0
    first, last = points[:third], points[-third:]
    rise = statistics.median(y for _, y in last) - statistics.median(y for _, y in first)
    return 1.5 * rise  # the middles of the thirds are two thirds of it apart


def _trend(points: Sequence[tuple[float, int]]) -> float:
    """Return by how many standard deviations more pairs of points rise than chance would have it.

    That is Kendall's test of a trend, which a few wild points do not impress either.
    """
    rising = sum((y > v) - (y < v) for (_, v), (_, y) in combinations(points, 2))
    n = len(points)
    return rising / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)


def _spread(points: Sequence[tuple[float, int]], rate: float) -> float:
    """Return the standard deviation about a line of that slope, by the median deviation."""
    rest = [y - rate * x for x, y in points]
    middle = statistics.median(rest)
    return 1.48 * statistics.median(abs(one - middle) for one in rest)


def _after_warm_up(points: Sequence[Point], processes: int) -> Sequence[Point]:
    """Return the points that show what goes on: in a first epoch caches fill and modules load.

    From the second on it takes a whole one, for what comes and goes within an epoch. Processes that
    live for one epoch each do the same each time: then each one's beginning is left out, and it
    takes some of them.
    """
    later = [point for point in points if point.epoch > 0]
    if later and max(point.epoch for point in later) > 1:
        return later
    oldest = max((point.age for point in points), default=0.0)
    if oldest >= LONG_SECONDS:
        return [point for point in points if point.age >= oldest / 2]
    many = processes > _FEW_PROCESSES
    return [point for point in points if point.age >= oldest / 4] if many else []


def _copies_much(slot: _Slot) -> bool:
    copied = slot.copied
    return copied >= COPIED_BYTES and copied >= COPIED_RATIO * (slot.last.anonymous_bytes or 0)


def _leak(case: _Case, snapshot: Snapshot) -> tuple[str, dict[str, str]]:
    worst, slot = case.workers[0]
    rate = slot.rate or 0.0
    speeds = [f"{size(rate)}/s", f"{size(rate * 3600)} per hour"]
    if case.epoch_seconds is not None:
        speeds[1] = f"{size(rate * case.epoch_seconds)} per epoch"
    has = next(_sizes(worst), "memory not known")
    sentence = f"worker {worst.slot} of {case.loader.name}: {has}, growing {' / '.join(speeds)}"
    if len(case.workers) > 1:
        sentence += f"; {len(case.workers)} of its {len(case.loader.workers)} workers grow"
    if slot.processes > _FEW_PROCESSES:
        sentence += "; freed when they end with their epoch"
    total = sum(slot.rate or 0.0 for _, slot in case.workers)
    memory = snapshot.cgroups.get(case.rank.process.cgroup or "")
    if memory is not None and memory.room_bytes is not None:
        sentence += f"; the limit of their cgroup in {duration(memory.room_bytes / total)}"
    evidence = {"workers": _numbers(case), "growth_bytes_per_second": f"{total:.0f}"}
    evidence["growth_bytes_per_hour"] = f"{total * 3600:.0f}"
    if case.epoch_seconds is not None:
        evidence["growth_bytes_per_epoch"] = f"{total * case.epoch_seconds:.0f}"
    for worker, its in case.workers:
        parts = [f"{size(its.rate or 0.0)}/s", *_sizes(worker)]
        evidence[f"worker {worker.slot}"] = ", ".join(parts)
    return sentence, evidence


def _erosion(case: _Case) -> tuple[str, dict[str, str]]:
    worst, slot = case.workers[0]
    total = sum(its.copied for _, its in case.workers)
    number = len(case.workers)
    name = case.loader.name
    sentence = f"worker {worst.slot} of {name} has copied {size(slot.copied)} that it shared"
    if number > 1:
        sentence = f"{number} workers of {name} have copied {size(total)} that they shared with the"
        sentence += f" training process, worker {worst.slot} {size(slot.copied)}"
    rate = slope(slot.copies[-_RECENT:])
    if rate is not None and rate > 0:
        sentence += f", now {size(rate)}/s"
        if case.epoch_seconds is not None:
            sentence += f" / {size(rate * case.epoch_seconds)} per epoch"
    evidence = {"workers": _numbers(case), "copied_bytes": str(total)}
    for worker, its in case.workers:
        parts = [f"{size(its.copied)} copied", *_sizes(worker)]
        evidence[f"worker {worker.slot}"] = ", ".join(parts)
    return sentence, evidence


def _numbers(case: _Case) -> str:
    return ", ".join(str(worker.slot) for worker, _ in case.workers)


def _sizes(worker: Worker) -> Iterator[str]:
    for name, number in (
        ("USS", worker.unique_bytes),
        ("PSS", worker.proportional_bytes),
        ("RSS", worker.resident_bytes),
    ):
        if number is not None:
            yield f"{name} {size(number)}"
