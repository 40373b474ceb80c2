"""Record what one fetching process does: a worker, or the rank itself with num_workers=0.

Runs in: worker, rank. Per fetch: two clock readings and nine stores; no allocation that outlives it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.segment.layout import STATE_BITS, Activity
from dlmon.shim import _guard
from dlmon.segment.writer import Segment

_FIELDS = layout.FIELDS[layout.Scope.WORKER]
_FIRST = _FIELDS["fetch_sequence"].offset


def _at(name: str) -> int:
    """Return where a field is within the fetch group, which is the same in either kind of slot."""
    return (_FIELDS[name].offset - _FIRST) // layout.CELL


SEQUENCE = _at("fetch_sequence")
STATE = _at("fetch_state")
FETCHED = _at("fetched")
FAILED = _at("fetch_failed")
SAMPLES = _at("samples")
FETCH_NS = _at("fetch_ns")
ITERATION = _at("fetch_iteration")
FETCHED_BEFORE = _at("fetched_before")
FAILED_BEFORE = _at("failed_before")
HISTOGRAM = _at("fetch_histogram")
_CELLS = HISTOGRAM + layout.HISTOGRAM_BUCKETS

_FETCHING = int(Activity.FETCHING)


class FetchRecorder:
    """Writes the fetch group of one slot.

    Attributes:
        fetcher: id() of torch's fetcher of the current iteration, 0 before the first.
    """

    __slots__ = (
        "_cells",
        "_collated",
        "_count",
        "_fetch_ns",
        "_fetched",
        "_iterations",
        "_iterations_at",
        "_samples",
        "_sequence",
        "fetcher",
    )

    def __init__(self, segment: Segment, slot: int) -> None:
        first = layout.cell_index(slot, "fetch_sequence")
        cells = segment.cells[first : first + _CELLS]
        self._cells = cells
        self._iterations = segment.cells
        self._iterations_at = layout.cell_index(0, "iterations")
        self._sequence = cells[SEQUENCE] + (cells[SEQUENCE] & 1)  # odd: its last writer was killed
        self._fetched = cells[FETCHED]
        self._samples = cells[SAMPLES]
        self._fetch_ns = cells[FETCH_NS]
        self._collated = 1
        self._count: Callable[[Any], int] | None = None
        self.fetcher = 0
        cells[STATE] = monotonic_ns() << STATE_BITS
        cells[SEQUENCE] = self._sequence

    def begin(self, fetcher: Any, index: Any) -> None:
        """Start a new iteration, in which `fetcher` fetches; `index` is its first argument."""
        self.fetcher = id(fetcher)
        cells = self._cells
        cells[SEQUENCE] = self._sequence + 1
        cells[ITERATION] = self._iterations[self._iterations_at]
        cells[FETCHED_BEFORE] = self._fetched
        cells[FAILED_BEFORE] = cells[FAILED]
        self._sequence += 2
        cells[SEQUENCE] = self._sequence
        self._choose_count(fetcher, index)

    def _choose_count(self, fetcher: Any, index: Any) -> None:
        """Choose how samples are counted: by the indices where each gives one, else at collate."""
        self._count = None
        self._collated = 1
        if not fetcher.auto_collation:
            return
        by_item = not hasattr(fetcher, "dataset_iter") and not getattr(
            fetcher.dataset, "__getitems__", None
        )
        if by_item and type(index) in (list, tuple):
            self._count = len
        else:
            fetcher.collate_fn = self._counting(fetcher.collate_fn)

    def _counting(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counting_collate(samples: Any) -> Any:
            try:
                self._collated = len(samples)
            except TypeError:
                self._collated = 0  # a collate_fn may be given something without a length
            return collate(samples)

        return counting_collate

    def fetch(self, original: Callable[[Any, Any], Any], fetcher: Any, index: Any) -> Any:
        """Call torch's fetch and record it; its result and exceptions are passed on."""
        begun = monotonic_ns()
        cells = self._cells
        cells[STATE] = begun << STATE_BITS | _FETCHING
        try:
            batch = original(fetcher, index)
        except StopIteration:
            self._end(begun, 0)
            raise
        except BaseException:
            self._end(begun, 1)
            raise
        try:
            count = self._count
            self._samples += count(index) if count else self._collated
            self._fetched += 1
            now = monotonic_ns()
            duration = now - begun
            self._fetch_ns += duration
            sequence = self._sequence
            cells[SEQUENCE] = sequence + 1
            cells[FETCHED] = self._fetched
            cells[SAMPLES] = self._samples
            cells[FETCH_NS] = self._fetch_ns
            cells[HISTOGRAM + duration.bit_length()] += 1
            cells[STATE] = now << STATE_BITS
            self._sequence = sequence = sequence + 2
            cells[SEQUENCE] = sequence
        except Exception:
            _guard.swallow()
        return batch

    def _end(self, begun: int, failed: int) -> None:
        """Record a fetch that gave no batch: it raised, or (failed 0) the dataset is at its end."""
        try:
            cells = self._cells
            now = monotonic_ns()
            self._fetch_ns += now - begun
            cells[SEQUENCE] = self._sequence + 1
            cells[FAILED] += failed
            cells[FETCH_NS] = self._fetch_ns
            cells[STATE] = now << STATE_BITS
            self._sequence += 2
            cells[SEQUENCE] = self._sequence
        except Exception:
            _guard.swallow()
