"""The catalogue is what Prometheus's conventions and the design ask for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon import catalog
from dlmon.catalog import METRICS, Kind, Metric, Subject, Unit
from dlmon.observe.snapshot import WorkerState

PACKAGE = Path(catalog.__file__).parent

SUFFIXES = {
    Unit.SECONDS: "_seconds",
    Unit.TIMESTAMP: "_timestamp_seconds",
    Unit.BYTES: "_bytes",
    Unit.CPUS: "_cpus",
    Unit.RATIO: "_ratio",
    Unit.BATCHES: "_batches",
    Unit.SAMPLES: "_samples",
}


def by_name(metric: Metric) -> str:
    return metric.name


def test_no_name_is_there_twice() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_a_name_says_kind_and_unit(metric: Metric) -> None:
    assert re.fullmatch(
        r"dlmon_(rank|loader|worker|shim|agent|cgroup|gpu|unobserved)_[a-z_]+[a-z]|dlmon_finding",
        metric.name,
    )
    assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
    assert metric.name.endswith("_info") == (metric.kind is Kind.INFO)
    stem = metric.name.removesuffix("_total")
    assert stem.endswith(SUFFIXES.get(metric.unit, ""))
    assert "timestamp" not in stem or metric.unit is Unit.TIMESTAMP


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_labels_are_those_of_the_subject_and_no_target_label(metric: Metric) -> None:
    subjects = {
        Subject.AGENT: (),
        Subject.RANK: catalog.RANK_LABELS,
        Subject.LOADER: catalog.LOADER_LABELS,
        Subject.WORKER: catalog.WORKER_LABELS,
        Subject.FINDING: catalog.WORKER_LABELS,
        Subject.GPU: catalog.GPU_LABELS,
        Subject.UNOBSERVED: catalog.UNOBSERVED_LABELS,
        Subject.CGROUP: catalog.CGROUP_LABELS,
    }
    common = subjects[metric.subject]
    assert metric.labels[: len(common)] == common
    assert not set(metric.labels) & {"job", "instance", "hostname", "type", "le"}
    assert len(metric.labels) == len(set(metric.labels))
    assert all(re.fullmatch(r"[a-z][a-z_]*", label) for label in metric.labels)


@pytest.mark.parametrize("metric", METRICS, ids=by_name)
def test_help_is_one_line_of_whole_sentences(metric: Metric) -> None:
    assert "\n" not in metric.help
    assert "  " not in metric.help
    assert metric.help.endswith(".")
    assert metric.help[0].isupper() or metric.help[0].isdigit() or metric.help.startswith("num_")


def test_only_an_info_metric_has_labels_that_say_something_else_than_what_the_series_is() -> None:
    for metric in METRICS:
        own = len(metric.labels) - len(catalog.RANK_LABELS)
        if metric.kind is not Kind.INFO and metric.subject is Subject.RANK:
            assert own == (1 if metric.values else 0)


def test_lean_is_a_choice_among_the_workers_metrics() -> None:
    lean = [metric for metric in METRICS if metric.lean]
    assert {metric.subject for metric in lean} == {Subject.WORKER}
    assert catalog.WORKER_UP in lean
    assert len(lean) < sum(metric.subject is Subject.WORKER for metric in METRICS)


def test_the_help_of_the_workers_state_names_every_state() -> None:
    for state in WorkerState:
        assert f"{state.value} {state.name.lower()}" in catalog.WORKER_STATE.help


def test_a_histogram_is_21_series_from_half_a_millisecond_to_a_minute() -> None:
    assert catalog.SERIES_PER_HISTOGRAM == 21
    assert 2 ** catalog.BUCKET_EXPONENTS[0] / 1e9 == pytest.approx(0.0005, rel=0.05)
    assert 2 ** catalog.BUCKET_EXPONENTS[-1] / 1e9 == pytest.approx(65, rel=0.06)


def test_eight_ranks_of_two_loaders_of_sixteen_workers_are_some_3000_series_lean() -> None:
    lean = sum(metric.series for metric in METRICS if metric.lean)
    series = (
        catalog.series_per(Subject.AGENT)
        + 8 * catalog.series_per(Subject.RANK)
        + 16 * catalog.series_per(Subject.LOADER)
        + 256 * lean
    )
    assert 2500 < series < 3500


def written_strings(path: Path) -> Iterator[str]:
    """The strings of a module that are no docstrings."""
    tree = ast.parse(path.read_text())
    documentation = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and node not in documentation:
            yield text


def written_names(directory: Path) -> set[str]:
    """What looks like a metric's name in the strings of the modules below a directory."""
    return {
        name
        for path in directory.rglob("*.py")
        if path != Path(catalog.__file__)
        for text in written_strings(path)
        for name in re.findall(
            # after a colon: a recording rule's
            r"(?<!:)dlmon_(?:rank|loader|worker|shim|agent|gpu|unobserved)_[a-z_]+",
            text,
        )
    }


def test_no_metric_name_is_written_outside_the_catalogue() -> None:
    # The demo's job is a user's program: it imports nothing of the agent's side, and names metrics
    # as any text does.
    demo = written_names(PACKAGE / "demo")
    assert written_names(PACKAGE) - demo == set()


def test_the_demo_names_metrics_that_exist() -> None:
    assert written_names(PACKAGE / "demo") - {metric.name for metric in METRICS} == set()
