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


def happened(metric: Metric, labels: Sequence[str], window: str, matchers: str = "") -> str:
    """Return how often a counter went up within a window, if it did.

    A counter that is above 0 when it is first seen has no increase: such a one counts as it is, if
    nothing was known of it in the hour before the window, so that a gap makes nothing new.
    """
    series = f"{metric.name}{_braces(matchers)}"
    increase = aggregated("max", labels, f"round(increase({series}[{window}]))")
    known = f"count_over_time({series}[1h] offset {window})"
    return (
        f"{increase} > 0\n"
        f"or {aggregated('max', labels, series)} > 0\n"
        f"unless on ({', '.join(labels)}) {known}"
    )


def _braces(matchers: str) -> str:
    return f"{{{matchers}}}" if matchers else ""
