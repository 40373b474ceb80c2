"""Queries, put together from the catalogue and the recording rules: no name is spelt here."""

from __future__ import annotations

from dlmon.catalog import RANK_INFO, Metric
from dlmon.gen.rules.recording import Recording

RATE = "$__rate_interval"

RUNS = 'run=~"$run"'
"""Of the runs chosen, where several can be."""

RUN = 'run="$run"'
RANKS = 'rank=~"$rank"'
LOADERS = 'loader=~"$loader"'
INSTANCES = 'instance=~"$instance"'
JOBS = 'job=~"$job"'

ABNORMAL = 'reason!~"normal|sigterm"'
"""Ends of workers that are deaths; nearly all by SIGTERM are of those that torch ends."""

ALERTS = "ALERTS"
"""The series that Prometheus makes of alerts that are pending or firing."""


def select(metric: Metric | Recording | str, *matchers: str) -> str:
    """Return a selector of series.

    Args:
        metric: One of the catalogue, what a recording rule records, or a name.
        matchers: Such as `run="$run"`.
    """
    name = metric if isinstance(metric, str) else metric.name
    return f"{name}{{{', '.join(matchers)}}}" if matchers else name


def bucket(histogram: Metric) -> str:
    """Return the name of a histogram's buckets."""
    return f"{histogram.name}_bucket"


def rate(metric: Metric | str, *matchers: str) -> str:
    """Return how much a counter grows in a second."""
    return f"rate({select(metric, *matchers)}[{RATE}])"


def increase(metric: Metric | str, *matchers: str) -> str:
    """Return how much a counter grew from point to point."""
    return f"increase({select(metric, *matchers)}[{RATE}])"


def mean(histogram: Metric, by: str, *matchers: str) -> str:
    """Return the mean of what a histogram counted, by these labels."""
    total, count = (rate(f"{histogram.name}_{part}", *matchers) for part in ("sum", "count"))
    return f"sum by ({by}) ({total}) / sum by ({by}) ({count})"


def hours(expression: str) -> str:
    """Return the hours that something was so, summed over the dashboard's time range.

    Args:
        expression: What is so at a time: a share, or a number of GPUs. One value a minute is
            summed, so that what existed for a part of the range counts for that part.
    """
    return f"sum_over_time(({expression})[$__range:1m]) / 60"


def worst(count: int, selector: str) -> str:
    """Return the series of a selector with the largest means over the dashboard's time range.

    The choice is made once, at the end of the range: `topk` alone chooses anew at every point, and
    lines come and go.
    """
    return f"{selector} and topk({count}, avg_over_time({selector}[$__range] @ end()))"


def of_cgroups(metric: Metric | str, *matchers: str, lately: bool = False) -> str:
    """Return a metric of the cgroups that ranks are in, once each.

    Args:
        metric: One of the catalogue, or an expression of one.
        matchers: Of the ranks.
        lately: Also of those that were in it: a rank that is dead is in none.
    """
    name = metric if isinstance(metric, str) else metric.name
    ranks = select(RANK_INFO, *matchers)
    inside = f"max_over_time({ranks}[{RATE}])" if lately else ranks
    return (
        f"max by (instance, cgroup) ({name})"
        f" and on (instance, cgroup) max by (instance, cgroup) ({inside})"
    )
