"""The last minutes of every rank, loader and worker, in little memory.

Each has a ring of numbers in arrays, made as large as they are needed. With the default of 900 s at
1 Hz a worker takes 46 kB, 128 workers 6 MB.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence

from dlmon.observe.snapshot import Finding, Loader, Rank, Snapshot, Worker
from dlmon.segment.layout import Phase

MOST_POINTS = 1800
"""Kept of one subject: for longer times points are further apart."""

MOST_SUBJECTS = 4096
"""Further ranks, loaders and workers have no history."""

Subject = tuple[str, str, str, str]
"""Run, rank, loader and worker; "" for what does not apply."""

RANK_COLUMNS = ("resident_bytes", "cpu_seconds", "open_fds")
LOADER_COLUMNS = ("batches", "wait_seconds", "step_seconds", "ready", "phase")
WORKER_COLUMNS = ("resident_bytes", "proportional_bytes", "unique_bytes", "batches", "state")
"""What a point has besides its time. Phases and states are the numbers of the metrics."""

Points = Mapping[str, Sequence[float | None]]
"""Columns of equal length, `time` (Unix) first, the oldest point first; None is not known."""


class _Ring:
    """Points of one subject."""

    __slots__ = ("_next", "_values", "_width", "columns", "last")

    def __init__(self, columns: tuple[str, ...]) -> None:
        self.columns = columns
        self.last = -math.inf
        self._width = len(columns) + 1
        self._values = array("d")
        self._next = 0

    def add(self, time: float, values: Sequence[float], most: int) -> None:
        point = array("d", (time, *values))
        self.last = time
        if len(self._values) < most * self._width:
            self._values.extend(point)
            return
        start = self._next * self._width
        self._values[start : start + self._width] = point
        self._next = (self._next + 1) % most

    def points(self, since: float) -> dict[str, list[float | None]]:
        """Return the points from a Unix time on."""
        width, start = self._width, self._next * self._width
        ordered = self._values[start:] + self._values[:start]
        rows = [i for i in range(0, len(ordered), width) if ordered[i] >= since]
        names = ("time", *self.columns)
        return {
            name: [None if math.isnan(ordered[i + at]) else ordered[i + at] for i in rows]
            for at, name in enumerate(names)
        }


class History:
    """A watcher that finds nothing wrong and remembers what it saw.

    One thread looks, others ask.

    Args:
        seconds: How far back it remembers, 0 for not at all.
        interval_seconds: From one snapshot to the next.
    """

    def __init__(self, seconds: float, interval_seconds: float) -> None:
        self._seconds = seconds
        self._apart = max(interval_seconds, seconds / MOST_POINTS)
        self._most = math.ceil(seconds / self._apart)
        self._lock = threading.Lock()
        self._rings: dict[Subject, _Ring] = {}
        self._due = -math.inf

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Remember a snapshot, if it is far enough from the last one."""
        if self._most > 0 and (snapshot.time >= self._due or snapshot.time < self._due - 60):
            # Half of an interval early is on time: ticks are not exact.
            self._due = snapshot.time + self._apart - min(self._apart, 1.0) / 2
            with self._lock:
                self._add(snapshot)
        return snapshot, ()

    def points(self, subject: Subject, since: float = -math.inf) -> Points | None:
        """Return what is remembered of a subject, None if it is not known.

        Args:
            subject: Whose.
            since: Unix time of the oldest point wanted.
        """
        with self._lock:
            ring = self._rings.get(subject)
            return None if ring is None else ring.points(since)

    def subjects(self) -> list[Subject]:
        """Return who has a history."""
        with self._lock:
            return sorted(self._rings)

    def _add(self, snapshot: Snapshot) -> None:
        for subject, columns, values in _all(snapshot.ranks):
            ring = self._rings.get(subject)
            if ring is None:
                if len(self._rings) >= MOST_SUBJECTS:
                    continue
                ring = self._rings[subject] = _Ring(columns)
            ring.add(snapshot.time, values, self._most)
        oldest = snapshot.time - self._seconds
        for subject in [s for s, ring in self._rings.items() if ring.last < oldest]:
            del self._rings[subject]


def _all(
    ranks: Sequence[Rank],
) -> Iterator[tuple[Subject, tuple[str, ...], Sequence[float]]]:
    for rank in ranks:
        process = rank.process
        values = map(_number, (process.resident_bytes, process.cpu_seconds, process.open_fds))
        yield (rank.run, rank.rank, "", ""), RANK_COLUMNS, tuple(values)
        for loader in rank.loaders:
            yield (rank.run, rank.rank, loader.name, ""), LOADER_COLUMNS, _loader(loader)
            for worker in loader.workers:
                subject = (rank.run, rank.rank, loader.name, str(worker.slot))
                yield subject, WORKER_COLUMNS, _worker(worker)


def _loader(loader: Loader) -> Sequence[float]:
    seconds = loader.phase_seconds
    wait, step = seconds.get(Phase.WAIT, 0.0), seconds.get(Phase.STEP, 0.0)
    return (loader.batches, wait, step, loader.ready, loader.phase)


def _worker(worker: Worker) -> Sequence[float]:
    return (
        _number(worker.resident_bytes),
        _number(worker.proportional_bytes),
        _number(worker.unique_bytes),
        worker.batches,
        _number(worker.state),
    )


def _number(value: float | None) -> float:
    """Return what stands in an array for a value, NaN if that is not known."""
    return math.nan if value is None else value
