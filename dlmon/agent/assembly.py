"""Put an agent together from its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from dlmon.agent.config import Config
from dlmon.agent.daemon import Daemon
from dlmon.agent.watch import Watcher
from dlmon.observe.containers import Containers
from dlmon.observe.gpus import Gpus
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Snapshot
from dlmon.observe.unobserved import Finder


@dataclass(frozen=True, slots=True)
class _Eyes:
    """An observer, and the threads that look at what it does not wait for."""

    observer: Observer
    gpus: Gpus
    finder: Finder
    containers: Containers

    def observe(self) -> Snapshot:
        return self.observer.observe()

    def close(self) -> None:
        self.gpus.close()
        self.finder.close()
        self.containers.close()
        self.observer.close()


def daemon(config: Config, *, node: bool = True) -> Daemon:
    """Return an agent that listens at its address.

    Args:
        config: All settings.
        node: Whether it is for all jobs of the node, those in containers included.

    Raises:
        UsageError: It cannot listen there.
    """
    gpus = Gpus(config.interval_seconds)
    finder = Finder()
    containers = Containers(config.dirs)
    observer = Observer(
        config.dirs,
        dead_seconds=config.keep.dead_seconds,
        loaders_per_rank=config.limits.loaders_per_rank,
        segments_per_user=config.limits.segments_per_user,
        gpus=gpus.now,
        unobserved=finder.now,
        containers=containers.now,
    )
    sights = (containers.say, gpus.say) if node else (gpus.say,)
    agent = Daemon(config, _Eyes(observer, gpus, finder, containers), _watchers(config), sights)
    gpus.start()
    finder.start()
    if node:
        containers.start()
    return agent


def _watchers(_config: Config) -> tuple[Watcher, ...]:
    return ()
