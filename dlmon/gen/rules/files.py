"""Rule files for Prometheus, as YAML that people can read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import REPOSITORY, Alert
from dlmon.gen.rules.recording import RECORDINGS

NOTICE = "# Made by `dlmon gen` from {source}. Change that, not this.\n"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as it is."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def recording_rules() -> str:
    """Return the file of recording rules."""
    rules = [{"record": rule.name, "expr": rule.expression} for rule in RECORDINGS]
    return _file("dlmon/gen/rules/recording.py", "dlmon-recording", rules)


def alert_rules() -> str:
    """Return the file of alerts."""
    return _file("dlmon/gen/rules/alerts.py", "dlmon-alerts", map(_alert, ALERTS))


def _alert(alert: Alert) -> Mapping[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity.value, "scope": alert.scope.value},
        "annotations": {
            "summary": alert.summary,
            "description": alert.description,
            "runbook_url": REPOSITORY + alert.runbook,
        },
    }


def _file(source: str, group: str, rules: Iterable[Mapping[str, object]]) -> str:
    content = {"groups": [{"name": group, "rules": list(rules)}]}
    body = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return NOTICE.format(source=source) + body
