"""What is about to run out: the memory of a cgroup, /dev/shm, file descriptors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dlmon.analysis.memory import steady_growth
from dlmon.analysis.sizes import duration, size
from dlmon.observe.snapshot import CgroupMemory, Finding, Process, Rank, Snapshot, Worker

NEARLY = 0.9
"""Of /dev/shm or of the descriptors that a process may have."""

LIMIT_NEAR = 0.95
"""Of a memory limit, however long it has been so."""

HORIZON_SECONDS = 3600.0
LIMIT_HALF = 0.5
"""A limit within the hour counts from half of it on: jobs that load their data grow fast too, and
end far below."""

RELIEF = 0.05
"""What is found at a threshold holds until it is this share below it, lest it come and go. What is
further below, as nearly all is, is not put into words."""

_POINTS = 60
_LEAST_POINTS = 30
_SHOWN = 5
_Key = tuple[str, ...]


class RoomWatcher:
    """Finds what is nearly full, and what soon will be."""

    def __init__(self, interval_seconds: float = 10.0) -> None:
        """Start with nothing.

        Args:
            interval_seconds: Between two points of a cgroup's memory. The fit takes 30 to 60.
        """
        self._interval = interval_seconds
        self._used: dict[str, tuple[tuple[tuple[float, int], ...], float | None]] = {}
        self._since: dict[_Key, float] = {}

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Return the snapshot as it is, and what is or soon will be full."""
        for gone in self._used.keys() - snapshot.cgroups.keys():
            del self._used[gone]
        before, self._since = self._since, {}
        found = []
        for group in (_shm(snapshot), _fds(snapshot), self._limits(snapshot)):
            for share, one in group:
                key = (one.name, one.run, one.rank, one.loader, one.worker)
                if share >= 1 or key in before:
                    since = self._since[key] = before.get(key, snapshot.time)
                    found.append(replace(one, since=since))
        return snapshot, found

    def _limits(self, snapshot: Snapshot) -> Iterator[tuple[float, Finding]]:
        for path, memory in snapshot.cgroups.items():
            if memory.room_bytes is None or not memory.binding_limit_bytes:
                continue
            used = memory.binding_limit_bytes - memory.room_bytes
            rate = self._rate(path, snapshot.time, used)
            share = used / memory.binding_limit_bytes / LIMIT_NEAR
            left = memory.room_bytes / rate if rate else None
            if left is not None and used >= LIMIT_HALF * memory.binding_limit_bytes:
                share = max(share, HORIZON_SECONDS / max(left, 1.0))
            if share < 1 - RELIEF:
                continue
            for run, ranks in _runs(rank for rank in snapshot.ranks if rank.process.cgroup == path):
                name = ranks[0].rank if len(ranks) == 1 else ""
                yield share, _limit(run, name, path, memory, rate, left, ranks)

    def _rate(self, path: str, now: float, used: int) -> float | None:
        """Return how fast a cgroup's memory has been growing for a while, and still does."""
        points, rate = self._used.get(path, ((), None))
        if not points or not 0 <= now - points[-1][0] < self._interval * 0.9:
            points = (*points[1 - _POINTS :], (now, used))
            rate = steady_growth(points) if len(points) >= _LEAST_POINTS else None
            self._used[path] = (points, rate)
        return rate


def _limit(
    run: str,
    name: str,
    path: str,
    memory: CgroupMemory,
    rate: float | None,
    left: float | None,
    ranks: Sequence[Rank],
) -> Finding:
    limit, room = memory.binding_limit_bytes or 0, memory.room_bytes or 0
    sentence = f"{size(limit - room)} of the {size(limit)} that cgroup {path} may have are in use"
    evidence = {
        "cgroup": path,
        "limit_bytes": str(limit),
        "used_bytes": str(limit - room),
        "room_bytes": str(room),
    }
    if rate is not None and left is not None:
        sentence += f", {size(rate)}/s more: its limit in {duration(left)}"
        evidence["growth_bytes_per_second"] = f"{rate:.0f}"
        evidence["seconds_to_limit"] = f"{left:.0f}"
    evidence |= dict(_largest(_memory_of(ranks)))
    return Finding("memory_limit_soon", run, name, "", "", 0.0, sentence, evidence)


def _shm(snapshot: Snapshot) -> Iterator[tuple[float, Finding]]:
    for rank in snapshot.ranks:
        used, whole = rank.process.shm_used_bytes, rank.process.shm_size_bytes
        if not rank.up or used is None or not whole:
            continue
        share = used / whole / NEARLY
        if share < 1 - RELIEF:
            continue
        holders = list(_largest(_shm_of(rank)))
        sentence = f"{size(used)} of the {size(whole)} of /dev/shm are in use"
        if holders:
            sentence += "; the most in " + ", ".join(f"{who} ({held})" for who, held in holders)
        evidence = {"size_bytes": str(whole), "used_bytes": str(used), **dict(holders)}
        yield (
            share,
            Finding("shm_nearly_full", rank.run, rank.rank, "", "", 0.0, sentence, evidence),
        )


def _fds(snapshot: Snapshot) -> Iterator[tuple[float, Finding]]:
    for rank in snapshot.ranks:
        process = rank.process
        share = _share(process.open_fds, process.max_fds)
        if share >= 1 - RELIEF:
            yield share, _fd(rank, "", "", "the training process", process)
        for loader in rank.loaders:
            for worker in loader.workers:
                share = _share(worker.open_fds, worker.max_fds)
                if share >= 1 - RELIEF:
                    who = f"worker {worker.slot} of {loader.name}"
                    yield share, _fd(rank, loader.name, str(worker.slot), who, worker)


def _share(used: int | None, most: int | None) -> float:
    """Return which share of what is nearly all descriptors is in use, 0 if that is not known."""
    return used / most / NEARLY if used is not None and most else 0.0


def _fd(rank: Rank, loader: str, worker: str, who: str, holder: Process | Worker) -> Finding:
    sentence = f"{who} has {holder.open_fds} of {holder.max_fds} descriptors open"
    evidence = {"open_fds": str(holder.open_fds), "max_fds": str(holder.max_fds)}
    name = "open_files_nearly_exhausted"
    return Finding(name, rank.run, rank.rank, loader, worker, 0.0, sentence, evidence)


def _runs(ranks: Iterable[Rank]) -> Iterator[tuple[str, list[Rank]]]:
    by_run: dict[str, list[Rank]] = defaultdict(list)
    for rank in ranks:
        by_run[rank.run].append(rank)
    yield from by_run.items()


def _shm_of(rank: Rank) -> Iterator[tuple[str, int]]:
    yield "the training process", rank.process.shm_bytes or 0
    for loader in rank.loaders:
        for worker in loader.workers:
            yield f"worker {worker.slot} of {loader.name}", worker.shm_bytes or 0


def _memory_of(ranks: Sequence[Rank]) -> Iterator[tuple[str, int]]:
    """Tell what is whose: a worker's own memory, not what it shares, which is its rank's."""
    for rank in ranks:
        prefix = f"rank {rank.rank}" if len(ranks) > 1 else ""
        yield prefix or "the training process", rank.process.resident_bytes or 0
        for loader in rank.loaders:
            for worker in loader.workers:
                who = f"worker {worker.slot} of {loader.name}"
                yield f"{prefix}, {who}" if prefix else who, worker.unique_bytes or 0


def _largest(sizes: Iterable[tuple[str, int]]) -> Iterator[tuple[str, str]]:
    ordered = sorted(sizes, key=lambda entry: -entry[1])
    yield from ((who, size(number)) for who, number in ordered[:_SHOWN] if number > 0)
