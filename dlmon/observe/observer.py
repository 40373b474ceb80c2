"""Make a Snapshot: read all segments, ask the operating system, and say who is who.

Runs in: agent and the commands.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dlmon.observe import loaders, processes
from dlmon.observe.containers import Place
from dlmon.observe.endings import Endings, rank_key
from dlmon.observe.groups import Groups
from dlmon.observe.memory import Scanner
from dlmon.observe.parts import NANOSECONDS, Clock, Part, Seen, text
from dlmon.observe.ranks import Ranks
from dlmon.observe.retired import Retired, keep_last
from dlmon.observe.segments import Segments, Tracked
from dlmon.observe.shm import Shm, seen_by
from dlmon.observe.snapshot import (
    Gpu,
    Histogram,
    Loader,
    Process,
    Rank,
    Snapshot,
    Unobserved,
    Worker,
)
from dlmon.observe.usage import Usages
from dlmon.segment.layout import HOOKS
from dlmon.segment.reader import Reading

Number = TypeVar("Number", int, float)

INFO = ("user", "script", "python", "torch", "dlmon", "local_rank", "world_size")


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One process that says it is this rank of this run; `uid` owns its segments.

    `where` is the directory where they are if that is in a container: pids repeat there.
    """

    uid: int
    run: str
    rank: str
    root: str
    where: str = ""


class Observer:
    """Makes snapshots, one at a time.

    What only an observer can keep is kept here: when a rank died, the CPU time of processes that
    are gone, and the last values of counters, so that none goes down by a read across moving slots.
    """

    def __init__(  # noqa: PLR0913  # all but one have defaults, and are only given by name
        self,
        dirs: Iterable[str],
        *,
        dead_seconds: float = 3600,
        loaders_per_rank: int = 64,
        segments_per_user: int = 2048,
        gpus: Callable[[], tuple[Gpu, ...]] = tuple,
        unobserved: Callable[[set[int]], tuple[Unobserved, ...]] = lambda _: (),
        scanner: Scanner | None = None,
        scan: Callable[[], None] | None = None,
        containers: Callable[[], tuple[Place, ...]] = tuple,
        shm: Callable[[int], Shm | None] = seen_by,
    ) -> None:
        """Observe the segments in and below `dirs`.

        Args:
            dirs: Searched for segments and for dlmon-<uid>/ with segments.
            dead_seconds: How long a rank that died without goodbye is kept.
            loaders_per_rank: Further loaders of a rank are left out, and counted.
            segments_per_user: Further segments of a user are left out, and counted.
            gpus: Says at once what is known of the GPUs.
            unobserved: Says at once which other workers are known, told who these are.
            scanner: Scans workers for PSS and USS; None for neither.
            scan: Has the scanner run; at once, if the observer must not wait. None to wait for it.
            containers: Says where further segments are.
            shm: Says which /dev/shm a process sees; at once, if the observer must not wait.
        """
        self._segments = Segments(
            dirs,
            dead_seconds=dead_seconds,
            segments_per_user=segments_per_user,
            containers=containers,
        )
        self._loaders_per_rank = loaders_per_rank
        self._left_out: dict[Incarnation, set[str]] = {}
        self._sampler = processes.Sampler()
        self._cpu: processes.Totals[float] = processes.Totals()
        self._usages = Usages(scanner, scan)
        self._ranks = Ranks()
        self._groups = Groups()
        self._highest: dict[Incarnation, dict[str, Loader]] = {}
        self._retired: Retired[Incarnation] = Retired(2 * loaders_per_rank)
        self._clamped = 0
        self._look_at_gpus = gpus
        self._shm = shm
        self._unobserved = unobserved
        self._gpus: tuple[Gpu, ...] = ()
        self._endings = Endings()
        self._files: set[str] = set()
        self._booted = 0.0
        self._parts: dict[str, Part] = {}

    def observe(self) -> Snapshot:
        """Look at everything once."""
        began = time.monotonic()
        tracked = self._segments.read()
        clock = Clock(time.time(), time.monotonic_ns())
        self._booted = processes.booted()
        self._gpus = self._look_at_gpus()
        read = (*tracked, *self._segments.removed)
        parts = [self._part(one) for one in read]
        self._endings.look(zip(read, parts, strict=True), clock)
        self._parts = {part.reading.path: self._endings.onto(part) for part in parts}
        by_incarnation: dict[Incarnation, list[Tracked]] = defaultdict(list)
        for one in read:
            if one.gone:
                self._retire(one, clock)
            else:
                by_incarnation[_incarnation(one)].append(one)
        ranks = {i: self._rank(i, g, clock) for i, g in by_incarnation.items() if _present(g)}
        self._forget(tracked, ranks)
        shown, superseded = _choose(ranks.values())
        groups = self._groups.look(shown, self._endings.ended)
        self._usages.finish()
        left_out = self._segments.left_out
        return Snapshot(
            time=clock.unix,
            duration_seconds=time.monotonic() - began,
            ranks=shown,
            superseded=superseded,
            refused=tuple(left_out.refused),
            segments=len(tracked),
            refused_total=dict(left_out.refused_total),
            stale_reads_total=self._segments.stale_reads,
            clamped_total=self._clamped,
            dropped_total=dict(left_out.dropped_total),
            gpus=self._gpus,
            unobserved=self._unobserved(
                {h for t in tracked for h in t.reading.worker_holders if h}
            ),
            cgroups=groups,
            ended=tuple(self._endings.ended),
        )

    def close(self) -> None:
        """Close every segment."""
        self._segments.close()
        self._endings.close()
        self._sampler.keep(())

    def _forget(self, tracked: Iterable[Tracked], ranks: Collection[Incarnation]) -> None:
        """Forget what is known of slots and ranks that are no more."""
        files = {t.file.path for t in tracked}
        if files != self._files:
            self._files = files
            slots = {_slot(t, i) for t in tracked for i in range(t.reading.layout.workers)}
            self._cpu.keep(slots)
            self._usages.keep(slots)
        self._sampler.keep({w.pid for part in self._parts.values() for w in part.workers if w.pid})
        self._highest = {who: kept for who, kept in self._highest.items() if who in ranks}
        self._left_out = {who: names for who, names in self._left_out.items() if who in ranks}
        self._ranks.keep({t.reading.rank_holder for t in tracked if t.reading.rank_holder})
        self._retired.keep(ranks)

    def _rank(self, who: Incarnation, group: Sequence[Tracked], clock: Clock) -> Rank:
        own = [t for t in group if _is_root(t.reading)] or list(group)
        living = [t for t in own if t.reading.rank_holder is not None]
        first = min(own, key=lambda t: t.reading.layout.created_ns)
        chosen = living[0] if living else first
        attested = chosen.reading.rank_holder
        orphans = 0
        by_loader: dict[str, list[Part]] = defaultdict(list)
        for tracked in group:
            part = self._parts[tracked.file.path]
            by_loader[text(tracked.reading.info.get("loader", ""))].append(part)
            if not living:
                orphans += sum(h is not None for h in tracked.reading.worker_holders)
        found = self._loaders(who, by_loader, clock)
        missing = {hook for loader in found for hook in loader.missing_hooks}
        return Rank(
            run=who.run,
            rank=who.rank,
            pid=attested or _integer(chosen.reading.info.get("pid")),
            up=bool(living),
            died=None if living else max(t.died or 0.0 for t in own),
            started=first.reading.layout.created_ns / NANOSECONDS,
            info={key: text(chosen.reading.info.get(key, "")) for key in INFO},
            hooks={hook: hook not in missing for hook in HOOKS},
            shim_errors=sum(max(0, t.reading.rank["shim_errors"]) for t in group),
            orphan_workers=orphans,
            process=self._process(attested, group) if attested else Process(),
            loaders=found,
            visible=bool(attested),
            gpus=self._gpus_of(attested),
            died_of="" if living else self._endings.rank_reason(t.file.path for t in own),
            key=rank_key(self._parts[chosen.file.path]),
        )

    def _gpus_of(self, pid: int | None) -> tuple[str, ...]:
        return tuple(gpu.uuid for gpu in self._gpus if pid and pid in (gpu.pids or ()))

    def _process(self, pid: int, group: Sequence[Tracked]) -> Process:
        """Look at a rank's process, and see whether its cgroup lets a scan of its workers end."""
        process, throttled = self._ranks.look(pid)
        if throttled:
            self._usages.spare(
                [_slot(t, i) for t in group for i in range(t.reading.layout.workers)]
            )
        shm = self._shm(pid)
        if shm is None:
            return process
        return replace(process, shm_size_bytes=shm.size, shm_used_bytes=shm.used)

    def _loaders(
        self, who: Incarnation, by_loader: Mapping[str, Sequence[Part]], clock: Clock
    ) -> tuple[Loader, ...]:
        found = []
        names = sorted(by_loader)
        for name in names[: self._loaders_per_rank]:
            loader, clamped = loaders.loader(name, by_loader[name], clock)
            self._clamped += clamped
            found.append(self._not_down(who, self._retired.onto(who, loader)))
        left_out = set(names[self._loaders_per_rank :])
        new = left_out - self._left_out.get(who, set())
        self._segments.left_out.dropped_total["rank"] += len(new)
        self._left_out[who] = left_out
        keep_last(self._highest.get(who, {}), len(found) + self._loaders_per_rank)
        return tuple(found)

    def _retire(self, tracked: Tracked, clock: Clock) -> None:
        """Keep the counters of a segment that is over, once."""
        if not tracked.retired:
            tracked.retired = True
            name = text(tracked.reading.info.get("loader", ""))
            loader, _ = loaders.loader(name, [self._parts[tracked.file.path]], clock)
            self._retired.add(_incarnation(tracked), loader)

    def _not_down(self, who: Incarnation, loader: Loader) -> Loader:
        """Hold what is derived or summed from several cells at its highest value so far.

        A sum of floats too: one bit less, in another order, is a counter that was reset.
        """
        known = self._highest.setdefault(who, {})
        before = known.pop(loader.name, None)
        if before is not None:
            seconds = {
                phase: max(value, before.phase_seconds.get(phase, 0.0))
                for phase, value in loader.phase_seconds.items()
            }
            discarded = max(loader.discarded, before.discarded)
            earlier = {worker.slot: worker for worker in before.workers}
            held = replace(
                loader,
                phase_seconds=seconds,
                discarded=discarded,
                wait=_held(loader.wait, before.wait),
                step=_held(loader.step, before.step),
                fetch=_held(loader.fetch, before.fetch),
                workers=tuple(_worker_held(w, earlier.get(w.slot, w)) for w in loader.workers),
            )
            self._clamped += held != loader
            loader = held
        known[loader.name] = loader  # the last: those seen last are kept
        return loader

    def _part(self, tracked: Tracked) -> Part:
        reading = tracked.reading
        now_ns = reading.now_ns if reading.rank_holder is not None else tracked.last_alive_ns
        holder = reading.rank_holder
        visible = bool(holder) and holder == reading.info.get("pid")  # our pid namespace
        workers = tuple(
            self._seen(tracked, slot, visible) for slot in range(reading.layout.workers)
        )
        return Part(reading, now_ns, workers)

    def _seen(self, tracked: Tracked, slot: int, visible: bool) -> Seen:
        reading = tracked.reading
        cells = reading.workers[slot]
        key = _slot(tracked, slot)
        held = reading.worker_holders[slot]
        pid = held or (cells["pid"] if visible and cells["pid"] > 0 else None)
        sample = self._sampler.sample(pid) if pid else None
        known = sample is not None and sample.start_ticks == cells["start_ticks"]
        if pid is None or sample is None or not (held or known):
            return Seen(cpu_seconds=self._cpu.total(key), usage=self._usages.gone(key))
        status = sample.status
        process = (pid, sample.start_ticks)
        return Seen(
            lives=known and status not in ("Z", "X"),
            stopped=status in ("T", "t"),
            zombie=status == "Z",
            pid=pid,
            cpu_seconds=self._cpu.add(key, process, sample.cpu_seconds),
            resident_bytes=sample.resident_bytes,
            process_state=status,
            started=sample.started(self._booted),
            usage=self._usages.add(key, process, sample),
        )


def _held(histogram: Histogram, before: Histogram) -> Histogram:
    return replace(histogram, sum_seconds=max(histogram.sum_seconds, before.sum_seconds))


def _worker_held(worker: Worker, before: Worker) -> Worker:
    """Hold what is counted over all processes of a slot; of nearly all workers nothing is lower."""
    if not (
        worker.fetch_seconds < before.fetch_seconds
        or _is_lower(worker.cpu_seconds, before.cpu_seconds)
        or _is_lower(worker.read_bytes, before.read_bytes)
        or _is_lower(worker.major_faults, before.major_faults)
    ):
        return worker
    return replace(
        worker,
        fetch_seconds=max(worker.fetch_seconds, before.fetch_seconds),
        cpu_seconds=_higher(worker.cpu_seconds, before.cpu_seconds),
        read_bytes=_higher(worker.read_bytes, before.read_bytes),
        major_faults=_higher(worker.major_faults, before.major_faults),
    )


def _is_lower(number: Number | None, before: Number | None) -> bool:
    return before is not None and (number is None or number < before)


def _higher(number: Number | None, before: Number | None) -> Number | None:
    return before if _is_lower(number, before) else number


def _choose(found: Iterable[Rank]) -> tuple[tuple[Rank, ...], tuple[Rank, ...]]:
    """Of the incarnations of one rank keep a living one, else the newest; return the others too."""
    ordered = sorted(found, key=lambda r: (r.run, r.rank, r.up, r.started), reverse=True)
    seen: Counter[tuple[str, str]] = Counter()
    shown: list[Rank] = []
    superseded: list[Rank] = []
    for rank in ordered:
        seen[rank.run, rank.rank] += 1
        (shown if seen[rank.run, rank.rank] == 1 else superseded).append(rank)
    return tuple(reversed(shown)), tuple(superseded)


def _incarnation(tracked: Tracked) -> Incarnation:
    info = tracked.reading.info
    run, rank, root = (text(info.get(key, "")) for key in ("run", "rank", "root"))
    return Incarnation(tracked.file.uid, run, rank, root, tracked.where)


def _present(group: Sequence[Tracked]) -> bool:
    """Return whether a rank is there, alive or dead: not if only children it had have left traces.

    A rank that ended in order leaves none; a child of it may have been killed.
    """
    return any(_is_root(t.reading) or t.reading.rank_holder is not None for t in group)


def _is_root(reading: Reading) -> bool:
    """Return whether a segment is the instrumented process's own, not a child's."""
    info = reading.info
    return f"{text(info.get('pid'))}-{text(info.get('start_ticks'))}" == info.get("root")


def _slot(tracked: Tracked, slot: int) -> Hashable:
    return (tracked.file.path, slot)


def _integer(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 31 else 0
