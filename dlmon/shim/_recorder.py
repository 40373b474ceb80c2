"""Record what one iterator does to the loop: the phases of `dlmon.segment.phases`, batch by batch.

Runs in: rank. Every interval between two moments belongs to one phase; `phase` says which is open
and since when, the sums hold the closed ones. A usual batch costs two clock readings and about a
dozen stores and allocates nothing that stays. What is not usual (an iteration's first batch, its
end, another loader in between, an error) goes through the slower methods below.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout, phases
from dlmon.segment.layout import ERRORS, STATE_BITS, Phase
from dlmon.segment.writer import Segment
from dlmon.shim import _exits, _guard, _torch
from dlmon.shim._fetch import FetchRecorder


def _at(name: str) -> int:
    return layout.FIELDS[layout.Scope.RANK][name].offset // layout.CELL


SEQUENCE = _at("sequence")
ITERATIONS = _at("iterations")
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
STARTUPS = _at("startups")
BATCHES = _at("batches")
BATCHES_BEFORE = _at("batches_before")
LAST_DELIVERY = _at("last_delivery_ns")
LAST_ITERATION = _at("last_iteration_ns")
DISPATCHED = _at("dispatched")
RAISED = _at("raised")
TIMEOUTS = _at("timeouts")
ERROR_CELLS = _at("errors")
WORKER_STARTS = _at("worker_starts")
HOOKS = _at("hooks")
SHIM_ERRORS = _at("shim_errors")
WAIT_HISTOGRAM = _at("wait_histogram")
STEP_HISTOGRAM = _at("step_histogram")

_WAIT = int(Phase.WAIT)
_STEP = int(Phase.STEP)

Next = Callable[[Any], Any]


class IteratorRecorder:
    """Writes the rank's slot of one segment for as long as one iterator uses it.

    Attributes:
        loader_id: id() of the loader, to tell two loaders of one name apart.
        name: The loader's name.
        segment: Where it writes.
        fetch: The rank's own fetching, with num_workers=0.
        alive: A weak reference to the iterator.
        phase: What is open.
        thread: The thread that iterates.
        released: The iterator will not use the segment again.
    """

    __slots__ = (
        "_batches",
        "_cells",
        "_count_dispatched",
        "_first_reset",
        "_gap",
        "_in_next",
        "_iterable",
        "_paused",
        "_paused_by",
        "_raised",
        "_sequence",
        "_since",
        "_step_ns",
        "_steps",
        "_wait_ns",
        "alive",
        "exits",
        "fetch",
        "loader_id",
        "name",
        "phase",
        "released",
        "segment",
        "thread",
    )

    def __init__(self, iterator: Any, loader: Any, name: str, segment: Segment) -> None:
        self.alive = weakref.ref(iterator)
        self.loader_id = id(loader)
        self.name = name
        self.segment = segment
        first = layout.cell_index(0, "lock")
        self._cells = cells = segment.cells[first : first + layout.RANK_SLOT_SIZE // layout.CELL]
        multiprocess = segment.workers > 0
        self._count_dispatched = multiprocess
        self._iterable = False
        self.fetch = None if multiprocess else FetchRecorder(segment, 0)
        self.exits = _exits.WorkerExits()
        self._sequence = cells[SEQUENCE] + (cells[SEQUENCE] & 1)
        self._batches = cells[BATCHES]
        self._wait_ns = cells[WAIT_NS]
        self._step_ns = cells[STEP_NS]
        self._steps = sum(cells[STEP_HISTOGRAM : STEP_HISTOGRAM + layout.HISTOGRAM_BUCKETS])
        self._gap = 0
        self._raised = 0
        self._since = 0
        self._in_next = False
        self._first_reset = multiprocess  # torch resets a multi-process iterator when made
        self._paused: list[IteratorRecorder] = []
        self._paused_by: IteratorRecorder | None = None
        self.phase = Phase.IDLE
        self.thread = 0
        self.released = False

    # ── per batch ────────────────────────────────────────────────────────────────────────────────

    def next(self, original: Next, iterator: Any) -> Any:
        """Call torch's `__next__` and record it; its result and exceptions are passed on."""
        entered = monotonic_ns()
        if self.phase is Phase.STEP and not self._gap:
            usual = True
            self._cells[PHASE] = entered << STATE_BITS | _WAIT
        elif self.released or self.phase is Phase.IDLE:
            return original(iterator)
        else:
            usual = False
            self._guarded(self._enter, iterator, entered)
        try:
            batch = original(iterator)
        except BaseException as error:
            self._guarded(self._ended_by, iterator, entered, error)
            raise
        try:
            now = monotonic_ns()
            step = entered - self._since
            if not usual or step > phases.PAUSE_FLOOR_NS:
                self._delivered(iterator, entered, now)
                return batch
            wait = now - entered
            cells = self._cells
            sequence = self._sequence
            cells[SEQUENCE] = sequence + 1
            self._wait_ns += wait
            cells[WAIT_NS] = self._wait_ns
            self._step_ns += step
            cells[STEP_NS] = self._step_ns
            self._steps += 1
            self._batches += 1
            cells[BATCHES] = self._batches
            cells[WAIT_HISTOGRAM + wait.bit_length()] += 1
            cells[STEP_HISTOGRAM + step.bit_length()] += 1
            cells[LAST_DELIVERY] = now
            cells[PHASE] = now << STATE_BITS | _STEP
            if self._count_dispatched:
                cells[DISPATCHED] = (
                    self._dispatched(iterator) if self._iterable else iterator._send_idx
                )
            self._since = now
            self._sequence = sequence = sequence + 2
            cells[SEQUENCE] = sequence
        except Exception:
            self._swallow()
        return batch

    # ── not per batch ────────────────────────────────────────────────────────────────────────────

    def begin(self, now: int, others: list[IteratorRecorder]) -> None:
        """Open an iteration at `now`; a gap of another loader in this thread becomes a pause."""
        self.thread = threading.get_ident()
        with _Update(self) as cells:
            cells[ITERATIONS] += 1
            cells[BATCHES_BEFORE] = self._batches
            cells[RAISED] = self._raised = 0
            cells[DISPATCHED] = 0
            cells[LAST_ITERATION] = now
            self._open(Phase.STARTUP, now)
        for other in others:
            if other is not self and other.thread == self.thread and other.phase is Phase.STEP:
                other.pause(now, self)
                self._paused.append(other)

    def reset(self, iterator: Any, now: int, others: list[IteratorRecorder]) -> None:
        """Open the next iteration of a living iterator; what was open before followed a `break`.

        The first reset is part of making a multi-process iterator: its workers have been started.
        """
        if self._first_reset:
            self._first_reset = False
            self._cells[WORKER_STARTS] += len(getattr(iterator, "_workers", ()))
            return
        if self.phase is not Phase.IDLE:
            with _Update(self):
                self._close_broken(now)
            self._finish(now)
        self.begin(now, others)

    def pause(self, now: int, by: IteratorRecorder) -> None:
        """Stop counting the open gap as step: `by` iterates in this thread."""
        with _Update(self) as cells:
            self._gap += max(now - self._since, 1)  # never 0: the reader then knows the gap is here
            cells[GAP] = self._gap
            self._paused_by = by
            self._open(Phase.PAUSE, now)

    def resume(self, now: int, by: IteratorRecorder) -> None:
        """Count the open gap as step again, if `by` is what paused it."""
        if self.phase is Phase.PAUSE and self._paused_by is by:
            with _Update(self) as cells:
                self._add(cells, Phase.PAUSE, now - self._since)
                self._open(Phase.STEP, now)

    def shutting_down(self, original: Next, iterator: Any) -> Any:
        """Call torch's `_shutdown_workers` and record it as teardown."""
        self._guarded(self._tear_down, monotonic_ns())
        try:
            return original(iterator)
        finally:
            self._guarded(self._torn_down, iterator, monotonic_ns())

    def gone(self) -> None:
        """Close whatever is open: the iterator does not exist any more."""
        now = monotonic_ns()
        if self.phase is not Phase.IDLE:
            with _Update(self):
                self._close_broken(now)
            self._finish(now)
        self.released = True

    def _enter(self, iterator: Any, entered: int) -> None:
        """Enter `next()` from anything but an open step without pauses."""
        if self.phase is Phase.STARTUP:
            self.thread = threading.get_ident()
            self._iterable = _torch.iterable(iterator)
            if self._count_dispatched:
                self._cells[DISPATCHED] = self._probe_dispatched(iterator)
            return
        with _Update(self) as cells:
            if self.phase is Phase.PAUSE:
                self._add(cells, Phase.PAUSE, entered - self._since)
            elif self.phase is Phase.STEP:
                self._gap += entered - self._since
                cells[GAP] = self._gap
            self._paused_by = None
            self._open(Phase.WAIT, entered)

    def _delivered(self, iterator: Any, entered: int, now: int) -> None:
        """Record a delivery that is not the usual one after an unbroken step."""
        with _Update(self) as cells:
            if self.phase is Phase.STARTUP:
                cells[STARTUPS] += 1
                self._add(cells, Phase.STARTUP, now - self._since)
            elif self.phase in (Phase.WAIT, Phase.STEP):
                self._close_gap(cells, entered)
                self._add(cells, Phase.WAIT, now - entered)
                cells[WAIT_HISTOGRAM + (now - entered).bit_length()] += 1
            else:
                return
            self._batches += 1
            cells[BATCHES] = self._batches
            cells[LAST_DELIVERY] = now
            self._open(Phase.STEP, now)
            if self._count_dispatched:
                cells[DISPATCHED] = self._dispatched(iterator)

    def _ended_by(self, iterator: Any, entered: int, error: BaseException) -> None:
        """Record a `next()` that raised: the iteration's end, or an error that reached the loop."""
        now = monotonic_ns()
        ended = isinstance(error, StopIteration)
        with _Update(self) as cells:
            self._close_next(cells, entered, now, ended)
            if not ended and isinstance(error, Exception):
                kind = _torch.error_kind(error)
                cells[ERROR_CELLS + ERRORS.index(kind)] += 1
                cells[TIMEOUTS] += kind == "timeout"
                self._raised += _torch.consumed_task(error)
                cells[RAISED] = self._raised
                if self._count_dispatched:
                    cells[DISPATCHED] = self._dispatched(iterator)
                self.exits.record(cells, iterator)
        if ended:
            self._finish(now)
            self.released = not getattr(iterator, "_persistent_workers", False)

    def _close_next(self, cells: memoryview[int], entered: int, now: int, ended: bool) -> None:
        """Close a `next()` that delivered nothing."""
        if self.phase is Phase.IDLE:
            return
        if self.phase is Phase.TEARDOWN:
            self._add(cells, Phase.TEARDOWN, now - self._since)
        elif self.phase is Phase.STARTUP:
            self._add(cells, Phase.STARTUP, now - self._since)
        else:
            self._close_gap(cells, entered)
            certain = phases.open_wait(now - entered) if ended else now - entered
            self._add(cells, Phase.WAIT, certain)
            self._add(cells, Phase.TEARDOWN, now - entered - certain)
        self._open(Phase.IDLE if ended else Phase.STEP, now)
        if not ended:
            cells[GAP] = self._gap = 1  # not 0: this gap does not begin at the last delivery

    def _tear_down(self, now: int) -> None:
        """Enter teardown, from within the `next()` that ends the iteration or after a `break`."""
        with _Update(self) as cells:
            state = cells[PHASE]
            entered = state >> STATE_BITS
            self._in_next = state & layout.STATE_MASK == _WAIT  # `phase` lags behind the cell
            if self._in_next:
                self._close_gap(cells, entered)
                certain = phases.open_wait(now - entered)
                self._add(cells, Phase.WAIT, certain)
                self._add(cells, Phase.TEARDOWN, now - entered - certain)
            elif self.phase is not Phase.IDLE:
                self._close_broken(now)
            else:
                return
            self._open(Phase.TEARDOWN, now)

    def _torn_down(self, iterator: Any, now: int) -> None:
        """Leave teardown; within a `next()` what that raises does."""
        with _Update(self) as cells:
            self.exits.record(cells, iterator)
        if not self._in_next:
            self.gone()

    def _close_gap(self, cells: memoryview[int], entered: int) -> None:
        """Close the gap that ended when `next()` was entered."""
        gap = self._gap or entered - self._since
        usual = phases.usual_step(self._step_ns, self._steps)
        step, pause = phases.split_gap(gap, usual)
        self._add(cells, Phase.STEP, step)
        self._add(cells, Phase.PAUSE, pause)
        if not pause:  # a checkpoint says nothing of the usual step
            self._steps += 1
            cells[STEP_HISTOGRAM + step.bit_length()] += 1
        cells[GAP] = self._gap = 0

    def _close_broken(self, now: int) -> None:
        """Close an open interval that no `next()` will end."""
        cells = self._cells
        if self.phase is Phase.STEP or self.phase is Phase.PAUSE:
            gap = self._gap
            if self.phase is Phase.PAUSE:
                self._add(cells, Phase.PAUSE, now - self._since)
            else:
                gap += now - self._since
            usual = phases.usual_step(self._step_ns, self._steps)
            step, pause = phases.split_broken_gap(gap, usual)
            self._add(cells, Phase.STEP, step)
            self._add(cells, Phase.PAUSE, pause)
            cells[GAP] = self._gap = 0
        elif self.phase is not Phase.IDLE:
            self._add(cells, self.phase, now - self._since)

    def _finish(self, now: int) -> None:
        """End the iteration: nothing is open, and who was paused for it goes on."""
        with _Update(self):
            self._open(Phase.IDLE, now)
        paused, self._paused = self._paused, []
        for other in paused:
            other.resume(now, self)

    def _open(self, phase: Phase, now: int) -> None:
        self.phase = phase
        self._since = now
        self._cells[PHASE] = now << STATE_BITS | phase

    def _add(self, cells: memoryview[int], phase: Phase, nanoseconds: int) -> None:
        if phase is Phase.WAIT:
            self._wait_ns += nanoseconds
        elif phase is Phase.STEP:
            self._step_ns += nanoseconds
        cells[SUMS[phase]] += nanoseconds

    def _probe_dispatched(self, iterator: Any) -> int:
        """Return the tasks dispatched; stop counting them if this torch does not tell."""
        try:
            return self._dispatched(iterator)
        except AttributeError:
            self._count_dispatched = False
            self._cells[HOOKS] &= ~(1 << layout.HOOKS.index("dispatch"))
            return 0

    def _dispatched(self, iterator: Any) -> int:
        consumed = self._batches - self._cells[BATCHES_BEFORE] + self._raised
        return _torch.dispatched(iterator, consumed)

    def _guarded(self, record: Callable[..., None], *args: Any) -> None:
        try:
            record(*args)
        except Exception:
            self._swallow()

    def _swallow(self) -> None:
        self._cells[SHIM_ERRORS] += 1
        _guard.swallow()


class _Update:
    """Keeps a slot's sequence odd while cells that must agree are written. Not to be nested."""

    __slots__ = ("_recorder",)

    def __init__(self, recorder: IteratorRecorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> memoryview[int]:
        recorder = self._recorder
        recorder._cells[SEQUENCE] = recorder._sequence + 1
        return recorder._cells

    def __exit__(self, *_: object) -> None:
        recorder = self._recorder
        recorder._sequence += 2
        recorder._cells[SEQUENCE] = recorder._sequence
