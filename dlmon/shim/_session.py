"""This process's part in a run: its identity, its segments and the iterators alive.

Runs in: rank, and any process that iterates a DataLoader. On failure: the iterator at hand runs
unobserved, and the user is told once.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic_ns
from typing import Any

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, locks, reader, writer
from dlmon.segment.writer import Segment
from dlmon.shim import _guard, _names, _run, _torch
from dlmon.shim._fetch import Fetch, FetchRecorder
from dlmon.shim._ledger import Update
from dlmon.shim._recorder import IteratorRecorder

MAX_SEGMENTS = 256
SHARE_OF_FILES = 16
"""A process has at most MAX_SEGMENTS segments, with two descriptors each, and no more than its soft
limit of open files divided by SHARE_OF_FILES; iterators beyond run unobserved."""

STALE_SECONDS = 3600
HALF_MADE_SECONDS = 60
_GENERATION = layout.cell_index(0, "generation")
_GOODBYE = layout.cell_index(0, "goodbye")
_HOOKS = layout.cell_index(0, "hooks")


class Session:
    """What `instrument()` decided, and everything that this process records.

    Attributes:
        hooks: Which of `layout.HOOKS` are in place, as bits.
        live: Recorders by id() of their iterator.
        worker: The recorder of the worker that this process is, if it is one.
        building: Per thread, (path, generation) for the workers of the iterator being made.
    """

    def __init__(self) -> None:
        self._chosen: dict[str, str] = {}
        self._identity: Mapping[str, Any] | None = None
        self.hooks = 0
        self.worker: FetchRecorder | None = None
        self.building = threading.local()
        self.live: dict[int, IteratorRecorder] = {}
        self._refused: dict[int, weakref.ref[Any]] = {}  # fetchers that nobody records, by id()
        self._directory: str | None = None
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
            self._identity = _run.identity(os.environ, self._chosen, _torch.version())
        return self._identity

    def forget(self) -> None:
        """Leave the parent's cells alone: this is a child made by fork."""
        self.pid = os.getpid()
        self.forget_fetchers()
        self.live.clear()
        self._refused.clear()
        self._segments: dict[tuple[str, int], dict[Segment, IteratorRecorder]] = {}
        self._lock = threading.Lock()
        self._building_thread = 0
        self._start_ticks = _run.start_ticks(self.pid)
        self.worker = None
        self._ends = False

    # ── iterators ────────────────────────────────────────────────────────────────────────────────

    def begin(self, iterator: Any, loader: Any) -> None:
        """Start recording an iterator that is being made."""
        now = monotonic_ns()
        for key, recorder in list(self.live.items()):
            if recorder.alive() is None:
                self.live.pop(key, None)
        self.live.pop(id(iterator), None)
        self.building.segment = None
        # A signal handler or finalizer may iterate while this thread is in here already, and what
        # holds another thread up in here may wait for this one: then this one goes unobserved.
        if self._building_thread == threading.get_ident() or not self._lock.acquire(timeout=1):
            return
        try:
            self._building_thread = threading.get_ident()
            taken = self._take(iterator, loader)
        finally:
            self._building_thread = 0
            self._lock.release()
        if taken is not None:
            key = id(iterator)
            taken.alive = weakref.ref(iterator, lambda _: self._gone(key, taken))
            self.live[key] = taken
            segment = taken.segment
            self.building.segment = (segment.path, segment.cells[_GENERATION])
            taken.begin(now, list(self.live.values()))

    def adopt_fetcher(self, original: Fetch, fetcher: Any, index: Any) -> bool:
        """Start recording a fetcher that is not recorded, and return whether that is done.

        In the rank it is an iterator's own, with num_workers=0; in a worker it is the one that
        torch's loop calls, and no other: a dataset may hold loaders that nobody records.
        """
        key = id(fetcher)
        if key in self._refused:
            return False
        try:
            recorder = None
            if sys._getframe(2).f_code.co_name == _torch.WORKER_LOOP:  # who called the hook
                recorder = self.worker
            else:
                for candidate in list(self.live.values()):
                    if candidate.fetches_with(fetcher):
                        recorder = candidate.fetch
            if recorder is not None:
                recorder.begin(original, fetcher, index)
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

    def _gone(self, key: int, recorder: IteratorRecorder) -> None:
        """Close the books of an iterator that was collected."""
        try:
            if self.live.get(key) is recorder and os.getpid() == self.pid:
                # A cycle's iterator is collected before it shuts its workers down: with workers it
                # stays known until it has, or until the next iterator is made.
                if recorder.fetch is not None:
                    del self.live[key]
                recorder.gone()
        except Exception:
            _guard.swallow()

    def shut_down(self, iterator: Any) -> None:
        """Forget an iterator whose workers have been shut down."""
        recorder = self.live.get(id(iterator))
        if recorder is not None and recorder.released:
            del self.live[id(iterator)]

    # ── segments ─────────────────────────────────────────────────────────────────────────────────

    def _take(self, iterator: Any, loader: Any) -> IteratorRecorder | None:
        """Find or make a segment for an iterator, and start its recorder."""
        workers = int(getattr(loader, "num_workers", 0))
        name = self._free_name(loader)
        info = {**self.identity, "loader": name, "pid": self.pid, "config": _torch.config(loader)}
        info.update(start_ticks=self._start_ticks, iterable=_torch.iterable(loader))
        used = self._segments.setdefault((name, workers), {})
        segment = self._recycle(used) or self._create(info, workers)
        if segment is None:
            return None
        segment.cells[_HOOKS] = self.hooks
        recorder = IteratorRecorder(iterator, loader, name, segment)
        with Update(recorder):
            segment.set_info(info)
        used[segment] = recorder
        return recorder

    @staticmethod
    def _recycle(used: Mapping[Segment, IteratorRecorder]) -> Segment | None:
        """Return a segment that nobody writes to any more, None if there is none."""
        for segment, user in used.items():
            if user.released:
                segment.cells[_GENERATION] += 1  # first: a worker compares after it took its byte
                if not segment.worker_held():
                    return segment
        return None

    def _free_name(self, loader: Any) -> str:
        """Return the loader's name, with #2, #3, … while another loader of that name iterates."""
        others = [r for r in list(self.live.values()) if r.loader_id != id(loader)]
        taken = {other.name for other in others if not other.released}
        base = _names.of(loader)
        name = _names.assigned(loader) or base
        number = 1
        while name in taken:
            number += 1
            name = f"{base}#{number}"
        _names.assign(loader, name)
        return name

    def _create(self, info: Mapping[str, Any], workers: int) -> Segment | None:
        files_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(MAX_SEGMENTS, files_limit // SHARE_OF_FILES)
        if sum(map(len, self._segments.values())) >= most:
            _guard.warn_once(
                f"{most} segments are in use, one for each loader and for each of its iterators "
                "at once; further ones are not observed"
            )
            return None
        try:
            if self._directory is None:
                self._directory = files.choose(self.identity["dir"])
                if f"{self.pid}-{self._start_ticks}" == self.identity["root"]:
                    remove_stale(self._directory)
            segment = writer.create(self._directory, info, workers)
        except SegmentError as error:
            _guard.warn_once(f"DataLoaders are not observed: {error}")
            return None
        if not self._ends:
            self._ends = True
            _at_end(self._end)
        segment.cells[_GENERATION] = 1
        return segment

    def _end(self) -> None:
        """Say goodbye in every segment, and remove those that no worker still uses."""
        if os.getpid() != self.pid:
            return
        for used in list(self._segments.values()):
            for segment in list(used):
                segment.cells[_GOODBYE] = 1
                if not segment.worker_held():
                    with suppress(OSError):
                        os.unlink(segment.path)


def _at_end(function: Callable[[], None]) -> None:
    """Call `function` when the process ends in order, after multiprocessing ended its children."""
    from multiprocessing import util  # torch has imported it

    util.Finalize(None, function, exitpriority=-1000)


def remove_stale(directory: str) -> None:
    """Remove this user's segments whose writers are all gone: ended in order, or long ago.

    Segments of this process are not opened: closing one again would drop its locks.
    """
    now = time.time()
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            half_made = entry.name.startswith(files.TEMPORARY_PREFIX)
            if not entry.name.endswith(layout.SUFFIX):
                continue
            with suppress(OSError, SegmentError):
                status = entry.stat(follow_symlinks=False)
                age = now - status.st_ctime
                if status.st_uid != os.getuid() or (status.st_dev, status.st_ino) in files.own:
                    continue
                if half_made:
                    if age > HALF_MADE_SECONDS and not _locked(entry.path):
                        os.unlink(entry.path)
                elif _unused(entry.path, age):
                    os.unlink(entry.path)


def _locked(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return locks.holder(fd, layout.slot_offset(0)) is not None
    finally:
        os.close(fd)


def _unused(path: str, age: float) -> bool:
    segment = reader.SegmentFile(path, owner=os.getuid())
    try:
        reading = segment.read(monotonic_ns())
    finally:
        segment.close()
    pid, began = reading.info.get("pid"), reading.info.get("start_ticks")
    lost_its_lock = isinstance(pid, int) and began and began == _run.start_ticks(pid)
    held = (reading.rank_holder, *reading.worker_holders)
    alive = lost_its_lock or any(holder is not None for holder in held)
    return not alive and (bool(reading.rank["goodbye"]) or age > STALE_SECONDS)
