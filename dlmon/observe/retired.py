"""Counters of segments that are no more, of ranks that still are.

A rank's children and workers may iterate loaders too, in segments of their own, which go when they
end. What those counted stays counted for as long as the rank is known. Pure data.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Generic, TypeVar

from dlmon.observe.snapshot import Histogram, Loader, Worker

Who = TypeVar("Who")


class Retired(Generic[Who]):
    """Loaders as they were last seen, summed by who had them and by name."""

    def __init__(self, most: int) -> None:
        """Remember nothing yet.

        Args:
            most: How many loaders of each to remember, those that were there last.
        """
        self._most = most
        self._loaders: dict[Who, dict[str, Loader]] = {}

    def add(self, who: Who, loader: Loader) -> None:
        """Remember the counters of a loader whose segment will not be seen again."""
        known = self._loaders.setdefault(who, {})
        earlier = known.pop(loader.name, None)
        if earlier is not None:
            longer, other = sorted((loader, earlier), key=lambda one: -len(one.workers))
            loader = plus(longer, other)
        known[loader.name] = loader
        keep_last(known, self._most)

    def onto(self, who: Who, loader: Loader) -> Loader:
        """Return a loader with the counters added that it had before."""
        known = self._loaders.get(who, {})
        earlier = known.pop(loader.name, None)
        if earlier is None:
            return loader
        known[loader.name] = earlier
        return plus(loader, earlier)

    def keep(self, living: Collection[Who]) -> None:
        """Forget whoever is not among `living`."""
        self._loaders = {who: known for who, known in self._loaders.items() if who in living}


def keep_last(known: dict[str, Any], most: int) -> None:
    """Leave only so many of the entries, those that were put in last."""
    for name in list(known)[: max(0, len(known) - most)]:
        del known[name]


def plus(loader: Loader, gone: Loader) -> Loader:
    """Return `loader` with all that only grows increased by what `gone` had."""
    earlier = {worker.slot: worker for worker in gone.workers}
    return replace(
        loader,
        phase_seconds=_sum(loader.phase_seconds, gone.phase_seconds),
        epochs=loader.epochs + gone.epochs,
        startups=loader.startups + gone.startups,
        batches=loader.batches + gone.batches,
        samples=loader.samples + gone.samples,
        discarded=loader.discarded + gone.discarded,
        last_delivery=_later(loader.last_delivery, gone.last_delivery),
        last_epoch=_later(loader.last_epoch, gone.last_epoch),
        wait=_both(loader.wait, gone.wait),
        step=_both(loader.step, gone.step),
        fetch=_both(loader.fetch, gone.fetch),
        timeouts=loader.timeouts + gone.timeouts,
        errors=_sum(loader.errors, gone.errors),
        worker_starts=loader.worker_starts + gone.worker_starts,
        worker_exits=_sum(loader.worker_exits, gone.worker_exits),
        last_abnormal_exit=_later(loader.last_abnormal_exit, gone.last_abnormal_exit),
        workers=tuple(
            _worker(worker, earlier[worker.slot]) if worker.slot in earlier else worker
            for worker in loader.workers
        ),
    )


def _worker(worker: Worker, gone: Worker) -> Worker:
    cpu = [s for s in (worker.cpu_seconds, gone.cpu_seconds) if s is not None]
    return replace(
        worker,
        last_progress=_later(worker.last_progress, gone.last_progress),
        batches=worker.batches + gone.batches,
        samples=worker.samples + gone.samples,
        failed=worker.failed + gone.failed,
        fetch_seconds=worker.fetch_seconds + gone.fetch_seconds,
        cpu_seconds=sum(cpu) if cpu else None,
        read_bytes=_plus(worker.read_bytes, gone.read_bytes),
        major_faults=_plus(worker.major_faults, gone.major_faults),
    )


Key = TypeVar("Key")
Number = TypeVar("Number", int, float)


def _sum(one: Mapping[Key, Number], other: Mapping[Key, Number]) -> dict[Key, Number]:
    return {key: value + other[key] for key, value in one.items()}


def _both(one: Histogram, other: Histogram) -> Histogram:
    counts = tuple(a + b for a, b in zip(one.counts, other.counts, strict=True))
    return Histogram(counts, one.sum_seconds + other.sum_seconds)


def _plus(one: int | None, other: int | None) -> int | None:
    return other if one is None else one + (other or 0)


def _later(one: float | None, other: float | None) -> float | None:
    return max((moment for moment in (one, other) if moment is not None), default=None)
