"""Which of a Snapshot's subjects get series, and under which labels."""

from __future__ import annotations

import enum
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from dlmon.agent.labels import clean
from dlmon.catalog import METRICS, WORKER_UP, Metric, Subject, series_per
from dlmon.observe.snapshot import (
    CgroupMemory,
    Gpu,
    Loader,
    Rank,
    Snapshot,
    Unobserved,
    Worker,
)

MOST_UNOBSERVED = 64
"""Users' scripts without the shim that have series: those with the most workers."""


class Detail(enum.Enum):
    """How many series a worker has; values are those of the setting `metrics.per_worker`."""

    FULL = "full"
    LEAN = "lean"
    UP = "up"
    """Only `dlmon_worker_up`, when the series limit bites; no setting."""
    OFF = "off"

    def shows(self, metric: Metric) -> bool:
        """Tell whether a worker with this detail has series of `metric`."""
        if self is Detail.LEAN:
            return metric.lean
        return self is Detail.FULL or (self is Detail.UP and metric is WORKER_UP)

    @functools.cached_property
    def series(self) -> int:
        """The most series that one worker has."""
        workers = (metric for metric in METRICS if metric.subject is Subject.WORKER)
        return sum(metric.series for metric in workers if self.shows(metric))


class AdmittedWorker(NamedTuple):
    """A worker with its label values, in the order of `WORKER_LABELS`.

    A tuple, because one is made of every worker at every look, and a frozen dataclass takes longer.
    """

    labels: tuple[str, ...]
    worker: Worker
    detail: Detail


@dataclass(frozen=True, slots=True)
class AdmittedLoader:
    """A loader with its label values, in the order of `LOADER_LABELS`."""

    labels: tuple[str, ...]
    loader: Loader
    workers: tuple[AdmittedWorker, ...]


@dataclass(frozen=True, slots=True)
class AdmittedGpu:
    """A GPU with its label values, in the order of `GPU_LABELS`."""

    labels: tuple[str, ...]
    gpu: Gpu


@dataclass(frozen=True, slots=True)
class AdmittedUnobserved:
    """Unobserved workers with their label values, in the order of `UNOBSERVED_LABELS`."""

    labels: tuple[str, ...]
    group: Unobserved


@dataclass(frozen=True, slots=True)
class AdmittedRank:
    """A rank with its label values, in the order of `RANK_LABELS`, and the GPUs it computes on.

    Attributes:
        orphans: Workers that dead processes have left behind which were this rank of this run.
    """

    labels: tuple[str, ...]
    rank: Rank
    loaders: tuple[AdmittedLoader, ...]
    gpus: tuple[AdmittedGpu, ...] = ()
    orphans: int = 0


@dataclass(frozen=True, slots=True)
class AdmittedCgroup:
    """A cgroup with its label value."""

    labels: tuple[str, ...]
    memory: CgroupMemory


@dataclass(frozen=True, slots=True)
class Admitted:
    """What `/metrics` shows of one Snapshot.

    Attributes:
        ranks: No two have equal labels; nor have two loaders or two workers.
        dropped: Series left out of this snapshot, for `duplicate` and `series_limit`.
        gpus: Those that ranks compute on, and those of which nobody says who does.
        unobserved: Of these no two have equal labels either.
        cgroups: Nor have two of these.
    """

    ranks: tuple[AdmittedRank, ...]
    dropped: Mapping[str, int]
    gpus: tuple[AdmittedGpu, ...] = ()
    unobserved: tuple[AdmittedUnobserved, ...] = ()
    cgroups: tuple[AdmittedCgroup, ...] = ()


def admit(snapshot: Snapshot, detail: Detail, limit: int) -> Admitted:
    """Decide what of a snapshot is shown.

    Subjects are counted at the most series that the catalogue gives them, so that what is shown
    does not flicker with values that come and go. Above `limit`, workers lose all but
    `dlmon_worker_up`: those of dead ranks first, then from the snapshot's end. Ranks, loaders,
    cgroups and `dlmon_worker_up` stay, even if they alone are above it.

    Args:
        snapshot: What to show.
        detail: What a worker may show at most.
        limit: Series in all, the agent's own included; 1 or more.
    """
    names = _Names()
    gpus = tuple(_gpus(snapshot))
    ranks = tuple(_with_gpus(rank, gpus) for rank in _ranks(snapshot, detail, names))
    unobserved = tuple(_unobserved(snapshot))
    further = len(unobserved) * series_per(Subject.UNOBSERVED)
    further += len(gpus) * series_per(Subject.GPU)
    further += sum(max(0, len(rank.gpus) - 1) for rank in ranks)  # one is counted per rank
    groups = tuple(_cgroups(snapshot, names))
    further += len(groups) * series_per(Subject.CGROUP)
    keep = _workers_with_detail(ranks, detail, limit - further)
    workers = sum(len(loader.workers) for rank in ranks for loader in rank.loaders)
    cut = (len(snapshot.unobserved) - len(unobserved)) * series_per(Subject.UNOBSERVED)
    if keep < workers:
        cut += (workers - keep) * (detail.series - Detail.UP.series)
        ranks = _reduce(ranks, keep)
    dropped = {"duplicate": names.refused_series, "series_limit": cut}
    return Admitted(ranks, dropped, gpus, unobserved, groups)


class _Names:
    """The label sets given out; a second subject with one of them gets none."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, ...]] = set()
        self.refused_series = 0

    def take(self, labels: tuple[str, ...], series: int) -> bool:
        """Give out `labels` unless they are taken: then count the `series` that this costs."""
        if labels in self._taken:
            self.refused_series += series
            return False
        self._taken.add(labels)
        return True


def _gpus(snapshot: Snapshot) -> Iterator[AdmittedGpu]:
    """Choose the GPUs that jobs use, by the driver's list of processes.

    Where it names none, in a container for example, any GPU may be a rank's.
    """
    used = {uuid for rank in snapshot.ranks for uuid in rank.gpus}
    living = any(rank.up for rank in snapshot.ranks)
    taken = set()
    for gpu in snapshot.gpus:
        labels = (clean(gpu.index), clean(gpu.uuid))
        if (gpu.uuid in used or (gpu.pids is None and living)) and labels not in taken:
            taken.add(labels)
            yield AdmittedGpu(labels, gpu)


def _unobserved(snapshot: Snapshot) -> Iterator[AdmittedUnobserved]:
    taken: set[tuple[str, ...]] = set()
    for group in snapshot.unobserved:
        labels = (clean(group.user), clean(group.script))
        if labels not in taken and len(taken) < MOST_UNOBSERVED:
            taken.add(labels)
            yield AdmittedUnobserved(labels, group)


def _with_gpus(rank: AdmittedRank, gpus: Iterable[AdmittedGpu]) -> AdmittedRank:
    own = tuple(admitted for admitted in gpus if admitted.gpu.uuid in rank.rank.gpus)
    return replace(rank, gpus=own) if own else rank


def _ranks(snapshot: Snapshot, detail: Detail, names: _Names) -> Iterator[AdmittedRank]:
    left: Counter[tuple[str, ...]] = Counter()
    for rank in snapshot.superseded:
        left[clean(rank.run), clean(rank.rank)] += rank.orphan_workers
    for rank in snapshot.ranks:
        labels = (clean(rank.run), clean(rank.rank))
        series = series_per(Subject.RANK) + sum(
            _loader_series(loader, detail) for loader in rank.loaders
        )
        if names.take(labels, series):
            loaders = tuple(_loaders(rank.loaders, labels, detail, names))
            orphans = rank.orphan_workers + left[labels]
            yield AdmittedRank(labels, rank, loaders, orphans=orphans)


def _cgroups(snapshot: Snapshot, names: _Names) -> Iterator[AdmittedCgroup]:
    for path, memory in sorted(snapshot.cgroups.items()):
        labels = (clean(path),)
        if names.take(labels, series_per(Subject.CGROUP)):
            yield AdmittedCgroup(labels, memory)


def _loaders(
    loaders: Iterable[Loader], prefix: tuple[str, ...], detail: Detail, names: _Names
) -> Iterator[AdmittedLoader]:
    for loader in loaders:
        labels = (*prefix, clean(loader.name))
        if names.take(labels, _loader_series(loader, detail)):
            workers = tuple(
                AdmittedWorker(own, worker, detail)
                for worker in loader.workers
                if names.take(own := (*labels, str(worker.slot)), detail.series)
            )
            yield AdmittedLoader(labels, loader, workers)


def _loader_series(loader: Loader, detail: Detail) -> int:
    return series_per(Subject.LOADER) + len(loader.workers) * detail.series


def _workers_with_detail(ranks: tuple[AdmittedRank, ...], detail: Detail, limit: int) -> int:
    """Return for how many workers there is room for more than `dlmon_worker_up`."""
    loaders = [loader for rank in ranks for loader in rank.loaders]
    workers = sum(len(loader.workers) for loader in loaders)
    extra = detail.series - Detail.UP.series
    if extra <= 0:
        return workers
    fixed = (
        series_per(Subject.AGENT)
        + len(ranks) * series_per(Subject.RANK)
        + len(loaders) * series_per(Subject.LOADER)
        + workers * Detail.UP.series
    )
    return min(workers, max(0, limit - fixed) // extra)


def _reduce(ranks: tuple[AdmittedRank, ...], keep: int) -> tuple[AdmittedRank, ...]:
    """Leave `keep` workers their detail: those of living ranks first, in the snapshot's order."""
    by_need = sorted(
        (
            (not rank.rank.up, worker.labels)
            for rank in ranks
            for loader in rank.loaders
            for worker in loader.workers
        ),
        key=lambda entry: entry[0],
    )
    cut = {labels for _, labels in by_need[keep:]}
    return tuple(
        replace(rank, loaders=tuple(_reduce_loader(loader, cut) for loader in rank.loaders))
        for rank in ranks
    )


def _reduce_loader(loader: AdmittedLoader, cut: set[tuple[str, ...]]) -> AdmittedLoader:
    workers = tuple(
        worker._replace(detail=Detail.UP) if worker.labels in cut else worker
        for worker in loader.workers
    )
    return replace(loader, workers=workers)
