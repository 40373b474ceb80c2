"""A stack for tests: agent, Prometheus, Alertmanager and a receiver, and what is received."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.agents import Agent, running
from tests.conftest import require_tool
from tests.jobs import wait_for
from tests.ports import HOST, free_ports
from tools.stack import configuration, servers
from tools.stack.notifications import Alert, Receiver

FASTER = 15.0
"""Scrapes and evaluations once a second, `for: 30s` in two."""


class Told:
    """What Alertmanager has told so far."""

    def __init__(self) -> None:
        self._alerts: list[Alert] = []
        self._lock = threading.Lock()

    def take(self, alert: Alert) -> None:
        with self._lock:
            self._alerts.append(alert)

    def about(self, run: str, status: str) -> dict[str, Alert]:
        """The last alert of each name about a run, with a status, `firing` or `resolved`."""
        with self._lock:
            return {
                alert["labels"]["alertname"]: alert
                for alert in self._alerts
                if alert["labels"].get("run", "") == run and alert["status"] == status
            }

    def runs(self) -> set[str]:
        with self._lock:
            return {alert["labels"].get("run", "") for alert in self._alerts}


@contextlib.contextmanager
def stack(folder: Path, *agent: str) -> Iterator[tuple[Agent, Told]]:
    """Run the four with the shipped configuration, FASTER times as fast.

    Args:
        folder: For what they write.
        agent: Arguments of the agent, which listens on a free port.
    """
    for tool in ("prometheus", "alertmanager"):
        require_tool(tool)
    told = Told()
    with contextlib.ExitStack() as ending:
        receiver = ending.enter_context(contextlib.closing(Receiver(told.take)))
        watching = ending.enter_context(running(*agent))
        addresses = [f"{HOST}:{port}" for port in free_ports(2)]
        place = configuration.Place(
            agents=[watching.url.removeprefix("http://")],
            alertmanager=addresses[1],
            webhook=receiver.url,
            faster=FASTER,
        )
        files = configuration.write(folder, place)
        for command, file, address in zip(
            (servers.prometheus, servers.alertmanager), files, addresses, strict=True
        ):
            ending.enter_context(server(command, file, address))
        yield watching, told


@contextlib.contextmanager
def server(
    command: Callable[[Path, Path, str], Sequence[str]], config: Path, address: str
) -> Iterator[None]:
    log = config.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(config, config.parent / "data", address), stdout=output, stderr=output
        )
    try:
        wait_for(lambda: process.poll() is not None or servers.is_ready(address), f"{command}")
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(30)
