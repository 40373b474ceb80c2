"""Who is hung, and in what: one finding for one cause.

A worker is judged by its oldest obligation, a loop by the phase it is in. Whoever waits for
somebody who is hung is not reported too: of a loader the workers are judged first, then the thread
that pins, then the loop, and of a run a rank's step only where no other rank keeps it waiting.
From when on something is hung: `dlmon.analysis.thresholds`; what time counts: `.stalls`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dlmon.analysis import thresholds
from dlmon.analysis.facts import STOPPED, LoaderFacts, WorkerFacts, halted
from dlmon.analysis.sizes import batch, duration
from dlmon.analysis.stalls import Lasted, Stalls
from dlmon.analysis.thresholds import Limits
from dlmon.observe.snapshot import Finding, Loader, Rank, Snapshot, Worker, WorkerState
from dlmon.segment.layout import Phase

NAMED_THREADS = (2, 6)
"""From this release of torch on the thread that pins has a name."""
_PIN_LOOKS = 30
_TOGETHER_SECONDS = 5.0

_NOTHING = Lasted()

PinThreads = Callable[[int], "int | None"]
Elsewhere = Callable[[Rank, Loader], bool]


def _nowhere(_rank: Rank, _loader: Loader) -> bool:
    return False


class HangWatcher:
    """Looks for whoever is hung."""

    def __init__(
        self,
        limits: Limits,
        *,
        interval: float = 1.0,
        pin_threads: PinThreads | None = None,
        elsewhere: Elsewhere = _nowhere,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Know nothing yet.

        Args:
            limits: What was configured.
            interval: Usual seconds between two looks.
            pin_threads: Counts the living threads of a process that pin memory; None if unreadable.
            elsewhere: Says if a loop in `next()` is known not to wait for a batch there.
            clock: CLOCK_MONOTONIC in seconds.
        """
        self._limits = limits
        self._interval = interval
        self._pin_threads = pin_threads
        self._elsewhere = elsewhere
        self._clock = clock
        self._stalls = Stalls()
        self._pinning: dict[int, tuple[bool, int]] = {}

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Return the snapshot with its hung workers marked, and who is hung in what."""
        self._stalls.look(self._clock(), self._interval)
        living = [rank for rank in snapshot.ranks if rank.up]
        self._pinning = {r.pid: self._pinning[r.pid] for r in living if r.pid in self._pinning}
        facts = [self._of_rank(rank, snapshot.time) for rank in living]
        stopped = [(r, s) for r, f, s in facts if halted(r)]
        running = [f for r, f, _ in facts if not halted(r)]
        found = [f for rank, s in stopped for f in _rank_stopped(rank, s, self._limits, snapshot)]
        found += hung(running, self._limits)
        return mark(snapshot, found), found

    def _of_rank(self, rank: Rank, now: float) -> tuple[Rank, list[LoaderFacts], Lasted]:
        key = (rank.run, rank.rank)
        frozen = halted(rank)
        stopped = Lasted()
        if frozen:
            stopped = self._stalls.lasted((*key, "stopped"), rank.pid)
        return rank, [self._of_loader(rank, one, now, frozen) for one in rank.loaders], stopped

    def _of_loader(self, rank: Rank, loader: Loader, now: float, frozen: bool) -> LoaderFacts:
        key = (rank.run, rank.rank, loader.name)
        phase = Lasted()
        if loader.phase_since is not None:
            marker = (rank.pid, loader.phase, loader.batches, loader.epochs)
            age = now - loader.phase_since
            phase = self._stalls.lasted((*key, "phase"), marker, age, frozen=frozen)
        workers = tuple(self._of_worker(key, loader, w, now, frozen) for w in loader.workers)
        elsewhere = self._elsewhere(rank, loader)
        facts = LoaderFacts(rank, loader, now, phase, workers, elsewhere=elsewhere)
        return replace(facts, pin_thread_dead=self._pin_thread_dead(facts))

    def _of_worker(
        self, loader_key: tuple[str, ...], loader: Loader, worker: Worker, now: float, frozen: bool
    ) -> WorkerFacts:
        nothing = _NOTHING
        if not worker.up or worker.orphan:
            return WorkerFacts(worker, nothing, nothing, nothing, nothing)
        key = (*loader_key, worker.slot)
        marker = (worker.pid, worker.batches, worker.failed)
        halted = worker.process_state in STOPPED
        stopped = self._stalls.lasted((*key, "stopped"), worker.pid) if halted else nothing
        frozen = frozen or halted
        in_kernel = worker.process_state == "D"
        fetching = owing = handing = nothing
        if worker.fetching_since is not None:
            fetching = self._stalls.lasted(
                (*key, "fetch"), marker, now - worker.fetching_since, frozen=frozen, flag=in_kernel
            )
        elif worker.owed:
            age = _idle_for(worker, loader, now)
            owing = self._stalls.lasted((*key, "owed"), marker, age, at_first=True, frozen=frozen)
        if worker.state is WorkerState.HANDING_OVER:
            handed = (*marker, loader.batches, loader.epochs)
            age = min(_idle_for(worker, loader, now), now - (loader.phase_since or now))
            handing = self._stalls.lasted((*key, "hand"), handed, age, frozen=frozen)
        return WorkerFacts(worker, fetching, owing, handing, stopped)

    def _pin_thread_dead(self, facts: LoaderFacts) -> bool:
        """Say whether a thread that pinned is gone; look for it only while that may matter."""
        loader, pid = facts.loader, facts.rank.pid
        if self._pin_threads is None or not facts.rank.visible:
            return False
        if not _pins(loader) or not _names_threads(facts.rank):
            return False
        seen, looks = self._pinning.get(pid, (False, 0))
        if not seen:
            if looks < _PIN_LOOKS and _in_use(loader):  # without an accelerator there never is one
                self._pinning[pid] = (bool(self._pin_threads(pid)), looks + 1)
            return False
        late = facts.phase.seconds > thresholds.of_fetch(loader, self._limits)
        if not (late and facts.waits and loader.ready > 0):
            return False
        expected = sum(_pins(one) and _in_use(one) for one in facts.rank.loaders)
        alive = self._pin_threads(pid)
        return alive is not None and alive < expected


def hung(ranks: Iterable[Sequence[LoaderFacts]], limits: Limits) -> list[Finding]:
    """Return what is found about ranks that run.

    Args:
        ranks: Of each rank, its loaders.
        limits: What was configured.
    """
    ranks = [facts for facts in ranks if facts]
    found = [finding for facts in ranks for one in facts for finding in _of_loader(one, limits)]
    runs: dict[str, list[Sequence[LoaderFacts]]] = {}
    for facts in ranks:
        runs.setdefault(facts[0].rank.run, []).append(facts)
    for members in runs.values():
        found += _of_run(members, limits)
    return found


def mark(snapshot: Snapshot, found: Iterable[Finding]) -> Snapshot:
    """Return a snapshot in which the workers that findings are about are hung."""
    about = {(f.run, f.rank, f.loader, f.worker) for f in found if f.worker}
    if not about:
        return snapshot
    ranks = tuple(
        replace(rank, loaders=tuple(_marked(rank, loader, about) for loader in rank.loaders))
        for rank in snapshot.ranks
    )
    return replace(snapshot, ranks=ranks)


def _marked(rank: Rank, loader: Loader, about: set[tuple[str, str, str, str]]) -> Loader:
    workers = tuple(
        _hung(w) if (rank.run, rank.rank, loader.name, str(w.slot)) in about else w
        for w in loader.workers
    )
    return replace(loader, workers=workers)


def _hung(worker: Worker) -> Worker:
    stopped = worker.state is WorkerState.STOPPED
    return replace(worker, hung=True, state=worker.state if stopped else WorkerState.HUNG)


def _of_loader(facts: LoaderFacts, limits: Limits) -> list[Finding]:
    """Judge the workers, else the thread that pins, else the loop."""
    if facts.pin_thread_dead:
        text = "the thread that pins batches is gone, and the loop waits"
        limit = thresholds.of_fetch(facts.loader, limits)
        return [_finding("pin_memory_thread_dead", facts.phase, text, facts, limit=limit)]
    # Nearly all are below the floor: no threshold is to be made for them.
    late = [worker for worker in facts.workers if worker.longest > limits.floor]
    found = [f for worker in late for f in _of_worker(worker, facts, limits)]
    if found and (
        facts.elsewhere
        or any(w.worker.up is False or w.worker.process_state in STOPPED for w in facts.workers)
    ):
        # Who was stopped or killed may hold the lock of the queue that all of them write to.
        found = [f for f in found if f.name != "batch_not_handed_over"]
    return _without_the_held(found, facts) or _of_next(facts, limits)


def _without_the_held(found: list[Finding], facts: LoaderFacts) -> list[Finding]:
    """Leave out batches on their way for no longer than another worker's fetch is open.

    That worker may hold the interpreter, and with it the lock of the queue that all write to.
    """
    if not found:
        return found
    fetching = max((one.fetching.seconds for one in facts.workers), default=0.0)
    if not fetching:
        return found
    own = {str(one.worker.slot): one.handing.seconds for one in facts.workers}
    return [
        one
        for one in found
        if one.name != "batch_not_handed_over" or own[one.worker] > fetching + _TOGETHER_SECONDS
    ]


def _of_worker(one: WorkerFacts, facts: LoaderFacts, limits: Limits) -> list[Finding]:
    worker, loader = one.worker, facts.loader
    limit = thresholds.of_worker(worker, loader, limits)
    who = f"worker {worker.slot}"
    found: tuple[str, Lasted, str] | None = None
    if worker.process_state in STOPPED:
        limit = limits.floor
        needed = worker.owed or worker.fetching_since is not None or facts.waits
        if needed and one.stopped.seconds > limit:
            found = "worker_stopped", one.stopped, f"{who} is stopped, and a batch is wanted of it"
    elif one.fetching.seconds > limit:
        what = batch(worker.fetch_index, worker.fetch_samples)
        found = "worker_stuck_in_fetch", one.fetching, f"{who} is stuck fetching {what}"
        if one.fetching.flagged:
            text = f"{who} is blocked in the kernel while it fetches {what}"
            found = "worker_blocked_in_kernel", one.fetching, text
    elif one.handing.seconds > limit and facts.in_order:
        text = f"a batch that {who} has fetched does not reach the loop"
        found = "batch_not_handed_over", one.handing, text
    elif one.owing.seconds > limit and worker.state is not WorkerState.HANDING_OVER:
        text = f"{who} owes a batch and does not begin to fetch it"
        found = "worker_stuck_before_fetch", one.owing, text
    return [_finding(*found, facts, worker, limit)] if found else []


def _of_next(facts: LoaderFacts, limits: Limits) -> list[Finding]:
    """Judge a loop that waits, where no worker is to blame so far."""
    loader = facts.loader
    if not facts.waits or facts.phase.seconds <= limits.floor:
        return []
    limit = thresholds.of_next(loader, limits, facts.phase.age)
    if facts.phase.seconds <= limit:
        return []
    elsewhere = facts.elsewhere or facts.in_order
    if not elsewhere and loader.ready and loader.ready >= loader.outstanding:
        busy = any(w.worker.fetching_since is not None for w in facts.workers)
        text = f"{loader.ready} batches are fetched and none reaches the loop"
        only = loader.workers[0] if len(loader.workers) == 1 else None
        return (
            []
            if busy
            else [_finding("batch_not_handed_over", facts.phase, text, facts, only, limit)]
        )
    if not facts.elsewhere and any(worker.suspect for worker in facts.workers):
        return []  # they are given their own time first
    doing = {Phase.STARTUP: "for its first batch", Phase.TEARDOWN: "for its iteration to end"}
    text = f"the loop waits {doing.get(loader.phase, 'in next()')} and no worker is to blame"
    return [_finding("rank_stuck_in_next", facts.phase, text, facts, limit=limit)]


def _of_run(members: Sequence[Sequence[LoaderFacts]], limits: Limits) -> list[Finding]:
    """Judge steps, and the ranks of a run that wait for each other."""
    waiting = [w for w in map(_in_next, members) if w is not None]
    late = [w for w in waiting if w.phase.seconds > _next_limit(w, limits)]
    steps = [step for step in map(_in_step, members) if step is not None]
    if late:
        others = len(members) - 1
        held = [s for s in steps if s.phase.seconds > thresholds.of_fetch(s.loader, limits)]
        if others and len(late) == 1 and len(held) == others:
            text = f"{others} other rank{'s' * (others > 1)} of this run wait{'s' * (others == 1)}"
            one = late[0]
            text += f" in {'their' if others > 1 else 'its'} step for rank {one.rank.rank}"
            limit = _next_limit(one, limits)
            return [_finding("ranks_wait_for_rank", one.phase, text, one, limit=limit)]
        return []
    if any(w.phase.seconds > limits.floor for w in waiting):
        return []  # it may be what the others wait for, and is given its time first
    return [finding for step in steps for finding in _of_step(step, limits)]


def _of_step(facts: LoaderFacts, limits: Limits) -> list[Finding]:
    loader = facts.loader
    if facts.phase.seconds <= limits.floor:
        return []
    limit = thresholds.of_step(loader, limits)
    if facts.phase.seconds <= limit or loader.ready < loader.outstanding:
        return []
    ready = f", {loader.ready} batches are ready" if loader.ready else ""
    text = f"the loop does not finish its step{ready}: the loader is not to blame"
    return [_finding("rank_stuck_in_step", facts.phase, text, facts, limit=limit)]


def _rank_stopped(
    rank: Rank, lasted: Lasted, limits: Limits, snapshot: Snapshot
) -> Iterable[Finding]:
    if lasted.seconds > limits.floor:
        text = f"the training process {rank.pid} is stopped"
        if rank.process.frozen:
            text = f"the cgroup of the training process {rank.pid} is frozen"
        text += f", for {duration(lasted.age)}"
        since = snapshot.time - lasted.age
        yield Finding("rank_stopped", rank.run, rank.rank, "", "", since, text)


def _in_next(members: Sequence[LoaderFacts]) -> LoaderFacts | None:
    """Return the loader that a rank has been blocked in for longest, if it is in any."""
    blocked = [facts for facts in members if facts.waits]
    return max(blocked, key=lambda facts: facts.phase.seconds, default=None)


def _in_step(members: Sequence[LoaderFacts]) -> LoaderFacts | None:
    """Return the loader that a rank had a batch of last, if it is in none of its loaders now."""
    if any(facts.waits for facts in members):
        return None
    stepping = [facts for facts in members if facts.loader.phase is Phase.STEP]
    return min(stepping, key=lambda facts: facts.phase.seconds, default=None)


def _next_limit(facts: LoaderFacts, limits: Limits) -> float:
    return thresholds.of_next(facts.loader, limits, facts.phase.age)


def _finding(
    name: str,
    lasted: Lasted,
    text: str,
    facts: LoaderFacts,
    worker: Worker | None = None,
    limit: float | None = None,
) -> Finding:
    rank, loader = facts.rank, facts.loader
    evidence: dict[str, str] = {}
    if limit is not None:
        evidence["threshold_seconds"] = f"{limit:.3g}"
    if usual := thresholds.usual(loader.fetch):
        evidence["usual_fetch_seconds"] = f"below {usual:.3g}"
    pid = (rank.pid if rank.visible else None) if worker is None else worker.pid
    if pid is not None:
        evidence["pid"] = str(pid)
    if worker is not None and worker.process_state:
        evidence["process_state"] = worker.process_state
    slot = "" if worker is None else str(worker.slot)
    since = facts.time - lasted.age
    sentence = f"{loader.name}: {text}, for {duration(lasted.age)}"
    return Finding(name, rank.run, rank.rank, loader.name, slot, since, sentence, evidence)


def _idle_for(worker: Worker, loader: Loader, now: float) -> float:
    """Return for how long a worker can at most have owed what it owes now."""
    moments = (worker.last_progress, worker.started, loader.last_delivery, loader.last_epoch)
    latest = max((moment for moment in moments if moment is not None), default=now)
    return max(0.0, now - latest)


def _pins(loader: Loader) -> bool:
    return loader.config.get("pin_memory") == "true" and bool(loader.workers)


def _in_use(loader: Loader) -> bool:
    return loader.phase is not Phase.IDLE or any(w.up is not None for w in loader.workers)


def _names_threads(rank: Rank) -> bool:
    numbers = rank.info.get("torch", "").split(".")[:2]
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers):
        return False
    return (int(numbers[0]), int(numbers[1])) >= NAMED_THREADS
