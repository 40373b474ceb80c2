"""What stands in for torch's `_worker_loop`, so that a worker knows its segment, however started.

torch passes `_worker_loop` to a Process as its target. With fork the child calls the stand-in it
inherited; with spawn and forkserver the stand-in is pickled, and becomes an `ObservedLoop` that
carries where to write. Neither depends on the environment, which a forkserver has from long ago.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dlmon.segment import layout
from dlmon.segment.writer import attach
from dlmon.shim import _guard, _patch, _run, _torch
from dlmon.shim._fetch import FetchRecorder
from dlmon.shim._session import Session

Assignment = tuple[str, int]
"""A segment's path and the generation it had when the iterator was made."""


class WorkerLoop:
    """Called in place of torch's `_worker_loop`, in the child.

    Runs in: worker (and pickled in the rank).
    """

    def __init__(self, module: str, original: Callable[..., Any], session: Session) -> None:
        functools.update_wrapper(self, original)  # not for pickle: `__reduce__` decides
        self._module = module
        self._original = original
        self._session = session

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run torch's loop, observed if this process is a worker of an observed iterator."""
        assignment = self._assignment()
        return _run_observed(self._session, assignment, self._original, args, kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if _patch.session() is not self._session:  # covered by another patch when taken out
            return _patch.original_worker_loop, (self._module,)
        return ObservedLoop, (self._module, dict(self._session.identity), self._assignment())

    def _assignment(self) -> Assignment | None:
        """Return what the iterator that this thread is making gave its workers."""
        if _patch.session() is not self._session:
            return None
        return getattr(self._session.building, "segment", None)


class ObservedLoop:
    """What a WorkerLoop becomes when it is pickled for a new interpreter.

    Runs in: worker. dlmon's hooks are put in place there first.
    """

    def __init__(
        self, module: str, identity: Mapping[str, Any], assignment: Assignment | None
    ) -> None:
        self._module = module
        self._identity = identity
        self._assignment = assignment

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run torch's loop, observed."""
        # What torch's own loop does when it is unpickled; the dataset need not have brought torch.
        importlib.import_module(self._module)
        session = None
        try:
            session = _patch.install()
            session.adopt(self._identity)
        except Exception:
            _guard.swallow()
        original = _patch.original_worker_loop(self._module)
        if session is None:
            return original(*args, **kwargs)
        return _run_observed(session, self._assignment, original, args, kwargs)


def _run_observed(
    session: Session,
    assignment: Assignment | None,
    original: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Run torch's loop as a writer of its worker's slot, or unobserved where that cannot be."""
    slot = None
    try:
        if assignment is not None and _is_worker(assignment):
            slot = _join(session, assignment, _torch.worker_id(original, args, kwargs))
    except Exception:
        _guard.swallow()
    result = original(*args, **kwargs)
    if slot is not None:  # an orderly end; the kernel gives the byte back after it
        slot[_at("goodbye_generation")] = slot[_at("attested_generation")]
    return result


def _is_worker(assignment: Assignment) -> bool:
    """Return whether this is a process of its own, in its main thread.

    Some libraries run `_worker_loop` in threads of the rank.
    """
    in_rank = os.path.basename(assignment[0]).startswith(f"{os.getpid()}-")
    return not in_rank and threading.current_thread() is threading.main_thread()


def _join(session: Session, assignment: Assignment, worker: int) -> memoryview[int] | None:
    """Take a worker's slot and return its cells, None if it is not this process's any more."""
    path, generation = assignment
    segment = attach(path, worker, generation)
    if segment is None:
        return None
    first = layout.cell_index(worker + 1, "lock")
    slot = segment.cells[first : first + layout.WORKER_SLOT_SIZE // layout.CELL]
    session.worker = FetchRecorder(segment, worker + 1)
    slot[_at("pid")] = os.getpid()
    slot[_at("start_ticks")] = _run.start_ticks(os.getpid())
    slot[_at("attested_generation")] = generation  # last: from here on the slot speaks for us
    return slot


def _at(name: str) -> int:
    return layout.FIELDS[layout.Scope.WORKER][name].offset // layout.CELL
