"""Put an agent together from its configuration."""

from __future__ import annotations

from dlmon.agent import past
from dlmon.agent.config import Config
from dlmon.agent.daemon import Daemon
from dlmon.agent.deaths import Deaths
from dlmon.agent.evidence import Evidence
from dlmon.agent.history import History
from dlmon.agent.watch import Watcher
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
    )
    history = History(config.keep.history_seconds, config.interval_seconds)
    evidence = Evidence(config.keep.evidence_dir) if config.keep.evidence_dir else None
    deaths = Deaths(history, config.keep.dead_seconds, evidence)
    # What adds to the snapshot comes before the history, which comes before who asks it.
    watchers: tuple[Watcher, ...] = (history, deaths)
    routes = {
        "/api/v1/history": lambda request: past.history(history, request),
        "/api/v1/deaths": lambda request: past.deaths(deaths, request),
    }
    return Daemon(config, observer, watchers, routes)
