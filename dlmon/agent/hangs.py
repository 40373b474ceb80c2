"""Keeps the evidence of hangs: who was stuck where, with stacks, as long as the agent lives.

Stacks take seconds, so a thread takes them, one at a time; the clock's thread only says what
it found. Nothing is signalled, stopped or traced: see `dlmon.observe.stacks`.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from dlmon.agent.watch import Watcher
from dlmon.analysis import blame
from dlmon.analysis.hangs import Elsewhere
from dlmon.observe import kernel, stacks
from dlmon.observe.kernel import Doing
from dlmon.observe.snapshot import Finding, Loader, Rank, Snapshot, Worker
from dlmon.observe.stacks import Stack

KEPT = 100
"""Hangs that are remembered."""
SAMPLES = 3
SECONDS_BETWEEN = 1.0
WAITING = 256
"""Hangs that at most wait for being looked at."""
FOR_STACKS = 32
"""Of those places, the last are for hangs of which stacks are to be taken."""
_HOUR = 3600.0

logger = logging.getLogger(__name__)

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sighting:
    """What was seen of one process.

    Attributes:
        role: `rank`, or `worker` and its slot.
        pid: In the agent's pid namespace.
        doing: What the kernel says.
        stacks: Up to `SAMPLES`, a second apart; those that could not be taken say why.
    """

    role: str
    pid: int
    doing: Doing
    stacks: tuple[Stack, ...]


@dataclass(frozen=True, slots=True)
class Hang:
    """One hang.

    Attributes:
        finding: As it was when it was noticed.
        noticed: Unix time.
        ended: Unix time at which it no longer held, None while it does.
        fetch_index, fetch_samples: As in `Worker`, of the worker that hung.
        processes: The worker, if it is about one, then the rank; empty until they were looked at.
        trouble: Why there are no stacks, "" if there are some or there will be.
    """

    finding: Finding
    noticed: float
    ended: float | None = None
    fetch_index: int | None = None
    fetch_samples: int = 0
    processes: tuple[Sighting, ...] = ()
    trouble: str = ""


class Hangs:
    """Some hangs. Any thread reads and changes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hangs: dict[int, Hang] = {}
        self._count = 0

    def newest(self) -> tuple[Hang, ...]:
        """Return those that are kept, the newest first."""
        with self._lock:
            return tuple(reversed(self._hangs.values()))

    def some(self, numbers: Iterable[int]) -> list[Hang]:
        """Return those of some numbers that are still kept."""
        with self._lock:
            return [self._hangs[number] for number in numbers if number in self._hangs]

    def add(self, hang: Hang) -> int:
        """Keep one more and return its number; of too many the one goes that tells the least.

        One that has ended goes before one that is open, that before one with stacks, and the
        oldest of those first.
        """
        with self._lock:
            self._count += 1
            self._hangs[self._count] = hang
            if len(self._hangs) > KEPT:
                del self._hangs[min(self._hangs, key=self._worth)]
            return self._count

    def _worth(self, number: int) -> tuple[bool, bool, int]:
        hang = self._hangs[number]
        still = hang.ended is None
        return still, still and not hang.trouble, number

    def change(self, number: int, **changes: object) -> Hang | None:
        """Change what is known of one and return it, None if it is not kept any more."""
        with self._lock:
            if number not in self._hangs:
                return None
            changed: Hang = replace(self._hangs[number], **changes)  # type: ignore[arg-type]
            self._hangs[number] = changed
            return changed


class _Order:
    """A hang that is being looked at.

    Args:
        number: Of the hang.
        pids: Its processes, by role.
        with_stacks: Whether stacks are to be taken.
    """

    def __init__(self, number: int, pids: Mapping[str, int], *, with_stacks: bool) -> None:
        self.number = number
        self.with_stacks = with_stacks
        self._pids = pids
        self._doing: dict[str, Doing] = {}
        self._taken: dict[str, list[Stack]] = {role: [] for role in pids}
        self._samples = 0

    def sample(self) -> None:
        """Take one more stack of each process that may be looked into."""
        self._samples += 1
        for role, pid in self._pids.items():
            taken = self._taken[role]
            if not taken or not taken[-1].refused:
                taken.append(stacks.take(pid))

    def goes_on(self) -> bool:
        """Say if there is more to be sampled."""
        return self.with_stacks and self._samples < SAMPLES

    def sightings(self) -> tuple[Sighting, ...]:
        """Return what was seen so far."""
        for role, pid in self._pids.items():
            if role not in self._doing:
                self._doing[role] = kernel.doing(pid)
        return tuple(
            Sighting(role, pid, self._doing[role], tuple(self._taken[role]))
            for role, pid in self._pids.items()
        )


class Evidence:
    """A watcher that has another one look for hangs, and keeps what shows them."""

    def __init__(
        self,
        watcher: Callable[[Elsewhere], Watcher],
        hangs: Hangs,
        *,
        enabled: bool = True,
        per_hour: int = 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start no thread before there is a hang.

        Args:
            watcher: Makes what finds hangs, told how to ask if a loop is elsewhere than it seems.
            hangs: Where they are kept.
            enabled: Take stacks.
            per_hour: Of how many hangs an hour.
            clock: CLOCK_MONOTONIC in seconds.
        """
        self._watcher = watcher(self.elsewhere)
        self._hangs = hangs
        self._enabled = enabled
        self._per_hour = per_hour
        self._clock = clock
        self._taken: deque[float] = deque()
        self._open: dict[Key, int] = {}
        self._elsewhere: set[Key] = set()
        self._orders: queue.Queue[_Order] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Return what the watcher found, and begin to gather evidence of what is new in it."""
        snapshot, found = self._watcher.look(snapshot)
        now = {_key(finding): finding for finding in found}
        for key in self._open.keys() - now.keys():
            self._hangs.change(self._open.pop(key), ended=snapshot.time)
        for key in _in_turn([key for key in now if key not in self._open], self._open):
            self._open[key] = self._begin(now[key], snapshot)
        self._note_elsewhere(snapshot)
        return snapshot, found

    def elsewhere(self, rank: Rank, loader: Loader) -> bool:
        """Say if stacks have shown that a loop in `next()` is in its sampler."""
        return _delivery(rank, loader) in self._elsewhere

    def _note_elsewhere(self, snapshot: Snapshot) -> None:
        """Keep what stacks said of loops that have not gone on since."""
        still = {_delivery(r, one): r for r in snapshot.ranks for one in r.loaders}
        self._elsewhere &= still.keys()
        suspects = {key[1:4] for key in self._open if key[0] == "batch_not_handed_over"}
        for delivery, rank in still.items():
            if delivery[:3] in suspects and self._in_sampler(rank.pid):
                self._elsewhere.add(delivery)

    def _in_sampler(self, pid: int) -> bool:
        open_now = set(self._open.values())
        return any(
            seen.role == "rank" and seen.pid == pid and blame.asks_sampler(seen.stacks)
            for hang in self._hangs.some(open_now)
            for seen in hang.processes
        )

    def _begin(self, finding: Finding, snapshot: Snapshot) -> int:
        rank, worker = _about(finding, snapshot)
        hang = Hang(finding, snapshot.time)
        if worker is not None:
            hang = replace(hang, fetch_index=worker.fetch_index, fetch_samples=worker.fetch_samples)
        trouble = self._refusal()
        number = self._hangs.add(replace(hang, trouble=trouble))
        pids = {}
        if worker is not None and worker.pid is not None:
            pids[f"worker {worker.slot}"] = worker.pid
        if rank is not None and rank.visible:
            pids["rank"] = rank.pid
        if self._send(_Order(number, pids, with_stacks=not trouble)):
            if not trouble:
                self._taken.append(self._clock())
        elif not trouble:
            self._hangs.change(number, trouble="too many hangs at once")
        return number

    def _refusal(self) -> str:
        """Say why no stacks are to be taken of one more hang; "" if they are."""
        if not self._enabled:
            return "stacks are switched off (stacks.enabled)"
        now = self._clock()
        while self._taken and now - self._taken[0] >= _HOUR:
            self._taken.popleft()
        if len(self._taken) >= self._per_hour:
            return f"stacks of {self._per_hour} hangs were taken within the hour (stacks.per_hour)"
        return ""

    def _send(self, order: _Order) -> bool:
        """Have a hang looked at, and say if there was room for that."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dlmon-stacks", daemon=True)
            # A thread inherits what is blocked: signals are for the main thread.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                self._thread.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # Only this thread puts, so there is not less room when it does.
        if self._orders.qsize() >= WAITING - (0 if order.with_stacks else FOR_STACKS):
            return False
        self._orders.put_nowait(order)
        return True

    def _work(self) -> None:
        """Take one sample of each hang that is being looked at, then wait for the next second."""
        under_way: list[_Order] = []
        while True:
            began = time.monotonic()
            under_way += self._arrived(block=not under_way)
            under_way = [order for order in under_way if self._sampled(order)]
            if under_way:
                time.sleep(max(0.0, SECONDS_BETWEEN - (time.monotonic() - began)))

    def _arrived(self, *, block: bool) -> Iterable[_Order]:
        with suppress(queue.Empty):
            yield self._orders.get(block=block)
            while True:
                yield self._orders.get_nowait()

    def _sampled(self, order: _Order) -> bool:
        """Look once more at the processes of a hang, and say if that is to be done again."""
        try:
            if order.with_stacks:
                order.sample()
            sightings = order.sightings()
            hang = self._hangs.change(order.number, processes=sightings)
        except Exception:
            logger.exception("no evidence of a hang")
            self._hangs.change(order.number, trouble="the agent failed; see its log")
            return False
        if hang is None or order.goes_on():
            return hang is not None
        logger.warning("%s: %s", hang.finding.name, "; ".join(_lines(hang)))
        return False


def _lines(hang: Hang) -> Iterable[str]:
    """Say of each process of a hang in one line what it does, with its innermost frames."""
    for seen in hang.processes:
        known = [f"state {seen.doing.state}", seen.doing.syscall, seen.doing.wchan]
        what = ", ".join(part for part in known if part)
        yield f"{seen.role} (pid {seen.pid}, {what}) {blame.summary(seen.stacks) or hang.trouble}"


def _about(finding: Finding, snapshot: Snapshot) -> tuple[Rank | None, Worker | None]:
    """Return the rank and worker that a finding is about."""
    for rank in snapshot.ranks:
        if (rank.run, rank.rank) == (finding.run, finding.rank):
            found = [one for one in rank.loaders if one.name == finding.loader]
            return rank, _worker(found[0], finding.worker) if found else None
    return None, None


def _worker(loader: Loader, slot: str) -> Worker | None:
    return next((worker for worker in loader.workers if str(worker.slot) == slot), None)


def _key(finding: Finding) -> Key:
    return (finding.name, finding.run, finding.rank, finding.loader, finding.worker)


def _in_turn(new: Iterable[Key], known: Iterable[Key]) -> list[Key]:
    """Return the first of each loader, then the second of each, and so on; known ones count."""
    seen = Counter(key[1:4] for key in known)

    def turn(key: Key) -> int:
        seen[key[1:4]] += 1
        return seen[key[1:4]]

    return sorted(new, key=turn)


def _delivery(rank: Rank, loader: Loader) -> Key:
    """Return what differs once a loop has gone on."""
    counts = f"{rank.pid} {loader.epochs} {loader.batches}"
    return (rank.run, rank.rank, loader.name, counts)
