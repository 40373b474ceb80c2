"""The Loader dashboard: what one DataLoader's loop, queue and workers do."""

from __future__ import annotations

from typing import Any

from dlmon.catalog import (
    FINDING,
    LOADER_BATCHES,
    LOADER_CAPACITY,
    LOADER_DISCARDED,
    LOADER_ERRORS,
    LOADER_FETCH,
    LOADER_INFO,
    LOADER_LAST_EPOCH,
    LOADER_OUTSTANDING,
    LOADER_READY,
    LOADER_REORDER,
    LOADER_SAMPLES,
    LOADER_STARTUPS,
    LOADER_STEP,
    LOADER_TIME,
    LOADER_TIMEOUTS,
    LOADER_WAIT,
    LOADER_WORKER_EXITS,
    LOADER_WORKER_STARTS,
    WORKER_STATE,
    WORKER_UP,
)
from dlmon.gen.dashboards import board, palette, shared, workers
from dlmon.gen.dashboards.board import Row
from dlmon.gen.dashboards.palette import ANY_IS_BAD, QUEUE_FILL, WAIT_RATIO
from dlmon.gen.dashboards.panels import Look, heatmap, query, stat, states, timeseries
from dlmon.gen.dashboards.promql import (
    ABNORMAL,
    LOADERS,
    RANKS,
    RUN,
    bucket,
    increase,
    mean,
    rate,
    select,
)
from dlmon.gen.dashboards.tables import Column, table
from dlmon.gen.rules import recording

MINE = (RUN, RANKS, LOADERS)

WAITING, ITERATING = 'phase="wait"', 'phase=~"wait|step"'

AROUND = ('run=~"$run|"', 'rank=~"$rank|"', 'loader=~"$loader|"')
"""Of the loaders chosen, or of a rank, run or node as a whole."""


def render() -> str:
    """Return the dashboard's JSON."""
    return board.dashboard(
        board.LOADER,
        "Loader",
        "What a DataLoader's loop, prefetch queue and workers do: whether the loop waits, for which"
        " worker, and what the workers cost.",
        variables=[board.run(), board.ranks(), board.loaders()],
        rows=[
            Row("Now", [*_balance(), *_pace()]),
            Row("Waiting", [*_waiting(), *_queue()]),
            Row("Fetching", _fetching()),
            Row("Workers", [_states(), *workers.activity(MINE)]),
            Row("Memory of workers", workers.memory(MINE)),
            Row("What is wrong", [shared.alerts(*AROUND), shared.findings(*AROUND)]),
            Row("Beginnings and ends", [*_lifetimes(), *_troubles()]),
            Row("What workers use", workers.usage(MINE), collapsed=True),
            Row("Configuration", [_configuration()], collapsed=True),
        ],
        annotations=[shared.alert_marks(*AROUND), _epochs()],
    )


def _epochs() -> Any:
    """Return the marks of when iterations began; Grafana wants milliseconds."""
    began = select(LOADER_LAST_EPOCH, *MINE)
    return board.annotation(
        "Epochs",
        f"max by (rank, loader) ({began}) * 1000",
        palette.QUIET,
        "epoch",
        "{{loader}} of rank {{rank}} was iterated anew",
        at_value=True,
    )


def _balance() -> list[Any]:
    return [
        stat(
            Look(
                "Wait ratio",
                "wait ÷ (wait + step) of all loaders chosen: 0 the data always was there, 1 their"
                " loops did nothing but wait for it.",
                "percentunit",
                no_value="it does not iterate",
            ),
            f"sum({rate(LOADER_TIME, *MINE, WAITING)})"
            f" / (sum({rate(LOADER_TIME, *MINE, ITERATING)}) > 0)",
            steps=WAIT_RATIO,
            fill=True,
        ),
        stat(
            Look(
                "Queue fill",
                "Ready batches of what the prefetch queue can hold: empty, the loop has to wait;"
                " full, the loop is the slower side.",
                "percentunit",
                no_value="it does not iterate, or has no workers",
            ),
            f"avg({select(recording.LOADER_FILL, *MINE)})",
            steps=QUEUE_FILL,
        ),
        stat(
            Look(
                "Workers busy",
                "Share of the time for which workers fetch. An empty queue with busy workers: too"
                " few of them, or too slow a dataset; with idle ones: something else holds it up.",
                "percentunit",
                no_value=workers.NO_WORKERS,
            ),
            f"avg({select(recording.LOADER_WORKER_UTILIZATION, *MINE)})",
        ),
    ]


def _pace() -> list[Any]:
    return [
        stat(
            Look("Batches per second", "Delivered to the loop.", "short"),
            f"sum({rate(LOADER_BATCHES, *MINE)})",
        ),
        stat(
            Look("Samples per second", "Fetched, by all workers.", "short"),
            f"sum({rate(LOADER_SAMPLES, *MINE)})",
        ),
        stat(
            Look("Findings", "Diagnoses that hold now; below is which.", "none", no_value="none"),
            f"count({select(FINDING, *MINE)})",
            steps=ANY_IS_BAD,
        ),
    ]


def _waiting() -> list[Any]:
    total = f"sum by (phase) ({rate(LOADER_TIME, *MINE)})"
    return [
        timeseries(
            Look(
                "Wait against step",
                "Where the loop's time goes. Orange is time in which it could have worked, had the"
                " data been there; green is its own work. What goes on right now is included, so a"
                " blocked loop shows. Blue: what it takes until the first batch of an iteration.",
                "percentunit",
            ),
            query(total, "{{phase}}"),
            colours=palette.PHASE_COLOURS,
            stack="percent",
        ),
        timeseries(
            Look(
                "A batch: its wait and its step",
                "Mean time that the loop waited for a batch, and that it then worked on it. Where"
                " the wait is longer than the step, faster data would more than double the speed.",
                "s",
            ),
            query(mean(LOADER_WAIT, "loader", *MINE), "wait, {{loader}}"),
            query(mean(LOADER_STEP, "loader", *MINE), "step, {{loader}}"),
            colours={"/^wait/": palette.WAIT, "/^step/": palette.STEP},
        ),
    ]


def _queue() -> list[Any]:
    return [
        timeseries(
            Look(
                "The prefetch queue, against its capacity",
                "Batches fetched and not yet delivered, those asked for, and the most there can be."
                " Reorder: ready, but held back behind a slower worker, for batches come in order."
                " Much of it: one worker, or some samples, are far slower than the rest.",
                "none",
                no_value=workers.NO_WORKERS,
            ),
            query(f"sum({select(LOADER_READY, *MINE)})", "ready"),
            query(f"sum({select(LOADER_REORDER, *MINE)})", "of these held for order"),
            query(f"sum({select(LOADER_OUTSTANDING, *MINE)})", "outstanding"),
            query(f"sum({select(LOADER_CAPACITY, *MINE)})", "capacity"),
            colours={
                "ready": palette.GOOD,
                "of these held for order": palette.NOTICE,
                "outstanding": palette.FETCH,
                "capacity": palette.QUIET,
            },
            dashed=["capacity"],
        ),
        timeseries(
            Look(
                "Wait ratio by loader",
                "wait ÷ (wait + step) of five minutes.",
                "percentunit",
                no_value="it does not iterate",
            ),
            query(
                f"max by (rank, loader) ({select(recording.LOADER_WAIT_RATIO, *MINE)})",
                "rank {{rank}} {{loader}}",
            ),
            top=1,
        ),
    ]


def _fetching() -> list[Any]:
    def quantile(rule: recording.Recording) -> str:
        return f"max({select(rule, *MINE)})"

    return [
        heatmap(
            Look(
                "How long fetches take",
                "Batches by the time it took to read and collate them, in factors of two. Two bands"
                " are two kinds of samples or of storage; a tail upwards is what the loop waits"
                " for.",
                "s",
                height=9,
            ),
            query(f"sum by (le) ({increase(bucket(LOADER_FETCH), *MINE)})"),
        ),
        heatmap(
            Look(
                "How long the loop waits",
                "Batches by how long the loop was blocked for them, in factors of two: near the"
                " bottom they were ready.",
                "s",
                height=9,
            ),
            query(f"sum by (le) ({increase(bucket(LOADER_WAIT), *MINE)})"),
        ),
        timeseries(
            Look(
                "Quantiles of fetching",
                "Time within which half, 95 % and 99 % of batches are fetched, of the slowest of"
                " the loaders chosen; to a factor of two or better.",
                "s",
            ),
            query(quantile(recording.LOADER_FETCH_P99), "p99"),
            query(quantile(recording.LOADER_FETCH_P95), "p95"),
            query(quantile(recording.LOADER_FETCH_P50), "p50"),
            colours={"p99": "dark-blue", "p95": palette.FETCH, "p50": "light-blue"},
        ),
        workers.skew(MINE),
    ]


def _states() -> Any:
    return states(
        Look(
            "What each worker does",
            "Handing over: fetched, but not yet received while the loop waits. Stopped: by a signal"
            " or a debugger. Hung: it owes a batch and makes no progress. A row of fetching beside"
            " rows of idle: that worker holds the others up.",
            "none",
            width=24,
            height=10,
            no_value=workers.NO_WORKERS,
        ),
        query(
            f"max by (rank, loader, worker) ({select(WORKER_STATE, *MINE)})",
            "rank {{rank}} {{loader}} worker {{worker}}",
        ),
        mappings=palette.named(palette.WORKER_STATES),
    )


def _lifetimes() -> list[Any]:
    startup = select(LOADER_TIME, *MINE, 'phase="startup"')
    return [
        timeseries(
            Look(
                "Restarts and deaths of workers",
                "Workers started, and those that ended in another way than normal, by how. Starts"
                " at every epoch: persistent_workers=True saves them. oom_kill: memory ran out;"
                " sigbus: /dev/shm did; lost: the kernel did not tell. Without sigterm, by which"
                " torch ends workers at a shutdown.",
                "none",
                width=8,
                no_value=workers.NO_WORKERS,
            ),
            query(f"sum({increase(LOADER_WORKER_STARTS, *MINE)})", "started"),
            query(
                f"sum by (reason) ({increase(LOADER_WORKER_EXITS, *MINE, ABNORMAL)}) > 0",
                "{{reason}}",
            ),
            bars=True,
            colours={"started": palette.QUIET, "oom_kill": palette.WORST, "sigkill": palette.BAD},
        ),
        timeseries(
            Look(
                "Price of an iteration's start",
                "Mean time from iter() to the first batch: starting workers and filling the queue,"
                " paid at every epoch.",
                "s",
                width=8,
                no_value="no iteration began in the time range",
            ),
            query(
                f"sum by (loader) (rate({startup}[$__rate_interval]))"
                f" / (sum by (loader) ({rate(LOADER_STARTUPS, *MINE)}) > 0)",
                "{{loader}}",
            ),
        ),
    ]


def _troubles() -> list[Any]:
    return [
        timeseries(
            Look(
                "Errors, timeouts, batches thrown away",
                "Exceptions that reached the loop, by where they began; expiries of timeout=; and"
                " batches that were fetched for nothing because the loop left its iteration early.",
                "none",
                width=8,
                no_value="none",
            ),
            query(f"sum by (error) ({increase(LOADER_ERRORS, *MINE)}) > 0", "error: {{error}}"),
            query(f"sum({increase(LOADER_TIMEOUTS, *MINE)}) > 0", "timeouts"),
            query(f"sum({increase(LOADER_DISCARDED, *MINE)}) > 0", "batches thrown away"),
            bars=True,
            colours={"timeouts": palette.BAD, "batches thrown away": palette.QUIET},
        ),
    ]


def _configuration() -> Any:
    labels = LOADER_INFO.labels[1:]
    up = f"sum by (rank, loader) ({select(WORKER_UP, *MINE)})"
    return table(
        Look("Loaders", "How each loader is configured.", "none", height=6),
        *(Column(name.replace("_", " ").capitalize(), label=name) for name in labels),
        Column("Workers up", expr=up),
        source=f"max by ({', '.join(labels)}) ({select(LOADER_INFO, *MINE)})",
    )
