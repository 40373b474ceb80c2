"""Every recording rule: what dashboards and alerts ask for again and again, worked out once.

Names are `level:metric:operation`: the level says which labels are left. In `RECORDINGS` a rule
comes after those that it uses: Prometheus evaluates a group in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlmon import catalog
from dlmon.catalog import LOADER_LABELS, RANK_LABELS
from dlmon.gen.rules.promql import aggregated, buckets, rate
from dlmon.segment.layout import Phase

WINDOW = "5m"
"""Of all rates: 20 scrapes of 15 s, so that a missed one, or one slow batch, moves little."""

RUN_LABELS = ("run",)

_LIVING = f"and on (instance, run, rank) {catalog.RANK_UP.name} == 1"
"""Of ranks that live. The last phase, queue and workers of a dead one are shown for as long as it
is kept, also while its successor on another node has the same run and rank."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording rule.

    Attributes:
        name: Of the series that it makes.
        labels: What they have.
        expression: PromQL.
        meaning: What a value says, one or two sentences; also when there is none.
    """

    name: str
    labels: tuple[str, ...]
    expression: str
    meaning: str


def _time(labels: tuple[str, ...], phases: str) -> str:
    operator = "=~" if "|" in phases else "="
    matcher = f'phase{operator}"{phases}"'
    return aggregated("sum", labels, rate(catalog.LOADER_TIME, WINDOW, matcher))


def _quantile(quantile: float) -> Recording:
    summed = aggregated("sum", (*LOADER_LABELS, "le"), buckets(catalog.LOADER_FETCH, WINDOW))
    return Recording(
        f"loader:dlmon_fetch_seconds:p{quantile * 100:.0f}_rate{WINDOW}",
        LOADER_LABELS,
        # >= 0 drops what is not a number: no fetch, no time.
        f"histogram_quantile({quantile}, {summed}) >= 0",
        f"Seconds within which {quantile:.0%} of batches are fetched, accurate to a factor of two"
        " or better; none where nothing was fetched.",
    )


# --- waiting ---

LOADER_WAITING = Recording(
    f"loader:dlmon_wait:rate{WINDOW}",
    LOADER_LABELS,
    _time(LOADER_LABELS, "wait"),
    "Share of all time for which the loop was blocked in this loader's `next()`.",
)
LOADER_WAIT_RATIO = Recording(
    f"loader:dlmon_wait:ratio_rate{WINDOW}",
    LOADER_LABELS,
    f"{_time(LOADER_LABELS, 'wait')}\n/\n({_time(LOADER_LABELS, 'wait|step')} > 0)",
    "wait / (wait + step): 0 the data always was there, 1 the loop did nothing but wait. None while"
    " it does not iterate.",
)
LOADERS_ACTIVE = Recording(
    "rank:dlmon_loaders_active:count",
    RANK_LABELS,
    "max by (run, rank) (\n"
    "  count by (instance, run, rank) (\n"
    f"    ({catalog.LOADER_PHASE.name} == {Phase.WAIT.value}"
    f" or {catalog.LOADER_PHASE.name} == {Phase.STEP.value})\n"
    f"    {_LIVING}\n"
    "  )\n"
    ")",
    "Loaders of a rank in wait or step at this moment: 2 where two are zipped, 1 where one follows"
    " or pauses the other; none where there is none.",
)
RANK_WAITING = Recording(
    f"rank:dlmon_wait:rate{WINDOW}",
    RANK_LABELS,
    f"clamp_max({_time(RANK_LABELS, 'wait')}, 1)",
    "Share of all time for which a rank was blocked in `next()`, of whichever loader.",
)
RANK_WAIT_RATIO = Recording(
    f"rank:dlmon_wait:ratio_rate{WINDOW}",
    RANK_LABELS,
    "clamp_max(\n"
    f"  {_time(RANK_LABELS, 'wait')}\n"
    "  * on (run, rank)\n"
    f"  avg_over_time({LOADERS_ACTIVE.name}[{WINDOW}])\n"
    "  /\n"
    f"  ({_time(RANK_LABELS, 'wait|step')} > 0),\n"
    "  1\n"
    ")",
    "Time blocked in `next()` of any loader, of the time in which the rank iterates without a"
    " pause. The step of a zipped loader holds the other's wait, so that their wait + step are"
    " divided by how many are active at once, as seen by scrapes.",
)
RUN_WAIT_RATIO = Recording(
    f"run:dlmon_wait:ratio_rate{WINDOW}",
    RUN_LABELS,
    aggregated("avg", RUN_LABELS, RANK_WAIT_RATIO.name),
    "Mean wait ratio of a run's ranks.",
)
CLUSTER_WAIT_RATIO = Recording(
    f"cluster:dlmon_wait:ratio_rate{WINDOW}",
    (),
    f"avg({RANK_WAIT_RATIO.name})",
    "Mean wait ratio of all ranks.",
)

# --- GPUs ---

_RANKS_ON_GPUS = aggregated("max", (*RANK_LABELS, "uuid"), catalog.RANK_GPU_INFO.name)
_UTILIZATION = aggregated("max", ("uuid",), catalog.GPU_UTILIZATION.name)

RANK_GPUS = Recording(
    "rank:dlmon_gpus:count",
    RANK_LABELS,
    "sum by (run, rank) (\n"
    f"  ({_RANKS_ON_GPUS} and on (uuid) {catalog.GPU_UTILIZATION.name})\n"
    "  / on (uuid) group_left ()\n"
    f"  count by (uuid) ({_RANKS_ON_GPUS})\n"
    ")",
    "GPUs that a rank computes on and whose utilisation is known; one that n ranks share is 1/n.",
)
RANK_GPU_UTILIZATION_NOW = Recording(
    "rank:dlmon_gpu_utilization:ratio",
    RANK_LABELS,
    f"avg by (run, rank) (\n  {_RANKS_ON_GPUS}\n  * on (uuid) group_left ()\n  {_UTILIZATION}\n)",
    "Mean utilisation of a rank's GPUs now.",
)
RANK_GPU_UTILIZATION = Recording(
    f"rank:dlmon_gpu_utilization:avg{WINDOW}",
    RANK_LABELS,
    f"avg_over_time({RANK_GPU_UTILIZATION_NOW.name}[{WINDOW}])",
    "Mean utilisation of a rank's GPUs.",
)
RANK_GPU_UTILIZATION_WAITING_NOW = Recording(
    "rank:dlmon_gpu_utilization_waiting:ratio",
    RANK_LABELS,
    f"{RANK_GPU_UTILIZATION_NOW.name}\n"
    f"and on (run, rank) ({catalog.LOADER_PHASE.name} == {Phase.WAIT.value} {_LIVING})",
    "Mean utilisation of a rank's GPUs now, if it is blocked in `next()` now.",
)
RANK_GPU_UTILIZATION_WAITING = Recording(
    f"rank:dlmon_gpu_utilization_waiting:avg{WINDOW}",
    RANK_LABELS,
    f"avg_over_time({RANK_GPU_UTILIZATION_WAITING_NOW.name}[{WINDOW}])",
    "Mean utilisation of a rank's GPUs at those scrapes that found it blocked in `next()`; none"
    " where none did.",
)
RANK_GPU_WASTED = Recording(
    f"rank:dlmon_gpu_wasted:rate{WINDOW}",
    RANK_LABELS,
    f"{RANK_WAITING.name}\n"
    "* on (run, rank)\n"
    f"(1 - ({RANK_GPU_UTILIZATION_WAITING.name} or {RANK_GPU_UTILIZATION.name}))\n"
    "* on (run, rank)\n"
    f"{RANK_GPUS.name}",
    "GPUs that idle because a rank waits for data, in GPU-seconds per second: wait x (1 -"
    " utilisation while waiting) x GPUs. None without a GPU whose utilisation is known.",
)
RUN_GPU_WASTED = Recording(
    f"run:dlmon_gpu_wasted:rate{WINDOW}",
    RUN_LABELS,
    aggregated("sum", RUN_LABELS, RANK_GPU_WASTED.name),
    "The same of a run. Its average over an hour is GPU-hours per hour.",
)
CLUSTER_GPU_WASTED = Recording(
    f"cluster:dlmon_gpu_wasted:rate{WINDOW}",
    (),
    f"sum({RANK_GPU_WASTED.name})",
    "The same of all runs.",
)

# --- what a loader is capable of ---

LOADER_FILL = Recording(
    "loader:dlmon_fill:ratio",
    LOADER_LABELS,
    "sum by (run, rank, loader) (\n"
    f"  {catalog.LOADER_READY.name}\n"
    f"  and {catalog.LOADER_PHASE.name} > {Phase.IDLE.value}\n"
    f"  {_LIVING}\n"
    ")\n"
    "/\n"
    f"({aggregated('sum', LOADER_LABELS, f'{catalog.LOADER_CAPACITY.name} {_LIVING}')} > 0)",
    "ready / capacity: 0 the loop has to wait, 1 the loop is the slower side. None while it does"
    " not iterate, and without workers.",
)
LOADER_FETCH_P50 = _quantile(0.5)
LOADER_FETCH_P95 = _quantile(0.95)
LOADER_FETCH_P99 = _quantile(0.99)
_LIVING_WORKERS = f"{catalog.WORKER_FETCH_SECONDS.name} {_LIVING}"
LOADER_WORKER_UTILIZATION = Recording(
    f"loader:dlmon_worker_utilization:ratio_rate{WINDOW}",
    LOADER_LABELS,
    "clamp_max(\n"
    f"  {aggregated('sum', LOADER_LABELS, rate(catalog.WORKER_FETCH_SECONDS, WINDOW))}\n"
    "  / (\n"
    f"    ({aggregated('sum', LOADER_LABELS, rate(catalog.LOADER_TIME, WINDOW))} > 0)\n"
    f"    * {aggregated('count', LOADER_LABELS, _LIVING_WORKERS)}\n"
    "  ),\n"
    "  1\n"
    ")",
    "Share of the time from iter() on for which workers fetch: 1 they never rest. None while it"
    " does not iterate, without workers, and with `metrics.per_worker: off`.",
)

# --- ranks of a run, compared ---

RUN_WAIT_RATIO_MEDIAN = Recording(
    f"run:dlmon_wait:ratio_median{WINDOW}",
    RUN_LABELS,
    f"quantile by (run) (0.5, {RANK_WAIT_RATIO.name})",
    "Median wait ratio of a run's ranks.",
)
RANK_WAIT_TO_MEDIAN = Recording(
    f"rank:dlmon_wait:ratio_to_median{WINDOW}",
    RANK_LABELS,
    f"{RANK_WAIT_RATIO.name}\n/ on (run) group_left ()\n({RUN_WAIT_RATIO_MEDIAN.name} > 0)",
    "A rank's wait ratio by the median of its run: 3 it waits three times as much. None if the"
    " median rank does not wait at all.",
)
_BATCHES = aggregated("sum", RANK_LABELS, rate(catalog.LOADER_BATCHES, WINDOW))
RANK_BATCHES_TO_MEDIAN = Recording(
    f"rank:dlmon_batches:ratio_to_median{WINDOW}",
    RANK_LABELS,
    f"{_BATCHES}\n/ on (run) group_left ()\n(quantile by (run) (0.5, {_BATCHES}) > 0)",
    "A rank's batches per second by the median of its run: 0.5 it gets half as many. Near 1 where"
    " ranks go in step; the wait ratio then tells the slow one.",
)

RECORDINGS: tuple[Recording, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Recording)
)
"""Every recording rule, in the order in which they are evaluated."""
