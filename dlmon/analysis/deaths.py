"""The last words of a worker or rank: what it was doing when it died, in data and in one sentence.

Pure functions of what was seen: `Death` is what the API, `dlmon ps --dead` and the evidence on disk
are made of.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dlmon.analysis.robust import slope
from dlmon.analysis.sizes import batch, duration, size
from dlmon.observe.snapshot import Ended, Loader, Rank, Worker, WorkerState
from dlmon.segment.layout import Phase

GROWS_PER_MINUTE = 0.05
GROWS_BYTES_PER_SECOND = 100_000
"""Memory is said to be growing from this share of it a minute on, and this many bytes a second."""

GROWTH_SECONDS = 10.0
GROWTH_POINTS = 3
"""What growth is told from at least."""

_ENDED = {
    "oom_kill": "was OOM-killed",
    "sigkill": "was killed (SIGKILL)",
    "sigsegv": "crashed (SIGSEGV)",
    "sigbus": "crashed (SIGBUS)",
    "sigabrt": "aborted (SIGABRT)",
    "sigterm": "was terminated (SIGTERM)",
    "other_signal": "was ended by a signal",
    "error": "exited with an error",
    "normal": "exited with status 0",
    "lost": "died of an unknown cause",
}

_DOING = {
    WorkerState.IDLE: "idle",
    WorkerState.FETCHING: "fetching",
    WorkerState.HANDING_OVER: "handing over a batch",
    WorkerState.STOPPED: "stopped",
    WorkerState.HUNG: "hung",
}

MOST_OTHERS = 64
"""Of a loader with more workers, those that had been fetching the longest are kept."""


@dataclass(frozen=True, slots=True)
class Death:
    """A rank or worker that died.

    Attributes:
        key: Unlike any other's.
        kind: `rank` or `worker`.
        run, rank, loader, worker: As in the labels; "" for what does not apply or is not known.
        pid: As the observer saw it, None if not known.
        reason: Of `layout.EXIT_REASONS`.
        exitcode: As `multiprocessing` has it, None if not known.
        died: Unix time, None if that was before anybody looked.
        sentence: What happened, for people.
        doing: What it was doing: `fetching` or another state of a worker, a phase of a rank, "" if
            that is not known.
        doing_seconds: For how long by then, None if not known.
        fetch_index: The first sample index of the open fetch, None if it has no integer one.
        fetch_samples: Samples in a batch, as many as are usual; 0 if not known.
        resident_bytes, proportional_bytes, unique_bytes: RSS, PSS and USS when it was last seen.
        growth_bytes_per_second: Of PSS where it is known, else of RSS, over its last minutes.
        memory: Its last minutes: columns of equal length, `time` first.
        others: What the loop (`worker` is "") and the other workers of its loader were doing then,
            or of a rank all of them: loader, worker, state, seconds and, where one fetched,
            fetch_index and fetch_samples; resident_bytes.
        private: `script`, `cgroup`: for trusted clients only.
    """

    key: str
    kind: str
    run: str
    rank: str
    loader: str
    worker: str
    pid: int | None
    reason: str
    exitcode: int | None
    died: float | None
    sentence: str
    doing: str = ""
    doing_seconds: float | None = None
    fetch_index: int | None = None
    fetch_samples: int = 0
    resident_bytes: int | None = None
    proportional_bytes: int | None = None
    unique_bytes: int | None = None
    growth_bytes_per_second: float | None = None
    memory: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    others: Sequence[Mapping[str, object]] = ()
    private: Mapping[str, str] = field(default_factory=dict)


Memory = Mapping[str, Sequence[float | None]]


def of_worker(
    ended: Ended, rank: Rank | None, loader: Loader | None, last: Worker | None, memory: Memory
) -> Death:
    """Return the last words of a worker.

    Args:
        ended: How it ended.
        rank: As it was seen last while the worker lived, None if it was not.
        loader: Likewise.
        last: The worker, likewise.
        memory: The points of its last minutes, none if they are not known.
    """
    if ended.replaced and last is not None:
        ended = replace(
            ended,
            fetching_since=last.fetching_since,
            fetch_index=last.fetch_index,
            fetch_samples=last.fetch_samples,
        )
    doing, seconds = _doing_of(ended, last)
    samples = ended.fetch_samples or _batch_size(loader)
    growth = _growth(memory)
    what = f"worker {ended.worker}" if ended.worker is not None else "a worker"
    parts = [f"{what} of {ended.loader} {ended_how(ended.reason, ended.exitcode)}"]
    if doing:
        parts[0] += ", last seen " if ended.replaced else " while "
        parts[0] += _DOING[WorkerState[doing.upper()]]
    if doing == "fetching":
        parts[0] += f" {batch(ended.fetch_index, samples)}"
    if seconds is not None:
        parts[0] += f", for {duration(seconds)}"
    words = _memory_words(last, growth)
    others = () if loader is None else _others(loader, None, ended.worker, ended.died)
    return Death(
        key=ended.key,
        kind="worker",
        run=ended.run,
        rank=ended.rank,
        loader=ended.loader,
        worker="" if ended.worker is None else str(ended.worker),
        pid=ended.pid,
        reason=ended.reason,
        exitcode=ended.exitcode,
        died=ended.died,
        sentence="; ".join(parts + words),
        doing=doing,
        doing_seconds=seconds,
        fetch_index=ended.fetch_index if doing == "fetching" else None,
        fetch_samples=samples if doing == "fetching" else 0,
        resident_bytes=None if last is None else last.resident_bytes,
        proportional_bytes=None if last is None else last.proportional_bytes,
        unique_bytes=None if last is None else last.unique_bytes,
        growth_bytes_per_second=growth,
        memory=memory,
        others=others,
        private=_private(rank),
    )


def of_rank(dead: Rank, last: Rank | None, memory: Memory) -> Death:
    """Return the last words of a rank.

    Args:
        dead: As it is seen now.
        last: As it was seen last while it lived, None if it was not.
        memory: As for `of_worker`.
    """
    resident = None if last is None else last.process.resident_bytes
    died = dead.died if last is not None else None
    busy = [one for one in dead.loaders if one.phase is not Phase.IDLE]
    shown = max(busy, key=lambda one: one.phase_since or 0.0, default=None)
    before = {} if last is None else {one.name: one for one in last.loaders}
    seconds = None
    sentence = f"rank {dead.rank} of run {dead.run} {ended_how(dead.died_of, None)}"
    if shown is not None:
        sentence += f" in {shown.phase.name.lower()} of {shown.name}"
        if died is not None and shown.phase_since is not None:
            seconds = max(0.0, died - shown.phase_since)
            sentence += f" for {duration(seconds)}"
        sentence += f", after {shown.batches:,} batches"
    words = [sentence]
    growth = _growth(memory)
    if resident is not None:
        words.append(f"RSS {size(resident)}" + _growing(growth, resident))
    if dead.orphan_workers:
        live = "lives" if dead.orphan_workers == 1 else "live"
        words.append(f"{dead.orphan_workers} of its workers {live} on")
    return Death(
        key=dead.key,
        kind="rank",
        run=dead.run,
        rank=dead.rank,
        loader="" if shown is None else shown.name,
        worker="",
        pid=dead.pid or None,
        reason=dead.died_of,
        exitcode=None,
        died=died,
        sentence="; ".join(words),
        doing="" if shown is None else shown.phase.name.lower(),
        doing_seconds=seconds,
        resident_bytes=resident,
        growth_bytes_per_second=growth,
        memory=memory,
        others=tuple(
            row for one in dead.loaders for row in _others(one, before.get(one.name), None, died)
        ),
        private=_private(last or dead),
    )


def ended_how(reason: str, exitcode: int | None) -> str:
    """Return how a process ended as the verb of a sentence, with status or signal if known."""
    if reason == "error" and exitcode is not None and exitcode > 0:
        return f"exited with status {exitcode}"
    if reason == "other_signal" and exitcode is not None and exitcode < 0:
        try:
            return f"was ended by {signal.Signals(-exitcode).name}"
        except ValueError:  # a real-time signal
            return f"was ended by signal {-exitcode}"
    return _ENDED.get(reason, "died")


def _doing_of(ended: Ended, last: Worker | None) -> tuple[str, float | None]:
    """Return the state that a worker died in, and for how long it had been fetching by then."""
    if ended.fetching_since is not None:
        known = ended.died is not None and not ended.replaced
        return "fetching", max(0.0, (ended.died or 0) - ended.fetching_since) if known else None
    if last is None or last.state is None or last.state not in _DOING:
        return "", None
    if last.state is WorkerState.FETCHING:
        return "", None  # that fetch has ended since
    return last.state.name.lower(), None


def _batch_size(loader: Loader | None) -> int:
    given = "" if loader is None else loader.config.get("batch_size", "")
    return int(given) if given.isdecimal() and len(given) < 10 else 0


def _memory_words(last: Worker | None, growth: float | None) -> list[str]:
    if last is None:
        return []
    for name, value in (("PSS", last.proportional_bytes), ("RSS", last.resident_bytes)):
        if value is not None:
            return [f"{name} {size(value)}{_growing(growth, value)}"]
    return []


def _growing(growth: float | None, now: float) -> str:
    if growth is None or growth < max(GROWS_BYTES_PER_SECOND, now * GROWS_PER_MINUTE / 60):
        return ""
    return f" and growing {size(growth)}/s"


def _growth(memory: Memory) -> float | None:
    """Return the growth of PSS where it was scanned often enough, else of RSS; None if too few."""
    pss = _column(memory, "proportional_bytes")
    # The same number again is no new scan.
    scans = sorted({value: (time, value) for time, value in reversed(pss)}.values())
    points = scans if len(scans) >= GROWTH_POINTS else _column(memory, "resident_bytes")
    if len(points) < GROWTH_POINTS or points[-1][0] - points[0][0] < GROWTH_SECONDS:
        return None
    return slope(points)


def _column(memory: Memory, name: str) -> list[tuple[float, float]]:
    pairs = zip(memory.get("time", ()), memory.get(name, ()), strict=False)
    return [(time, value) for time, value in pairs if time is not None and value is not None]


def _others(
    loader: Loader, last: Loader | None, dead: int | None, died: float | None
) -> tuple[Mapping[str, object], ...]:
    """Return what a loader's loop and its workers but one were doing.

    Args:
        loader: As it is seen now.
        last: As it was seen last, for what is not known of the dead.
        dead: The slot left out.
        died: When.
    """
    since = loader.phase_since
    loop: dict[str, object] = {
        "loader": loader.name,
        "worker": "",
        "state": loader.phase.name.lower(),
        "seconds": None if since is None or died is None else max(0.0, died - since),
    }
    before = {} if last is None else {worker.slot: worker for worker in last.workers}
    others = [worker for worker in loader.workers if worker.slot != dead]
    longest = sorted(others, key=lambda worker: worker.fetching_since or math.inf)[:MOST_OTHERS]
    longest.sort(key=lambda worker: worker.slot)
    return (loop, *(_other(loader, w, before.get(w.slot), died) for w in longest))


def _other(
    loader: Loader, worker: Worker, last: Worker | None, died: float | None
) -> Mapping[str, object]:
    since = worker.fetching_since
    fetching = since is not None
    resident = worker.resident_bytes
    if resident is None and last is not None:
        resident = last.resident_bytes
    return {
        "loader": loader.name,
        "worker": str(worker.slot),
        "state": "" if worker.state is None else worker.state.name.lower(),
        "seconds": None if since is None or died is None else max(0.0, died - since),
        "fetch_index": worker.fetch_index if fetching else None,
        "fetch_samples": (worker.fetch_samples or _batch_size(loader)) if fetching else 0,
        "resident_bytes": resident,
    }


def _private(rank: Rank | None) -> Mapping[str, str]:
    if rank is None:
        return {}
    return {"script": rank.info.get("script", ""), "cgroup": rank.process.cgroup or ""}
