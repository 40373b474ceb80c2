"""docs/metrics.md, from the catalogue."""

from __future__ import annotations

from dlmon.catalog import (
    BUCKET_EXPONENTS,
    METRICS,
    SERIES_PER_HISTOGRAM,
    Kind,
    Metric,
    Subject,
    series_per,
)
from dlmon.gen.markdown import code, document, head, table

_TITLES = {
    Subject.RANK: "A training process",
    Subject.LOADER: "A DataLoader",
    Subject.WORKER: "A worker",
    Subject.GPU: "A GPU",
    Subject.UNOBSERVED: "Workers of jobs without the shim",
    Subject.CGROUP: "The memory of a cgroup",
    Subject.FINDING: "What is wrong",
    Subject.AGENT: "The agent itself",
}


def render() -> str:
    """Return the document."""
    lines = head("Metrics", "dlmon/catalog.py")
    lines += [
        "What `/metrics` of `dlmon agent` serves. Units are base units, ratios go from 0 to 1,",
        "timestamps are Unix seconds. What is not known is absent, never zero.",
        "",
        *_histograms(),
        *_costs(),
    ]
    for subject, title in _TITLES.items():
        metrics = [metric for metric in METRICS if metric.subject is subject]
        lines += _section(title, metrics)
    return document(lines)


def _histograms() -> list[str]:
    first, last = (2**exponent / 1e9 for exponent in (BUCKET_EXPONENTS[0], BUCKET_EXPONENTS[-1]))
    return [
        f"A histogram has buckets from {first:.3g} s to {last:.3g} s in factors of two, `+Inf`,",
        f"`_sum` and `_count`: {SERIES_PER_HISTOGRAM} series. A label whose values are listed has",
        "all of them from the start.",
        "",
    ]


def _costs() -> list[str]:
    lean = [metric for metric in METRICS if metric.lean]
    kept = ", ".join(code(metric.name) for metric in lean)
    rows = [
        ("a rank", str(series_per(Subject.RANK))),
        ("a loader", str(series_per(Subject.LOADER))),
        ("a worker, `metrics.per_worker: full`", str(series_per(Subject.WORKER))),
        (
            "a worker, `metrics.per_worker: lean`",
            f"{sum(metric.series for metric in lean)}: {kept}",
        ),
        ("a worker, `metrics.per_worker: off`", "0"),
        ("a GPU that a rank uses", str(series_per(Subject.GPU))),
        ("a script of a user without the shim", str(series_per(Subject.UNOBSERVED))),
        ("a cgroup", str(series_per(Subject.CGROUP))),
        ("the agent", str(series_per(Subject.AGENT))),
    ]
    return ["## What it costs", "", *table(("", "series at most"), rows)]


def _section(title: str, metrics: list[Metric]) -> list[str]:
    common = _common_labels(metrics)
    lines = [f"## {title}", ""]
    if common:
        lines += [f"Labels of every series: {', '.join(map(code, common))}.", ""]
    rows = [
        (
            code(metric.name),
            "gauge, always 1" if metric.kind is Kind.INFO else metric.kind.value,
            metric.unit.value,
            _labels(metric, common),
            metric.help,
        )
        for metric in metrics
    ]
    return lines + table(("name", "kind", "unit", "further labels", "meaning"), rows)


def _common_labels(metrics: list[Metric]) -> tuple[str, ...]:
    return tuple(
        label for label in metrics[0].labels if all(label in metric.labels for metric in metrics)
    )


def _labels(metric: Metric, common: tuple[str, ...]) -> str:
    own = [code(label) for label in metric.labels if label not in common]
    if metric.values:
        own[-1] += f": {', '.join(metric.values)}"
    return ", ".join(own)
