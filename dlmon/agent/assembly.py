"""Put an agent together from its configuration."""

from __future__ import annotations

from dlmon.agent.config import Config
from dlmon.agent.daemon import Daemon
from dlmon.agent.watch import Watcher
from dlmon.analysis.memory import MemoryWatcher
from dlmon.analysis.room import RoomWatcher
from dlmon.observe import usage
from dlmon.observe.memory import Scanner
from dlmon.observe.observer import Observer


def daemon(config: Config) -> Daemon:
    """Return an agent that listens at its address.

    Raises:
        UsageError: It cannot listen there.
    """
    observer = Observer(
        config.dirs,
        dead_seconds=config.keep.dead_seconds,
        loaders_per_rank=config.limits.loaders_per_rank,
        segments_per_user=config.limits.segments_per_user,
        scanner=Scanner(config.memory.pss_interval_seconds, config.memory.pss_cpu_budget_ratio),
    )
    return Daemon(config, observer, _watchers(config))


def _watchers(config: Config) -> tuple[Watcher, ...]:
    memory_seconds = min(usage.INTERVAL_SECONDS, config.memory.pss_interval_seconds)
    return (
        MemoryWatcher(memory_seconds),
        RoomWatcher(memory_seconds),
    )
