"""The books of one iterator: intervals are opened and closed, and each belongs to one phase.

Runs in: rank. The rules by which an interval is split are those of `dlmon.segment.phases`.
"""

from __future__ import annotations

from time import monotonic_ns

from dlmon.segment import layout, phases
from dlmon.segment.layout import STATE_BITS, Phase
from dlmon.segment.writer import Segment
from dlmon.shim._cells import (
    GAP,
    LAST_DELIVERY,
    PHASE,
    STARTUPS,
    STEP_HISTOGRAM,
    STEP_NS,
    SUMS,
    UPDATED,
    UPDATING,
    WAIT_HISTOGRAM,
    WAIT_NS,
)


class Ledger:
    """The rank's cells in one segment that say where the loop's time goes.

    Attributes:
        segment: Where it writes.
        cells: The rank's slot.
        phase, since: What is open, and since when.
        looping: What is open is the gap after a delivery, or the `next()` that ended it; `phase`
            is then Phase.STEP and `since` the delivery in either case.
        gap: Step time of the open gap before `since`; 0 if the gap began at a delivery.
        wait_ns, step_ns, waits, steps: What the cells of that name, and the histograms, hold.
    """

    __slots__ = (
        "cells",
        "gap",
        "looping",
        "phase",
        "segment",
        "since",
        "step_ns",
        "steps",
        "wait_ns",
        "waits",
    )

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        first = layout.cell_index(0, "lock")
        self.cells = cells = segment.cells[first : first + layout.RANK_SLOT_SIZE // layout.CELL]
        self.wait_ns = cells[WAIT_NS]
        self.step_ns = cells[STEP_NS]
        self.waits = cells[WAIT_HISTOGRAM : WAIT_HISTOGRAM + layout.HISTOGRAM_BUCKETS].tolist()
        self.steps = cells[STEP_HISTOGRAM : STEP_HISTOGRAM + layout.HISTOGRAM_BUCKETS].tolist()
        self.looping = False
        self.phase = Phase.IDLE
        self.since = 0
        self.gap = 0

    def open(self, phase: Phase, now: int) -> None:
        """Have `phase` open since `now`; what was open has been closed."""
        if self.looping:
            self.cells[LAST_DELIVERY] = self.since
            self.looping = False
        self.phase = phase
        self.since = now
        self.cells[PHASE] = now << STATE_BITS | phase

    def add(self, phase: Phase, nanoseconds: int) -> None:
        """Add a closed interval to a phase."""
        if phase is Phase.WAIT:
            self.wait_ns += nanoseconds
        elif phase is Phase.STEP:
            self.step_ns += nanoseconds
        self.cells[SUMS[phase]] += nanoseconds

    def count(self, counts: list[int], histogram: int, nanoseconds: int) -> None:
        """Count a duration in a histogram: the list that mirrors it, and its first cell."""
        bucket = nanoseconds.bit_length()
        counts[bucket] += 1
        self.cells[histogram + bucket] = counts[bucket]

    def batches(self) -> int:
        """Return the batches delivered, as `meaning.batches` does."""
        return self.cells[STARTUPS] + sum(self.waits)

    def usual_step(self) -> int | None:
        """Return the usual step in nanoseconds, None before the first."""
        return phases.usual_step(self.step_ns, sum(self.steps))

    def close_wait(self, wait: int, ended: bool) -> None:
        """Close the wait of a `next()` that delivered nothing.

        If it ended the iteration it was teardown, but for what may have been shown as wait already.
        """
        certain = phases.open_wait(wait) if ended else wait
        self.add(Phase.WAIT, certain)
        self.add(Phase.TEARDOWN, wait - certain)

    def close_gap(self, entered: int) -> None:
        """Close the gap that ended when `next()` was entered."""
        gap = self.gap or entered - self.since
        step, pause = phases.split_gap(gap, self.usual_step())
        self.add(Phase.STEP, step)
        self.add(Phase.PAUSE, pause)
        if not pause:  # a checkpoint says nothing of the usual step
            self.count(self.steps, STEP_HISTOGRAM, step)
        self.cells[GAP] = self.gap = 0

    def close_broken(self, now: int) -> None:
        """Close an open interval that no `next()` will end."""
        if self.phase is Phase.STEP or self.phase is Phase.PAUSE:
            gap = self.gap
            if self.phase is Phase.PAUSE:
                self.add(Phase.PAUSE, now - self.since)
            else:
                gap += now - self.since
            step, pause = phases.split_broken_gap(gap, self.usual_step())
            self.add(Phase.STEP, step)
            self.add(Phase.PAUSE, pause)
            self.cells[GAP] = self.gap = 0
        else:
            self.add(self.phase, now - self.since)


class Update:
    """Marks a slot's cells as changing while they do. Not to be nested."""

    __slots__ = ("_ledger", "_now")

    def __init__(self, ledger: Ledger, now: int = 0) -> None:
        self._ledger = ledger
        self._now = now or monotonic_ns()

    def __enter__(self) -> memoryview[int]:
        cells = self._ledger.cells
        cells[UPDATING] = self._now
        return cells

    def __exit__(self, *_: object) -> None:
        self._ledger.cells[UPDATED] = self._now
