"""What a real Alertmanager tells, with the shipped configuration, of alerts that fire together."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import Alert as Rule
from tests.conftest import require_tool
from tests.e2e.alerting import server
from tests.jobs import wait_for
from tests.ports import HOST, free_ports
from tools.stack import configuration, servers
from tools.stack.notifications import Alert, Receiver

FASTER = 5.0
"""What belongs to a group is gathered for three seconds: all is posted at once."""

BY_NAME = {rule.name: rule for rule in ALERTS}
LABELS = {
    "instance": "node1:10356",
    "run": "r",
    "rank": "0",
    "loader": "train",
    "worker": "1",
    "finding": "one",
    "reason": "one",
    "cgroup": "/job",
}


@dataclass(frozen=True)
class Case:
    """Two alerts that fire together.

    Attributes:
        louder, quieter: Names.
        differs: In which label of both; "" in none.
        silent: The quieter one must not be told.
    """

    louder: str
    quieter: str
    differs: str
    silent: bool

    @property
    def name(self) -> str:
        return f"{self.louder}-{self.quieter}-{self.differs or 'same'}"

    def labels(self, name: str) -> dict[str, str]:
        """Those of one of the two, in a group of this case's own."""
        rule = BY_NAME[name]
        found = {label: LABELS[label] for label in rule.labels}
        own = "run" if "run" in found else "instance"
        found[own] = self.name
        if self.differs and name == self.quieter:
            found[self.differs] = "another"
        return {**found, "alertname": name, "severity": rule.severity.value}


def _cases() -> Iterator[Case]:
    for rule in ALERTS:
        for name in rule.silenced_by:
            yield Case(name, rule.name, "", silent=True)
            for label in _common(rule, BY_NAME[name]):
                yield Case(name, rule.name, label, silent=False)


def _common(rule: Rule, louder: Rule) -> list[str]:
    """The labels by which two alerts are about something else, but in the same notification."""
    names = ["instance", "rank"] + ["loader"] * (louder.name == "DlmonWorkerMemoryLeak")
    own = {"instance"} if "run" not in rule.labels else set()  # they are grouped by it
    return [name for name in names if {name} <= {*rule.labels} & {*louder.labels} - own]


CASES = list(_cases())


def post(address: str, alerts: list[Mapping[str, str]]) -> None:
    body = json.dumps([{"labels": labels, "annotations": {}} for labels in alerts]).encode()
    request = urllib.request.Request(
        f"http://{address}/api/v2/alerts", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, str]]]:
    """The labels of all that is told once there is a notification of each case."""
    require_tool("alertmanager")
    folder = tmp_path_factory.mktemp("alertmanager")
    found: list[dict[str, str]] = []
    lock = threading.Lock()

    def take(alert: Alert) -> None:
        with lock:
            found.append(alert["labels"])

    def all_louder() -> bool:
        with lock:
            return all(case.labels(case.louder) in found for case in CASES)

    with contextlib.closing(Receiver(take)) as receiver:
        address = f"{HOST}:{free_ports(1)[0]}"
        place = configuration.Place([], address, webhook=receiver.url, faster=FASTER)
        _, config = configuration.write(folder, place)
        with server(servers.alertmanager, config, address):
            post(address, [case.labels(n) for case in CASES for n in (case.louder, case.quieter)])
            wait_for(all_louder, "a notification of each case", deadline=60)
            yield found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_alert_is_silenced_by_what_says_more_about_the_same_only(
    told: list[dict[str, str]], case: Case
) -> None:
    assert (case.labels(case.quieter) not in told) == case.silent


def test_a_dead_rank_silences_a_worker_on_its_own_node_only() -> None:
    pair = ("DlmonRankDied", "DlmonWorkerHung")
    assert {(c.differs, c.silent) for c in CASES if (c.louder, c.quieter) == pair} == {
        ("", True),
        ("instance", False),
        ("rank", False),
    }


def test_an_agent_that_is_down_silences_what_it_says_of_itself() -> None:
    assert {case.quieter for case in CASES if case.louder == "DlmonAgentDown" and case.silent} == {
        "DlmonSnapshotStale",
        "DlmonSnapshotErrors",
        "DlmonSegmentsRefused",
        "DlmonSeriesDropped",
    }
