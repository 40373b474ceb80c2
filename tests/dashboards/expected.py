"""What every query of the dashboards must answer, as it follows from snapshots.

One entry a query, by the panel's title and the query's letter. `some` is what the query shows only
where there is any; the windows of rates are a minute, those of recording rules five.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dlmon.gen.rules import recording
from dlmon.gen.rules.recording import Recording
from tests.dashboards import sources as of
from tests.dashboards.past import (
    Labels,
    Moment,
    Series,
    Source,
    Term,
    at_most_1,
    both,
    changed,
    count,
    either,
    hours,
    increase,
    mean,
    median,
    most,
    over,
    quantile,
    rate,
    recorded,
    scaled,
    some,
    times,
    total,
    usually,
    where,
)

RANK = ("run", "rank")
LOADER = (*RANK, "loader")
WORKER = ("rank", "loader", "worker")
WHOM = ("severity", "run", "rank", "loader", "worker")
FIVE = 300

# --- what recording rules make ---

_WAIT, _LOOP = of.LOADER_TIME.only(phase="wait"), of.LOADER_TIME.only(phase="wait|step")


def _rate(source: Source, *by: str) -> Term:
    return total(rate(source, FIVE), *by)


_ACTIVE = most(
    count(
        where(of.PHASE_OF_LIVING, lambda phase: of.PHASES[round(phase)] in ("wait", "step")),
        *("instance", *RANK),
    ),
    *RANK,
)
_RANK_RATIO = at_most_1(
    over(times(_rate(_WAIT, *RANK), usually(_ACTIVE)), some(_rate(_LOOP, *RANK)))
)
_UTILIZATION = total(of.GPU_UTILIZATION, "uuid")
_RANK_UTILIZATION = mean(
    lambda moment: {
        labels: used
        for labels in total(of.RANK_GPUS, *RANK, "uuid")(moment)
        for uuid, used in _UTILIZATION(moment).items()
        if uuid <= labels
    },
    *RANK,
)
_WAITING_NOW = most(
    where(of.PHASE_OF_LIVING, lambda phase: of.PHASES[round(phase)] == "wait"), *RANK
)
_UTILIZATION_WAITING = usually(both(_RANK_UTILIZATION, _WAITING_NOW))
_WASTED = times(
    times(
        at_most_1(_rate(_WAIT, *RANK)),
        changed(either(_UTILIZATION_WAITING, usually(_RANK_UTILIZATION)), lambda used: 1 - used),
    ),
    count(of.RANK_GPUS, *RANK),  # of which none is shared here
)
_BATCHES = _rate(of.BATCHES, *RANK)

LOADER_RATIO = recorded(over(_rate(_WAIT, *LOADER), some(_rate(_LOOP, *LOADER))))
FILL = recorded(over(total(of.READY_ITERATING, *LOADER), total(of.CAPACITY_OF_LIVING, *LOADER)))
WORKERS_BUSY = recorded(
    at_most_1(
        over(
            over(_rate(of.WORKER_FETCHING, *LOADER), some(_rate(of.LOADER_TIME, *LOADER))),
            count(of.FETCHING_OF_LIVING, *LOADER),
        )
    )
)
RANK_RATIO = recorded(_RANK_RATIO)
RUN_RATIO = recorded(mean(_RANK_RATIO, "run"))
TO_MEDIAN = recorded(over(_RANK_RATIO, median(_RANK_RATIO, "run"), "run"))
BATCHES_TO_MEDIAN = recorded(over(_BATCHES, some(median(_BATCHES, "run")), "run"))
UTILIZATION = recorded(_RANK_UTILIZATION)
UTILIZATION_WAITING = recorded(_UTILIZATION_WAITING)
WASTED = recorded(_WASTED)
RUN_WASTED = recorded(total(_WASTED, "run"))


def _fetch(part: float) -> Term:
    return recorded(quantile(part, rate(of.FETCH_BUCKETS, FIVE), *LOADER))


# --- what only Prometheus knows ---


def _alerts(moment: Moment) -> Series:
    """Those that Prometheus has; that of the test fires for what the snapshot has found."""
    found: dict[Labels, float] = {}
    for labels in (*moment.alerts, *_examples(moment)):
        # An alert may be about many jobs of Prometheus': no dashboard asks for one's.
        if moment.chooses({**labels, "job": ""}, or_none=True):
            found[frozenset(labels.items())] = 1
    return found


def _examples(moment: Moment) -> Iterator[Mapping[str, str]]:
    alert = {"alertname": "DlmonExample", "alertstate": "firing", "severity": "warning"}
    for labels in of.FINDINGS(replace(moment, chosen={})):
        yield {**dict(labels), **alert}


def _firing(moment: Moment) -> Series:
    return {k: v for k, v in _alerts(moment).items() if ("alertstate", "firing") in k}


def _up(moment: Moment) -> Series:
    return {
        frozenset({("instance", instance)}): up
        for instance, up in moment.targets.items()
        if moment.chooses({"instance": instance, "job": "dlmon"})
    }


ALERTS = total(_alerts, *WHOM, "alertstate", "alertname", "instance")
MARKS = total(_firing, *WHOM, "alertname")
WRONG = total(of.FINDINGS_OR_NONE, *WHOM, "finding", "instance")

# --- what panels have in common ---

UP = total(of.RANK_UP)
CRITICAL = of.FINDINGS_OR_NONE.only(severity="critical")
SAMPLES, BATCHES = rate(of.SAMPLES), rate(of.BATCHES)
DEATHS = some(total(increase(of.ABNORMAL_EXITS), "reason"))
OF_LIMIT = changed(over(of.CGROUP_ROOM, of.CGROUP_LIMIT), lambda left: 1 - left)
TIME = total(rate(of.LOADER_TIME), "phase")


def _of_ranks(term: Term) -> Term:
    """What of cgroups is of those that the chosen ranks are in."""
    here = ("instance", "cgroup")
    return both(most(term, *here), count(of.RANK_INFO, *here))


def _killed(moment: Moment) -> Series:
    """OOM kills in cgroups that a chosen rank was in at one of the scrapes that count them."""
    here = ("instance", "cgroup")
    seen: Series = {
        frozenset(pair for pair in labels if pair[0] in here): 1.0
        for labels in of.RANK_INFO.points(moment, 60)
    }
    return both(most(increase(of.OOM_KILLS), *here), lambda _: seen)(moment)


def _mean_of(sums: Source, counts: Source) -> Term:
    return over(total(rate(sums), "loader"), total(rate(counts), "loader"))


def _named(rule: Recording, term: Term) -> Term:
    """What is asked for and not put together keeps its name; there are fewer runs than ten."""
    return lambda moment: {k | {("__name__", rule.name)}: v for k, v in term(moment).items()}


def _without_progress(moment: Moment) -> Series:
    last = most(of.PROGRESS_OF_BUSY, *WORKER)(moment)
    return {labels: moment.time / 1000 - time for labels, time in last.items()}


CLUSTER: dict[str, Term] = {
    "GPU-hours wasted/A": total(hours(RUN_WASTED)),
    "GPUs wasted now/A": total(RUN_WASTED),
    "Wait ratio/A": mean(RANK_RATIO),
    "Live runs/A": count(some(most(of.RANK_UP, "run"))),
    "Live ranks/A": UP,
    "Critical findings/A": count(CRITICAL),
    "Nodes/A": count(of.BUILD),
    "Runs/A": total(hours(RUN_WASTED), "run"),
    "Runs/B": total(hours(RANK_RATIO), "run"),
    "Runs/C": RUN_RATIO,
    "Runs/D": RUN_WASTED,
    "Runs/E": count(count(of.RANK_GPUS, "run", "uuid"), "run"),
    "Runs/F": total(of.RANK_UP, "run"),
    "Runs/G": count(where(of.RANK_UP, lambda up: not up), "run"),
    "Runs/H": count(of.FINDINGS, "run"),
    "Alerts/A": ALERTS,
    "Alerts/marks": MARKS,
    "What is wrong now/A": WRONG,
    "GPUs wasted, the ten worst runs/A": _named(recording.RUN_GPU_WASTED, RUN_WASTED),
    "Wait ratio, the ten worst runs/A": _named(recording.RUN_WAIT_RATIO, RUN_RATIO),
    "Workers that died/A": DEATHS,
    "Workers that died/B": some(total(_killed)),
    "Findings/A": count(of.FINDINGS_OR_NONE, "finding"),
    "Jobs that do not use dlmon/A": total(of.SCRIPT_WORKERS, "user", "script", "instance"),
    "Jobs that do not use dlmon/B": total(of.SCRIPT_ORPHANS, "user", "script", "instance"),
    "Jobs that do not use dlmon/C": total(of.SCRIPT_RESIDENT, "user", "script", "instance"),
}

RUN: dict[str, Term] = {
    "Wait ratio/A": mean(RANK_RATIO),
    "GPU-hours wasted/A": total(hours(WASTED)),
    "GPU utilisation/A": mean(UTILIZATION),
    "Samples per second/A": total(SAMPLES),
    "Ranks up/A": UP,
    "Findings/A": count(of.FINDINGS),
    "Ranks/A": most(of.RANK_UP, "rank", "instance"),
    "Ranks/B": most(RANK_RATIO, "rank"),
    "Ranks/C": most(TO_MEDIAN, "rank"),
    "Ranks/D": total(BATCHES, "rank"),
    "Ranks/E": most(BATCHES_TO_MEDIAN, "rank"),
    "Ranks/F": most(UTILIZATION, "rank"),
    "Ranks/G": most(UTILIZATION_WAITING, "rank"),
    "Ranks/H": most(WASTED, "rank"),
    "Ranks/I": total(of.WORKER_UP, "rank"),
    "Ranks/J": total(of.WORKER_HUNG, "rank"),
    "Ranks/K": total(rate(of.RANK_CPU), "rank"),
    "Ranks/L": total(of.RANK_RESIDENT, "rank"),
    "Who waits more than the others/A": most(TO_MEDIAN, "rank"),
    "Who is slower than the others/A": most(BATCHES_TO_MEDIAN, "rank"),
    "What each rank does/A": most(of.LOADER_PHASE, "rank", "loader"),
    "Wait ratio, and GPU utilisation over it/A": mean(RANK_RATIO),
    "Wait ratio, and GPU utilisation over it/B": mean(UTILIZATION),
    "Wait ratio, and GPU utilisation over it/C": mean(UTILIZATION_WAITING),
    "Wait ratio by rank/A": most(RANK_RATIO, "rank"),
    "Where the time goes/A": TIME,
    "GPU utilisation by rank/A": most(UTILIZATION, "rank"),
    "Alerts/A": ALERTS,
    "Alerts/marks": MARKS,
    "What is wrong now/A": WRONG,
    "Loaders/A": mean(LOADER_RATIO, "loader"),
    "Loaders/B": mean(FILL, "loader"),
    "Loaders/C": mean(WORKERS_BUSY, "loader"),
    "Loaders/D": most(_fetch(0.95), "loader"),
    "Loaders/E": total(BATCHES, "loader"),
    "Loaders/F": total(SAMPLES, "loader"),
    "CPUs used, against those granted/A": total(rate(of.RANK_CPU)),
    "CPUs used, against those granted/B": total(rate(of.WORKER_CPU)),
    "CPUs used, against those granted/C": total(of.RANK_CPUS),
    "Throttled/A": total(rate(of.RANK_THROTTLED), "rank"),
    "Memory/A": total(of.RANK_RESIDENT),
    "Memory/B": total(of.WORKER_PSS),
    "Memory of cgroups, of their limit/A": _of_ranks(OF_LIMIT),
    "/dev/shm in use/A": most(over(of.SHM_USED, of.SHM_SIZE), "rank"),
    "File descriptors in use/A": most(over(of.OPEN_FDS, of.MAX_FDS), "rank"),
    "What the shim could not observe/A": count(where(of.HOOKS, lambda on: not on), "hook"),
    "What the shim could not observe/B": some(total(rate(of.SHIM_ERRORS))),
    "Processes/A": most(
        of.RANK_INFO,
        *("rank", "instance", "pid", "user", "script", "python", "torch", "dlmon", "cgroup"),
    ),
}

LOADERS: dict[str, Term] = {
    "Wait ratio/A": over(total(rate(_WAIT)), some(total(rate(_LOOP)))),
    "Queue fill/A": mean(FILL),
    "Workers busy/A": mean(WORKERS_BUSY),
    "Batches per second/A": total(BATCHES),
    "Samples per second/A": total(SAMPLES),
    "Findings/A": count(of.FINDINGS),
    "Wait against step/A": TIME,
    "A batch: its wait and its step/A": _mean_of(of.WAIT_SUM, of.WAIT_COUNT),
    "A batch: its wait and its step/B": _mean_of(of.STEP_SUM, of.STEP_COUNT),
    "The prefetch queue, against its capacity/A": total(of.READY),
    "The prefetch queue, against its capacity/B": total(of.REORDER),
    "The prefetch queue, against its capacity/C": total(of.OUTSTANDING),
    "The prefetch queue, against its capacity/D": total(of.CAPACITY),
    "Wait ratio by loader/A": most(LOADER_RATIO, "rank", "loader"),
    "How long fetches take/A": total(increase(of.FETCH_BUCKETS), "le"),
    "How long the loop waits/A": total(increase(of.WAIT_BUCKETS), "le"),
    "Quantiles of fetching/A": most(_fetch(0.99)),
    "Quantiles of fetching/B": most(_fetch(0.95)),
    "Quantiles of fetching/C": most(_fetch(0.5)),
    "Fetch skew: a batch's time, by worker/A": over(
        total(rate(of.WORKER_FETCHING), *WORKER), some(total(rate(of.WORKER_BATCHES), *WORKER))
    ),
    "What each worker does/A": most(of.WORKER_STATE, *WORKER),
    "Time spent fetching/A": total(rate(of.WORKER_FETCHING), *WORKER),
    "Longest without progress/A": _without_progress,
    "RSS, PSS and USS of all workers/A": total(of.WORKER_RSS),
    "RSS, PSS and USS of all workers/B": total(of.WORKER_PSS),
    "RSS, PSS and USS of all workers/C": total(of.WORKER_USS),
    "USS by worker/A": most(of.WORKER_USS, *WORKER),
    "Alerts/A": ALERTS,
    "Alerts/marks": MARKS,
    "Epochs/marks": scaled(most(of.LAST_EPOCH, "rank", "loader"), 1000),
    "What is wrong now/A": WRONG,
    "Restarts and deaths of workers/A": total(increase(of.WORKER_STARTS)),
    "Restarts and deaths of workers/B": DEATHS,
    "Price of an iteration's start/A": over(
        total(rate(of.LOADER_TIME.only(phase="startup")), "loader"),
        some(total(rate(of.STARTUPS), "loader")),
    ),
    "Errors, timeouts, batches thrown away/A": some(total(increase(of.ERRORS), "error")),
    "Errors, timeouts, batches thrown away/B": some(total(increase(of.TIMEOUTS))),
    "Errors, timeouts, batches thrown away/C": some(total(increase(of.DISCARDED))),
    "CPUs/A": total(rate(of.WORKER_CPU), *WORKER),
    "Read from storage/A": total(rate(of.WORKER_READ), *WORKER),
    "Major page faults per second/A": total(rate(of.WORKER_FAULTS), *WORKER),
    "Open files/A": most(of.WORKER_FDS, *WORKER),
    "Loaders/A": most(
        of.LOADER_INFO,
        *("rank", "loader", "dataset", "num_workers", "prefetch_factor", "batch_size"),
        *("pin_memory", "persistent_workers", "start_method", "timeout_seconds", "in_order"),
        "read_ahead",
    ),
    "Loaders/B": total(of.WORKER_UP, "rank", "loader"),
}

NODE: dict[str, Term] = {
    "Agents/A": _up,
    "Age of what is shown/A": most(of.AGE),
    "Ranks/A": UP,
    "Workers/A": total(of.WORKER_UP),
    "Orphans/A": total(of.RANK_ORPHANS),
    "Runs/A": total(of.RANK_UP, "run", "instance"),
    "Runs/B": total(of.WORKER_UP, "run", "instance"),
    "Runs/C": total(of.RANK_ORPHANS, "run", "instance"),
    "What is wrong now/A": total(of.FINDINGS, *WHOM, "finding", "instance"),
    "GPU utilisation/A": most(of.GPU_UTILIZATION, "instance", "gpu", "uuid"),
    "GPU memory in use/A": most(over(of.GPU_USED, of.GPU_TOTAL), "instance", "gpu", "uuid"),
    "What cannot be dropped/A": most(of.CGROUP_ANON, "instance", "cgroup"),
    "Of the limit/A": most(OF_LIMIT, "instance", "cgroup"),
    "Working set, and OOM kills/A": most(of.CGROUP_WORKING_SET, "instance", "cgroup"),
    "Working set, and OOM kills/B": some(most(increase(of.OOM_KILLS), "instance", "cgroup")),
    "Snapshots: age and duration/A": most(of.AGE, "instance"),
    "Snapshots: age and duration/B": most(of.DURATION, "instance"),
    "Segments read/A": most(of.SEGMENTS, "instance"),
    "What agents could not show/A": some(total(increase(of.FAILED_LOOKS))),
    "What agents could not show/B": some(total(increase(of.REFUSED), "reason")),
    "What agents could not show/C": some(total(increase(of.LEFT_OUT), "reason")),
    "Values put right/A": total(rate(of.STALE_READS), "instance"),
    "Values put right/B": total(rate(of.CLAMPED), "instance"),
    "Versions/A": most(of.BUILD, "instance", "version", "python"),
    "Alerts/marks": MARKS,
    "Workers by state/A": total(of.SCRIPT_WORKERS, "state"),
    "Their CPUs/A": total(rate(of.SCRIPT_CPU), "user", "script"),
    "Their reads/A": total(rate(of.SCRIPT_READ), "user", "script"),
}

EXPECTED: dict[str, Term] = {
    f"dlmon-{board}/{name}": term
    for board, terms in (("cluster", CLUSTER), ("run", RUN), ("loader", LOADERS), ("node", NODE))
    for name, term in terms.items()
}
"""By `Query.name`."""

ONLY_PROMETHEUS_KNOWS = {name for name, term in EXPECTED.items() if term in (ALERTS, MARKS, _up)}
"""Queries for its alerts and targets, which are in no snapshot: what it says of them elsewhere."""
