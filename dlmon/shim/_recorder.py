"""Record what one iterator does to the loop: the phases of `dlmon.segment.phases`, batch by batch.

Runs in: rank. Every interval between two moments belongs to one phase; the cells say which is open
and since when, and hold the sums of the closed ones. A usual batch costs two clock readings and
eight stores and allocates nothing that stays. What is not usual (an iteration's first batch, its
end, another loader in between, an error) goes through the methods of `IteratorRecorder`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.segment.layout import ERRORS, LOOP, STATE_BITS, Phase
from dlmon.segment.writer import Segment
from dlmon.shim import _exits, _guard, _torch
from dlmon.shim._cells import (
    BATCHES_BEFORE,
    DISPATCHED,
    ENTERED,
    ERROR_CELLS,
    GAP,
    HOOKS,
    ITERATIONS,
    LAST_ITERATION,
    PHASE,
    RAISED,
    SHIM_ERRORS,
    STARTUPS,
    TIMEOUTS,
    WAIT_HISTOGRAM,
    WORKER_STARTS,
)
from dlmon.shim._fetch import FetchRecorder
from dlmon.shim._ledger import Ledger, Update
from dlmon.shim._torch_names import TORCHDATA

_GENERATION = layout.cell_index(0, "generation")
IN_WORKERS = sum(
    1 << layout.HOOKS.index(hook) for hook in ("worker_loop", "map_fetch", "iterable_fetch")
)
DISPATCH = 1 << layout.HOOKS.index("dispatch")


class IteratorRecorder(Ledger):
    """Writes the rank's slot of one segment for as long as one iterator uses it.

    Attributes:
        alive: A weak reference to the iterator.
        loader: A weak reference to the loader, to tell two of one name apart.
        name: The loader's name.
        info: What the segment says of its owner.
        fetch: The rank's own fetching, with num_workers=0.
        counts_dispatched, iterable: How the tasks dispatched can be counted.
        thread: The thread that iterates.
        released: The iterator will not use the segment again.
    """

    __slots__ = (
        "_first_reset",
        "_generation",
        "_in_next",
        "_paused",
        "_paused_by",
        "_persistent",
        "_raised",
        "_resumable",
        "_skipping",
        "alive",
        "counts_dispatched",
        "exits",
        "fetch",
        "info",
        "iterable",
        "loader",
        "name",
        "released",
        "thread",
    )

    def __init__(
        self,
        iterator: Any,
        loader: Any,
        name: str,
        segment: Segment,
    ) -> None:
        super().__init__(segment)
        self._generation = segment.cells[_GENERATION]
        self.alive = weakref.ref(iterator)
        self.loader = weakref.ref(loader)
        self.name = name
        multiprocess = segment.workers > 0
        self.counts_dispatched = multiprocess and bool(self.cells[HOOKS] & DISPATCH)
        self.iterable = _torch.iterable(loader)
        self._persistent = bool(getattr(loader, "persistent_workers", False))
        self.info: dict[str, Any] = {}
        self.fetch = None if multiprocess else FetchRecorder(segment, 0)
        self.exits = _exits.WorkerExits(segment, self.cells)
        self._raised = 0
        self._in_next = False
        self._resumable = _torch.family(iterator) == TORCHDATA
        self._skipping = False
        self._first_reset = multiprocess  # torch resets a multi-process iterator when made
        self._paused: list[IteratorRecorder] = []
        self._paused_by: IteratorRecorder | None = None
        self.thread = 0
        self.released = False

    def tell(self, info: dict[str, Any]) -> None:
        """Have the segment say this of its owner."""
        self.info = info
        with Update(self):
            self.segment.set_info(info)

    def begin(self, now: int, others: list[IteratorRecorder]) -> None:
        """Open an iteration at `now`; a gap of another loader in this thread becomes a pause."""
        self.thread = threading.get_ident()
        with Update(self) as cells:
            cells[ITERATIONS] += 1
            cells[BATCHES_BEFORE] = self.batches()
            cells[RAISED] = self._raised = 0
            cells[DISPATCHED] = 0
            cells[LAST_ITERATION] = now
            self.open(Phase.STARTUP, now)
        for other in others:
            if other is not self and other.thread == self.thread and other.in_gap():
                other.pause(now, self)
                self._paused.append(other)

    def reset(self, iterator: Any, now: int, others: list[IteratorRecorder]) -> None:
        """Open the next iteration of a living iterator; what was open before followed a `break`.

        The first reset is part of making a multi-process iterator: its workers have been started.
        """
        if self._first_reset:
            self._first_reset = False
            workers = getattr(iterator, "_workers", ())
            if any(isinstance(worker, threading.Thread) for worker in workers):
                self.cells[HOOKS] &= ~IN_WORKERS  # MONAI's: what they fetch is not recorded
            else:
                self.cells[WORKER_STARTS] += self.segment.workers
            return
        self._finish(now)
        self.begin(now, others)

    def in_gap(self) -> bool:
        """Return whether the loop has a batch of this iterator, and is not in `next()` for more."""
        in_next = self.looping and self.cells[ENTERED] > self.since
        return self.phase is Phase.STEP and not in_next

    def fetches_with(self, fetcher: Any) -> bool:
        """Return whether `fetcher` is this iterator's own, with num_workers=0."""
        if self.fetch is None or self.released:
            return False
        return getattr(self.alive(), "_dataset_fetcher", None) is fetcher

    def pause(self, now: int, by: IteratorRecorder) -> None:
        """Stop counting the open gap as step: `by` iterates in this thread."""
        with Update(self) as cells:
            self.gap += max(now - self.since, 1)  # not 0, which means that no gap is kept here
            cells[GAP] = self.gap
            self._paused_by = by
            self.open(Phase.PAUSE, now)

    def resume(self, now: int, by: IteratorRecorder) -> None:
        """Count the open gap as step again, if `by` is what paused it."""
        if self.phase is Phase.PAUSE and self._paused_by is by:
            with Update(self):
                self.add(Phase.PAUSE, now - self.since)
                self.open(Phase.STEP, now)

    def entered(self, iterator: Any, now: int) -> None:
        """Enter a `next()` that does not follow an unbroken step."""
        try:
            if self.phase is Phase.STARTUP:
                self._iterated_by(threading.get_ident())
                self._skipping = self._resumable and _torch.resuming()
                if self.counts_dispatched:
                    self.cells[DISPATCHED] = self._probe_dispatched(iterator)
            elif self.phase is not Phase.IDLE:
                with Update(self) as cells:
                    if self.phase is Phase.PAUSE:
                        self.add(Phase.PAUSE, now - self.since)
                    else:
                        self.gap += now - self.since
                        cells[GAP] = self.gap
                    self._paused_by = None
                    self.open(Phase.WAIT, now)
        except Exception:
            self.swallow()

    def delivered(self, iterator: Any, entered: int, now: int) -> None:
        """Record a delivery that is not the usual one after an unbroken step."""
        if self.phase is Phase.IDLE:
            return
        with Update(self, now) as cells:
            if self._skipping:
                self._raised += 1
                cells[RAISED] = self._raised
                return
            if self.phase is Phase.STARTUP:
                cells[STARTUPS] += 1
                self.add(Phase.STARTUP, now - self.since)
            else:
                self.close_gap(entered)
                self.add(Phase.WAIT, now - entered)
                self.count(self.waits, WAIT_HISTOGRAM, now - entered)
            if self.counts_dispatched:
                cells[DISPATCHED] = self.dispatched(iterator)
            self.phase, self.since, self.looping = Phase.STEP, now, True
            cells[PHASE] = now << STATE_BITS | LOOP

    def ended_by(self, iterator: Any, entered: int, error: BaseException) -> None:
        """Record a `next()` that raised: the iteration's end, or an error that reached the loop."""
        try:
            now = monotonic_ns()
            ended = isinstance(error, StopIteration)
            if self.phase is Phase.IDLE:
                return
            with Update(self):
                self._close_next(entered, now, ended)
                if not ended and isinstance(error, Exception):
                    self._count_error(iterator, error)
            if ended:
                self._finish(now)
                if not self._persistent:
                    self._release()
        except Exception:
            self.swallow()

    def shutting_down(self, original: Callable[[Any], Any], iterator: Any) -> Any:
        """Call torch's `_shutdown_workers` and record it as teardown."""
        if self.segment.cells[_GENERATION] != self._generation:
            return original(iterator)  # it is over, and another iterator has the segment by now
        try:
            self.exits.record(iterator)  # whoever has ended by now was not ended by torch
            self._tear_down(monotonic_ns())
        except Exception:
            self.swallow()
        try:
            return original(iterator)
        finally:
            try:
                self.exits.leave(iterator)
                if not self._in_next:  # else what `next()` raises will end the iteration
                    self.gone()
            except Exception:
                self.swallow()

    def gone(self) -> None:
        """Close whatever is open: the iterator does not exist any more, or has no workers."""
        self._finish(monotonic_ns())
        self._release()

    def forget(self) -> None:
        """Write nothing more: the cells are another process's."""
        self.looping, self.phase = False, Phase.IDLE

    def _release(self) -> None:
        self.released = True
        if self.fetch is not None:
            self.fetch.stop()

    def dispatched(self, iterator: Any) -> int:
        """Return how many tasks of this iteration were given to workers."""
        consumed = self.batches() - self.cells[BATCHES_BEFORE] + self._raised
        return _torch.dispatched(iterator, consumed)

    def swallow(self) -> None:
        """Count the exception being handled, and go on."""
        self.cells[SHIM_ERRORS] += 1
        _guard.swallow()

    def _iterated_by(self, thread: int) -> None:
        """Note which thread asks for batches; one that did not ask for the iterator reads ahead."""
        if thread != self.thread:
            self.thread = thread
            self.info["config"]["read_ahead"] = _torch.read_ahead("")
            self.segment.set_info(self.info)

    def _probe_dispatched(self, iterator: Any) -> int:
        """Return the tasks dispatched; stop counting them if this torch does not tell."""
        try:
            return self.dispatched(iterator)
        except AttributeError:
            self.counts_dispatched = False
            self.cells[HOOKS] &= ~DISPATCH
            return 0

    def _count_error(self, iterator: Any, error: Exception) -> None:
        cells = self.cells
        kind = _torch.error_kind(error)
        cells[ERROR_CELLS + ERRORS.index(kind)] += 1
        cells[TIMEOUTS] += kind == "timeout"
        self._raised += _torch.consumed_task(error)
        cells[RAISED] = self._raised
        if self.counts_dispatched:
            cells[DISPATCHED] = self.dispatched(iterator)
        self.exits.record(iterator)

    def _close_next(self, entered: int, now: int, ended: bool) -> None:
        """Close a `next()` that delivered nothing."""
        if self.phase is Phase.TEARDOWN or self.phase is Phase.STARTUP:
            self.add(self.phase, now - self.since)
        else:
            self.close_gap(entered)
            self.close_wait(now - entered, ended)
        self.open(Phase.IDLE if ended else Phase.STEP, now)
        if not ended:
            self.cells[GAP] = self.gap = 1  # not 0: this gap does not begin at a delivery

    def _tear_down(self, now: int) -> None:
        """Enter teardown, from within the `next()` that ends the iteration or after a `break`."""
        entered = self.cells[ENTERED] if self.looping else self.since
        self._in_next = entered > self.since if self.looping else self.phase is Phase.WAIT
        if self.phase is not Phase.IDLE:
            with Update(self):
                if self._in_next:
                    self.close_gap(entered)
                    self.close_wait(now - entered, ended=True)
                else:
                    self.close_broken(now)
                self.open(Phase.TEARDOWN, now)

    def _finish(self, now: int) -> None:
        """End the iteration, whatever is open, and let those go on that were paused for it."""
        if self.phase is not Phase.IDLE:
            with Update(self):
                self.close_broken(now)
                self.open(Phase.IDLE, now)
        paused, self._paused = self._paused, []
        for other in paused:
            other.resume(now, self)
