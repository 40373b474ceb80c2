"""The series that agents expose, as they follow from what `/api/v1/snapshot` says."""

from __future__ import annotations

import operator
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from dlmon.catalog import BUCKET_EXPONENTS
from dlmon.observe.snapshot import WorkerState
from dlmon.segment.layout import Phase
from tests.dashboards.past import Row, Source
from tests.dashboards.relay import Look

Json = Mapping[str, Any]
Get = Callable[[Json], float | None]

PHASES = [phase.name.lower() for phase in Phase]
TIMED = [phase for phase in PHASES if phase != "idle"]
STATES = [state.name.lower() for state in WorkerState]


def _get(path: str) -> Get:
    """What is at a path of keys; what is not known is None."""

    def at(one: Json) -> float | None:
        for key in path.split("."):
            one = one[key]
        return one  # type: ignore[return-value]  # the path leads to a number

    return at


def _source(
    each: Callable[[Look], Iterable[tuple[dict[str, str], Json]]], get: str | Get
) -> Source:
    value = _get(get) if isinstance(get, str) else get
    return Source(lambda look: ((labels, value(one)) for labels, one in each(look)))


def _spread(
    each: Callable[[Look], Iterable[tuple[dict[str, str], Json]]],
    label: str,
    get: Callable[[Json], Mapping[str, float]],
) -> Source:
    """A series for each entry of what is got, by this label."""
    return Source(
        lambda look: (
            ({**labels, label: key}, value)
            for labels, one in each(look)
            for key, value in get(one).items()
        )
    )


# --- whom series are about ---


def _agent(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    yield {}, look.snapshot


def _ranks(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for rank in look.snapshot["ranks"]:
        yield {"run": rank["run"], "rank": rank["rank"]}, rank


def _loaders(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for labels, rank in _ranks(look):
        for loader in rank["loaders"]:
            yield {**labels, "loader": loader["name"]}, {**loader, "rank_up": rank["up"]}


def _loaders_of_living(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for labels, loader in _loaders(look):
        if loader["rank_up"]:
            yield labels, loader


def _workers(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for labels, loader in _loaders(look):
        yield from _workers_of(labels, loader)


def _workers_of_living(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for labels, loader in _loaders_of_living(look):
        yield from _workers_of(labels, loader)


def _workers_of(labels: dict[str, str], loader: Json) -> Iterator[tuple[dict[str, str], Json]]:
    for worker in loader["workers"]:
        yield {**labels, "worker": str(worker["slot"])}, worker


def _cgroups(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for path, memory in look.snapshot["cgroups"].items():
        yield {"cgroup": path}, memory


def _gpus(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    """Those that ranks compute on."""
    used = {uuid for rank in look.snapshot["ranks"] for uuid in rank["gpus"]}
    for gpu in look.snapshot["gpus"]:
        if gpu["uuid"] in used:
            yield {"gpu": gpu["index"], "uuid": gpu["uuid"]}, gpu


def _scripts(look: Look) -> Iterator[tuple[dict[str, str], Json]]:
    for group in look.snapshot["unobserved"]:
        yield {"user": group["user"], "script": group["script"]}, group


def _findings(look: Look) -> Iterator[Row]:
    for one in look.snapshot["findings"]:
        whom = {name: one[name] for name in ("run", "rank", "loader", "worker", "severity")}
        yield {**whom, "finding": one["name"]}, 1


# --- ranks ---

RANK_UP = _source(_ranks, "up")
RANK_CPU = _source(_ranks, "process.cpu_seconds")
RANK_RESIDENT = _source(_ranks, "process.resident_bytes")
RANK_CPUS = _source(_ranks, "process.cpus")
RANK_THROTTLED = _source(_ranks, "process.cpu_throttled_seconds")
RANK_ORPHANS = _source(_ranks, "orphan_workers")
SHM_SIZE = _source(_ranks, "process.shm_size_bytes")
SHM_USED = _source(_ranks, "process.shm_used_bytes")
OPEN_FDS = _source(_ranks, "process.open_fds")
MAX_FDS = _source(_ranks, "process.max_fds")
SHIM_ERRORS = _source(_ranks, "shim_errors")
HOOKS = _spread(_ranks, "hook", operator.itemgetter("hooks"))
RANK_GPUS = _spread(_ranks, "uuid", lambda rank: dict.fromkeys(rank["gpus"], 1))


def _rank_info(look: Look) -> Iterator[Row]:
    for labels, rank in _ranks(look):
        cgroup = rank["process"]["cgroup"] or ""
        yield {**labels, **rank["info"], "pid": str(rank["pid"]), "cgroup": cgroup}, 1


RANK_INFO = Source(_rank_info)

# --- loaders ---


def _buckets(name: str) -> Source:
    """How many durations were below each bound of a histogram."""

    def get(loader: Json) -> dict[str, float]:
        counts = loader[name]["counts"]
        below = {repr(2**e / 1e9): sum(counts[: e + 1]) for e in BUCKET_EXPONENTS}
        return {**below, "+Inf": sum(counts)}

    return _spread(_loaders, "le", get)


def _iterating(loader: Json) -> float | None:
    return loader["ready"] if loader["phase"] != "idle" else None


def _phase(loader: Json) -> float:
    return PHASES.index(loader["phase"])


LOADER_TIME = _spread(
    _loaders, "phase", lambda one: {phase: one["phase_seconds"].get(phase, 0) for phase in TIMED}
)
LOADER_PHASE = _source(_loaders, _phase)
PHASE_OF_LIVING = _source(_loaders_of_living, _phase)
BATCHES = _source(_loaders, "batches")
SAMPLES = _source(_loaders, "samples")
STARTUPS = _source(_loaders, "startups")
DISCARDED = _source(_loaders, "discarded")
TIMEOUTS = _source(_loaders, "timeouts")
READY = _source(_loaders, "ready")
READY_ITERATING = _source(_loaders_of_living, _iterating)
REORDER = _source(_loaders, "reorder")
OUTSTANDING = _source(_loaders, "outstanding")
CAPACITY = _source(_loaders, "capacity")
CAPACITY_OF_LIVING = _source(_loaders_of_living, "capacity")
LAST_EPOCH = _source(_loaders, "last_epoch")
WORKER_STARTS = _source(_loaders, "worker_starts")
ERRORS = _spread(_loaders, "error", operator.itemgetter("errors"))
ABNORMAL_EXITS = _spread(
    _loaders,
    "reason",
    lambda loader: {
        why: n for why, n in loader["worker_exits"].items() if why not in ("normal", "sigterm")
    },
)
FETCH_BUCKETS, WAIT_BUCKETS = _buckets("fetch"), _buckets("wait")
WAIT_SUM, STEP_SUM = _source(_loaders, "wait.sum_seconds"), _source(_loaders, "step.sum_seconds")
WAIT_COUNT = _source(_loaders, lambda loader: sum(loader["wait"]["counts"]))
STEP_COUNT = _source(_loaders, lambda loader: sum(loader["step"]["counts"]))
LOADER_INFO = Source(
    lambda look: (({**labels, **loader["config"]}, 1) for labels, loader in _loaders(look))
)

# --- workers ---

WORKER_UP = _source(_workers, "up")
WORKER_HUNG = _source(_workers, lambda one: None if one["up"] is None else one["hung"])
WORKER_STATE = _source(
    _workers, lambda one: None if one["state"] is None else STATES.index(one["state"])
)
PROGRESS_OF_BUSY = _source(
    _workers, lambda one: one["last_progress"] if one["state"] not in (None, "idle") else None
)
WORKER_BATCHES = _source(_workers, "batches")
WORKER_FETCHING = _source(_workers, "fetch_seconds")
FETCHING_OF_LIVING = _source(_workers_of_living, "fetch_seconds")
WORKER_CPU = _source(_workers, "cpu_seconds")
WORKER_RSS = _source(_workers, "resident_bytes")
WORKER_PSS = _source(_workers, "proportional_bytes")
WORKER_USS = _source(_workers, "unique_bytes")
WORKER_READ = _source(_workers, "read_bytes")
WORKER_FAULTS = _source(_workers, "major_faults")
WORKER_FDS = _source(_workers, "open_fds")

# --- what else there is on a node ---

CGROUP_LIMIT = _source(
    _cgroups,
    lambda one: (
        one["limit_bytes"] if one["binding_limit_bytes"] is None else one["binding_limit_bytes"]
    ),
)
CGROUP_ROOM = _source(_cgroups, "room_bytes")
CGROUP_ANON = _source(_cgroups, "anon_bytes")
CGROUP_WORKING_SET = _source(_cgroups, "working_set_bytes")
OOM_KILLS = _source(_cgroups, "oom_kills")

GPU_UTILIZATION = _source(_gpus, "utilization")
GPU_USED = _source(_gpus, "memory_used_bytes")
GPU_TOTAL = _source(_gpus, "memory_total_bytes")

_PROCESS_STATES = {"R": "running", "D": "blocked", "T": "stopped", "t": "stopped", "Z": "zombie"}


def _by_state(group: Json) -> dict[str, float]:
    seen = [_PROCESS_STATES.get(one["process_state"], "sleeping") for one in group["workers"]]
    return {state: seen.count(state) for state in {"sleeping", *_PROCESS_STATES.values()}}


def _resident(group: Json) -> float | None:
    known = [one["resident_bytes"] for one in group["workers"] if one["resident_bytes"] is not None]
    return sum(known) if known else None


SCRIPT_WORKERS = _spread(_scripts, "state", _by_state)
SCRIPT_ORPHANS = _source(_scripts, lambda group: sum(one["orphan"] for one in group["workers"]))
SCRIPT_RESIDENT = _source(_scripts, _resident)
SCRIPT_CPU = _source(_scripts, "cpu_seconds")
SCRIPT_READ = _source(_scripts, "read_bytes")

FINDINGS = Source(_findings)
FINDINGS_OR_NONE = Source(_findings, or_none=True)
"""Also those that are about no run, rank or loader, whatever is chosen."""

# --- agents ---

SEGMENTS = _source(_agent, "segments")
DURATION = _source(_agent, "duration_seconds")
STALE_READS = _source(_agent, "stale_reads_total")
CLAMPED = _source(_agent, "clamped_total")
REFUSED = _spread(_agent, "reason", operator.itemgetter("refused_total"))
LEFT_OUT = _spread(_agent, "reason", operator.itemgetter("dropped_total"))
BUILD = Source(
    lambda look: [
        (
            {
                "version": look.snapshot["agent"]["version"],
                "python": platform.python_version(),
            },
            1,
        )
    ]
)


def _of_page(name: str) -> Source:
    return Source(lambda look: [({}, look.page[name])])


# No snapshot has these: it has no age before it is asked for, and does not know of others.
AGE = _of_page("dlmon_agent_snapshot_age_seconds")
FAILED_LOOKS = _of_page("dlmon_agent_snapshot_errors_total")
