"""Put an agent together from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlmon.agent import evidence, past
from dlmon.agent.archive import Archive
from dlmon.agent.config import Config
from dlmon.agent.daemon import Daemon
from dlmon.agent.deaths import Deaths
from dlmon.agent.hangs import Evidence, Hangs
from dlmon.agent.history import History
from dlmon.agent.routes import Route
from dlmon.agent.watch import Watcher
from dlmon.analysis.hangs import Elsewhere, HangWatcher
from dlmon.analysis.memory import MemoryWatcher
from dlmon.analysis.room import RoomWatcher
from dlmon.analysis.thresholds import Limits
from dlmon.observe import kernel, usage
from dlmon.observe.containers import Containers
from dlmon.observe.gpus import Gpus
from dlmon.observe.memory import Scanner
from dlmon.observe.observer import Observer
from dlmon.observe.scans import Scans
from dlmon.observe.shm import SharedMemory
from dlmon.observe.snapshot import Snapshot
from dlmon.observe.unobserved import Finder

_UNOBSERVED_SHARE = 0.2
"""Of the budget for scans, for workers of jobs without the shim."""


@dataclass(frozen=True, slots=True)
class _Eyes:
    """An observer, and the threads that do what it does not wait for."""

    observer: Observer
    gpus: Gpus
    finder: Finder
    containers: Containers
    shm: SharedMemory
    archive: Archive | None
    scans: tuple[Scans, ...]

    def observe(self) -> Snapshot:
        return self.observer.observe()

    def close(self) -> None:
        self.gpus.close()
        self.finder.close()
        self.containers.close()
        self.shm.close()
        for scans in self.scans:
            scans.close()
        self.observer.close()
        if self.archive is not None:
            self.archive.close()


def daemon(config: Config, *, node: bool = True) -> Daemon:
    """Return an agent that listens at its address.

    Args:
        config: All settings.
        node: Whether it is for all jobs of the node, those in containers included.

    Raises:
        UsageError: It cannot listen there.
    """
    gpus = Gpus(config.interval_seconds)
    interval, budget = config.memory.pss_interval_seconds, config.memory.pss_cpu_budget_ratio
    unobserved = budget * _UNOBSERVED_SHARE
    containers, shm = Containers(config.dirs), SharedMemory()
    scanner, other = Scanner(interval, budget - unobserved), Scanner(interval, unobserved)
    scans, others = Scans(scanner), Scans(other, "dlmon-scans-unobserved")
    finder = Finder(scanner=other, scan=others.run)
    observer = Observer(
        config.dirs,
        dead_seconds=config.keep.dead_seconds,
        loaders_per_rank=config.limits.loaders_per_rank,
        segments_per_user=config.limits.segments_per_user,
        gpus=gpus.now,
        unobserved=finder.now,
        scanner=scanner,
        scan=scans.run,
        containers=containers.now,
        shm=shm.seen_by,
    )
    history = History(config.keep.history_seconds, config.interval_seconds)
    directory = config.keep.evidence_dir
    archive = Archive(evidence.Evidence(directory)) if directory else None
    deaths = Deaths(history, config.keep.dead_seconds, archive)
    hangs = Hangs()
    # What adds to the snapshot comes before the history, which comes before who asks it.
    watchers = (*_judges(config, hangs), history, deaths)
    eyes = _Eyes(observer, gpus, finder, containers, shm, archive, (scans, others))
    sights = (containers.say, gpus.say) if node else (gpus.say,)
    agent = Daemon(config, eyes, watchers, hangs, sights, _routes(history, deaths))
    gpus.start()
    finder.start()
    if node:
        containers.start(wait_seconds=1.0)  # or jobs in containers appear late, as unobserved ones
    if archive is not None:
        archive.start()
    return agent


def _routes(history: History, deaths: Deaths) -> Mapping[str, Route]:
    return {
        "/api/v1/history": lambda request: past.history(history, request),
        "/api/v1/deaths": lambda request: past.deaths(deaths, request),
    }


def _judges(config: Config, hangs: Hangs) -> tuple[Watcher, ...]:
    seconds = min(usage.INTERVAL_SECONDS, config.memory.pss_interval_seconds)
    return (_hang_watcher(config, hangs), MemoryWatcher(seconds), RoomWatcher(seconds))


def _hang_watcher(config: Config, hangs: Hangs) -> Watcher:
    def watcher(elsewhere: Elsewhere) -> Watcher:
        return HangWatcher(
            Limits(config.hangs.floor_seconds, config.hangs.ceiling_seconds),
            interval=config.interval_seconds,
            pin_threads=kernel.pin_threads,
            elsewhere=elsewhere,
        )

    enabled = config.stacks.enabled == "true"
    return Evidence(watcher, hangs, enabled=enabled, per_hour=config.stacks.per_hour)
