"""What is measured: in which loops, for how long, and which variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.measure import Measure, alternate, fetch_alone, iteration
from bench.progress import Progress
from bench.results import Row, rows
from bench.variants import DLMON, DLMON_NEXT, NULL, PEERS, Variant
from bench.workloads import Cores, Size, Workload, nothing, real_work

QUICK_MINUTES = 0.4
"""What everything takes with `--quick`, if the fewest rounds do not take longer."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One loop, in which variants are compared.

    Attributes:
        name: For `--only`.
        title: Of its table.
        seconds: How long it takes in a full run, without peers that have a process of their own.
        size, quick: Of a block, in a full run and in a quick one.
        variants: What is compared with the bare loop.
        workload: Makes what is iterated; None for a fetch alone.
    """

    name: str
    title: str
    seconds: float
    size: Size
    quick: Size
    variants: tuple[Variant, ...]
    workload: Callable[[], Workload] | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How everything is measured.

    Attributes:
        minutes: How long everything takes, if the fewest rounds do not take longer.
        quick: With short blocks.
        pin: One of PINS: where processes are, if there are workers.
        peers: Are measured, too.
    """

    minutes: float
    quick: bool
    pin: str
    peers: bool


MEASUREMENTS = {
    measurement.name: measurement
    for measurement in (
        Measurement(
            "fetch",
            "a fetch alone, as in a worker",
            seconds=15,
            size=Size(4000, 4000),
            quick=Size(200, 200),
            variants=(NULL, DLMON),
        ),
        Measurement(
            "inline",
            "(a) num_workers=0, trivial samples",
            seconds=45,
            size=Size(4000, 4000),
            quick=Size(200, 200),
            variants=(NULL, DLMON, DLMON_NEXT, *PEERS),
            workload=Workload,
        ),
        Measurement(
            "workers",
            "(b) num_workers=2, trivial samples",
            seconds=180,
            size=Size(100, 1000),
            quick=Size(20, 100),
            variants=(NULL, DLMON, *PEERS),
            workload=lambda: Workload(2, 1, nothing),
        ),
        Measurement(
            "work",
            "(c) num_workers=2, about 5 ms of work: photographs decoded",
            seconds=130,
            size=Size(10, 100),
            quick=Size(4, 20),
            variants=(NULL, DLMON, *PEERS),
            workload=real_work,
        ),
    )
}

TRACEML_SECONDS = 20
"""What one measurement of TraceML takes in a full run."""

FULL_MINUTES = (
    sum(one.seconds + (TRACEML_SECONDS if one.workload else 0) for one in MEASUREMENTS.values())
    / 60
)


def seconds(measurement: Measurement, options: Options) -> float:
    """Return how long a measurement takes."""
    return measurement.seconds * options.minutes / FULL_MINUTES


def measure(
    measurement: Measurement,
    options: Options,
    directory: str,
    progress: Progress,
) -> list[Row]:
    """Measure one loop.

    Args:
        measurement: Which.
        options: How.
        directory: For segments.
        progress: Is told how far it is.

    Raises:
        NotRecordedError: A variant did not record what was iterated.
    """
    length = seconds(measurement, options)
    size = measurement.quick if options.quick else measurement.size
    variants = [one for one in measurement.variants if options.peers or not one.peer]
    with progress.of(measurement.title, length) as told:
        series = alternate(_measure(measurement, options), variants, size, length, directory, told)
    return rows(series)


def _measure(measurement: Measurement, options: Options) -> Measure:
    if measurement.workload is None:
        return fetch_alone
    workload = measurement.workload()
    return iteration(workload, Cores.placed(options.pin if workload.workers else "no"))
