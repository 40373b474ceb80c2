"""What the agent knows at one moment: the frozen data that metrics, views and the API are made of.

Times are seconds, as `time.time()` for moments; sizes are bytes; `None` means "not known here" (no
permission, no such file, no such thing), never zero.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from dlmon.observe.system import CgroupMemory, Gpu, Process, Unobserved, UnobservedWorker
from dlmon.segment.layout import Phase

__all__ = [
    "CgroupMemory",
    "Ended",
    "Finding",
    "Gpu",
    "Histogram",
    "Loader",
    "Process",
    "Rank",
    "Refused",
    "Snapshot",
    "Unobserved",
    "UnobservedWorker",
    "Worker",
    "WorkerState",
]


class WorkerState(enum.IntEnum):
    """What a worker does; values are those of `dlmon_worker_state`."""

    IDLE = 0
    FETCHING = 1
    HANDING_OVER = 2
    STOPPED = 3
    HUNG = 4
    DEAD = 5
    ZOMBIE = 6


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations counted in power-of-two buckets.

    Attributes:
        counts: `counts[b]` durations had an `int.bit_length()` of b nanoseconds, that is less
            than 2^b ns and at least 2^(b-1) ns; `layout.HISTOGRAM_BUCKETS` entries.
        sum_seconds: Sum of the durations counted.
    """

    counts: tuple[int, ...]
    sum_seconds: float


@dataclass(slots=True)
class Worker:
    """One worker slot of a loader. Nobody changes it once it is made.

    It is not frozen: to make a frozen one takes four times as long, and the agent makes one of
    every worker at every look.

    Attributes:
        slot: 0 to num_workers - 1; outlives processes.
        up: True alive (the kernel says so), False dead without an orderly end, None between
            iterations, while starting and after an orderly end.
        state: None unless `up` is known.
        pid: In the observer's pid namespace, None if not visible or not alive.
        last_progress: Unix time of the last fetch begun or ended, None before the first.
        batches, samples, failed: Fetched, over all processes this slot has had.
        fetch_seconds: Time fetching, the open fetch included.
        cpu_seconds: CPU time, over all processes seen in this slot; None before one was seen.
        resident_bytes: RSS of the living process.
        orphan: Alive while its rank is dead.
        hung: It owes a batch and makes no progress; what it is stuck in is a finding.
        process_state: Of the living process: R, S, D, T, t or Z as in /proc/<pid>/stat.
        started: Unix time at which the living process was started.
        fetching_since: Unix time at which the open fetch began, None if none is open.
        fetch_index: The first sample index of the last fetch begun; None if it has no integer one.
        fetch_samples: Samples in the batch fetched last, as many as are usual.
        owed: Tasks of this iteration given to it and not done; None where that is not known.
        handed: Batches of this iteration that it has fetched.
        proportional_bytes, unique_bytes: PSS and USS at the last scan, which is at `scanned`.
        read_bytes: Read from storage, over all processes seen in this slot.
        major_faults: Page faults that needed storage, likewise.
        open_fds: Descriptors in use.
        max_fds: Soft limit of descriptors.
        anonymous_bytes: Of the resident memory what no file holds, shared with the training process
            or not: a leak shows here, copy-on-write does not.
        shm_bytes: Of the resident memory what is in /dev/shm or other shared memory.
        copied_bytes: Since its first scan: what it shared with others and by now has a copy of.
    """

    slot: int
    up: bool | None
    state: WorkerState | None
    pid: int | None
    last_progress: float | None
    batches: int
    samples: int
    failed: int
    fetch_seconds: float
    cpu_seconds: float | None
    resident_bytes: int | None
    orphan: bool
    hung: bool = False
    process_state: str | None = None
    started: float | None = None
    fetching_since: float | None = None
    fetch_index: int | None = None
    fetch_samples: int = 0
    owed: int | None = None
    handed: int = 0
    proportional_bytes: int | None = None
    unique_bytes: int | None = None
    scanned: float | None = None
    read_bytes: int | None = None
    major_faults: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    anonymous_bytes: int | None = None
    shm_bytes: int | None = None
    copied_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Loader:
    """One named DataLoader of one rank, summed over its segments.

    Attributes:
        name: As in the label `loader`.
        config: The labels of `dlmon_loader_info` (dataset, num_workers, ...), all strings.
        phase: What it does now.
        phase_seconds: Time per phase, the certain part of the open interval included; IDLE absent.
        epochs, startups, batches, samples: Iterations begun, iterations that delivered, batches
            delivered to the loop, samples fetched.
        discarded: Batches fetched in iterations that have ended, never delivered.
        ready, outstanding, capacity: Batches of this iteration fetched and not delivered;
            dispatched and not delivered; num_workers x prefetch_factor.
            0 <= ready <= outstanding <= capacity.
        reorder: Of the ready ones, those held behind a slower worker; None if not known.
        last_delivery, last_epoch: Unix times, None before the first.
        wait, step, fetch: Closed intervals by duration.
        timeouts: Expiries of `timeout=`.
        errors: Exceptions that reached the loop, by `layout.ERRORS`; every key present.
        worker_starts: Worker processes started.
        worker_exits: Worker processes ended, by `layout.EXIT_REASONS`; every key present.
        last_abnormal_exit: Unix time, None if never.
        workers: One per slot, in order; empty with num_workers=0.
        missing_hooks: Those of `layout.HOOKS` that the shim could not place for it; what needs them
            is 0 here.
        phase_since: Unix time at which `phase` began, None while idle.
    """

    name: str
    config: Mapping[str, str]
    phase: Phase
    phase_seconds: Mapping[Phase, float]
    epochs: int
    startups: int
    batches: int
    samples: int
    discarded: int
    ready: int
    outstanding: int
    capacity: int
    reorder: int | None
    last_delivery: float | None
    last_epoch: float | None
    wait: Histogram
    step: Histogram
    fetch: Histogram
    timeouts: int
    errors: Mapping[str, int]
    worker_starts: int
    worker_exits: Mapping[str, int]
    last_abnormal_exit: float | None
    workers: tuple[Worker, ...]
    missing_hooks: tuple[str, ...] = ()
    phase_since: float | None = None

    @property
    def wait_ratio(self) -> float | None:
        """Share of wait in wait + step, 0 to 1; None before either was seen."""
        wait = self.phase_seconds.get(Phase.WAIT, 0.0)
        total = wait + self.phase_seconds.get(Phase.STEP, 0.0)
        return wait / total if total > 0 else None


@dataclass(frozen=True, slots=True)
class Rank:
    """One training process.

    Attributes:
        run, rank: Labels; unique within `Snapshot.ranks`.
        pid: In the observer's pid namespace where the kernel tells, else as the rank wrote it.
        up: True alive, False dead without an orderly end.
        died: Unix time its death was noticed, None while up.
        started: Unix time its first segment was made.
        info: user, script, python, torch, dlmon, local_rank, world_size: strings, "" if not known.
        hooks: For each of `layout.HOOKS`, whether the shim could place it.
        shim_errors: Errors the shim swallowed.
        orphan_workers: Workers alive while this rank is dead.
        process: Empty once dead.
        loaders: By name.
        visible: It lives and `pid` is its pid here. Else `pid` may be one of another pid namespace
            or of the past, and says nothing about any process here.
        gpus: UUIDs of the GPUs on which the process itself computes, as far as NVML tells.
        died_of: How it died, of `layout.EXIT_REASONS`; "" while up.
        key: Unlike that of any other process that is a rank.
    """

    run: str
    rank: str
    pid: int
    up: bool
    died: float | None
    started: float
    info: Mapping[str, str]
    hooks: Mapping[str, bool]
    shim_errors: int
    orphan_workers: int
    process: Process
    loaders: tuple[Loader, ...]
    visible: bool = False
    gpus: tuple[str, ...] = ()
    died_of: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker process that ended in another way than in order.

    Attributes:
        key: Unlike that of any other worker process; told again with a better reason, it is the
            same.
        rank_key: `Rank.key` of its rank.
        run, rank, loader: As in the labels.
        worker: Its slot, None if it is not known which of the loader's it was.
        pid: In the observer's pid namespace, None if not known.
        reason: Of `layout.EXIT_REASONS`.
        exitcode: As `multiprocessing` has it, None if not known.
        died: Unix time, to within a look; None if that was before the first one.
        fetching_since, fetch_index, fetch_samples: What it was at, as in `Worker`.
        replaced: Another process had its slot before this was noticed: what it was at is not known.
    """

    key: str
    rank_key: str
    run: str
    rank: str
    loader: str
    worker: int | None
    pid: int | None
    reason: str
    exitcode: int | None = None
    died: float | None = None
    fetching_since: float | None = None
    fetch_index: int | None = None
    fetch_samples: int = 0
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """An active diagnosis: what is wrong with whom, since when, and what shows it.

    Attributes:
        name: One of `dlmon.analysis.findings.FINDINGS`, which gives it its severity.
        run, rank, loader, worker: Whom it is about, as in the labels; "" for what does not apply.
        since: Unix time from which on it holds; not when it was noticed.
        sentence: What an operator reads: who does what, for how long.
        evidence: Further facts, by name.
    """

    name: str
    run: str
    rank: str
    loader: str
    worker: str
    since: float
    sentence: str
    evidence: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A file that was not read, and why.

    Attributes:
        path: The file or directory.
        reason: One of `SegmentError.REASONS`.
        message: The whole sentence.
    """

    path: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything known at one moment.

    Attributes:
        time: Unix time.
        duration_seconds: What making it took.
        ranks: By run, then rank; no two share both.
        superseded: Dead or older incarnations whose run and rank a rank in `ranks` has now.
        refused: Files that could not be read this time, a hundred at most.
        segments: Files read.
        refused_total: Refusals since the observer began, by reason; every reason present.
        stale_reads_total: Slots served from the last good read because a writer was in the middle.
        clamped_total: Values held within bounds or kept from going down.
        dropped_total: Segments left out for a limit (`rank`, `user`); every reason present.
        findings: What is wrong now, the gravest first; none before they were looked for.
        gpus: All GPUs of the node that can be seen; none when NVML does not answer.
        unobserved: By user and script, those with the most workers first.
        cgroups: The memory of the cgroups that ranks are in, by path.
        ended: Workers that were noticed this time to have ended abnormally.
    """

    time: float
    duration_seconds: float = 0.0
    ranks: tuple[Rank, ...] = ()
    superseded: tuple[Rank, ...] = ()
    refused: tuple[Refused, ...] = ()
    segments: int = 0
    refused_total: Mapping[str, int] = field(default_factory=dict)
    stale_reads_total: int = 0
    clamped_total: int = 0
    dropped_total: Mapping[str, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    unobserved: tuple[Unobserved, ...] = ()
    cgroups: Mapping[str, CgroupMemory] = field(default_factory=dict)
    ended: tuple[Ended, ...] = ()
