"""The Run dashboard: the ranks of one run side by side, and who holds up whom."""

from __future__ import annotations

from typing import Any

from dlmon.catalog import (
    FINDING,
    LOADER_BATCHES,
    LOADER_PHASE,
    LOADER_SAMPLES,
    LOADER_TIME,
    RANK_CPU_SECONDS,
    RANK_INFO,
    RANK_RESIDENT_MEMORY,
    RANK_UP,
    WORKER_HUNG,
    WORKER_UP,
    Metric,
)
from dlmon.gen.dashboards import board, palette, resources, shared
from dlmon.gen.dashboards.board import CELL, HERE, Row, label, to
from dlmon.gen.dashboards.palette import ANY_IS_BAD, BUSY, TO_MEDIAN, WAIT_RATIO
from dlmon.gen.dashboards.panels import Look, bars, query, stat, states, timeseries
from dlmon.gen.dashboards.promql import RANKS, RUN, hours, rate, select
from dlmon.gen.dashboards.tables import Column, table
from dlmon.gen.rules import recording

MINE = (RUN, RANKS)

NO_GPU = "no GPU: NVML names none that these ranks compute on"
NO_PEERS = "no straggler to find: it takes two ranks or more"

RUN_WIDE = ('run=~"$run|"', 'rank=~"$rank|"')
"""Of the ranks chosen, or of the run or a node as a whole."""

TO_LOADERS = [("Open loaders", to(board.LOADER, run=HERE, rank=label("rank")))]


def render() -> str:
    """Return the dashboard's JSON."""
    return board.dashboard(
        board.RUN_BOARD,
        "Run",
        "The ranks of one run side by side: who waits for data, who holds the others up, and"
        " whether the GPUs idle meanwhile. Click a rank or a loader to see its workers.",
        variables=[board.run(), board.ranks()],
        rows=[
            Row("Now", [*_cost(), *_counts()]),
            Row("Ranks side by side", [_ranks(), *_stragglers(), *_phases()]),
            Row("Waiting, and the GPU meanwhile", [*_waiting(), *_shares()]),
            Row("What is wrong", [shared.alerts(*RUN_WIDE), shared.findings(*RUN_WIDE)]),
            Row("Loaders", [_loaders()]),
            Row("CPU, memory, descriptors", resources.of_ranks(MINE), collapsed=True),
            Row("Processes", [_processes()], collapsed=True),
        ],
        annotations=[shared.alert_marks(*RUN_WIDE)],
    )


def _cost() -> list[Any]:
    waiting = f"avg({select(recording.RANK_WAIT_RATIO, *MINE)})"
    wasted = select(recording.RANK_GPU_WASTED, *MINE)
    return [
        stat(
            Look(
                "Wait ratio",
                "Share of the ranks' time, pauses left out, for which they had no batch to work on."
                " Mean of five minutes; 0 the data always was there, 1 they only waited.",
                "percentunit",
            ),
            waiting,
            steps=WAIT_RATIO,
            fill=True,
        ),
        stat(
            Look(
                "GPU-hours wasted",
                "GPU time lost to waiting in the time range: for each rank its wait times the idle"
                " part of its GPU, summed.",
                "short",
                no_value=NO_GPU,
            ),
            f"sum({hours(wasted)})",
            steps=((None, palette.GOOD), (1, palette.WAIT)),
        ),
        stat(
            Look(
                "GPU utilisation",
                "Mean over the GPUs that these ranks compute on: share of the time in which some"
                " kernel ran, however small.",
                "percentunit",
                no_value=NO_GPU,
            ),
            f"avg({select(recording.RANK_GPU_UTILIZATION_NOW, *MINE)})",
            steps=BUSY,
        ),
    ]


def _counts() -> list[Any]:
    return [
        stat(
            Look("Samples per second", "Samples that all ranks fetched.", "short"),
            f"sum({rate(LOADER_SAMPLES, *MINE)})",
        ),
        stat(
            Look(
                "Ranks up",
                "Training processes that live; those that died without saying goodbye are below.",
                "none",
            ),
            f"sum({select(RANK_UP, *MINE)})",
        ),
        stat(
            Look("Findings", "Diagnoses that hold now.", "none", no_value="none"),
            f"count({select(FINDING, *MINE)})",
            steps=ANY_IS_BAD,
        ),
    ]


def _by_rank(metric: Metric | recording.Recording, how: str = "max") -> str:
    return f"{how} by (rank) ({select(metric, *MINE)})"


def _ranks() -> Any:
    return table(
        Look(
            "Ranks",
            "One line a rank, the one that waits longest first. Against the median: 2 in waiting is"
            " twice as much as half of the ranks; below 1 in batches is slower than they are. A"
            " straggler waits much while the others wait for it in their step.",
            "short",
            height=10,
        ),
        Column("Rank", label="rank", link=to(board.LOADER, run=HERE, rank=CELL), width=70),
        Column("Node", label="instance", link=to(board.NODE, instance=CELL)),
        Column(
            "Process",
            expr=f"max by (rank, instance) ({select(RANK_UP, *MINE)})",
            mappings=palette.UP_OR_DEAD,
            width=80,
        ),
        *_how_ranks_wait(),
        *_what_ranks_use(),
        sort=["Wait ratio"],
    )


def _how_ranks_wait() -> list[Column]:
    wait = _by_rank(recording.RANK_WAIT_RATIO)
    to_median = _by_rank(recording.RANK_WAIT_TO_MEDIAN)
    batches = f"sum by (rank) ({rate(LOADER_BATCHES, *MINE)})"
    return [
        Column("Wait ratio", "", wait, "percentunit", WAIT_RATIO, gauge=True, width=200),
        Column("Wait, to median", "", to_median, "short", TO_MEDIAN),
        Column("Batches/s", "", batches, "short"),
        Column("Batches, to median", "", _by_rank(recording.RANK_BATCHES_TO_MEDIAN), "short"),
    ]


def _what_ranks_use() -> list[Column]:
    busy = _by_rank(recording.RANK_GPU_UTILIZATION_NOW)
    waiting = _by_rank(recording.RANK_GPU_UTILIZATION_WAITING)
    cpus = f"sum by (rank) ({rate(RANK_CPU_SECONDS, *MINE)})"
    return [
        Column("GPU busy", "", busy, "percentunit", BUSY),
        Column("GPU busy, waiting", "", waiting, "percentunit"),
        Column("GPUs wasted", "", _by_rank(recording.RANK_GPU_WASTED), "short"),
        Column("Workers up", "", _by_rank(WORKER_UP, "sum")),
        Column("Hung", "", _by_rank(WORKER_HUNG, "sum"), steps=ANY_IS_BAD),
        Column("CPUs used", "", cpus, "short"),
        Column("RSS", "", _by_rank(RANK_RESIDENT_MEMORY, "sum"), "bytes"),
    ]


def _stragglers() -> list[Any]:
    return [
        bars(
            Look(
                "Who waits more than the others",
                "Each rank's waiting against the median of the run: 1 is like the others, 2 twice"
                " as much. One bar far beyond the rest is a rank whose data is slow: its storage,"
                " its CPUs, its shard.",
                "short",
                width=8,
                no_value=NO_PEERS,
                links=TO_LOADERS,
            ),
            query(
                f"max by (rank) ({select(recording.RANK_WAIT_TO_MEDIAN, *MINE)})",
                "rank {{rank}}",
                now=True,
            ),
            steps=TO_MEDIAN,
        ),
        bars(
            Look(
                "Who is slower than the others",
                "Each rank's batches against the median of the run. Ranks that synchronise at every"
                " step all are as slow as the slowest; where they do not, below 1 falls behind.",
                "short",
                width=8,
                no_value=NO_PEERS,
                links=TO_LOADERS,
            ),
            query(
                f"max by (rank) ({select(recording.RANK_BATCHES_TO_MEDIAN, *MINE)})",
                "rank {{rank}}",
                now=True,
            ),
            steps=((None, palette.BAD), (0.8, palette.NOTICE), (0.95, palette.GOOD)),
        ),
    ]


def _phases() -> list[Any]:
    return [
        states(
            Look(
                "What each rank does",
                "The phase of each loader of each rank. One rank in wait while all others are in"
                " step: they wait for it, as in a collective.",
                "none",
                width=8,
                links=TO_LOADERS,
            ),
            query(
                f"max by (rank, loader) ({select(LOADER_PHASE, *MINE)})",
                "rank {{rank}} {{loader}}",
            ),
            mappings=palette.named(palette.PHASES),
        ),
    ]


def _waiting() -> list[Any]:
    return [
        timeseries(
            Look(
                "Wait ratio, and GPU utilisation over it",
                "Where the wait ratio is high and the GPU idles, the data is what holds the run up;"
                " where it is high and the GPU is busy, the loop runs ahead of the device and"
                " nothing is lost.",
                "percentunit",
            ),
            query(f"avg({select(recording.RANK_WAIT_RATIO, *MINE)})", "wait ratio"),
            query(f"avg({select(recording.RANK_GPU_UTILIZATION_NOW, *MINE)})", "GPU utilisation"),
            query(
                f"avg({select(recording.RANK_GPU_UTILIZATION_WAITING, *MINE)})",
                "GPU utilisation while waiting",
            ),
            colours={
                "wait ratio": palette.WAIT,
                "GPU utilisation": palette.GPU,
                "GPU utilisation while waiting": "light-purple",
            },
            top=1,
        ),
        timeseries(
            Look(
                "Wait ratio by rank",
                "Lines that go together: the data is slow for all. One above the others: that"
                " rank.",
                "percentunit",
                links=TO_LOADERS,
            ),
            query(f"max by (rank) ({select(recording.RANK_WAIT_RATIO, *MINE)})", "rank {{rank}}"),
            top=1,
        ),
    ]


def _shares() -> list[Any]:
    return [
        timeseries(
            Look(
                "Where the time goes",
                "Time of all loaders by phase, as shares: step is work on batches, wait is what the"
                " data costs, startup comes before the first batch of every iteration, pause is"
                " validation, checkpoints and the like.",
                "percentunit",
            ),
            query(f"sum by (phase) ({rate(LOADER_TIME, *MINE)})", "{{phase}}"),
            colours=palette.PHASE_COLOURS,
            stack="percent",
        ),
        timeseries(
            Look(
                "GPU utilisation by rank",
                "Of the GPU that each rank computes on; ranks that share one have the same line.",
                "percentunit",
                no_value=NO_GPU,
                links=TO_LOADERS,
            ),
            query(
                f"max by (rank) ({select(recording.RANK_GPU_UTILIZATION_NOW, *MINE)})",
                "rank {{rank}}",
            ),
            top=1,
        ),
    ]


def _loaders() -> Any:
    by = "by (loader)"
    return table(
        Look(
            "Loaders",
            "One line a DataLoader, over the ranks chosen. An empty queue with workers that always"
            " fetch: too few workers, or too slow a dataset. A full queue: the loop is the slower"
            " side, and the loader costs nothing.",
            "short",
        ),
        Column(
            "Loader",
            label="loader",
            link=to(board.LOADER, run=HERE, loader=CELL),
        ),
        Column(
            "Wait ratio",
            expr=f"avg {by} ({select(recording.LOADER_WAIT_RATIO, *MINE)})",
            unit="percentunit",
            steps=WAIT_RATIO,
            gauge=True,
            width=220,
        ),
        Column(
            "Queue fill",
            expr=f"avg {by} ({select(recording.LOADER_FILL, *MINE)})",
            unit="percentunit",
            steps=palette.QUEUE_FILL,
        ),
        Column(
            "Workers busy",
            expr=f"avg {by} ({select(recording.LOADER_WORKER_UTILIZATION, *MINE)})",
            unit="percentunit",
        ),
        Column(
            "Fetch, p95",
            expr=f"max {by} ({select(recording.LOADER_FETCH_P95, *MINE)})",
            unit="s",
        ),
        Column("Batches/s", expr=f"sum {by} ({rate(LOADER_BATCHES, *MINE)})", unit="short"),
        Column("Samples/s", expr=f"sum {by} ({rate(LOADER_SAMPLES, *MINE)})", unit="short"),
        sort=["Wait ratio"],
    )


def _processes() -> Any:
    labels = ("rank", "instance", "pid", "user", "script", "python", "torch", "dlmon", "cgroup")
    return table(
        Look("Processes", "Who is behind each rank.", "none", height=6),
        *(Column(_HEADS.get(name, name.capitalize()), label=name) for name in labels),
        source=f"max by ({', '.join(labels)}) ({select(RANK_INFO, *MINE)})",
    )


_HEADS = {"instance": "Node", "pid": "PID", "dlmon": "dlmon", "torch": "torch", "cgroup": "cgroup"}
