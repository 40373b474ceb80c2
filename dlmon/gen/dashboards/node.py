"""The Node dashboard: the health of agents, and what their nodes have."""

from __future__ import annotations

from typing import Any

from dlmon.catalog import (
    AGENT_BUILD_INFO,
    AGENT_SEGMENTS,
    AGENT_SEGMENTS_REFUSED,
    AGENT_SERIES_DROPPED,
    AGENT_SNAPSHOT_AGE,
    AGENT_SNAPSHOT_DURATION,
    AGENT_SNAPSHOT_ERRORS,
    AGENT_STALE_READS,
    AGENT_VALUES_CLAMPED,
    CGROUP_MEMORY_ANON,
    CGROUP_MEMORY_LIMIT,
    CGROUP_MEMORY_ROOM,
    CGROUP_MEMORY_WORKING_SET,
    CGROUP_OOM_KILLS,
    GPU_MEMORY_TOTAL,
    GPU_MEMORY_USED,
    GPU_UTILIZATION,
    RANK_ORPHAN_WORKERS,
    RANK_UP,
    UNOBSERVED_CPU_SECONDS,
    UNOBSERVED_READ_BYTES,
    UNOBSERVED_WORKERS,
    WORKER_UP,
)
from dlmon.gen.dashboards import board, palette, shared
from dlmon.gen.dashboards.board import CELL, Row, to
from dlmon.gen.dashboards.palette import ANY_IS_BAD, FULLNESS
from dlmon.gen.dashboards.panels import Look, query, stat, states, timeseries
from dlmon.gen.dashboards.promql import INSTANCES, JOBS, increase, rate, select
from dlmon.gen.dashboards.tables import Column, table

MINE = (JOBS, INSTANCES)

UP = "up"
"""Prometheus's own: 1 if it could read the target."""

AROUND = ('instance=~"$instance|"',)
"""Of the nodes chosen, or of runs as a whole: recording rules keep no node."""

NO_GPU = "no GPU: NVML shows none on these nodes"


def render() -> str:
    """Return the dashboard's JSON."""
    return board.dashboard(
        board.NODE,
        "Node",
        "Whether the agents see all there is to see, and what their nodes have: jobs, GPUs, memory,"
        " and workers of jobs that do not use dlmon.",
        variables=[board.jobs(), board.instances()],
        rows=[
            Row("Now", [*_agents(), *_counts()]),
            Row("Jobs here", [_runs()]),
            Row("What is wrong", [shared.findings(*MINE)]),
            Row("GPUs", _gpus()),
            Row("Memory of cgroups", _memory()),
            Row("The agent itself", [*_agent(), *_losses()]),
            Row("Jobs without dlmon", _unobserved(), collapsed=True),
        ],
        annotations=[shared.alert_marks(*AROUND)],
    )


def _agents() -> list[Any]:
    return [
        states(
            Look(
                "Agents",
                "Whether Prometheus could read each agent: each target of a job in which there was"
                " one within the time range. Down, nothing below is known of its node; jobs there"
                " run on, and their counters go on where they were.",
                "none",
                width=8,
                height=4,
                no_value="no agent is scraped by this Prometheus",
            ),
            query(
                f"max by (instance) ({select(UP, *MINE)} and on (job)"
                f" avg_over_time({select(AGENT_BUILD_INFO, *MINE)}[$__range]))",
                "{{instance}}",
            ),
            mappings=palette.mapping({"1": ("up", palette.GOOD), "0": ("down", palette.WORST)}),
        ),
        stat(
            Look(
                "Age of what is shown",
                "Of the oldest snapshot that an agent serves: about a second when all is well,"
                " growing for as long as it cannot look.",
                "s",
            ),
            f"max({select(AGENT_SNAPSHOT_AGE, *MINE)})",
            steps=((None, palette.GOOD), (5, palette.NOTICE), (30, palette.BAD)),
        ),
    ]


def _counts() -> list[Any]:
    return [
        stat(
            Look("Ranks", "Training processes that live here.", "none", no_value="none"),
            f"sum({select(RANK_UP, *MINE)})",
        ),
        stat(
            Look("Workers", "DataLoader workers that live here.", "none", no_value="none"),
            f"sum({select(WORKER_UP, *MINE)})",
        ),
        stat(
            Look(
                "Orphans",
                "Workers that live on although their training process is dead; they hold memory"
                " until killed.",
                "none",
                no_value="no rank",
            ),
            f"sum({select(RANK_ORPHAN_WORKERS, *MINE)})",
            steps=ANY_IS_BAD,
        ),
    ]


def _runs() -> Any:
    by = "by (run, instance)"
    return table(
        Look("Runs", "What these nodes train.", "none", height=6, no_value="no run"),
        Column("Run", label="run", link=to(board.RUN_BOARD, run=CELL)),
        Column("Node", label="instance"),
        Column("Ranks up", expr=f"sum {by} ({select(RANK_UP, *MINE)})"),
        Column("Workers up", expr=f"sum {by} ({select(WORKER_UP, *MINE)})"),
        Column(
            "Orphans", expr=f"sum {by} ({select(RANK_ORPHAN_WORKERS, *MINE)})", steps=ANY_IS_BAD
        ),
        sort=["Ranks up"],
    )


def _gpus() -> list[Any]:
    by = "by (instance, gpu, uuid)"
    used, total = select(GPU_MEMORY_USED, *MINE), select(GPU_MEMORY_TOTAL, *MINE)
    return [
        timeseries(
            Look(
                "GPU utilisation",
                "Share of the time in which some kernel ran on each GPU, however small: 100 % is"
                " not the same as busy. MIG instances have none.",
                "percentunit",
                no_value=NO_GPU,
            ),
            query(f"max {by} ({select(GPU_UTILIZATION, *MINE)})", "{{instance}} GPU {{gpu}}"),
            top=1,
        ),
        timeseries(
            Look(
                "GPU memory in use",
                "Of each GPU's, by whomever; what PyTorch keeps for later counts.",
                "percentunit",
                no_value=NO_GPU,
            ),
            query(f"max {by} ({used} / {total})", "{{instance}} GPU {{gpu}}"),
            top=1,
        ),
    ]


def _memory() -> list[Any]:
    by = "by (instance, cgroup)"
    name = "{{instance}} {{cgroup}}"
    room, limit = select(CGROUP_MEMORY_ROOM, *MINE), select(CGROUP_MEMORY_LIMIT, *MINE)
    none = "no cgroup that ranks are in tells its memory"
    return [
        timeseries(
            Look(
                "What cannot be dropped",
                "Anonymous and shared memory, /dev/shm included, of each cgroup that ranks are in."
                " This is what meets the limit; page cache does not.",
                "bytes",
                width=8,
                no_value=none,
            ),
            query(f"max {by} ({select(CGROUP_MEMORY_ANON, *MINE)})", name),
        ),
        timeseries(
            Look(
                "Of the limit",
                "How full the memory limit is that leaves the cgroup the least room, its own or one"
                " above it, by the same of all that it is for: at 100 % the kernel kills.",
                "percentunit",
                width=8,
                no_value="no cgroup that ranks are in has a memory limit",
            ),
            query(f"max {by} (1 - {room} / {limit})", name),
            steps=FULLNESS,
            top=1,
        ),
        timeseries(
            Look(
                "Working set, and OOM kills",
                "Memory in use less file pages that can be dropped at once, and processes that the"
                " kernel killed because memory ran out.",
                "bytes",
                width=8,
                no_value=none,
            ),
            query(f"max {by} ({select(CGROUP_MEMORY_WORKING_SET, *MINE)})", name),
            query(f"max {by} ({increase(CGROUP_OOM_KILLS, *MINE)}) > 0", "OOM kills, " + name),
            colours={"/^OOM kills/": palette.WORST},
            units={"/^OOM kills/": "none"},
        ),
    ]


def _agent() -> list[Any]:
    age, duration = select(AGENT_SNAPSHOT_AGE, *MINE), select(AGENT_SNAPSHOT_DURATION, *MINE)
    return [
        timeseries(
            Look(
                "Snapshots: age and duration",
                "How old what an agent serves is, and how long looking took. Above its interval, a"
                " second by default, it leaves looks out.",
                "s",
                width=8,
            ),
            query(f"max by (instance) ({age})", "age, {{instance}}"),
            query(f"max by (instance) ({duration})", "duration, {{instance}}"),
        ),
        timeseries(
            Look(
                "Segments read",
                "Files of living and recent loaders that each agent reads at every look.",
                "none",
                width=8,
            ),
            query(f"max by (instance) ({select(AGENT_SEGMENTS, *MINE)})", "{{instance}}"),
        ),
    ]


def _losses() -> list[Any]:
    refused = increase(AGENT_SEGMENTS_REFUSED, *MINE)
    dropped = increase(AGENT_SERIES_DROPPED, *MINE)
    return [
        timeseries(
            Look(
                "What agents could not show",
                "Looks that failed, files refused, each once, and series dropped, which count at"
                " every look; by reason.",
                "none",
                width=8,
                no_value="nothing: all was read and shown",
            ),
            query(f"sum ({increase(AGENT_SNAPSHOT_ERRORS, *MINE)}) > 0", "looks that failed"),
            query(f"sum by (reason) ({refused}) > 0", "refused: {{reason}}"),
            query(f"sum by (reason) ({dropped}) > 0", "dropped: {{reason}}"),
            bars=True,
            stack="normal",
            colours={"looks that failed": palette.WORST},
        ),
        timeseries(
            Look(
                "Values put right",
                "Reads that met a writer in the middle of a change, so that the last good values"
                " were served, and values kept within bounds. Some are normal.",
                "cps",
                width=8,
            ),
            query(f"sum by (instance) ({rate(AGENT_STALE_READS, *MINE)})", "stale, {{instance}}"),
            query(
                f"sum by (instance) ({rate(AGENT_VALUES_CLAMPED, *MINE)})", "clamped, {{instance}}"
            ),
        ),
        table(
            Look("Versions", "Which dlmon and Python each agent is.", "none", 16),
            Column("Node", label="instance"),
            Column("dlmon", label="version"),
            Column("Python", label="python"),
            source=f"max by (instance, version, python) ({select(AGENT_BUILD_INFO, *MINE)})",
        ),
    ]


def _unobserved() -> list[Any]:
    none = "no worker of a job without the shim, or its torch is older than 2.6"
    by = "by (user, script)"
    name = "{{user}} {{script}}"
    return [
        timeseries(
            Look(
                "Workers by state",
                "DataLoader workers of jobs that do not use dlmon. Blocked: they wait for storage"
                " and cannot be interrupted.",
                "none",
                width=8,
                no_value=none,
            ),
            query(f"sum by (state) ({select(UNOBSERVED_WORKERS, *MINE)})", "{{state}}"),
            stack="normal",
            colours={
                "running": palette.STEP,
                "sleeping": palette.FAINT,
                "blocked": palette.WAIT,
                "stopped": palette.NOTICE,
                "zombie": palette.WORST,
            },
        ),
        timeseries(
            Look("Their CPUs", "CPU time by user and script.", "short", 8, no_value=none),
            query(f"sum {by} ({rate(UNOBSERVED_CPU_SECONDS, *MINE)})", name),
        ),
        timeseries(
            Look("Their reads", "From storage, by user and script.", "Bps", 8, no_value=none),
            query(f"sum {by} ({rate(UNOBSERVED_READ_BYTES, *MINE)})", name),
        ),
    ]
