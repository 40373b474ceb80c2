"""Alerts about what grows, and what runs out: memory, /dev/shm, descriptors."""

from __future__ import annotations

from dlmon import catalog
from dlmon.catalog import LOADER_LABELS, RANK_LABELS, WORKER_LABELS
from dlmon.gen.rules.model import (
    INSTANCE,
    LOADER,
    ON,
    RUN_AND_RANK,
    WORKER,
    Alert,
    Scope,
    Severity,
    asked,
    kept,
    passed_on,
)
from dlmon.gen.rules.promql import aggregated, happened

_JUDGED = "The agent judges (docs/findings.md); a minute is four scrapes."
_USS = catalog.WORKER_UNIQUE_MEMORY.name
_ROOM, _LIMIT = catalog.CGROUP_MEMORY_ROOM.name, catalog.CGROUP_MEMORY_LIMIT.name
_LOADERS = (INSTANCE, *LOADER_LABELS)
_RANKS = (INSTANCE, *RANK_LABELS)
_MAYBE_RANK = "{{ with $labels.rank }}rank {{ . }} of {{ end }}run {{ $labels.run }}"
_HELD_BY_WORKERS = asked(
    f"sum({_USS}{{instance=%q,run=%q,rank=%q,loader=%q}})", _LOADERS, "humanize1024", "B"
)
_HELD_BY_WORKER = asked(
    f"max({_USS}{{instance=%q,run=%q,rank=%q,loader=%q,worker=%q}})",
    (INSTANCE, *WORKER_LABELS),
    "humanize1024",
    "B",
)
_CGROUP = ("instance", "cgroup")
_CGROUP_USES = (
    asked(
        f"max({_LIMIT}{{instance=%q,cgroup=%q}} - {_ROOM}"
        f" or {catalog.CGROUP_MEMORY_ANON.name}{{instance=%q,cgroup=%q}})",
        (*_CGROUP, *_CGROUP),
        "humanize1024",
        "B",
    )
    + "; limit: "
    + asked(f"max({_LIMIT}{{instance=%q,cgroup=%q}})", _CGROUP, "humanize1024", "B")
)

WORKER_MEMORY_LEAK = Alert(
    name="DlmonWorkerMemoryLeak",
    severity=Severity.WARNING,
    scope=Scope.LOADER,
    labels=_LOADERS,
    expression=passed_on("DlmonWorkerMemoryLeak", _LOADERS, ("worker_memory_leak",)),
    lasting="1m",
    why=_JUDGED,
    meaning="Workers' own memory grows steadily, and not because shared pages are copied.",
    summary=f"Memory leak in workers of {LOADER}",
    description=(
        f"{ON}, workers of {LOADER} allocate more and more memory. What its workers hold for"
        f" themselves (USS): {_HELD_BY_WORKERS}."
    ),
    findings=("worker_memory_leak",),
    silenced_by=("DlmonRankDied",),
)
COPY_ON_WRITE = Alert(
    name="DlmonCopyOnWriteErosion",
    severity=Severity.WARNING,
    scope=Scope.LOADER,
    labels=_LOADERS,
    expression=passed_on("DlmonCopyOnWriteErosion", _LOADERS, ("copy_on_write_erosion",)),
    lasting="1m",
    why=_JUDGED,
    meaning="Workers come to have copies of memory that they shared with the training process.",
    summary=f"Shared memory is copied by workers of {LOADER}",
    description=(
        f"{ON}, workers of {LOADER} come to have copies of what they shared. What its workers hold"
        f" for themselves (USS): {_HELD_BY_WORKERS}."
    ),
    findings=("copy_on_write_erosion",),
    silenced_by=("DlmonRankDied",),
)

GROWN_BYTES = 1 << 30
_USS_NOW = aggregated("max", (INSTANCE, *WORKER_LABELS), f"avg_over_time({_USS}[10m])")
_USS_BEFORE = aggregated(
    "max", (INSTANCE, *WORKER_LABELS), f"avg_over_time({_USS}[10m] offset 30m)"
)
WORKER_MEMORY_EXPLOSION = Alert(
    name="DlmonWorkerMemoryExplosion",
    severity=Severity.WARNING,
    scope=Scope.WORKER,
    labels=(INSTANCE, *WORKER_LABELS),
    expression=kept(
        "DlmonWorkerMemoryExplosion",
        (INSTANCE, *WORKER_LABELS),
        f"{_USS_NOW} > 2 * {_USS_BEFORE}\n"
        f"and {_USS_NOW} - {_USS_BEFORE} > {GROWN_BYTES}\n"
        f"and {aggregated('max', (INSTANCE, *WORKER_LABELS), f'{_USS} offset 1h')}",
    ),
    lasting="10m",
    why="Whatever the reason: twice what it was half an hour ago, and 1 GiB more, is on its way to"
    " an OOM kill. The mean of ten minutes, since memory is scanned once a minute and goes up and"
    " down with epochs; only after an hour, when caches are warm.",
    meaning="A worker's own memory (USS) has doubled within half an hour, by more than 1 GiB.",
    summary=f"Memory doubled in half an hour: {WORKER}",
    description=f"{ON}, {WORKER} holds more than twice as much of its own (USS) as half an hour"
    f" ago; now: {_HELD_BY_WORKER}.",
    silenced_by=("DlmonRankDied", "DlmonWorkerMemoryLeak"),
)
MEMORY_LIMIT_SOON = Alert(
    name="DlmonMemoryLimitSoon",
    severity=Severity.CRITICAL,
    scope=Scope.CGROUP,
    labels=_RANKS,
    expression=passed_on("DlmonMemoryLimitSoon", _RANKS, ("memory_limit_soon",)),
    lasting="1m",
    why=f"{_JUDGED} It fits five to ten minutes, of the level whose limit is reached first.",
    meaning="A cgroup will reach its memory limit within the hour, or nearly has; the kernel then"
    " kills a process in it.",
    summary=f"Out of memory soon: {_MAYBE_RANK}",
    description=(
        f"{ON}, the cgroup of {_MAYBE_RANK} will reach its memory limit within the hour, or uses"
        " 95 % of it. In use now, page cache not counted: "
        + asked(
            f"max(1 - {_ROOM} / {_LIMIT}"
            f" and on (instance, cgroup) {catalog.RANK_INFO.name}{{instance=%q,run=%q}})",
            ("instance", "run"),
            "humanizePercentage",
        )
        + "."
    ),
    findings=("memory_limit_soon",),
    silenced_by=("DlmonRankDied",),
)


def _of_run(expression: str) -> str:
    """Return the expression of cgroups with the runs that are in them."""
    inside = f'max_over_time({catalog.RANK_INFO.name}{{cgroup!=""}}[15m])'
    return (
        f"{aggregated('max', (INSTANCE, 'run', 'cgroup'), inside)}\n"
        f"* on (instance, cgroup) group_left ()\n"
        f"{aggregated('max', _CGROUP, expression)}"
    )


_WORKERS_KILLED = happened(
    catalog.LOADER_WORKER_EXITS, (INSTANCE, "run"), "10m", 'reason="oom_kill"'
)
_AHEAD_SECONDS = 4 * 3600
MEMORY_LIMIT_PREDICTED = Alert(
    name="DlmonMemoryLimitPredicted",
    severity=Severity.WARNING,
    scope=Scope.CGROUP,
    labels=(INSTANCE, "run", "cgroup"),
    expression=kept(
        "DlmonMemoryLimitPredicted",
        (INSTANCE, "run", "cgroup"),
        _of_run(
            f"\n  1 - predict_linear({_ROOM}[1h], {_AHEAD_SECONDS})"
            f" / {_LIMIT} > 1\n"
            f"  and predict_linear({_ROOM}[15m], {_AHEAD_SECONDS}) < 0\n"
            f"  and {_ROOM} < 0.5 * {_LIMIT}\n"
            f"  and {_ROOM} offset 30m\n"
        ),
    ),
    lasting="15m",
    why="Four hours leave time to act. The line through the last hour and that through the last 15"
    " minutes must both reach the limit, and do so for 15 minutes: what loads its data grows fast"
    " and then stops. Below half of the limit a line says little, nor before half an hour of"
    " points. Anonymous and shared memory, never page cache, which fills any limit; of all that the"
    " limit is for, which may be that of a cgroup above, as of a job of several.",
    meaning="A cgroup that goes on like this will reach its memory limit within four hours.",
    summary="Out of memory within four hours: run {{ $labels.run }}",
    description=(
        f"{ON}, cgroup {{{{ $labels.cgroup }}}} of run {{{{ $labels.run }}}} will need more than"
        " its memory limit in four hours if it goes on like this; of the limit, by the last hour: "
        + asked(
            f"max(1 - predict_linear({_ROOM}{{instance=%q,cgroup=%q}}[1h], {_AHEAD_SECONDS})"
            f" / {_LIMIT})",
            _CGROUP,
            "humanizePercentage",
        )
        + f". In use now, page cache not counted: {_CGROUP_USES}."
    ),
    silenced_by=("DlmonMemoryLimitSoon",),
)
OOM_KILL = Alert(
    name="DlmonOomKill",
    severity=Severity.CRITICAL,
    scope=Scope.CGROUP,
    labels=(INSTANCE, "run", "cgroup"),
    expression=(
        f"{_of_run(f'round(increase({catalog.CGROUP_OOM_KILLS.name}[10m])) > 0')}\n"
        f"or on ({INSTANCE}, run)\n({_WORKERS_KILLED})"
    ),
    lasting="0s",
    why="An event: told for ten minutes. What a cgroup counted before its first scrape is not told,"
    " but that a worker died of it. The cgroup of a dead rank is shown for as long as the rank, and"
    " that of a job which ended of the kill for a minute.",
    meaning="The kernel killed a process in a cgroup because it was out of memory.",
    summary="OOM kill in a cgroup of run {{ $labels.run }}",
    description=(
        f"{ON}, the kernel killed processes of"
        " {{ with $labels.cgroup }}cgroup {{ . }}{{ else }}a cgroup{{ end }} of run"
        " {{ $labels.run }} for lack of memory ({{ $value | humanize }} in ten minutes). In use"
        f" now, page cache not counted: {_CGROUP_USES}."
    ),
)
SHM_NEARLY_FULL = Alert(
    name="DlmonShmNearlyFull",
    severity=Severity.CRITICAL,
    scope=Scope.RANK,
    labels=_RANKS,
    expression=passed_on("DlmonShmNearlyFull", _RANKS, ("shm_nearly_full",)),
    lasting="1m",
    why=f"{_JUDGED} From 90 % on, until less than 86 %.",
    meaning="The /dev/shm through which workers hand over batches is nearly full; workers will die"
    " of bus errors.",
    summary=f"/dev/shm nearly full: {RUN_AND_RANK}",
    description=(
        f"{ON}, the /dev/shm that {RUN_AND_RANK} sees is nearly full; in use: "
        + asked(
            f"max({catalog.RANK_SHM_USED.name}{{instance=%q,run=%q,rank=%q}}"
            f" / {catalog.RANK_SHM_SIZE.name})",
            _RANKS,
            "humanizePercentage",
        )
        + " of "
        + asked(
            f"max({catalog.RANK_SHM_SIZE.name}{{instance=%q,run=%q,rank=%q}})",
            _RANKS,
            "humanize1024",
            "B",
        )
        + ". Workers that find it full die of SIGBUS."
    ),
    findings=("shm_nearly_full",),
    silenced_by=("DlmonRankDied",),
)
_MAYBE_LOADER = (
    "{{ with $labels.worker }}worker {{ . }} of {{ end }}"
    "{{ with $labels.loader }}loader {{ . }} of {{ end }}"
)
FILES_NEARLY_EXHAUSTED = Alert(
    name="DlmonOpenFilesNearlyExhausted",
    severity=Severity.WARNING,
    scope=Scope.RANK,
    labels=(INSTANCE, *WORKER_LABELS),
    expression=passed_on(
        "DlmonOpenFilesNearlyExhausted",
        (INSTANCE, *WORKER_LABELS),
        ("open_files_nearly_exhausted",),
    ),
    lasting="1m",
    why=f"{_JUDGED} From 90 % of the soft limit on, until less than 86 %.",
    meaning="A process has nearly as many files open as it may have.",
    summary=f"File descriptors nearly exhausted: {_MAYBE_LOADER}{RUN_AND_RANK}",
    description=(
        f"{ON}, {_MAYBE_LOADER}{RUN_AND_RANK} has more than 90 % of the descriptors open that it"
        " may have; the training process has "
        + asked(
            f"max({catalog.RANK_OPEN_FDS.name}{{instance=%q,run=%q,rank=%q}})", _RANKS, "humanize"
        )
        + " of "
        + asked(
            f"max({catalog.RANK_MAX_FDS.name}{{instance=%q,run=%q,rank=%q}})", _RANKS, "humanize"
        )
        + ". At the limit opening a file, or receiving a batch, fails."
    ),
    findings=("open_files_nearly_exhausted",),
    silenced_by=("DlmonRankDied",),
)
