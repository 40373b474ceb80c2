"""Where the rank's cells are, counted from the start of its slot."""

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
