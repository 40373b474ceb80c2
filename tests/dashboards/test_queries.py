"""The rules of Grafana's dashboard-linter for queries, and that they say what they are meant to."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlmon.catalog import METRICS, Kind
from dlmon.gen.dashboards.promql import hours, worst
from dlmon.gen.rules import recording
from dlmon.gen.rules.recording import RECORDINGS
from tests.dashboards.expected import EXPECTED
from tests.dashboards.reading import Json, Query, names, queries

PROMETHEUS = {"ALERTS", "up"}
"""Series that Prometheus itself makes."""

UNSEEN = {
    "dlmon_loader_epochs_total",  # marked in all graphs, by when the last one began
    "dlmon_loader_last_delivery_timestamp_seconds",  # what a loader does says its phase
    "dlmon_loader_last_abnormal_exit_timestamp_seconds",  # for alerts about jobs of three seconds
}
"""Metrics that no dashboard and no recording rule shows."""


def by_name(query: Any) -> str:
    return str(query.name)


each_query = pytest.mark.parametrize("query", list(queries()), ids=by_name)


def known() -> set[str]:
    """Every name that there can be."""
    found = PROMETHEUS | {rule.name for rule in RECORDINGS}
    for metric in METRICS:
        found.add(metric.name)
        if metric.kind is Kind.HISTOGRAM:
            found |= {f"{metric.name}_{part}" for part in ("bucket", "sum", "count")}
    return found


@each_query
def test_a_query_asks_for_metrics_that_exist_and_hides_no_absence(query: Query) -> None:
    used = names(query.expr)
    assert used
    assert used <= known()
    assert "vector(" not in query.expr
    assert " or " not in query.expr


def test_it_is_said_of_every_query_what_it_must_answer() -> None:
    assert EXPECTED.keys() == {query.name for query in queries()}


def test_every_metric_is_shown_somewhere() -> None:
    used = set().union(*(names(query.expr) for query in queries()))
    for rule in RECORDINGS:
        used |= names(rule.expression)
    missing = {
        metric.name
        for metric in METRICS
        if not {metric.name, f"{metric.name}_bucket", f"{metric.name}_sum"} & used
    }
    assert missing == UNSEEN


@each_query
def test_rates_are_over_the_rate_interval_and_sums_over_the_range(query: Query) -> None:
    for function, window in re.findall(r"(\w+)\([^\[(]*\[([^\]]*)\]", query.expr):
        expected = {"avg_over_time": "$__range"}.get(function, "$__rate_interval")
        assert window == expected, query.expr
    for window in re.findall(r"\)\[([^\]]*)\]", query.expr):
        assert window == "$__range:1m"


@each_query
def test_counters_are_never_shown_as_they_are(query: Query) -> None:
    counters = {metric.name for metric in METRICS if metric.kind is Kind.COUNTER}
    for name in names(query.expr) & counters:
        every = len(re.findall(rf"\b{name}\b", query.expr))
        assert every == len(re.findall(rf"\b(?:rate|increase)\({name}\b", query.expr))


VALUES = {"$__rate_interval": "1m", "$__range": "1h"}


def substituted(expr: str) -> str:
    """PromQL with something in place of every variable."""
    for name, value in VALUES.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$(\w+)", r"\1", expr)


def test_every_query_is_promql(promtool: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": substituted(query.expr)}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_hours_are_summed_for_as_long_as_there_was_something(
    promtool: Path, tmp_path: Path
) -> None:
    """Two GPUs wasted for half an hour of an hour are one GPU-hour, at whatever scrape interval."""
    series = f'{recording.RUN_GPU_WASTED.name}{{run="a"}}'
    expr = substituted(hours(series))
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": series, "values": "_x60 2x119 stale _x60"}],
                "promql_expr_test": [
                    {
                        "expr": f"round({expr}, 0.01)",
                        "eval_time": "1h",
                        "exp_samples": [{"labels": '{run="a"}', "value": 1}],
                    }
                ],
            }
        ],
    }
    unit(promtool, tmp_path, test)


def test_the_worst_are_chosen_once_for_the_whole_range(promtool: Path, tmp_path: Path) -> None:
    """A line is there for the whole range, also where others were above it for a while."""
    name = recording.RUN_WAIT_RATIO.name
    expr = substituted(worst(1, name)).replace("@ end()", "@ 3600")
    test = {
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": f'{name}{{run="early"}}', "values": "0.9x10 0.1x60"},
                    {"series": f'{name}{{run="long"}}', "values": "0.5x70"},
                ],
                "promql_expr_test": [
                    {
                        "expr": expr,
                        "eval_time": moment,
                        "exp_samples": [{"labels": f'{name}{{run="long"}}', "value": 0.5}],
                    }
                    for moment in ("5m", "1h")
                ],
            }
        ],
    }
    unit(promtool, tmp_path, test)


def unit(promtool: Path, folder: Path, test: Json) -> None:
    """Run a unit test of promtool's."""
    file = folder / "test.yml"
    file.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        [promtool, "test", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
