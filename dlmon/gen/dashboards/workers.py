"""Panels of a loader's workers: what they do, what they use, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlmon.catalog import (
    WORKER_BATCHES,
    WORKER_CPU_SECONDS,
    WORKER_FETCH_SECONDS,
    WORKER_LAST_PROGRESS,
    WORKER_MAJOR_FAULTS,
    WORKER_OPEN_FDS,
    WORKER_PROPORTIONAL_MEMORY,
    WORKER_READ_BYTES,
    WORKER_RESIDENT_MEMORY,
    WORKER_STATE,
    WORKER_UNIQUE_MEMORY,
)
from dlmon.gen.dashboards import palette
from dlmon.gen.dashboards.panels import Look, bars, query, timeseries
from dlmon.gen.dashboards.promql import rate, select

BY = "by (rank, loader, worker)"
NAME = "rank {{rank}} {{loader}} worker {{worker}}"
NO_WORKERS = "no workers: with num_workers=0 the loop fetches by itself"
LEAN = "no workers, or the agent's metrics.per_worker leaves this out"


def skew(mine: Sequence[str]) -> Any:
    """Return how differently long the workers' fetches take."""
    fetching = f"sum {BY} ({rate(WORKER_FETCH_SECONDS, *mine)})"
    batches = f"sum {BY} ({rate(WORKER_BATCHES, *mine)})"
    return timeseries(
        Look(
            "Fetch skew: a batch's time, by worker",
            "Mean time of a fetch in each worker. Lines that part: slower samples, storage or CPUs"
            " for some; since batches come in order, the slowest worker sets the pace.",
            "s",
            no_value=NO_WORKERS,
        ),
        query(f"{fetching} / ({batches} > 0)", NAME),
    )


def activity(mine: Sequence[str]) -> list[Any]:
    """Return how busy workers are, and since when they make no progress."""
    progress = select(WORKER_LAST_PROGRESS, *mine)
    busy = select(WORKER_STATE, *mine)
    return [
        bars(
            Look(
                "Time spent fetching",
                "Share of its time for which each worker fetches: all at 100 % cannot keep up; one"
                " at 100 % among idle ones holds the others up.",
                "percentunit",
                no_value=NO_WORKERS,
            ),
            query(f"sum {BY} ({rate(WORKER_FETCH_SECONDS, *mine)})", NAME, now=True),
            steps=((None, palette.GOOD), (0.8, palette.NOTICE), (0.95, palette.WAIT)),
            top=1,
        ),
        timeseries(
            Look(
                "Longest without progress",
                "For workers that are not idle: time since each last began or ended a fetch. A line"
                " that only rises is a fetch that does not end.",
                "s",
                no_value="no worker is at work",
            ),
            query(f"time() - max {BY} ({progress} and {busy} > 0)", NAME),
        ),
    ]


def memory(mine: Sequence[str]) -> list[Any]:
    """Return what memory workers take, shared and for themselves."""
    kinds = {
        "RSS": (WORKER_RESIDENT_MEMORY, palette.QUIET),
        "PSS": (WORKER_PROPORTIONAL_MEMORY, palette.FETCH),
        "USS": (WORKER_UNIQUE_MEMORY, palette.WAIT),
    }
    return [
        timeseries(
            Look(
                "RSS, PSS and USS of all workers",
                "RSS counts pages that processes share in each of them. PSS divides each by its"
                " sharers: the sum is what they really take. USS is what each has for itself: a"
                " leak shows here, and copies of shared pages do. PSS and USS are up to a minute"
                " old.",
                "bytes",
                no_value=NO_WORKERS,
            ),
            *(query(f"sum({select(metric, *mine)})", name) for name, (metric, _) in kinds.items()),
            colours={name: colour for name, (_, colour) in kinds.items()},
        ),
        timeseries(
            Look(
                "USS by worker",
                "What each worker has for itself. All rising together: the dataset keeps things, or"
                " shared pages are copied; the findings below say which.",
                "bytes",
                no_value=NO_WORKERS,
            ),
            query(f"max {BY} ({select(WORKER_UNIQUE_MEMORY, *mine)})", NAME),
        ),
    ]


def usage(mine: Sequence[str]) -> list[Any]:
    """Return what workers use of CPU, storage and descriptors."""

    def each(title: str, description: str, unit: str, expr: str) -> Any:
        look = Look(title, description, unit, width=6, no_value=LEAN)
        return timeseries(look, query(expr, NAME))

    return [
        each(
            "CPUs",
            "CPU time of each worker. Much less than its time fetching: it waits for storage, or"
            " for a CPU.",
            "short",
            f"sum {BY} ({rate(WORKER_CPU_SECONDS, *mine)})",
        ),
        each(
            "Read from storage",
            "What storage had to deliver to each worker; what was in the page cache is not"
            " counted.",
            "Bps",
            f"sum {BY} ({rate(WORKER_READ_BYTES, *mine)})",
        ),
        each(
            "Major page faults per second",
            "Faults that had to wait for storage: mapped files that are not in memory, or swap.",
            "short",
            f"sum {BY} ({rate(WORKER_MAJOR_FAULTS, *mine)})",
        ),
        each(
            "Open files",
            "File descriptors of each worker; a line that rises is a leak.",
            "none",
            f"max {BY} ({select(WORKER_OPEN_FDS, *mine)})",
        ),
    ]
