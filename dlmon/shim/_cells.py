"""Where cells are: the rank's from the start of its slot, a fetching process's within its group."""

from __future__ import annotations

from dlmon.segment import layout
from dlmon.segment.layout import Phase


def _at(name: str) -> int:
    return layout.FIELDS[layout.Scope.RANK][name].offset // layout.CELL


UPDATING = _at("updating")
UPDATED = _at("updated")
ENTERED = _at("entered_ns")
PHASE = _at("phase")
SUMS = {
    Phase.STARTUP: _at("startup_ns"),
    Phase.WAIT: _at("wait_ns"),
    Phase.STEP: _at("step_ns"),
    Phase.PAUSE: _at("pause_ns"),
    Phase.TEARDOWN: _at("teardown_ns"),
}
WAIT_NS = SUMS[Phase.WAIT]
STEP_NS = SUMS[Phase.STEP]
GAP = _at("gap_ns")
ITERATIONS = _at("iterations")
STARTUPS = _at("startups")
BATCHES_BEFORE = _at("batches_before")
LAST_DELIVERY = _at("last_delivery_ns")
LAST_ITERATION = _at("last_iteration_ns")
DISPATCHED = _at("dispatched")
RAISED = _at("raised")
TIMEOUTS = _at("timeouts")
ERROR_CELLS = _at("errors")
EXITS = _at("worker_exits")
LAST_ABNORMAL_EXIT = _at("last_abnormal_exit_ns")
WORKER_STARTS = _at("worker_starts")
HOOKS = _at("hooks")
SHIM_ERRORS = _at("shim_errors")
WAIT_HISTOGRAM = _at("wait_histogram")
STEP_HISTOGRAM = _at("step_histogram")


def _in_group(name: str) -> int:
    """Return where a field is within the fetch group, which is the same in either kind of slot."""
    fields = layout.FIELDS[layout.Scope.WORKER]
    return (fields[name].offset - fields["fetch_updating"].offset) // layout.CELL


FETCH_UPDATING = _in_group("fetch_updating")
FETCH_UPDATED = _in_group("fetch_updated")
FETCH_BEGUN = _in_group("fetch_begun")
FETCH_FAILED = _in_group("fetch_failed")
SAMPLES_EACH = _in_group("samples_each")
SAMPLES_BASE = _in_group("samples_base")
FETCH_NS = _in_group("fetch_ns")
FETCH_ITERATION = _in_group("fetch_iteration")
FETCHED_BEFORE = _in_group("fetched_before")
FAILED_BEFORE = _in_group("failed_before")
FETCH_HISTOGRAM = _in_group("fetch_histogram")
FETCH_INDEX = _in_group("fetch_index")
FETCH_CELLS = FETCH_INDEX + 1
