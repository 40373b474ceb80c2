"""The functions that stand in for torch's: the same, recorded.

They are in the stack between torch and its caller, and must not be noticed there. The name of this
file is for `warnings.warn(…, stacklevel=2)`, with which torch speaks to the line of the user's own
loop: it passes over frames of files whose name has both "importlib" and "_bootstrap" in it
(`warnings._is_internal_frame`, in CPython since 3.3).

Runs in: rank, worker. On failure: what torch returned or raised goes on to the caller.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from dlmon.segment import phases
from dlmon.segment.layout import NO_INDEX
from dlmon.shim import _guard, _names
from dlmon.shim._cells import (
    DISPATCHED,
    ENTERED,
    FETCH_BEGUN,
    FETCH_HISTOGRAM,
    FETCH_INDEX,
    FETCH_NS,
    FETCH_UPDATED,
    FETCH_UPDATING,
    STEP_HISTOGRAM,
    STEP_NS,
    UPDATED,
    UPDATING,
    WAIT_HISTOGRAM,
    WAIT_NS,
)
from dlmon.shim._torch_names import DYNAMO_DISABLE

if TYPE_CHECKING:
    from dlmon.shim._fetch import FetchRecorder
    from dlmon.shim._session import Session

_PAUSE_FLOOR = phases.PAUSE_FLOOR_NS

Fetch = Callable[[Any, Any], Any]


def hook_build(session: Session, original: Any) -> Any:
    @functools.wraps(original)  # Lightning asks for its parameters
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if session.open:
            try:
                _names.built(self, kwargs.get("dataset", next(iter(args), None)))
            except Exception:
                _guard.swallow()
        original(self, *args, **kwargs)

    return __init__


def hook_init(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
        if session.open:
            try:
                session.begin(self, loader)
            except Exception:
                _guard.swallow()
        original(self, loader, *args, **kwargs)
        session.assign(self)  # not before: a sampler may have iterated a loader meanwhile

    return __init__


def hook_reset(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def _reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = session.live.get(id(self))
        if recorder is not None:
            try:
                recorder.reset(self, monotonic_ns(), list(session.live.values()))
                session.building.segment = None
            except Exception:
                _guard.swallow()
        return original(self, *args, **kwargs)

    return _reset


def hook_shutdown(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def _shutdown_workers(self: Any) -> Any:
        recorder = session.live.get(id(self))
        if recorder is None:
            return original(self)
        try:
            return recorder.shutting_down(original, self)
        finally:
            session.shut_down(self)

    return _shutdown_workers


def hook_next(session: Session, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what stands in for torch's `__next__`: the same, recorded.

    A usual batch, one more after an unbroken step, is recorded here, all in one function, because
    a call more is a twentieth of what may be spent. Everything else is the recorder's.
    """
    recorder_of = session.live.get

    @functools.wraps(original)
    def __next__(self: Any) -> Any:
        recorder = recorder_of(id(self))
        if recorder is None:
            return original(self)
        entered = monotonic_ns()
        looping = recorder.looping
        if looping:
            recorder.cells[ENTERED] = entered
        else:
            recorder.entered(self, entered)
        try:
            batch = original(self)
        except BaseException as error:
            recorder.ended_by(self, entered, error)
            raise
        try:
            now = monotonic_ns()
            step = entered - recorder.since
            if not recorder.looping or step > _PAUSE_FLOOR:
                recorder.delivered(self, entered, now)
                return batch
            cells = recorder.cells
            cells[UPDATING] = now
            wait = now - entered
            recorder.wait_ns = wait_ns = recorder.wait_ns + wait
            cells[WAIT_NS] = wait_ns
            recorder.step_ns = step_ns = recorder.step_ns + step
            cells[STEP_NS] = step_ns
            bucket = wait.bit_length()
            waits = recorder.waits
            waits[bucket] = count = waits[bucket] + 1
            cells[WAIT_HISTOGRAM + bucket] = count
            bucket = step.bit_length()
            steps = recorder.steps
            steps[bucket] = count = steps[bucket] + 1
            cells[STEP_HISTOGRAM + bucket] = count
            if recorder.counts_dispatched:
                cells[DISPATCHED] = (
                    recorder.dispatched(self) if recorder.iterable else self._send_idx
                )
            recorder.since = now
            cells[UPDATED] = now
        except Exception:
            recorder.swallow()
        return batch

    return __next__


def hook_fetch(session: Session, original: Fetch, *, iterable: bool) -> Fetch:
    """Return what stands in for a fetcher class's `fetch`: the same, but recorded if it is ours."""

    @functools.wraps(original)
    def fetch(self: Any, possibly_batched_index: Any) -> Any:
        # What overrides or wraps this method would be bypassed: then nothing is recorded.
        direct = type(self).fetch is fetch
        if direct and session.adopt_fetcher(
            original, self, possibly_batched_index, iterable=iterable
        ):
            return self.fetch(possibly_batched_index)  # from here on its own attribute
        return original(self, possibly_batched_index)

    return fetch


def recorded_fetch(  # noqa: C901  # a call more is a tenth of what a fetch may cost
    recorder: FetchRecorder,
    original: Fetch,
    alive: Callable[[], Any],
    by_index: bool,
    indexed: bool,
) -> Callable[[Any], Any]:
    """Return the `fetch` of one fetcher, recorded.

    Args:
        recorder: Whose cells are written.
        original: The class's.
        alive: Returns the fetcher, which this does not keep alive.
        by_index: A batch has as many samples as indices.
        indexed: They are integers, as far as the first one tells.
    """
    cells, counts, total = recorder.cells, recorder.counts, recorder.cells[FETCH_NS]

    def fetch(possibly_batched_index: Any) -> Any:
        nonlocal by_index, indexed, total
        if by_index:
            try:
                if len(possibly_batched_index) != recorder.each:
                    recorder.resize(len(possibly_batched_index))
            except Exception:  # a batch sampler may give lists first and then iterators
                _guard.pass_on_a_signal_handlers()
                by_index = recorder.count_at_collate(alive())
        if indexed:
            try:
                cells[FETCH_INDEX] = possibly_batched_index[0]
            except Exception:  # a batch of another kind, an empty one, an index of 65 bits
                _guard.pass_on_a_signal_handlers()
                indexed = False
                cells[FETCH_INDEX] = NO_INDEX
        cells[FETCH_BEGUN] = begun = monotonic_ns()
        try:
            batch = original(alive(), possibly_batched_index)
        except BaseException as error:
            total = recorder.failed(begun, error)
            raise
        if recorder.stopped:  # by uninstrument() in another thread; or this is a child by now
            return batch
        try:
            cells[FETCH_UPDATING] = now = monotonic_ns()
            duration = now - begun
            if not by_index and recorder.collated != recorder.each:
                recorder.resize_within(recorder.collated)
            total += duration
            cells[FETCH_NS] = total
            bucket = duration.bit_length()
            counts[bucket] = count = counts[bucket] + 1
            cells[FETCH_HISTOGRAM + bucket] = count
            cells[FETCH_UPDATED] = now
        except Exception:
            _guard.swallow()
        return batch

    fetch.__dict__[DYNAMO_DISABLE] = True
    return fetch


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
        except Exception:  # whatever a lazy collection answers
            _guard.pass_on_a_signal_handlers()
            self._recorder.collated = 0
        return self.collate(samples)
