"""How long something may take before it counts as hung: from what its own loader has shown so far.

A threshold must be above every duration that a healthy loader will ever show, though all that is
known is what it has shown. Fetch times are as a rule skewed like a lognormal distribution: most are
near the median, a few are a hundred times as long, and they come in bursts, since storage is slow
for all workers at once. So a threshold is the largest of

- the floor that was configured: below it nobody wants to be told;
- `OF_USUAL` (200) times the median, so that the first bad burst of a loader passes: nothing like it
  has been seen before it;
- `OF_LONGEST` (16) times the longest ever: of n lognormal durations with spread s the longest is
  about exp(s x sqrt(2 ln n)) medians, and one that is 16 times as long as all before becomes less
  likely with each that is seen.

Where one of a thousand fetches takes a hundred times the median (s = 1.5), in bursts or not, at
most 2 of 1,000 simulated loaders of 2,000 fetches passed these two, with a floor of 2 medians; with
the factors 100 and 8 it were 9 to 26. With the default floor of 60 s only a loader whose usual
batch takes more than 0.3 s needs them at all.

The result is at most the ceiling that was configured. Durations are known in buckets of powers of
two, and the upper edge counts, which adds a factor of up to 2 on the safe side.

What has not been seen cannot be judged. Before `ENOUGH` fetches, and for the first fetch of a
worker's slot or the first batch of an iteration, `FIRST` (10) floors are allowed, so ten minutes by
default: workers start, import, open archives and build indices. So are they for a step, where a
checkpoint or an evaluation without a DataLoader looks the same as a hang, and for which ten
minutes are also what NCCL allows a collective by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlmon.observe.snapshot import Histogram, Loader, Worker
from dlmon.segment.layout import Phase

NANOSECONDS = 1_000_000_000
OF_USUAL = 200
OF_LONGEST = 16
FIRST = 10
ENOUGH = 16
STEPS = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What was configured, in seconds: no threshold is below the floor, or above the ceiling."""

    floor: float = 60.0
    ceiling: float = 1800.0

    def within(self, *seconds: float) -> float:
        """Return the largest of some durations, not below the floor nor above the ceiling."""
        return max(self.floor, min(max(seconds), self.ceiling))

    @property
    def first(self) -> float:
        """What is allowed to what has not been seen before."""
        return self.within(FIRST * self.floor)


def usual(histogram: Histogram) -> float:
    """Return the median in seconds, rounded up to a bucket's upper edge; 0 of nothing."""
    half = (sum(histogram.counts) + 1) // 2
    seen = 0
    for bucket, count in enumerate(histogram.counts):
        seen += count
        if half and seen >= half:
            return _upper(bucket)
    return 0.0


def longest(histogram: Histogram) -> float:
    """Return the longest duration in seconds, rounded up to a bucket's upper edge; 0 of nothing."""
    return max((_upper(b) for b, count in enumerate(histogram.counts) if count), default=0.0)


def of_fetch(loader: Loader, limits: Limits) -> float:
    """Return for how many seconds a fetch of a loader may be open, and a batch on its way."""
    found = limits.within(*_scaled(loader.fetch))
    enough = sum(loader.fetch.counts) >= ENOUGH
    return found if enough else max(found, limits.first)


def of_worker(worker: Worker, loader: Loader, limits: Limits) -> float:
    """Return for how many seconds a worker that owes a batch may make no progress."""
    found = of_fetch(loader, limits)
    return found if worker.batches + worker.failed > 0 else max(found, limits.first)


def of_next(loader: Loader, limits: Limits, elapsed: float = 0.0) -> float:
    """Return for how many seconds a `next()` may last before something is wrong with it itself.

    Args:
        loader: Whose.
        limits: What was configured.
        elapsed: Seconds for which its phase has lasted.
    """
    found = max(of_fetch(loader, limits), limits.within(OF_LONGEST * longest(loader.wait)))
    if loader.phase is not Phase.STARTUP:
        return found
    closed = loader.phase_seconds.get(Phase.STARTUP, 0.0) - elapsed
    mean = closed / loader.startups if loader.startups else 0.0
    return max(found, limits.first, limits.within(OF_LONGEST * mean))


def of_step(loader: Loader, limits: Limits) -> float:
    """Return for how many seconds the loop may work on one batch."""
    slow = OF_LONGEST * longest(loader.step)
    return max(limits.first, limits.within(STEPS * usual(loader.step), slow))


def _scaled(histogram: Histogram) -> Sequence[float]:
    return OF_USUAL * usual(histogram), OF_LONGEST * longest(histogram)


def _upper(bucket: int) -> float:
    return float(1 << bucket) / NANOSECONDS
