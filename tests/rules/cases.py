"""The cases of tests/rules/*.yml: promtool's unit tests, less what all of them repeat."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import REPOSITORY

ROOT = Path(__file__).resolve().parent.parent.parent
RULES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
FILES = sorted(Path(__file__).parent.glob("*.yml"))
BY_NAME = {alert.name: alert for alert in ALERTS}


@functools.cache
def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def groups(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read(path)["tests"]
    return found


def complete(path: Path) -> str:
    """What promtool reads: with rule files, and what is the same in all alerts of a name."""
    tests = copy.deepcopy(read(path))
    asserted = (one for group in tests["tests"] for one in group.get("alert_rule_test", ()))
    for expected in asserted:
        alert = BY_NAME[expected["alertname"]]
        for one in expected.get("exp_alerts", ()):
            one["exp_labels"] |= {"severity": alert.severity.value, "scope": alert.scope.value}
            one["exp_annotations"]["runbook_url"] = REPOSITORY + alert.runbook
    whole = {
        "rule_files": [str(rules) for rules in RULES],
        "evaluation_interval": "15s",
        "group_eval_order": ["dlmon-recording", "dlmon-alerts"],
    }
    return yaml.safe_dump(whole | tests)


def expectations(alert: str) -> Iterator[list[bool]]:
    """For each group that tests an alert: whether it fires, in the order of time."""
    for group in (group for path in FILES for group in groups(path)):
        own = [one for one in group.get("alert_rule_test", ()) if one["alertname"] == alert]
        own.sort(key=lambda one: _seconds(one["eval_time"]))
        if own:
            yield [bool(one.get("exp_alerts")) for one in own]


def _seconds(text: str) -> int:
    seconds, number = 0, ""
    for character in text:
        if character.isdecimal():
            number += character
        else:
            seconds += int(number) * {"h": 3600, "m": 60, "s": 1}[character]
            number = ""
    return seconds
