"""Alerts about jobs that run, and are slow because of their data."""

from __future__ import annotations

from dlmon import catalog
from dlmon.catalog import LOADER_LABELS, RANK_LABELS
from dlmon.gen.rules import recording
from dlmon.gen.rules.model import (
    INSTANCE,
    LOADER,
    ON,
    RUN_AND_RANK,
    Alert,
    Scope,
    Severity,
    asked,
)
from dlmon.gen.rules.promql import aggregated, happened

_STANDS_STILL = ("DlmonRankDied", "DlmonWorkerHung", "DlmonRankBlockedInNext", "DlmonWorkerDied")
"""Who does not run is not slow."""

_READS_AHEAD = f'{catalog.LOADER_INFO.name}{{read_ahead="thread"}}'
_MOST_WAITING = aggregated("max", RANK_LABELS, recording.LOADER_WAITING.name)
_TOGETHER = (
    f"{recording.LOADER_WAIT_RATIO.name}\n"
    f"  and on (run, rank) {recording.RANK_WAIT_RATIO.name} > 0.5\n"
    f"  and on (run, rank) {recording.RANK_WAITING.name} > 0.25\n"
    f"  and {recording.LOADER_WAITING.name} > on (run, rank) group_left () 0.8 * {_MOST_WAITING}\n"
    f"  unless on (run, rank) {_READS_AHEAD}"
)
"""Zipped loaders: the step of each holds the other's wait, so that none has more than half."""

LOADER_STARVED = Alert(
    name="DlmonLoaderStarved",
    severity=Severity.WARNING,
    scope=Scope.LOADER,
    labels=LOADER_LABELS,
    expression=(
        "(\n"
        f"  {recording.LOADER_WAIT_RATIO.name} > 0.5\n"
        f"  and {recording.LOADER_WAITING.name} > 0.25\n"
        f"  or\n  {_TOGETHER}\n"
        ")\n"
        f"unless on (run, rank) {recording.RANK_GPU_UTILIZATION.name} > 0.8\n"
        f"unless on (run, rank, loader) {_READS_AHEAD}"
    ),
    lasting="30m",
    why="Half of the loop's time is more than a shuffled cache or a slow epoch explains, and half"
    " an hour longer than a start. A quarter of all time: a loader that is used now and then, as"
    " for validation, may starve without harm. Where NVML tells that the GPUs are busy all the"
    " same, the loop runs ahead of them, and nothing is lost; nor where it is a thread that reads"
    " ahead which waits. Of loaders that only together make the loop wait for so long, as zipped"
    " ones, those with the largest share are told, and with 80 % of that: a lead that changes would"
    " begin the half hour anew.",
    meaning="For half an hour the loop has spent more than half of its time waiting for this"
    " loader, or for several of which this is the slowest.",
    summary=f"Starved: {LOADER}",
    description=(
        f"The loop over {LOADER} has waited for {{{{ $value | humanizePercentage }}}} of its time,"
        " for half an hour; for all loaders of its rank: "
        + asked(
            f"{recording.RANK_WAIT_RATIO.name}{{run=%q,rank=%q}}", RANK_LABELS, "humanizePercentage"
        )
        + ". Fill of its prefetch queue: "
        + asked(
            f"avg_over_time({recording.LOADER_FILL.name}{{run=%q,rank=%q,loader=%q}}[5m])",
            LOADER_LABELS,
            "humanizePercentage",
        )
        + "; share of time for which its workers fetch: "
        + asked(
            f"{recording.LOADER_WORKER_UTILIZATION.name}{{run=%q,rank=%q,loader=%q}}",
            LOADER_LABELS,
            "humanizePercentage",
        )
        + "."
    ),
    silenced_by=(*_STANDS_STILL, "DlmonGpuIdleLoaderEmpty"),
)
GPU_IDLE = Alert(
    name="DlmonGpuIdleLoaderEmpty",
    severity=Severity.WARNING,
    scope=Scope.RANK,
    labels=RANK_LABELS,
    expression=(
        f"{recording.RANK_GPU_WASTED.name} / {recording.RANK_GPUS.name} > 0.3\n"
        "unless on (run, rank) "
        + aggregated("min", RANK_LABELS, f"avg_over_time({recording.LOADER_FILL.name}[5m])")
        + " >= 0.1"
    ),
    lasting="15m",
    why="Utilisation by NVML counts any kernel, so that 30 % of a GPU lost while the loop waits is"
    " certain to be lost; below 10 % fill the queue is empty at most looks. A quarter of an hour is"
    " longer than a start or an evaluation.",
    meaning="GPUs idle while the loop waits for batches, and none are ready.",
    summary=f"GPU idle, loader empty: {RUN_AND_RANK}",
    description=(
        f"While it waits for data, {RUN_AND_RANK} wastes {{{{ $value | humanizePercentage }}}} of"
        " its GPUs. Their utilisation: "
        + asked(
            f"{recording.RANK_GPU_UTILIZATION.name}{{run=%q,rank=%q}}",
            RANK_LABELS,
            "humanizePercentage",
        )
        + "; its wait ratio: "
        + asked(
            f"{recording.RANK_WAIT_RATIO.name}{{run=%q,rank=%q}}", RANK_LABELS, "humanizePercentage"
        )
        + "."
    ),
    silenced_by=_STANDS_STILL,
)
STRAGGLER = Alert(
    name="DlmonStragglerRank",
    severity=Severity.WARNING,
    scope=Scope.RANK,
    labels=RANK_LABELS,
    expression=(
        f"{recording.RANK_WAIT_RATIO.name}\n"
        f"- on (run) group_left ()\n{recording.RUN_WAIT_RATIO_MEDIAN.name}\n> 0.2"
    ),
    lasting="15m",
    why="Ranks that wait for each other have the same batches per second; the one that others wait"
    " for is the one that waits for data. A difference, not a quotient, since a median near 0 makes"
    " anything large; 20 points are beyond what shuffling does, for a quarter of an hour.",
    meaning="A rank waits for its data for far more of its time than the others of its run, which"
    " then wait for it.",
    summary=f"Straggler: {RUN_AND_RANK}",
    description=(
        f"Share of its time for which {RUN_AND_RANK} waits for data: "
        + asked(
            f"{recording.RANK_WAIT_RATIO.name}{{run=%q,rank=%q}}", RANK_LABELS, "humanizePercentage"
        )
        + "; the median rank of its run: "
        + asked(f"{recording.RUN_WAIT_RATIO_MEDIAN.name}{{run=%q}}", ("run",), "humanizePercentage")
        + ". That is {{ $value | humanizePercentage }} of its time more."
    ),
    silenced_by=_STANDS_STILL,
)
TIMEOUTS = Alert(
    name="DlmonLoaderTimeouts",
    severity=Severity.WARNING,
    scope=Scope.LOADER,
    labels=(INSTANCE, *LOADER_LABELS),
    expression=happened(catalog.LOADER_TIMEOUTS, (INSTANCE, *LOADER_LABELS), "10m"),
    lasting="0s",
    why="An event: told for ten minutes. A counter that is above 0 when it is first seen has no"
    " increase, so that new ones count as they are; an hour back, so that a gap in what Prometheus"
    " knows makes nothing new.",
    meaning="A loader's `timeout=` expired; torch raises in the loop.",
    summary=f"Timed out: {LOADER}",
    description=(
        f"{ON}, the timeout of {LOADER} has expired ({{{{ $value | humanize }}}} in ten minutes):"
        " no batch came in time."
    ),
    silenced_by=("DlmonRankDied", "DlmonWorkerHung"),
)
