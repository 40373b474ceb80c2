"""What is shipped in deploy/ is what the real servers accept, and hangs together."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import Alert
from tests.conftest import ROOT, require_tool
from tools.stack.configuration import Place, write

DEPLOY = ROOT / "deploy"
ALERTMANAGER = DEPLOY / "alertmanager" / "alertmanager.yml"
PLACE = Place(agents=["127.0.0.1:1"], alertmanager="127.0.0.1:2")


WINDOW = re.compile(r"(?:\[|offset )(\d+[a-z]+)")
UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


def milliseconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([a-z]+)", duration).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def check(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_prometheus_accepts_its_configuration_and_rules(promtool: Path) -> None:
    said = check(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert "rule files found" in said


def test_alertmanager_accepts_its_configuration() -> None:
    check(require_tool("amtool"), "check-config", ALERTMANAGER)


def test_the_receivers_that_are_shown_as_examples_are_accepted(tmp_path: Path) -> None:
    write(tmp_path, PLACE)
    config = tmp_path / "alertmanager" / "alertmanager.yml"
    text = config.read_text()
    example = re.search(r"(?m)^#   - name: default\n(#    .*\n)+", text)
    assert example
    shown = re.sub(r"(?m)^# ", "", example[0])
    config.write_text(text.replace("receivers:\n  - name: default\n", "receivers:\n" + shown))
    assert set(read(config)["receivers"][0]) > {"webhook_configs", "slack_configs"}
    check(require_tool("amtool"), "check-config", config)


def test_a_notification_says_what_where_and_what_to_do(tmp_path: Path) -> None:
    alert = {
        "status": "firing",
        "labels": {"alertname": "DlmonSomething", "run": "r1", "severity": "critical"},
        "annotations": {
            "summary": "Worker 3 hangs.",
            "description": "Since 70 s.",
            "runbook_url": "https://example.org/runbook",
        },
    }
    data = tmp_path / "data.json"
    data.write_text(
        json.dumps(
            {
                "status": "firing",
                "alerts": [alert, {**alert, "status": "resolved"}],
                "commonLabels": alert["labels"],
            }
        )
    )
    templates = DEPLOY / "alertmanager" / "templates" / "*.tmpl"
    render: list[str | Path] = [require_tool("amtool"), "template", "render"]
    render += ["--template.glob", templates, "--template.data", data, "--template.text"]
    title = check(*render, '{{ template "dlmon.title" . }}')
    assert title.strip() == "r1: 1 firing, 1 resolved: DlmonSomething"
    text = check(*render, '{{ template "dlmon.text" . }}')
    for line in ("critical: Worker 3 hangs.", "resolved: Worker 3", "Since 70 s.", "example.org"):
        assert line in text


@pytest.mark.parametrize("faster", [1.0, 15.0])
def test_a_copy_for_another_place_is_accepted(
    promtool: Path, tmp_path: Path, faster: float
) -> None:
    prometheus, alertmanager = write(tmp_path, replace(PLACE, webhook="http://x/", faster=faster))
    check(promtool, "check", "config", prometheus)
    check(require_tool("amtool"), "check-config", alertmanager)
    assert read(alertmanager)["receivers"][0]["webhook_configs"][0]["url"] == "http://x/"
    assert read(tmp_path / "prometheus" / "targets" / "agents.yml") == [
        {"targets": ["127.0.0.1:1"]}
    ]


def test_a_faster_copy_divides_every_duration(tmp_path: Path) -> None:
    write(tmp_path, replace(PLACE, faster=15))
    assert read(tmp_path / "prometheus" / "prometheus.yml")["global"] == {
        "scrape_interval": "1000ms",
        "scrape_timeout": "667ms",
        "evaluation_interval": "1000ms",
    }
    compared = 0
    for name in ("dlmon-recording.yml", "dlmon-alerts.yml"):
        there, here = (
            [rule for group in read(rules / name)["groups"] for rule in group["rules"]]
            for rules in (DEPLOY / "prometheus" / "rules", tmp_path / "prometheus" / "rules")
        )
        for slow, fast in zip(there, here, strict=True):
            assert milliseconds(fast.get("for", "0s")) * 15 == milliseconds(slow.get("for", "0s"))
            before, after = (WINDOW.findall(rule["expr"]) for rule in (slow, fast))
            assert [milliseconds(w) * 15 for w in after] == [milliseconds(w) for w in before]
            compared += len(before)
    assert compared > 20


def test_a_faster_copy_divides_ages_that_are_compared(tmp_path: Path) -> None:
    write(tmp_path, replace(PLACE, faster=15))
    alerts = (tmp_path / "prometheus" / "rules" / "dlmon-alerts.yml").read_text()
    assert "(time() - dlmon_loader_last_abnormal_exit_timestamp_seconds) < 20" in alerts


def test_the_same_copy_is_what_is_shipped(tmp_path: Path) -> None:
    write(tmp_path, PLACE)
    for shipped in DEPLOY.rglob("*.yml"):
        path = shipped.relative_to(DEPLOY)
        if path.parts[0] in ("prometheus", "alertmanager") and "targets" not in path.parts:
            assert (tmp_path / path).read_text() == shipped.read_text()


def matches(alertname: str, matchers: list[str]) -> bool:
    (matcher,) = matchers
    found = re.fullmatch(r'alertname=(~?)"(.+)"', matcher)
    assert found, matcher
    pattern = found[2] if found[1] else re.escape(found[2])
    return re.fullmatch(pattern, alertname) is not None


def test_what_is_silenced_by_what_is_as_the_alerts_say() -> None:
    def equal(alert: Alert, louder: Alert) -> tuple[str, ...]:
        names = ["instance", "run", "rank"] + ["loader"] * (louder.name == "DlmonWorkerMemoryLeak")
        return tuple(name for name in names if name in alert.labels and name in louder.labels)

    by_name = {alert.name: alert for alert in ALERTS}
    wanted = {
        (louder, alert.name, equal(alert, by_name[louder]))
        for alert in ALERTS
        for louder in alert.silenced_by
    }
    configured = [
        (louder, name, tuple(rule["equal"]))
        for rule in read(ALERTMANAGER)["inhibit_rules"]
        for louder in by_name
        if matches(louder, rule["source_matchers"])
        for name in by_name
        if matches(name, rule["target_matchers"])
    ]
    assert sorted(configured) == sorted(wanted)
