"""Metric families in the making: the one door from the catalogue to prometheus_client."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from dlmon.catalog import BUCKET_EXPONENTS, METRICS, Kind, Metric
from dlmon.observe.snapshot import Histogram

_INFO_SUFFIX = "_info"
_BOUNDS = tuple(repr(2**exponent / 1e9) for exponent in BUCKET_EXPONENTS)
"""Seconds as decimals: exact, for whole nanoseconds have at most 9 decimals."""

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily | InfoMetricFamily


class Families(Collector):
    """Collects samples by metric.

    A label set must be given once only: `dlmon.agent.admission` sees to that.

    Attributes:
        missing: Hooks that the subject at hand lacks: what needs one of them is left out.
    """

    def __init__(self) -> None:
        self.missing: frozenset[str] = frozenset()
        self._numbers: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        self._infos: dict[str, InfoMetricFamily] = {}
        self._histograms: dict[str, HistogramMetricFamily] = {}

    def add(self, metric: Metric, labels: Sequence[str], value: float | None) -> None:
        """Add one sample of a counter or gauge; nothing if the value is not known.

        Args:
            metric: A counter or a gauge of the catalogue.
            labels: Values in the order of `metric.labels`.
            value: None, NaN and infinities are left out: absent is honest, zero would be a lie.
        """
        if value is None or not math.isfinite(value) or self._unknown(metric):
            return
        family = self._numbers.get(metric.name)
        if family is None:
            new = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = new(metric.name, metric.help, labels=metric.labels)
            self._numbers[metric.name] = family
        family.add_metric(labels, value)

    def add_info(self, metric: Metric, labels: Sequence[str]) -> None:
        """Add one sample, 1, of an info metric; `labels` as in `add`."""
        family = self._infos.get(metric.name)
        if family is None:
            name = metric.name.removesuffix(_INFO_SUFFIX)  # prometheus_client puts it back
            family = InfoMetricFamily(name, metric.help, labels=metric.labels)
            self._infos[metric.name] = family
        family.add_metric(labels, {})

    def add_histogram(self, metric: Metric, labels: Sequence[str], histogram: Histogram) -> None:
        """Add the buckets, sum and count of a histogram; `labels` as in `add`.

        Its bucket b holds durations below 2^b ns, so that those up to b = e are what is below the
        bound 2^e.
        """
        if self._unknown(metric):
            return
        family = self._histograms.get(metric.name)
        if family is None:
            family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            self._histograms[metric.name] = family
        total = sum(histogram.counts[: BUCKET_EXPONENTS[0]])
        buckets: list[tuple[str, float]] = []
        for exponent, bound in zip(BUCKET_EXPONENTS, _BOUNDS, strict=True):
            total += sum(histogram.counts[exponent : exponent + 1])
            buckets.append((bound, total))
        buckets.append(("+Inf", sum(histogram.counts)))
        family.add_metric(labels, buckets, histogram.sum_seconds)

    def _unknown(self, metric: Metric) -> bool:
        return not self.missing.isdisjoint(metric.needs)

    def collect(self) -> Iterator[Family]:
        """Yield the families that have samples, in the catalogue's order (prometheus_client)."""
        families = {**self._numbers, **self._infos, **self._histograms}
        return (families[metric.name] for metric in METRICS if metric.name in families)
