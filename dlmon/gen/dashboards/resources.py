"""Panels of what ranks use and may use: CPU, memory, shared memory, descriptors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlmon.catalog import (
    CGROUP_MEMORY_LIMIT,
    CGROUP_MEMORY_ROOM,
    RANK_CPU_SECONDS,
    RANK_CPU_THROTTLED_SECONDS,
    RANK_CPUS,
    RANK_MAX_FDS,
    RANK_OPEN_FDS,
    RANK_RESIDENT_MEMORY,
    RANK_SHM_SIZE,
    RANK_SHM_USED,
    SHIM_ERRORS,
    SHIM_HOOK_ACTIVE,
    WORKER_CPU_SECONDS,
    WORKER_PROPORTIONAL_MEMORY,
)
from dlmon.gen.dashboards import palette
from dlmon.gen.dashboards.palette import FULLNESS
from dlmon.gen.dashboards.panels import Look, query, timeseries
from dlmon.gen.dashboards.promql import of_cgroups, rate, select


def of_ranks(mine: Sequence[str]) -> list[Any]:
    """Return the panels of some ranks, chosen by these matchers."""
    return [*_cpu(mine), *_memory(mine), *_limits(mine), _shim(mine)]


def _cpu(mine: Sequence[str]) -> list[Any]:
    colours = {"granted": palette.QUIET, "workers": palette.FETCH, "ranks": palette.STEP}
    return [
        timeseries(
            Look(
                "CPUs used, against those granted",
                "CPU time of the training processes and of their workers, and the CPUs that"
                " affinity and cgroup quota grant. Near the line more workers bring nothing.",
                "short",
                width=8,
                no_value="no CPU time is known of these ranks",
            ),
            query(f"sum({rate(RANK_CPU_SECONDS, *mine)})", "ranks"),
            query(f"sum({rate(WORKER_CPU_SECONDS, *mine)})", "workers"),
            query(f"sum({select(RANK_CPUS, *mine)})", "granted"),
            colours=colours,
            dashed=["granted"],
            stack="normal",
        ),
        timeseries(
            Look(
                "Throttled",
                "Share of the time for which a rank's cgroup had used up its CPU quota and was held"
                " back: a larger quota, or fewer workers.",
                "percentunit",
                width=8,
                no_value="no CPU quota: nothing is throttled",
            ),
            query(f"sum by (rank) ({rate(RANK_CPU_THROTTLED_SECONDS, *mine)})", "rank {{rank}}"),
        ),
    ]


def _memory(mine: Sequence[str]) -> list[Any]:
    return [
        timeseries(
            Look(
                "Memory",
                "RSS of the training processes, and PSS of their workers, in which pages that"
                " processes share count once in all.",
                "bytes",
                width=8,
            ),
            query(f"sum({select(RANK_RESIDENT_MEMORY, *mine)})", "ranks, RSS"),
            query(f"sum({select(WORKER_PROPORTIONAL_MEMORY, *mine)})", "workers, PSS"),
            colours={"ranks, RSS": palette.STEP, "workers, PSS": palette.FETCH},
        ),
        timeseries(
            Look(
                "Memory of cgroups, of their limit",
                "What cannot be dropped (anonymous and shared memory, never page cache) of the"
                " limit of the cgroups that ranks are in, or of the one above them that leaves the"
                " least room. At 100 % the kernel kills.",
                "percentunit",
                width=8,
                no_value="no cgroup of these ranks has a memory limit",
            ),
            query(
                f"1 - ({of_cgroups(CGROUP_MEMORY_ROOM, *mine)}) / "
                f"({of_cgroups(CGROUP_MEMORY_LIMIT, *mine)})",
                "{{cgroup}}",
            ),
            steps=FULLNESS,
            top=1,
        ),
    ]


def _limits(mine: Sequence[str]) -> list[Any]:
    used, size = select(RANK_SHM_USED, *mine), select(RANK_SHM_SIZE, *mine)
    files, most = select(RANK_OPEN_FDS, *mine), select(RANK_MAX_FDS, *mine)
    return [
        timeseries(
            Look(
                "/dev/shm in use",
                "Of the shared memory through which workers hand batches over. Full, workers die of"
                " bus errors: a larger --shm-size or emptyDir, fewer batches prefetched.",
                "percentunit",
                width=8,
            ),
            query(f"max by (rank) ({used} / {size})", "rank {{rank}}"),
            steps=FULLNESS,
            top=1,
        ),
        timeseries(
            Look(
                "File descriptors in use",
                "Of the soft limit of each training process; batches can take one for each tensor.",
                "percentunit",
                width=8,
                no_value="the descriptors of these ranks cannot be read: other users' processes",
            ),
            query(f"max by (rank) ({files} / {most})", "rank {{rank}}"),
            steps=FULLNESS,
            top=1,
        ),
    ]


def _shim(mine: Sequence[str]) -> Any:
    missing = f"{select(SHIM_HOOK_ACTIVE, *mine)} == 0"
    return timeseries(
        Look(
            "What the shim could not observe",
            "Ranks in whose torch a place to hook into was missing, by hook, and errors swallowed"
            " inside the shim. What comes from there is absent in these dashboards; the job is not"
            " affected.",
            "none",
            width=8,
            no_value="nothing: all hooks are in place, no error",
        ),
        query(f"count by (hook) ({missing})", "no hook {{hook}}"),
        query(f"sum({rate(SHIM_ERRORS, *mine)}) > 0", "errors per second"),
        bars=True,
    )
