"""Record what one fetching process does: a worker, or the rank itself with num_workers=0.

Runs in: worker, rank. A fetch costs two clock readings and five stores and allocates nothing that
outlives it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from dlmon.segment import layout
from dlmon.segment.writer import Segment
from dlmon.shim import _guard

if TYPE_CHECKING:
    from dlmon.shim._session import Session

_FIELDS = layout.FIELDS[layout.Scope.WORKER]
_FIRST = _FIELDS["fetch_updating"].offset


def _at(name: str) -> int:
    """Return where a field is within the fetch group, which is the same in either kind of slot."""
    return (_FIELDS[name].offset - _FIRST) // layout.CELL


UPDATING = _at("fetch_updating")
UPDATED = _at("fetch_updated")
BEGUN = _at("fetch_begun")
FAILED = _at("fetch_failed")
SAMPLES_EACH = _at("samples_each")
SAMPLES_BASE = _at("samples_base")
FETCH_NS = _at("fetch_ns")
ITERATION = _at("fetch_iteration")
FETCHED_BEFORE = _at("fetched_before")
FAILED_BEFORE = _at("failed_before")
HISTOGRAM = _at("fetch_histogram")
_CELLS = HISTOGRAM + layout.HISTOGRAM_BUCKETS

Fetch = Callable[[Any, Any], Any]


class FetchRecorder:
    """Writes the fetch group of one slot.

    It records the `fetch` of one of torch's fetchers at a time, by an attribute of that fetcher,
    which lives for one iteration: to find the recorder anew for each batch would be a quarter of
    the cost.

    Attributes:
        cells: The group.
        counts, each, fetch_ns: What `fetch_histogram`, `samples_each` and `fetch_ns` hold.
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
        "fetch_ns",
    )

    def __init__(self, segment: Segment, slot: int) -> None:
        first = layout.cell_index(slot, "fetch_updating")
        self.cells = cells = segment.cells[first : first + _CELLS]
        self._segment = segment.cells
        self._iterations_at = layout.cell_index(0, "iterations")
        self.counts = cells[HISTOGRAM:_CELLS].tolist()
        self.each = cells[SAMPLES_EACH]
        self.fetch_ns = cells[FETCH_NS]
        self.collated = 1
        self._fetcher: weakref.ref[Any] | None = None
        cells[UPDATING] = cells[UPDATED] = monotonic_ns()  # settled, even if its writer was killed

    def begin(self, original: Fetch, fetcher: Any, index: Any) -> None:
        """Start a new iteration, in which `fetcher` fetches; `index` is its first argument."""
        self.stop()
        cells = self.cells
        cells[UPDATING] = now = monotonic_ns()
        cells[ITERATION] = self._segment[self._iterations_at]
        cells[FETCHED_BEFORE] = sum(self.counts)
        cells[FAILED_BEFORE] = cells[FAILED]
        cells[UPDATED] = now
        self._fetcher = alive = weakref.ref(fetcher)
        fetcher.fetch = self._recording(original, alive, self._counts_by_index(fetcher, index))

    def stop(self) -> None:
        """Leave the fetcher as it was."""
        fetcher = self._fetcher() if self._fetcher is not None else None
        self._fetcher = None
        if fetcher is not None:
            vars(fetcher).pop("fetch", None)
            if isinstance(fetcher.collate_fn, CountingCollate):
                fetcher.collate_fn = fetcher.collate_fn.collate

    def _recording(
        self, original: Fetch, alive: Callable[[], Any], by_index: bool
    ) -> Callable[[Any], Any]:
        """Return a `fetch` for one fetcher, which it does not keep alive."""
        recorder, cells, counts = self, self.cells, self.counts

        def fetch(possibly_batched_index: Any) -> Any:
            cells[BEGUN] = begun = monotonic_ns()
            try:
                batch = original(alive(), possibly_batched_index)
            except BaseException as error:
                recorder.failed(begun, error)
                raise
            try:
                cells[UPDATING] = now = monotonic_ns()
                duration = now - begun
                each = len(possibly_batched_index) if by_index else recorder.collated
                if each != recorder.each:
                    recorder.resize(each)
                recorder.fetch_ns = fetch_ns = recorder.fetch_ns + duration
                cells[FETCH_NS] = fetch_ns
                bucket = duration.bit_length()
                counts[bucket] = count = counts[bucket] + 1
                cells[HISTOGRAM + bucket] = count
                cells[UPDATED] = now
            except Exception:
                _guard.swallow()
            return batch

        return fetch

    def failed(self, begun: int, error: BaseException) -> None:
        """Record a fetch that gave no batch: it raised, or the dataset is at its end."""
        try:
            now = monotonic_ns()
            cells = self.cells
            self.fetch_ns += now - begun
            cells[UPDATING] = now
            cells[FAILED] += not isinstance(error, StopIteration)
            cells[FETCH_NS] = self.fetch_ns
            cells[UPDATED] = now
        except Exception:
            _guard.swallow()

    def resize(self, each: int) -> None:
        """Have `each` samples in this batch and those after it; those before keep theirs."""
        before = sum(self.counts)
        self.cells[SAMPLES_BASE] += (self.each - each) * before
        self.cells[SAMPLES_EACH] = self.each = each

    def _counts_by_index(self, fetcher: Any, index: Any) -> bool:
        """Return whether a batch has as many samples as indices; else have them counted."""
        self.collated = 1
        if not fetcher.auto_collation:
            return False
        by_item = not hasattr(fetcher, "dataset_iter") and not getattr(
            fetcher.dataset, "__getitems__", None
        )
        if by_item and type(index) in (list, tuple):
            return True
        fetcher.collate_fn = CountingCollate(self, fetcher.collate_fn)
        return False


class CountingCollate:
    """A fetcher's `collate_fn` that tells a recorder how many samples it is given.

    Attributes:
        collate: The fetcher's own.
    """

    __slots__ = ("_recorder", "collate")

    def __init__(self, recorder: FetchRecorder, collate: Callable[[Any], Any]) -> None:
        self._recorder = recorder
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        """Count, and collate; what has no length counts as nothing."""
        try:
            self._recorder.collated = len(samples)
        except TypeError:
            self._recorder.collated = 0
        return self.collate(samples)


def hooked(session: Session, original: Fetch) -> Fetch:
    """Return what stands in for a fetcher class's `fetch`: the same, but recorded if it is ours."""

    @functools.wraps(original)
    def fetch(self: Any, possibly_batched_index: Any) -> Any:
        # What overrides or wraps this method would be bypassed: then nothing is recorded.
        direct = type(self).fetch is fetch
        if direct and session.adopt_fetcher(original, self, possibly_batched_index):
            return self.fetch(possibly_batched_index)  # from here on its own attribute
        return original(self, possibly_batched_index)

    return fetch
