"""The little PromQL that the rules are put together from."""

from __future__ import annotations

from collections.abc import Sequence

from dlmon.catalog import Metric


def rate(metric: Metric, window: str, matchers: str = "") -> str:
    """Return the increase per second of a counter."""
    return f"rate({metric.name}{_braces(matchers)}[{window}])"


def buckets(metric: Metric, window: str) -> str:
    """Return the increase per second of each bucket of a histogram."""
    return f"rate({metric.name}_bucket[{window}])"


def aggregated(how: str, labels: Sequence[str], expression: str) -> str:
    """Return an aggregation that keeps `labels`: `sum by (run, rank) (…)`."""
    return f"{how} by ({', '.join(labels)}) ({expression})"


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""
