"""Record what one fetching process does: a worker, or the rank itself with num_workers=0.

Runs in: worker, rank. A fetch costs two clock readings and six stores and allocates nothing that
outlives it.
"""

from __future__ import annotations

import weakref
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.segment.writer import Segment
from dlmon.shim import _guard
from dlmon.shim._cells import (
    FAILED_BEFORE,
    FETCH_CELLS,
    FETCH_FAILED,
    FETCH_HISTOGRAM,
    FETCH_INDEX,
    FETCH_ITERATION,
    FETCH_NS,
    FETCH_UPDATED,
    FETCH_UPDATING,
    FETCHED_BEFORE,
    SAMPLES_BASE,
    SAMPLES_EACH,
)
from dlmon.shim._importlib_bootstrap import CountingCollate, Fetch, recorded_fetch


class FetchRecorder:
    """Writes the fetch group of one slot.

    It records the `fetch` of one of torch's fetchers at a time, by an attribute of that fetcher,
    which lives for one iteration: to find the recorder anew for each batch would be a quarter of
    the cost.

    Attributes:
        cells: The group.
        counts, each: What `fetch_histogram` and `samples_each` hold.
        stopped: Nothing is to be written, though a fetch may be open.
        collated: Samples in the batch collated last; 1 without collation.
    """

    __slots__ = (
        "_fetcher",
        "_iterations_at",
        "_segment",
        "cells",
        "collated",
        "counts",
        "each",
        "stopped",
    )

    def __init__(self, segment: Segment, slot: int) -> None:
        first = layout.cell_index(slot, "fetch_updating")
        self.cells = cells = segment.cells[first : first + FETCH_CELLS]
        self._segment = segment.cells
        self._iterations_at = layout.cell_index(0, "iterations")
        self.counts = cells[FETCH_HISTOGRAM:FETCH_INDEX].tolist()
        self.each = cells[SAMPLES_EACH]
        self.collated = 1
        self.stopped = True
        self._fetcher: weakref.ref[Any] | None = None
        # Settled, even if its writer was killed.
        cells[FETCH_UPDATING] = cells[FETCH_UPDATED] = monotonic_ns()

    def begin(self, original: Fetch, fetcher: Any, index: Any, *, iterable: bool) -> None:
        """Start a new iteration, in which `fetcher` fetches.

        Args:
            original: Its class's `fetch`, without a hook.
            fetcher: One of torch's fetchers.
            index: The argument of its first fetch.
            iterable: Its dataset is.
        """
        self.stop()
        self.stopped = False
        cells = self.cells
        cells[FETCH_UPDATING] = now = monotonic_ns()
        cells[FETCH_ITERATION] = self._segment[self._iterations_at]
        cells[FETCHED_BEFORE] = sum(self.counts)
        cells[FAILED_BEFORE] = cells[FETCH_FAILED]
        cells[FETCH_UPDATED] = now
        self._fetcher = alive = weakref.ref(fetcher)
        cells[FETCH_INDEX] = layout.NO_INDEX
        by_index = self._counts_by_index(fetcher, index, iterable)
        indexed = bool(type(index) in (list, tuple) and index) and type(index[0]) is int
        fetcher.fetch = recorded_fetch(self, original, alive, by_index, indexed and not iterable)

    def stop(self) -> None:
        """Leave the fetcher as it was."""
        self.stopped = True
        fetcher = self._fetcher() if self._fetcher is not None else None
        self._fetcher = None
        if fetcher is not None:
            vars(fetcher).pop("fetch", None)
            if isinstance(fetcher.collate_fn, CountingCollate):
                fetcher.collate_fn = fetcher.collate_fn.collate

    def failed(self, begun: int, error: BaseException) -> int:
        """Record a fetch that gave no batch: it raised, or the dataset is at its end.

        Returns:
            What `fetch_ns` holds then.
        """
        cells = self.cells
        if self.stopped:
            return cells[FETCH_NS]
        try:
            cells[FETCH_UPDATING] = now = monotonic_ns()
            cells[FETCH_FAILED] += not isinstance(error, StopIteration)
            cells[FETCH_NS] += now - begun
            cells[FETCH_UPDATED] = now
        except Exception:
            _guard.swallow()
        return cells[FETCH_NS]

    def resize(self, each: int) -> None:
        """Have `each` samples in the batches from now on; those before keep theirs."""
        self.cells[FETCH_UPDATING] = now = monotonic_ns()
        self.resize_within(each)
        self.cells[FETCH_UPDATED] = now

    def resize_within(self, each: int) -> None:
        """Do so while the group is marked as changing."""
        self.cells[SAMPLES_BASE] += (self.each - each) * sum(self.counts)
        self.cells[SAMPLES_EACH] = self.each = each

    def _counts_by_index(self, fetcher: Any, index: Any, iterable: bool) -> bool:
        """Return whether a batch has as many samples as indices; else have them counted."""
        self.collated = 1
        if not fetcher.auto_collation:
            return False
        by_item = not iterable and not getattr(fetcher.dataset, "__getitems__", None)
        if by_item and type(index) in (list, tuple):
            return True
        return self.count_at_collate(fetcher)

    def count_at_collate(self, fetcher: Any) -> bool:
        """Have samples counted where they are collated; return False, for not by index."""
        fetcher.collate_fn = CountingCollate(self, fetcher.collate_fn)
        return False
