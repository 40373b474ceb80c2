"""This process's part in a run: its identity, its segments and the iterators alive.

Runs in: rank, and any process that iterates a DataLoader. On failure: the iterator at hand runs
unobserved, and the user is told once.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Mapping
from time import monotonic_ns
from typing import Any

from dlmon.segment import layout
from dlmon.shim import _guard, _names, _others, _pool, _run, _torch
from dlmon.shim._fetch import FetchRecorder
from dlmon.shim._importlib_bootstrap import Fetch
from dlmon.shim._recorder import DISPATCH, IteratorRecorder
from dlmon.shim._torch_names import WORKER_LOOP

_GENERATION = layout.cell_index(0, "generation")
_HOOKS = layout.cell_index(0, "hooks")

LOCK_SECONDS = 1.0
"""How long an iterator waits for others to be begun before it goes unobserved: what holds a thread
up while it begins one may wait for this thread."""


class Session:
    """What `instrument()` decided, and everything that this process records.

    Attributes:
        open: The hooks are to record; once closed they pass through.
        hooks: Which of `layout.HOOKS` are in place, as bits, by `_torch.family`.
        live: Recorders by id() of their iterator.
        worker: The recorder of the worker that this process is, if it is one.
        building: Per thread, (path, generation) for the workers of the iterator being made.
    """

    def __init__(self) -> None:
        self._chosen: dict[str, str] = {}
        self._identity: Mapping[str, Any] | None = None
        self.open = False
        self.hooks: Mapping[str, int] = {}
        self.worker: FetchRecorder | None = None
        self.building = threading.local()
        self.live: dict[int, IteratorRecorder] = {}
        self._refused: dict[int, weakref.ref[Any]] = {}  # fetchers that nobody records, by id()
        self.forget()

    def choose(self, **chosen: str | None) -> None:
        """Say what run, rank or dir are, unless something was recorded; None leaves it open."""
        if self._identity is None:
            self._chosen.update({key: value for key, value in chosen.items() if value})

    def adopt(self, identity: Mapping[str, Any]) -> None:
        """Be part of the rank that started this process."""
        self._identity = identity

    @property
    def identity(self) -> Mapping[str, Any]:
        """Who this process is, decided when its first iterator is made.

        Not earlier: ranks started by `torch.multiprocessing.spawn` set RANK after importing torch.
        """
        if self._identity is None:
            identity = _run.identity(
                os.environ, self._chosen, _torch.version(), _torch.distributed()
            )
            if (root := _others.root_of_ancestor(identity)) is not None:
                if _run.is_multiprocessing_child():  # a part of that rank
                    identity["root"] = root
                else:  # a job of its own that a rank has started, and that inherited its name
                    identity["run"] = _run.within(identity["run"] or "")
            self._identity = identity
        return self._identity

    def forget(self) -> None:
        """Leave the parent's cells alone: this is a child made by fork."""
        self.pid = os.getpid()
        self.forget_fetchers()
        for recorder in list(self.live.values()):
            recorder.forget()  # its `next()` may be what forked
        self.live.clear()
        self._refused.clear()
        self._lock = threading.RLock()
        self._building_thread = 0
        self._start_ticks = _run.start_ticks(self.pid)
        self.worker = None

    # ── iterators ────────────────────────────────────────────────────────────────────────────────

    def begin(self, iterator: Any, loader: Any) -> None:
        """Start recording an iterator that is being made."""
        now = monotonic_ns()
        for key, recorder in list(self.live.items()):
            if recorder.alive() is None:
                self.live.pop(key, None)
        self.live.pop(id(iterator), None)
        self.building.segment = None
        me = threading.get_ident()
        if self._building_thread == me:
            return  # a signal handler or finalizer iterates while this thread is in here already
        lock, taken = self._lock, None
        try:
            if lock.acquire(timeout=LOCK_SECONDS):
                self._building_thread = me
                taken = self._take(iterator, loader)
        finally:
            # Asks nothing first: a signal handler may raise after any call, acquire() too.
            if self._building_thread == me:
                self._building_thread = 0
            try:
                while True:
                    lock.release()
            except RuntimeError:  # it is not, or no longer, this thread's
                _guard.pass_on_a_signal_handlers()
        if taken is not None:
            key = id(iterator)
            taken.alive = weakref.ref(iterator, lambda _: self._gone(key, taken))
            self.live[key] = taken
            taken.begin(now, list(self.live.values()))

    def assign(self, iterator: Any) -> None:
        """Say where the workers write that an iterator starts next."""
        self.building.segment = None
        if (recorder := self.live.get(id(iterator))) is not None:
            segment = recorder.segment
            self.building.segment = (segment.path, segment.cells[_GENERATION])

    def rename(self, loader: Any) -> None:
        """Have the living iterators of a loader say its name, which is new.

        One whose segment others had before it keeps their name: their counts are in it.
        """
        for recorder in list(self.live.values()):
            first = recorder.segment.cells[_GENERATION] == 1
            if recorder.loader() is loader and first and not recorder.released:
                before, recorder.name = recorder.info, self._name(loader)
                recorder.tell({**before, "loader": recorder.name})
                _pool.move(recorder, before, self.identity["dir"])

    def adopt_fetcher(self, original: Fetch, fetcher: Any, index: Any, *, iterable: bool) -> bool:
        """Start recording a fetcher that is not recorded, and return whether that is done.

        In the rank it is an iterator's own, with num_workers=0; in a worker it is the one that
        torch's loop calls, and no other: a dataset may hold loaders that nobody records.
        """
        key = id(fetcher)
        if key in self._refused:
            return False
        try:
            recorder = None
            if sys._getframe(2).f_code.co_name == WORKER_LOOP:  # who called the hook
                recorder = self.worker
            else:
                for candidate in list(self.live.values()):
                    if candidate.fetches_with(fetcher):
                        recorder = candidate.fetch
            if recorder is not None:
                recorder.begin(original, fetcher, index, iterable=iterable)
                return "fetch" in vars(fetcher)
            self._refused[key] = weakref.ref(fetcher, lambda _: self._refused.pop(key, None))
        except Exception:
            _guard.swallow()
        return False

    def forget_fetchers(self) -> None:
        """Stop recording every fetcher."""
        recorders = [recorder.fetch for recorder in list(self.live.values())]
        for recorder in (*recorders, self.worker):
            if recorder is not None:
                recorder.stop()

    def close(self) -> None:
        """Close the books of everything alive: it goes on unobserved."""
        self.open = False
        self.forget_fetchers()
        for recorder in list(self.live.values()):
            recorder.gone()
        self.live.clear()

    def _gone(self, key: int, recorder: IteratorRecorder) -> None:
        """Close the books of an iterator that was collected."""
        try:
            if self.live.get(key) is recorder and os.getpid() == self.pid:
                # A cycle's iterator is collected before it shuts its workers down: with workers it
                # stays known until it has, or until the next iterator is made.
                if recorder.fetch is not None:
                    self.live.pop(key, None)
                recorder.gone()
        except Exception:
            _guard.swallow()

    def shut_down(self, iterator: Any) -> None:
        """Forget an iterator whose workers have been shut down."""
        recorder = self.live.get(id(iterator))
        if recorder is not None and recorder.released:
            self.live.pop(id(iterator), None)

    # ── segments ─────────────────────────────────────────────────────────────────────────────────

    def _take(self, iterator: Any, loader: Any) -> IteratorRecorder | None:
        """Find or make a segment for an iterator, and start its recorder."""
        workers = int(getattr(loader, "num_workers", 0))
        name = self._name(loader)
        config = _torch.config(loader)
        config["read_ahead"] = _torch.read_ahead(_names.user_module())
        info = {**self.identity, "loader": name, "pid": self.pid, "config": config}
        info.update(start_ticks=self._start_ticks, iterable=_torch.iterable(loader))
        directory = self.identity["dir"]
        segment = _pool.take(info, directory, workers)
        if segment is None:
            return None
        hooks, before = self.hooks[_torch.family(iterator)], segment.cells[_HOOKS]
        # What was found out about dispatching in the last iteration still holds.
        segment.cells[_HOOKS] = hooks if not before or before & DISPATCH else hooks & ~DISPATCH
        recorder = IteratorRecorder(iterator, loader, name, segment)
        recorder.tell(info)
        _pool.use(segment, info, directory, recorder)
        return recorder

    def _name(self, loader: Any) -> str:
        """Return the loader's name, unlike those of other loaders that iterate."""
        others = [r for r in list(self.live.values()) if r.loader() is not loader]
        return _names.unique(loader, {other.name for other in others if not other.released})
