"""The Cluster dashboard: which runs wait for data, what that costs, and what is wrong."""

from __future__ import annotations

from typing import Any

from dlmon.catalog import (
    AGENT_BUILD_INFO,
    CGROUP_OOM_KILLS,
    FINDING,
    LOADER_WORKER_EXITS,
    RANK_GPU_INFO,
    RANK_UP,
    UNOBSERVED_ORPHAN_WORKERS,
    UNOBSERVED_RESIDENT_MEMORY,
    UNOBSERVED_WORKERS,
)
from dlmon.gen.dashboards import board, palette, shared
from dlmon.gen.dashboards.board import CELL, Row, label, to
from dlmon.gen.dashboards.palette import ANY_IS_BAD, ANY_IS_NOTABLE, WAIT_RATIO
from dlmon.gen.dashboards.panels import Look, query, stat, timeseries
from dlmon.gen.dashboards.promql import ABNORMAL, RUNS, hours, increase, of_cgroups, select, worst
from dlmon.gen.dashboards.tables import Column, table
from dlmon.gen.rules import recording

OF_RUNS = 'run=~"$run|"'
"""Of the runs chosen, or of none: what is about a node."""

NO_GPU = "no GPU: NVML shows none of these runs' on its nodes"
NO_RUN = "no run is observed: dlmon run train.py"

CRITICAL = 'severity="critical"'


def render() -> str:
    """Return the dashboard's JSON."""
    return board.dashboard(
        board.CLUSTER,
        "Cluster",
        "Which training runs wait for their data, how many GPU-hours that wastes, worst first, and"
        " what is wrong. Click a run to see its ranks.",
        variables=[board.runs()],
        rows=[
            Row("Now", [*_cost(), *_counts()]),
            Row("Runs, worst first", [_runs()]),
            Row("What is wrong", [shared.alerts(OF_RUNS), shared.findings(OF_RUNS)]),
            Row("Over time", [*_worst(), *_troubles()]),
            Row("Jobs without dlmon", [_unobserved()]),
        ],
        annotations=[shared.alert_marks(OF_RUNS)],
        time="now-6h",
    )


def _cost() -> list[Any]:
    wasted = select(recording.RUN_GPU_WASTED, RUNS)
    waiting = select(recording.RANK_WAIT_RATIO, RUNS)
    return [
        stat(
            Look(
                "GPU-hours wasted",
                "GPU time lost to waiting for data in the time range: for each rank its wait times"
                " the idle part of its GPU, summed. Only of ranks whose GPU NVML names.",
                "short",
                width=5,
                no_value=NO_GPU,
            ),
            f"sum({hours(wasted)})",
            steps=((None, palette.GOOD), (1, palette.WAIT)),
            fill=True,
        ),
        stat(
            Look(
                "GPUs wasted now",
                "How many GPUs' worth of time is being lost to waiting for data: 2 is as if two"
                " GPUs stood still. Mean of five minutes.",
                "short",
                no_value=NO_GPU,
            ),
            f"sum({wasted})",
            steps=((None, palette.GOOD), (1, palette.WAIT)),
        ),
        stat(
            Look(
                "Wait ratio",
                "Share of their time, pauses left out, for which ranks had no batch to work on:"
                " mean over the ranks of the runs chosen, of five minutes.",
                "percentunit",
                width=3,
                no_value=NO_RUN,
            ),
            f"avg({waiting})",
            steps=WAIT_RATIO,
        ),
    ]


def _counts() -> list[Any]:
    up = select(RANK_UP, RUNS)
    found = select(FINDING, CRITICAL, OF_RUNS)
    return [
        stat(
            Look(
                "Live runs",
                "Runs with at least one living rank.",
                "none",
                width=3,
                no_value=NO_RUN,
            ),
            f"count(max by (run) ({up}) == 1)",
        ),
        stat(
            Look("Live ranks", "Training processes that live.", "none", 3, no_value=NO_RUN),
            f"sum({up})",
        ),
        stat(
            Look(
                "Critical findings",
                "Diagnoses of severity critical that hold now: somebody is hung, dead or about to"
                " be. Below is what they are.",
                "none",
                width=3,
                no_value="none",
            ),
            f"count({found})",
            steps=ANY_IS_BAD,
        ),
        stat(
            Look(
                "Nodes",
                "Agents that Prometheus reads. Click for their health.",
                "none",
                width=3,
                no_value="no agent is scraped",
                links=[("Open nodes", to(board.NODE))],
            ),
            f"count({AGENT_BUILD_INFO.name})",
        ),
    ]


def _runs() -> Any:
    wasted = select(recording.RUN_GPU_WASTED, RUNS)
    waiting = select(recording.RANK_WAIT_RATIO, RUNS)
    up = select(RANK_UP, RUNS)
    return table(
        Look(
            "Runs",
            "One line a run. GPU-hours and rank-hours are of the time range; where no GPU is known,"
            " rank-hours say how long ranks waited in all. Click a run for its ranks.",
            "short",
            height=11,
            no_value=NO_RUN,
        ),
        Column("Run", label="run", link=to(board.RUN_BOARD, run=CELL)),
        Column(
            "GPU-hours wasted",
            expr=f"sum by (run) ({hours(wasted)})",
            unit="short",
            steps=((None, "text"), (1, palette.WAIT), (10, palette.BAD)),
        ),
        Column("Rank-hours waited", expr=f"sum by (run) ({hours(waiting)})", unit="short"),
        Column(
            "Wait ratio",
            expr=f"max by (run) ({select(recording.RUN_WAIT_RATIO, RUNS)})",
            unit="percentunit",
            steps=WAIT_RATIO,
            gauge=True,
            width=220,
        ),
        Column("GPUs wasted now", expr=f"sum by (run) ({wasted})", unit="short"),
        Column(
            "GPUs", expr=f"count by (run) (count by (run, uuid) ({select(RANK_GPU_INFO, RUNS)}))"
        ),
        Column("Ranks up", expr=f"sum by (run) ({up})"),
        Column(
            "Ranks dead",
            expr=f"count by (run) ({up} == 0)",
            steps=ANY_IS_BAD,
        ),
        Column(
            "Findings",
            expr=f"count by (run) ({select(FINDING, RUNS)})",
            steps=ANY_IS_NOTABLE,
        ),
        sort=["GPU-hours wasted", "Rank-hours waited"],
    )


def _worst() -> list[Any]:
    to_run = [("Open run", to(board.RUN_BOARD, run=label("run")))]
    return [
        timeseries(
            Look(
                "GPUs wasted, the ten worst runs",
                "Whose waiting costs how many GPUs, one on the other. The ten are those with the"
                " largest mean over the time range.",
                "short",
                no_value=NO_GPU,
                links=to_run,
            ),
            query(worst(10, select(recording.RUN_GPU_WASTED, RUNS)), "{{run}}"),
            stack="normal",
        ),
        timeseries(
            Look(
                "Wait ratio, the ten worst runs",
                "Share of a run's time for which its ranks had no batch to work on. The ten are"
                " those with the largest mean over the time range.",
                "percentunit",
                no_value=NO_RUN,
                links=to_run,
            ),
            query(worst(10, select(recording.RUN_WAIT_RATIO, RUNS)), "{{run}}"),
            top=1,
        ),
    ]


def _troubles() -> list[Any]:
    return [
        timeseries(
            Look(
                "Workers that died",
                "Workers that ended in another way than normal, by how. oom_kill: the cgroup's"
                " memory ran out; sigbus: /dev/shm did; lost: the kernel did not tell. Without"
                " sigterm, by which torch ends workers at a shutdown.",
                "none",
                no_value="no worker ended but in order",
            ),
            query(
                f"sum by (reason) ({increase(LOADER_WORKER_EXITS, RUNS, ABNORMAL)}) > 0",
                "{{reason}}",
            ),
            query(
                f"sum({of_cgroups(increase(CGROUP_OOM_KILLS), RUNS, lately=True)}) > 0",
                "OOM kills in cgroups",
            ),
            bars=True,
            stack="normal",
            colours={"oom_kill": palette.WORST, "OOM kills in cgroups": palette.BAD},
        ),
        timeseries(
            Look(
                "Findings",
                "How many diagnoses of each kind held.",
                "none",
                no_value="nothing was wrong in the time range",
            ),
            query(f"count by (finding) ({select(FINDING, OF_RUNS)})", "{{finding}}"),
            bars=True,
            stack="normal",
        ),
    ]


def _unobserved() -> Any:
    by = "by (user, script, instance)"
    return table(
        Look(
            "Jobs that do not use dlmon",
            "DataLoader workers that the agents found by name, of jobs without the shim (torch 2.6"
            " and newer): whom to tell of `dlmon run`.",
            "none",
            no_value="no worker of such a job: all use dlmon, or a torch older than 2.6",
        ),
        Column("User", label="user"),
        Column("Script", label="script"),
        Column("Node", label="instance", link=to(board.NODE, instance=CELL)),
        Column("Workers", expr=f"sum {by} ({UNOBSERVED_WORKERS.name})"),
        Column(
            "Orphans",
            expr=f"sum {by} ({UNOBSERVED_ORPHAN_WORKERS.name})",
            steps=ANY_IS_BAD,
        ),
        Column("Memory", expr=f"sum {by} ({UNOBSERVED_RESIDENT_MEMORY.name})", unit="bytes"),
        sort=["Workers"],
    )
