"""The rules do what they say, by Prometheus's own unit tests, and all of them are tested."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dlmon.analysis.findings import FINDINGS, KINDS
from dlmon.catalog import METRICS, Kind, Subject
from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import Alert
from dlmon.gen.rules.recording import RECORDINGS, Recording
from tests.rules import cases


def by_name(rule: Alert | Recording) -> str:
    return rule.name


# --- by promtool ---


def test_promtool_finds_nothing_to_complain_about(promtool: Path) -> None:
    assert [path.name for path in cases.RULES] == ["dlmon-alerts.yml", "dlmon-recording.yml"]
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint=all", "--lint-fatal", *cases.RULES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout
    assert f"{len(RECORDINGS)} rules found" in checked.stdout


@pytest.mark.parametrize("path", cases.FILES, ids=lambda path: path.stem)
def test_rules_do_what_their_cases_say(path: Path, promtool: Path, tmp_path: Path) -> None:
    completed = tmp_path / path.name
    completed.write_text(cases.complete(path))
    tested = subprocess.run(
        [promtool, "test", "rules", completed], capture_output=True, text=True, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_an_alert_has_cases_where_it_fires_does_not_fire_and_resolves(alert: Alert) -> None:
    fires = list(cases.expectations(alert.name))
    assert any(any(group) for group in fires), "no case where it fires"
    assert any(not any(group) for group in fires), "no case where it never fires"
    assert any(any(group) and not group[-1] for group in fires), "no case where it resolves"


@pytest.mark.parametrize("rule", RECORDINGS, ids=by_name)
def test_a_recording_rule_has_a_case(rule: Recording) -> None:
    asked = " ".join(
        one["expr"]
        for path in cases.FILES
        for group in cases.groups(path)
        for one in group.get("promql_expr_test", ())
    )
    assert rule.name in asked


# --- what an alert says ---


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_summary_and_description_name_what_it_is_about(alert: Alert) -> None:
    assert re.fullmatch(r"Dlmon([A-Z][a-z]+)+", alert.name)
    assert re.fullmatch(r"\d+[smh]", alert.lasting)
    assert alert.meaning.endswith(".")
    assert alert.why.endswith(".")
    assert not alert.summary.endswith(".")
    assert alert.description.endswith(".")
    subject = set(alert.labels) & {"run", "rank", "loader", "worker"} or {"instance"}
    in_summary = set(re.findall(r"\$labels\.(\w+)", alert.summary))
    if alert.name == "DlmonRankStuckInStep":  # its loader is not to blame
        subject.discard("loader")
    assert subject <= in_summary
    # Those of a value that is asked for are no text.
    text = re.sub(r"\{\{ with printf .*? \}\}", "", alert.description)
    assert set(re.findall(r"\$labels\.(\w+)", text)) == set(alert.labels)
    assert "$value" in text or " | query" in alert.description, "no current value"


@pytest.mark.parametrize("alert", ALERTS, ids=by_name)
def test_what_silences_an_alert_exists_and_is_about_the_same(alert: Alert) -> None:
    others = {other.name: other for other in ALERTS}
    for name in alert.silenced_by:
        assert name != alert.name
        common = {"run", "rank"} & set(alert.labels) & set(others[name].labels)
        assert common or {"instance"} <= set(alert.labels) & set(others[name].labels)


def test_every_finding_is_passed_on_by_one_alert_of_its_severity() -> None:
    passed_on = [name for alert in ALERTS for name in alert.findings]
    assert sorted(passed_on) == sorted(kind.name for kind in KINDS)
    for alert in ALERTS:
        for name in alert.findings:
            assert FINDINGS[name].severity.value == alert.severity.value
            assert name in alert.expression


# --- what it is made of ---

_SERIES_OF_PROMETHEUS = {"up", "ALERTS"}
_WORDS = re.compile(r"(?<![\w:{$])((?:[a-z]+:)?dlmon_[a-z0-9_:]+)")


def named(text: str) -> set[str]:
    """The series that an expression or a template is about."""
    return set(_WORDS.findall(text))


def exposed() -> set[str]:
    suffixes = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {m.name + suffix for m in METRICS for suffix in suffixes.get(m.kind, ("",))}


def test_a_recording_rule_is_made_of_metrics_that_exist_and_of_earlier_rules() -> None:
    known = exposed()
    for rule in RECORDINGS:
        assert named(rule.expression)
        assert named(rule.expression) <= known, rule.name
        assert rule.name not in known
        known.add(rule.name)


def test_alerts_and_their_texts_ask_for_series_that_exist() -> None:
    known = exposed() | {rule.name for rule in RECORDINGS}
    for alert in ALERTS:
        texts = (alert.expression, alert.summary, alert.description)
        assert set().union(*map(named, texts)) <= known, alert.name
        other = set(re.findall(r"\b([a-zA-Z_]+)\{", alert.expression)) - known
        assert other <= _SERIES_OF_PROMETHEUS


def test_everything_works_with_lean_metrics_of_workers() -> None:
    full = {m.name for m in METRICS if m.subject is Subject.WORKER and not m.lean}
    assert full
    for rule in RECORDINGS:
        assert not named(rule.expression) & full, rule.name
    for alert in ALERTS:
        assert not named(alert.expression + alert.description) & full, alert.name


def test_the_level_of_a_recording_rule_says_which_labels_are_left() -> None:
    labels = {
        "cluster": (),
        "run": ("run",),
        "rank": ("run", "rank"),
        "loader": ("run", "rank", "loader"),
    }
    for rule in RECORDINGS:
        assert rule.labels == labels[rule.name.split(":")[0]]
