"""Alerts about who is hung or stopped: the agent finds it, with thresholds of its own."""

from __future__ import annotations

from dlmon.catalog import LOADER_LABELS, RANK_LABELS, WORKER_LABELS
from dlmon.gen.rules.model import (
    FINDING,
    INSTANCE,
    LAST_BATCH_OF_LOADER,
    LAST_BATCH_OF_RANK,
    LOADER,
    MAYBE_WORKER,
    ON,
    RUN_AND_RANK,
    Alert,
    Scope,
    Severity,
    passed_on,
)

_JUDGED = (
    "The agent judges by what each loader has shown before (docs/findings.md), and has waited for a"
    " minute at least; 30 s are two scrapes."
)
_RANK_LABELS = (INSTANCE, *RANK_LABELS, "finding")
_LOADER_LABELS = (INSTANCE, *LOADER_LABELS, "finding")
_WORKER_LABELS = (INSTANCE, *WORKER_LABELS, "finding")

_HUNG = (
    "worker_stuck_in_fetch",
    "worker_blocked_in_kernel",
    "worker_stuck_before_fetch",
    "worker_stopped",
    "batch_not_handed_over",
)
WORKER_HUNG = Alert(
    name="DlmonWorkerHung",
    severity=Severity.CRITICAL,
    scope=Scope.WORKER,
    labels=_WORKER_LABELS,
    expression=passed_on("DlmonWorkerHung", _WORKER_LABELS, _HUNG),
    lasting="30s",
    why=_JUDGED,
    meaning="A worker owes a batch and makes no progress; the loop waits, or soon will.",
    summary=f"Hung: {MAYBE_WORKER} ({FINDING})",
    description=(
        f"{ON}, {MAYBE_WORKER} makes no progress: {FINDING}. The loop's last batch:"
        f" {LAST_BATCH_OF_LOADER}. Without a timeout it waits for ever."
    ),
    findings=_HUNG,
    silenced_by=("DlmonRankDied",),
)
_BLOCKED = ("pin_memory_thread_dead", "rank_stuck_in_next", "ranks_wait_for_rank")
RANK_BLOCKED = Alert(
    name="DlmonRankBlockedInNext",
    severity=Severity.CRITICAL,
    scope=Scope.LOADER,
    labels=_LOADER_LABELS,
    expression=passed_on("DlmonRankBlockedInNext", _LOADER_LABELS, _BLOCKED),
    lasting="30s",
    why=_JUDGED,
    meaning=(
        "The loop is blocked in `next()` for far longer than usual, and no single worker is to"
        " blame, or the other ranks wait for it."
    ),
    summary=f"Blocked in next(): {LOADER} ({FINDING})",
    description=(
        f"{ON}, the loop over {LOADER} waits in next(): {FINDING}. Its last batch:"
        f" {LAST_BATCH_OF_LOADER}."
    ),
    findings=_BLOCKED,
    silenced_by=("DlmonRankDied", "DlmonWorkerHung"),
)
_STUCK = ("rank_stuck_in_step",)
RANK_STUCK_IN_STEP = Alert(
    name="DlmonRankStuckInStep",
    severity=Severity.CRITICAL,
    scope=Scope.RANK,
    labels=_LOADER_LABELS,
    expression=passed_on("DlmonRankStuckInStep", _LOADER_LABELS, _STUCK),
    lasting="30s",
    why=_JUDGED,
    meaning=(
        "The loop has been working on one batch for far longer than usual, with data ready: the"
        " loader is not to blame."
    ),
    summary=f"Stuck in its step: {RUN_AND_RANK} ({FINDING})",
    description=(
        f"{ON}, {RUN_AND_RANK} works on one batch of loader {{{{ $labels.loader }}}} and does not"
        f" ask for another, though there is one: {FINDING}. Its last batch: {LAST_BATCH_OF_LOADER}."
    ),
    findings=_STUCK,
    silenced_by=("DlmonRankDied",),
)
_STOPPED = ("rank_stopped",)
RANK_STOPPED = Alert(
    name="DlmonRankStopped",
    severity=Severity.WARNING,
    scope=Scope.RANK,
    labels=_RANK_LABELS,
    expression=passed_on("DlmonRankStopped", _RANK_LABELS, _STOPPED),
    lasting="30s",
    why=_JUDGED,
    meaning=(
        "A training process is stopped, by a signal, a debugger or its scheduler, or its cgroup is"
        " frozen."
    ),
    summary=f"Stopped: {RUN_AND_RANK} ({FINDING})",
    description=(
        f"{ON}, {RUN_AND_RANK} is in process state T, or its cgroup is frozen: {FINDING}. Its last"
        f" batch: {LAST_BATCH_OF_RANK}."
    ),
    findings=_STOPPED,
    silenced_by=("DlmonRankDied",),
)
