"""Find the DataLoader workers of jobs that have no shim, by the name of their main thread.

torch 2.6 and newer name it `pt_data_worker`. A process has that name from its parent too until it
executes another program: what a worker has forked is no worker.

Some of /proc is read under a lock of the process that it is about, which one that is stuck may hold
for ever, and names of users may come from the network: a thread of its own does all of it, and what
it saw is told for a minute.

Runs in: agent. On failure: what cannot be read is left out, or None.
"""

from __future__ import annotations

import logging
import math
import os
import pwd
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from dlmon.observe import processes
from dlmon.observe.aside import Aside
from dlmon.observe.due import Due
from dlmon.observe.memory import Scanner
from dlmon.observe.parts import text
from dlmon.observe.snapshot import Unobserved, UnobservedWorker

LOOK_SECONDS = 5.0
"""From one look to the next."""

SETTLED_SECONDS = 8.0
"""How old a worker must be: who reads segments may not have seen those of a younger one yet, in a
container above all, which is looked for every five seconds."""

STALE_SECONDS = 60.0
"""What was found is told for so long: a look that takes longer is one that hangs."""

KEPT_GROUPS = 256
"""Of so many users and scripts the totals are kept while they have no worker."""

_UNTOLD_SECONDS = 0.1
_NAME = "pt_data_worker"
_WITH_ARGUMENT = "XW"  # options of python that take a word

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    """What does not change about a process that has a worker's name.

    Attributes:
        is_worker: False for what a worker has forked.
        first_parent: Another one later means that the first is gone.
        served: Forked by a forkserver, which is not who it works for.
    """

    start_ticks: int
    is_worker: bool
    first_parent: int
    served: bool
    group: tuple[str, str]
    cpu_seconds: float = 0.0
    read_bytes: int | None = None


@dataclass(slots=True)
class _Total:
    cpu_seconds: float = 0.0
    read_bytes: int | None = None

    def add(self, worker: _Worker) -> None:
        self.cpu_seconds += worker.cpu_seconds
        if worker.read_bytes is not None:
            self.read_bytes = (self.read_bytes or 0) + worker.read_bytes


class Finder:
    """Keeps looking for unobserved workers."""

    def __init__(
        self,
        look_seconds: float = LOOK_SECONDS,
        scanner: Scanner | None = None,
        scan: Callable[[], None] | None = None,
    ) -> None:
        """Prepare; nothing is looked for before `start`.

        Args:
            look_seconds: From one look to the next.
            scanner: Scans them for PSS and USS; None for neither.
            scan: Has the scanner run, elsewhere if no look is to wait for one that is stuck; None
                to run it in the thread that looks.
        """
        self._scanner = scanner
        self._scan = scan or (scanner.run if scanner else lambda: None)
        self._every = look_seconds
        self._due = Due()
        self._known: dict[int, _Worker] = {}
        self._ended: dict[tuple[str, str], _Total] = {}
        self._observed: frozenset[int] = frozenset()
        self._told = False
        self._found: tuple[float, tuple[Unobserved, ...]] = (-math.inf, ())
        self._failed = False
        self._aside = Aside("dlmon-unobserved", self._turn)

    def start(self, wait_seconds: float = 0.0) -> None:
        """Begin to look, and wait a moment for what is found first."""
        self._aside.start(wait_seconds)

    def close(self) -> None:
        """Look no more."""
        self._aside.close()

    def now(self, observed: Iterable[int]) -> tuple[Unobserved, ...]:
        """Return what was found last; nothing if that is too long ago.

        Args:
            observed: pids of the workers that are observed; told once, that is known of a process
                for as long as it lives.
        """
        self._observed = self._observed.union(observed)
        self._told = True
        when, found = self._found
        return found if time.monotonic() - when < STALE_SECONDS else ()

    def scan(self) -> tuple[Unobserved, ...]:
        """Look once."""
        due, pids = self._due.look(time.monotonic())
        observed = self._observed
        self._observed = observed & pids  # one told meanwhile is told again at the next tick
        for pid in self._known.keys() - pids:
            self._end(pid)
        candidates = {*self._known, *(pid for pid in due if _comm(pid) == _NAME)}
        found: dict[tuple[str, str], list[UnobservedWorker]] = defaultdict(list)
        for pid in sorted(candidates - observed):
            one = self._look_at(pid)
            if one is not None:
                found[self._known[pid].group].append(one)
        if self._scanner is not None:
            self._scanner.keep([worker.pid for group in found.values() for worker in group])
        self._scan()
        return self._groups(found)

    def _turn(self) -> float:
        if not self._told:  # or everybody would be unobserved at first
            return _UNTOLD_SECONDS
        began = time.monotonic()
        try:
            self._found = (began, self.scan())
        except Exception:
            self._found = (began, ())
            if not self._failed:
                self._failed = True
                logger.exception("the search for unobserved workers failed")
        return self._every

    def _end(self, pid: int) -> None:
        """Keep what a worker that is gone has used."""
        worker = self._known.pop(pid)
        if worker.is_worker:
            self._ended.setdefault(worker.group, _Total()).add(worker)

    def _look_at(self, pid: int) -> UnobservedWorker | None:
        sample = processes.sample(pid)
        known = self._known.get(pid)
        if known is not None and (sample is None or sample.start_ticks != known.start_ticks):
            self._end(pid)
            known = None
        if sample is None:
            return None
        started = sample.started(processes.booted())
        if started > time.time() - SETTLED_SECONDS:
            return None
        if known is None:
            known = self._known[pid] = _get_to_know(pid, sample)
        if not known.is_worker:
            return None
        parent, orphan = _parent(sample, served=known.served)
        orphan = orphan or sample.parent != known.first_parent
        known.cpu_seconds = sample.cpu_seconds
        known.read_bytes = _read_bytes(pid)
        scanned = None
        if self._scanner is not None and sample.status != "Z":
            process = (pid, sample.start_ticks)
            scanned = self._scanner.note(pid, process, sample.resident_bytes or 0)
        return UnobservedWorker(
            pid=pid,
            parent=None if orphan or not parent else parent,
            process_state=sample.status,
            started=started,
            cpu_seconds=sample.cpu_seconds,
            resident_bytes=None if sample.status == "Z" else sample.resident_bytes,
            read_bytes=known.read_bytes,
            orphan=orphan,
            proportional_bytes=scanned.rollup.proportional if scanned else None,
            unique_bytes=scanned.rollup.unique if scanned else None,
            scanned=scanned.time if scanned else None,
        )

    def _groups(
        self, found: Mapping[tuple[str, str], list[UnobservedWorker]]
    ) -> tuple[Unobserved, ...]:
        for group in [group for group in self._ended if group not in found][:-KEPT_GROUPS]:
            del self._ended[group]
        made = []
        for (user, script), workers in found.items():
            before = self._ended.get((user, script), _Total())
            total = _Total(before.cpu_seconds, before.read_bytes)
            for worker in workers:
                total.add(self._known[worker.pid])
            oldest_first = tuple(sorted(workers, key=lambda w: (w.started, w.pid)))
            made.append(Unobserved(user, script, oldest_first, total.cpu_seconds, total.read_bytes))
        return tuple(
            sorted(made, key=lambda group: (-len(group.workers), group.user, group.script))
        )


def _get_to_know(pid: int, sample: processes.Sample) -> _Worker:
    served = "multiprocessing.forkserver" in " ".join(_words(sample.parent)[-1:])
    parent, orphan = _parent(sample, served=served)
    script = "" if orphan or not parent else script_of(parent)
    return _Worker(
        start_ticks=sample.start_ticks,
        is_worker=_comm(sample.parent) != _NAME,
        first_parent=sample.parent,
        served=served,
        group=(_user(pid), script or script_of(pid)),  # a forked worker has its parent's words
    )


def _parent(worker: processes.Sample, *, served: bool) -> tuple[int, bool]:
    """Return the pid of a worker's training process, and whether it is an orphan instead.

    multiprocessing starts a worker in its parent's process group. A parent of another group is who
    takes in orphans: init, a container's first process, a user's service manager.
    """
    child, pid = worker, worker.parent
    if served and (server := processes.sample(pid)) is not None:
        child, pid = server, server.parent
    parent = processes.sample(pid)
    return pid, parent is not None and parent.group != child.group


def script_of(pid: int) -> str:
    """Return what a process runs, without its arguments; "" if that is not known."""
    words = _words(pid)
    if not words or not os.path.basename(words[0]).startswith(("python", "pypy")):
        return text(_comm(pid))  # a title of its own may have anything in it
    return text(_script(iter(words[1:])))


def _script(words: Iterator[str]) -> str:
    """Return what an interpreter with these arguments runs."""
    for word in words:
        if word == "-" or not word.startswith("-"):
            return os.path.basename(word)
        if word.startswith("--"):
            continue
        for i, letter in enumerate(word[1:], 2):
            if letter == "m":
                return f"-m {word[i:] or next(words, '')}"
            if letter == "c":
                return ""
            if letter in _WITH_ARGUMENT:
                if not word[i:]:
                    next(words, "")
                break
    return ""


def _words(pid: int) -> list[str]:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(65536).decode(errors="replace").split("\0")[:-1]
    return []


def _comm(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
        return file.read(64).decode(errors="replace").rstrip("\n")
    return ""


def _read_bytes(pid: int) -> int | None:
    with suppress(OSError, ValueError), open(f"/proc/{pid}/io", "rb") as file:
        for line in file:
            if line.startswith(b"read_bytes:"):
                return int(line.split()[1])
    return None


def _user(pid: int) -> str:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return ""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)
