"""Every metric that dlmon emits, written once: name, kind, unit, labels and help.

What `/metrics` serves, `docs/metrics.md`, dashboards and rules are made from `METRICS`. To add a
metric: add it here, emit it in one collector of `dlmon.agent.collectors`, run `dlmon gen`.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

from dlmon.errors import SegmentError
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HOOKS, Phase

BUCKET_EXPONENTS = range(19, 37)
"""A histogram's finite bounds are 2^e nanoseconds, about 0.5 ms to 69 s, in factors of two."""

SERIES_PER_HISTOGRAM = len(BUCKET_EXPONENTS) + 3
"""The finite buckets, +Inf, sum and count."""

TIMED_PHASES = tuple(phase for phase in Phase if phase is not Phase.IDLE)
"""Phases that time is counted in; idle is what remains."""

DROP_REASONS = ("rank", "user", "duplicate", "series_limit")
"""Why something is missing in `/metrics`: the first two are the observer's, in segments."""


class Kind(enum.Enum):
    """What a metric's value does over time."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    INFO = "info"
    """A gauge that is always 1; what it says is in its labels."""


class Unit(enum.Enum):
    """What a metric's value is counted in: base units only."""

    NONE = "none"
    BOOLEAN = "0 or 1"
    STATE = "state"
    SECONDS = "seconds"
    TIMESTAMP = "Unix seconds"
    BYTES = "bytes"
    CPUS = "CPUs"
    RATIO = "ratio, 0 to 1"
    BATCHES = "batches"
    SAMPLES = "samples"
    COUNT = "count"


class Subject(enum.Enum):
    """What a series is about; there is one set of series for each."""

    AGENT = "agent"
    RANK = "rank"
    LOADER = "loader"
    WORKER = "worker"
    FINDING = "finding"
    GPU = "gpu"
    UNOBSERVED = "unobserved"
    CGROUP = "cgroup"


RANK_LABELS = ("run", "rank")
LOADER_LABELS = (*RANK_LABELS, "loader")
WORKER_LABELS = (*LOADER_LABELS, "worker")
GPU_LABELS = ("gpu", "uuid")
UNOBSERVED_LABELS = ("user", "script")

PROCESS_STATES = ("running", "sleeping", "blocked", "stopped", "zombie")
"""What a process does; blocked is uninterruptible, mostly waiting for storage."""
CGROUP_LABELS = ("cgroup",)

FETCH_HOOKS = ("worker_loop", "map_fetch", "iterable_fetch")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: As Prometheus shows it, `_total` included.
        kind: What its value does.
        unit: What its value is counted in.
        labels: Names, in the order in which collectors give the values.
        help: One line: what it means, at its extremes too where that is not plain.
        values: The closed set of the last label's values, all exported from birth; empty if open.
        lean: For a worker's metric: kept with `metrics.per_worker: lean`.
        needs: The shim's hooks without which it is not known, and therefore absent.
    """

    name: str
    kind: Kind
    unit: Unit
    labels: tuple[str, ...]
    help: str
    values: tuple[str, ...] = ()
    lean: bool = False
    needs: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        """What one set of this metric's series is about."""
        if self.labels == CGROUP_LABELS:
            return Subject.CGROUP
        if "finding" in self.labels:
            return Subject.FINDING
        if "worker" in self.labels:
            return Subject.WORKER
        if "loader" in self.labels:
            return Subject.LOADER
        if "rank" in self.labels:
            return Subject.RANK
        if "gpu" in self.labels:
            return Subject.GPU
        return Subject.UNOBSERVED if "script" in self.labels else Subject.AGENT

    @property
    def series(self) -> int:
        """The most series that one subject has of this metric."""
        each = SERIES_PER_HISTOGRAM if self.kind is Kind.HISTOGRAM else 1
        return each * max(1, len(self.values))


# --- the training process ---

RANK_INFO = Metric(
    "dlmon_rank_info",
    Kind.INFO,
    Unit.NONE,
    (
        *RANK_LABELS,
        "pid",
        "user",
        "script",
        "python",
        "torch",
        "dlmon",
        "local_rank",
        "world_size",
        "cgroup",
    ),
    "Who is behind a run and rank; a label is empty where that is not known.",
)
RANK_UP = Metric(
    "dlmon_rank_up",
    Kind.GAUGE,
    Unit.BOOLEAN,
    RANK_LABELS,
    "1 while the training process lives, 0 for a while after it died without saying goodbye,"
    " absent after a normal end.",
)
RANK_CPU_SECONDS = Metric(
    "dlmon_rank_cpu_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    RANK_LABELS,
    "User and system time of the training process itself, its workers not included.",
)
RANK_RESIDENT_MEMORY = Metric(
    "dlmon_rank_resident_memory_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    RANK_LABELS,
    "RSS of the training process; pages shared with workers count in each of them.",
)
RANK_CPUS = Metric(
    "dlmon_rank_cpus",
    Kind.GAUGE,
    Unit.CPUS,
    RANK_LABELS,
    "CPUs granted to the training process by affinity and cgroup quota, not those of the machine;"
    " a fraction is possible.",
)
RANK_CPU_THROTTLED_SECONDS = Metric(
    "dlmon_rank_cpu_throttled_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    RANK_LABELS,
    "Time for which the training process's cgroup had used up its CPU quota and was held back.",
)
RANK_ORPHAN_WORKERS = Metric(
    "dlmon_rank_orphan_workers",
    Kind.GAUGE,
    Unit.COUNT,
    RANK_LABELS,
    "Workers still alive although their training process is dead, also if another one is this rank"
    " by now; they hold memory until killed.",
)
RANK_SHM_SIZE = Metric(
    "dlmon_rank_shm_size_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    RANK_LABELS,
    "Size of the /dev/shm that the training process sees, through which workers hand over batches.",
)
RANK_SHM_USED = Metric(
    "dlmon_rank_shm_used_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    RANK_LABELS,
    "Bytes in use in the /dev/shm that the training process sees; once it is full, workers die of"
    " bus errors.",
)
RANK_OPEN_FDS = Metric(
    "dlmon_rank_open_fds",
    Kind.GAUGE,
    Unit.COUNT,
    RANK_LABELS,
    "File descriptors that the training process has open.",
)
RANK_MAX_FDS = Metric(
    "dlmon_rank_max_fds",
    Kind.GAUGE,
    Unit.COUNT,
    RANK_LABELS,
    "Soft limit of the training process's file descriptors.",
)
RANK_GPU_INFO = Metric(
    "dlmon_rank_gpu_info",
    Kind.INFO,
    Unit.NONE,
    (*RANK_LABELS, *GPU_LABELS),
    "On which GPU the training process itself computes, one series for each; join on uuid, and"
    " aggregate first: ranks can share a GPU. Absent where the driver does not name its processes.",
)
SHIM_HOOK_ACTIVE = Metric(
    "dlmon_shim_hook_active",
    Kind.GAUGE,
    Unit.BOOLEAN,
    (*RANK_LABELS, "hook"),
    "1 if the shim could hook into this place of the job's torch; with 0 the metrics that come"
    " from there stay still.",
    values=HOOKS,
)
SHIM_ERRORS = Metric(
    "dlmon_shim_errors_total",
    Kind.COUNTER,
    Unit.COUNT,
    RANK_LABELS,
    "Errors inside the shim, swallowed so that the job goes on; what it counts may be too low"
    " after one.",
)

# --- a DataLoader ---

LOADER_INFO = Metric(
    "dlmon_loader_info",
    Kind.INFO,
    Unit.NONE,
    (
        *LOADER_LABELS,
        "dataset",
        "num_workers",
        "prefetch_factor",
        "batch_size",
        "pin_memory",
        "persistent_workers",
        "start_method",
        "timeout_seconds",
        "in_order",
        "read_ahead",
    ),
    "How the loader is configured; a label is empty where that is not known.",
)
LOADER_TIME = Metric(
    "dlmon_loader_time_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    (*LOADER_LABELS, "phase"),
    "Time from iter() on, split without gap or overlap into phases, the certain part of the open"
    " interval included. wait / (wait + step) is the wait ratio: 0 the data always was there,"
    " 1 the loop did nothing but wait.",
    values=tuple(phase.name.lower() for phase in TIMED_PHASES),
)
LOADER_PHASE = Metric(
    "dlmon_loader_phase",
    Kind.GAUGE,
    Unit.STATE,
    LOADER_LABELS,
    "What the loader does now: 0 not iterating, "
    + ", ".join(f"{phase.value} {phase.name.lower()}" for phase in TIMED_PHASES)
    + ".",
)
LOADER_BATCHES = Metric(
    "dlmon_loader_batches_total",
    Kind.COUNTER,
    Unit.BATCHES,
    LOADER_LABELS,
    "Batches delivered to the loop.",
)
LOADER_SAMPLES = Metric(
    "dlmon_loader_samples_total",
    Kind.COUNTER,
    Unit.SAMPLES,
    LOADER_LABELS,
    "Samples fetched, counted at collate, so that a short last batch counts what it holds; 1 each"
    " with batch_size=None. Runs ahead of the batches delivered by what is prefetched.",
    needs=FETCH_HOOKS,
)
LOADER_EPOCHS = Metric(
    "dlmon_loader_epochs_total",
    Kind.COUNTER,
    Unit.COUNT,
    LOADER_LABELS,
    "Iterations started: one for each iter() over the loader.",
)
LOADER_STARTUPS = Metric(
    "dlmon_loader_startups_total",
    Kind.COUNTER,
    Unit.COUNT,
    LOADER_LABELS,
    "Iterations that delivered a first batch; the time in phase startup divided by this is the mean"
    " price of starting one.",
)
LOADER_DISCARDED = Metric(
    "dlmon_loader_discarded_batches_total",
    Kind.COUNTER,
    Unit.BATCHES,
    LOADER_LABELS,
    "Batches fetched and never delivered because the loop left its iteration early: work done for"
    " nothing.",
    needs=FETCH_HOOKS,
)
LOADER_LAST_DELIVERY = Metric(
    "dlmon_loader_last_delivery_timestamp_seconds",
    Kind.GAUGE,
    Unit.TIMESTAMP,
    LOADER_LABELS,
    "When the last batch was delivered; absent before the first.",
)
LOADER_LAST_EPOCH = Metric(
    "dlmon_loader_last_epoch_timestamp_seconds",
    Kind.GAUGE,
    Unit.TIMESTAMP,
    LOADER_LABELS,
    "When the last iteration began; absent before the first.",
)
LOADER_WAIT = Metric(
    "dlmon_loader_wait_seconds",
    Kind.HISTOGRAM,
    Unit.SECONDS,
    LOADER_LABELS,
    "How long the loop was blocked in next() for a batch, the first of an iteration not included;"
    " closed waits only.",
)
LOADER_STEP = Metric(
    "dlmon_loader_step_seconds",
    Kind.HISTOGRAM,
    Unit.SECONDS,
    LOADER_LABELS,
    "How long the loop worked on a batch before it asked for the next one; closed steps only.",
)
LOADER_FETCH = Metric(
    "dlmon_loader_fetch_seconds",
    Kind.HISTOGRAM,
    Unit.SECONDS,
    LOADER_LABELS,
    "How long it took to read and collate one batch, in a worker or, with num_workers=0, in the"
    " training process; successful fetches only.",
    needs=FETCH_HOOKS,
)
LOADER_CAPACITY = Metric(
    "dlmon_loader_prefetch_capacity_batches",
    Kind.GAUGE,
    Unit.BATCHES,
    LOADER_LABELS,
    "num_workers x prefetch_factor, the most batches that can be outstanding; 0 with"
    " num_workers=0.",
)
LOADER_OUTSTANDING = Metric(
    "dlmon_loader_outstanding_batches",
    Kind.GAUGE,
    Unit.BATCHES,
    LOADER_LABELS,
    "Batches dispatched to workers in this iteration and not yet delivered.",
    needs=("dispatch",),
)
LOADER_READY = Metric(
    "dlmon_loader_ready_batches",
    Kind.GAUGE,
    Unit.BATCHES,
    LOADER_LABELS,
    "Batches fetched in this iteration and not yet delivered, those held for order included: 0 the"
    " loop has to wait, at capacity the loop is the slower side. An item counts from its collate"
    " on, before its worker's feeder thread pickled it, so one that cannot be pickled stays ready.",
    needs=FETCH_HOOKS,
)
LOADER_REORDER = Metric(
    "dlmon_loader_reorder_batches",
    Kind.GAUGE,
    Unit.BATCHES,
    LOADER_LABELS,
    "Of the ready batches, those that in_order=True holds back behind a slower worker; inferred"
    " from per-worker counts, absent where they do not tell.",
    needs=FETCH_HOOKS,
)
LOADER_TIMEOUTS = Metric(
    "dlmon_loader_timeouts_total",
    Kind.COUNTER,
    Unit.COUNT,
    LOADER_LABELS,
    "Expiries of the loader's timeout=; always 0 with the default, which is no timeout.",
)
LOADER_ERRORS = Metric(
    "dlmon_loader_errors_total",
    Kind.COUNTER,
    Unit.COUNT,
    (*LOADER_LABELS, "error"),
    "Exceptions that reached the loop through next(), by origin.",
    values=ERRORS,
)
LOADER_WORKER_STARTS = Metric(
    "dlmon_loader_worker_starts_total",
    Kind.COUNTER,
    Unit.COUNT,
    LOADER_LABELS,
    "Worker processes started; it goes up every epoch without persistent_workers.",
)
LOADER_WORKER_EXITS = Metric(
    "dlmon_loader_worker_exits_total",
    Kind.COUNTER,
    Unit.COUNT,
    (*LOADER_LABELS, "reason"),
    "Worker processes that ended, by how; lost where the kernel did not tell.",
    values=EXIT_REASONS,
    needs=("shutdown",),
)
LOADER_LAST_ABNORMAL_EXIT = Metric(
    "dlmon_loader_last_abnormal_exit_timestamp_seconds",
    Kind.GAUGE,
    Unit.TIMESTAMP,
    LOADER_LABELS,
    "When a worker last ended in another way than normal; absent if none did.",
)

# --- a worker slot ---

WORKER_UP = Metric(
    "dlmon_worker_up",
    Kind.GAUGE,
    Unit.BOOLEAN,
    WORKER_LABELS,
    "1 while the kernel attests that the worker lives, 0 after it died without an orderly end,"
    " absent between iterations and after a normal end.",
    lean=True,
    needs=("worker_loop",),
)
WORKER_HUNG = Metric(
    "dlmon_worker_hung",
    Kind.GAUGE,
    Unit.BOOLEAN,
    WORKER_LABELS,
    "1 while the worker owes a batch and makes no progress, for longer than its loader's fetches"
    " ever give reason for; what it is stuck in is a finding.",
    lean=True,
    needs=FETCH_HOOKS,
)
WORKER_STATE = Metric(
    "dlmon_worker_state",
    Kind.GAUGE,
    Unit.STATE,
    WORKER_LABELS,
    "What the worker does now: 0 idle, 1 fetching, 2 handing_over (fetched, not yet received while"
    " the rank waits), 3 stopped, 4 hung, 5 dead, 6 zombie.",
    needs=FETCH_HOOKS,
)
WORKER_LAST_PROGRESS = Metric(
    "dlmon_worker_last_progress_timestamp_seconds",
    Kind.GAUGE,
    Unit.TIMESTAMP,
    WORKER_LABELS,
    "When the worker last began or ended a fetch; absent before the first. An idle worker makes"
    " none either.",
    needs=FETCH_HOOKS,
)
WORKER_BATCHES = Metric(
    "dlmon_worker_batches_total",
    Kind.COUNTER,
    Unit.BATCHES,
    WORKER_LABELS,
    "Batches fetched in this slot, by all processes it has had.",
    lean=True,
    needs=FETCH_HOOKS,
)
WORKER_FETCH_SECONDS = Metric(
    "dlmon_worker_fetch_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    WORKER_LABELS,
    "Time spent fetching in this slot, the open fetch included; a rate of 1 is a worker that never"
    " rests, 0 one that has nothing to do.",
    lean=True,
    needs=FETCH_HOOKS,
)
WORKER_CPU_SECONDS = Metric(
    "dlmon_worker_cpu_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    WORKER_LABELS,
    "User and system time of the worker processes seen in this slot, pickling and idling included;"
    " much less than fetch_seconds is a worker that waits for storage or for a CPU.",
)
WORKER_RESIDENT_MEMORY = Metric(
    "dlmon_worker_resident_memory_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    WORKER_LABELS,
    "RSS of the living worker process; pages shared with its parent and siblings count in each of"
    " them.",
    lean=True,
)
WORKER_PROPORTIONAL_MEMORY = Metric(
    "dlmon_worker_proportional_memory_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    WORKER_LABELS,
    "PSS of the living worker process at its last scan: each page divided by how many processes"
    " share it, so that the sum over processes is what they really take; some minutes old.",
)
WORKER_UNIQUE_MEMORY = Metric(
    "dlmon_worker_unique_memory_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    WORKER_LABELS,
    "USS of the living worker process at its last scan: pages that it shares with nobody, which is"
    " where leaks and copies of shared pages show; some minutes old.",
    lean=True,
)
WORKER_READ_BYTES = Metric(
    "dlmon_worker_read_bytes_total",
    Kind.COUNTER,
    Unit.BYTES,
    WORKER_LABELS,
    "Bytes that storage had to deliver to the worker processes seen in this slot, what was in the"
    " page cache not included; read every ten seconds.",
)
WORKER_MAJOR_FAULTS = Metric(
    "dlmon_worker_major_faults_total",
    Kind.COUNTER,
    Unit.COUNT,
    WORKER_LABELS,
    "Page faults of the worker processes seen in this slot that had to wait for storage: of mapped"
    " files that are not in memory, or of what was swapped out.",
)
WORKER_OPEN_FDS = Metric(
    "dlmon_worker_open_fds",
    Kind.GAUGE,
    Unit.COUNT,
    WORKER_LABELS,
    "File descriptors that the living worker process has open; read every ten seconds.",
)

# --- a GPU ---

GPU_UTILIZATION = Metric(
    "dlmon_gpu_utilization_ratio",
    Kind.GAUGE,
    Unit.RATIO,
    GPU_LABELS,
    "Share of the driver's last sample period in which some kernel ran, however small: 0 idle, 1"
    " never without one, which is not the same as busy. Absent for MIG instances.",
)
GPU_MEMORY_USED = Metric(
    "dlmon_gpu_memory_used_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    GPU_LABELS,
    "Memory of the GPU, or of the MIG instance, that is allocated, by whomever; PyTorch's cache"
    " counts in full.",
)
GPU_MEMORY_TOTAL = Metric(
    "dlmon_gpu_memory_total_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    GPU_LABELS,
    "Memory that the GPU, or the MIG instance, has.",
)

# --- jobs without the shim ---

UNOBSERVED_WORKERS = Metric(
    "dlmon_unobserved_workers",
    Kind.GAUGE,
    Unit.COUNT,
    (*UNOBSERVED_LABELS, "state"),
    "DataLoader workers of jobs without the shim, by process state; blocked waits for storage"
    " and cannot be interrupted. Of torch 2.6 and newer, whose workers have a name.",
    values=PROCESS_STATES,
)
UNOBSERVED_ORPHAN_WORKERS = Metric(
    "dlmon_unobserved_orphan_workers",
    Kind.GAUGE,
    Unit.COUNT,
    UNOBSERVED_LABELS,
    "Of these workers, those whose training process is gone; they hold memory until killed.",
)
UNOBSERVED_CPU_SECONDS = Metric(
    "dlmon_unobserved_cpu_seconds_total",
    Kind.COUNTER,
    Unit.SECONDS,
    UNOBSERVED_LABELS,
    "User and system time of the workers seen so far, every five seconds: one that lives shorter"
    " may be missing.",
)
UNOBSERVED_READ_BYTES = Metric(
    "dlmon_unobserved_read_bytes_total",
    Kind.COUNTER,
    Unit.BYTES,
    UNOBSERVED_LABELS,
    "Read from storage by the workers seen so far; absent where the agent may not know it.",
)
UNOBSERVED_RESIDENT_MEMORY = Metric(
    "dlmon_unobserved_resident_memory_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    UNOBSERVED_LABELS,
    "RSS of the workers, summed: pages that they share count in each of them.",
)

# --- the memory of cgroups ---

CGROUP_MEMORY_LIMIT = Metric(
    "dlmon_cgroup_memory_limit_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    CGROUP_LABELS,
    "Memory limit of a cgroup that ranks are in: its own or that of one above it, whichever leaves"
    " the least room; absent without one.",
)
CGROUP_MEMORY_ROOM = Metric(
    "dlmon_cgroup_memory_room_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    CGROUP_LABELS,
    "What is left of that limit: the limit less anonymous and shared memory of all that it is for,"
    " other cgroups below it included; absent without one. 1 - room / limit is how full it is.",
)
CGROUP_MEMORY_WORKING_SET = Metric(
    "dlmon_cgroup_memory_working_set_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    CGROUP_LABELS,
    "Memory in use in the cgroup, less file pages that can be dropped at once.",
)
CGROUP_MEMORY_ANON = Metric(
    "dlmon_cgroup_memory_anon_bytes",
    Kind.GAUGE,
    Unit.BYTES,
    CGROUP_LABELS,
    "Anonymous and shared memory in the cgroup, /dev/shm included: what cannot be dropped. This is"
    " what meets a limit: page cache fills any.",
)
CGROUP_OOM_KILLS = Metric(
    "dlmon_cgroup_oom_kills_total",
    Kind.COUNTER,
    Unit.COUNT,
    CGROUP_LABELS,
    "Processes that the kernel killed in the cgroup because it was out of memory.",
)

# --- what is wrong ---

FINDING = Metric(
    "dlmon_finding",
    Kind.GAUGE,
    Unit.BOOLEAN,
    (*WORKER_LABELS, "finding", "severity"),
    "1 while a diagnosis holds: docs/findings.md has the list. A label that does not apply is"
    " empty; severity is fixed per finding.",
)

# --- the agent itself ---

AGENT_BUILD_INFO = Metric(
    "dlmon_agent_build_info",
    Kind.INFO,
    Unit.NONE,
    ("version", "python"),
    "Which dlmon and Python the agent is.",
)
AGENT_SNAPSHOT_AGE = Metric(
    "dlmon_agent_snapshot_age_seconds",
    Kind.GAUGE,
    Unit.SECONDS,
    (),
    "Age of what this page was made from: below the interval when all is well, growing for as long"
    " as the agent cannot look.",
)
AGENT_SNAPSHOT_DURATION = Metric(
    "dlmon_agent_snapshot_duration_seconds",
    Kind.GAUGE,
    Unit.SECONDS,
    (),
    "What making the last snapshot took; above the interval, snapshots are skipped.",
)
AGENT_SNAPSHOT_ERRORS = Metric(
    "dlmon_agent_snapshot_errors_total",
    Kind.COUNTER,
    Unit.COUNT,
    (),
    "Snapshots that failed: the last good one is served on and its age grows, or, where only a part"
    " of the agent failed which looks for trouble, what that would find is missing in a new one.",
)
AGENT_SEGMENTS = Metric(
    "dlmon_agent_segments",
    Kind.GAUGE,
    Unit.COUNT,
    (),
    "Segments read for the last snapshot.",
)
AGENT_SEGMENTS_REFUSED = Metric(
    "dlmon_agent_segments_refused_total",
    Kind.COUNTER,
    Unit.COUNT,
    ("reason",),
    "Files that were not read as segments, each counted once, by reason.",
    values=SegmentError.REASONS,
)
AGENT_STALE_READS = Metric(
    "dlmon_agent_stale_reads_total",
    Kind.COUNTER,
    Unit.COUNT,
    (),
    "Slots served from the last good read because their writer was in the middle of a change.",
)
AGENT_VALUES_CLAMPED = Metric(
    "dlmon_agent_values_clamped_total",
    Kind.COUNTER,
    Unit.COUNT,
    (),
    "Values held within their bounds or kept from going down.",
)
AGENT_SERIES_DROPPED = Metric(
    "dlmon_agent_series_dropped_total",
    Kind.COUNTER,
    Unit.COUNT,
    ("reason",),
    "What is missing in /metrics: series of a second subject whose cleaned labels equal another's"
    " (duplicate) and of workers' detail above the limit (series_limit), counted at every snapshot;"
    " whole loaders above a limit (rank) and segments (user), each counted once.",
    values=DROP_REASONS,
)

METRICS: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""Every metric, in the order of `/metrics` and of the documents."""


@functools.cache
def series_per(subject: Subject) -> int:
    """Count the most series that one subject has, those of what it contains not included."""
    return sum(metric.series for metric in METRICS if metric.subject is subject)
