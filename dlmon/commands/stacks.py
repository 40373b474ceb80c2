"""Print the Python stacks of a rank and its workers, as they are now; no agent is needed.

RUN is a run's name, or its beginning as long as that is unique; PID is a rank's or a worker's
process, or any other Python process. For each process it says what its main thread does in the
kernel (state, system call, wait channel), what its loop or fetch is at and for how long, and then
all of its threads, the innermost call first. Nothing is stopped for it (py-spy, non-blocking), so
that it works on processes that hang or are stopped.

Processes of other users need CAP_SYS_PTRACE. Exit status 1 if no stack could be taken.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from dlmon.analysis.sizes import batch
from dlmon.commands import _looking, _table
from dlmon.errors import UsageError
from dlmon.observe import kernel, stacks
from dlmon.observe.kernel import Doing
from dlmon.observe.snapshot import Loader, Rank, Snapshot, Worker
from dlmon.observe.stacks import Stack, Thread
from dlmon.segment.layout import Phase

_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A process to look at; what is not known of it is empty or None.

    Attributes:
        rank: It is this rank's, or a worker of it.
        loader, worker: Of a worker.
    """

    pid: int
    rank: Rank | None = None
    loader: Loader | None = None
    worker: Worker | None = None


@dataclass(frozen=True, slots=True)
class Looked:
    """What was seen of a process."""

    subject: Subject
    doing: Doing
    stack: Stack
    time: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    parser.add_argument("target", metavar="RUN|PID", help="whose stacks")
    parser.add_argument("--rank", metavar="RANK", help="of a run only this rank; default: all")
    _looking.add_options(parser, "print a JSON array, an object per process")


def main(args: argparse.Namespace) -> int:
    """Print the stacks.

    Returns:
        0, or 1 if none could be taken.

    Raises:
        UsageError: There is no such run, rank or process.
    """
    snapshot = _looking.observe(_looking.directories(args))
    found = [look(subject, snapshot.time) for subject in subjects(snapshot, args.target, args.rank)]
    _looking.print_any_text("backslashreplace")
    if args.json:
        print(json.dumps([plain(one) for one in found], indent=2, allow_nan=False))
    else:
        print("\n\n".join("\n".join(lines(one)) for one in found))
    troubles = dict.fromkeys(one.stack.trouble for one in found if one.stack.trouble)
    for trouble in troubles:
        print(f"dlmon stacks: {trouble}", file=sys.stderr)
    return int(all(one.stack.trouble for one in found))


def subjects(snapshot: Snapshot, target: str, rank: str | None = None) -> list[Subject]:
    """Return the processes that are meant, each rank before its workers.

    Args:
        snapshot: What there is.
        target: A process, or a run's name or its unique beginning.
        rank: Of a run only this one.

    Raises:
        UsageError: There is none, or it is not clear which.
    """
    everybody = [s for one in (*snapshot.ranks, *snapshot.superseded) for s in _of_rank(one)]
    if target.isdecimal() and (found := _by_pid(everybody, int(target))):
        return found
    names = {one.run for one in snapshot.ranks}
    meant = {target} & names or {name for name in names if name.startswith(target)}
    if len(meant) > 1:
        raise UsageError(f"{target!r} is the beginning of {len(meant)} runs: {_listed(meant)}")
    found = [s for s in everybody if s.rank and s.rank.run in meant and s.rank in snapshot.ranks]
    if rank is not None:
        found = [s for s in found if s.rank and s.rank.rank == rank]
    if not found:
        what = f"process {target}" if target.isdecimal() else f"run {target!r}"
        what = f"rank {rank} of it that lives" if meant and rank else what
        there = f"there are {_listed(names)}" if names else "`dlmon ps` lists runs, none lives here"
        raise UsageError(f"there is no {what}; {there}")
    return found


def look(subject: Subject, time: float) -> Looked:
    """Look at a process; a stack that cannot be read is tried again.

    Args:
        subject: The process.
        time: Unix time of the snapshot.
    """
    stack = stacks.take(subject.pid)
    for _ in range(_ATTEMPTS - 1):
        if not stack.trouble or stack.refused:
            break
        stack = stacks.take(subject.pid)
    return Looked(subject, kernel.doing(subject.pid), stack, time)


def plain(seen: Looked) -> dict[str, object]:
    """Return what was seen of a process as JSON has it."""
    subject, rank, worker = seen.subject, seen.subject.rank, seen.subject.worker
    since = None if worker is None else worker.fetching_since
    return {
        "pid": subject.pid,
        "run": rank.run if rank else None,
        "rank": rank.rank if rank else None,
        "loader": subject.loader.name if subject.loader else None,
        "worker": worker.slot if worker else None,
        **dataclasses.asdict(seen.doing),
        "fetching_seconds": None if since is None else max(0.0, seen.time - since),
        "fetch_index": worker.fetch_index if worker else None,
        "fetch_samples": worker.fetch_samples if worker else None,
        "threads": [dataclasses.asdict(thread) for thread in seen.stack.threads],
        "trouble": seen.stack.trouble or None,
    }


def lines(seen: Looked) -> Iterator[str]:
    """Yield what was seen of a process as people read it."""
    yield _table.printable(f"{_who(seen.subject)}, pid {seen.subject.pid}: {_doing(seen.doing)}")
    for said in _at(seen.subject, seen.time):
        yield f"  {_table.printable(said)}"
    if seen.stack.trouble:
        yield f"  no stack: {seen.stack.trouble}"
    for thread in seen.stack.threads:
        yield f'  "{thread.name}" {thread.os_id}{_flags(thread)}'
        for frame in thread.frames:
            yield f"    at {frame.function} ({frame.file}:{frame.line})"


def _of_rank(rank: Rank) -> Iterator[Subject]:
    if rank.visible:
        yield Subject(rank.pid, rank)
    for loader in rank.loaders:
        for worker in loader.workers:
            if worker.up and worker.pid is not None:
                yield Subject(worker.pid, rank, loader, worker)


def _by_pid(everybody: list[Subject], pid: int) -> list[Subject]:
    meant = [subject for subject in everybody if subject.pid == pid]
    if any(subject.worker is None for subject in meant):
        return [s for s in everybody if s.rank is not None and s.rank is meant[0].rank]
    if not meant and 0 < pid < 1 << 31 and os.path.exists(f"/proc/{pid}"):
        return [Subject(pid)]
    return meant


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")


def _who(subject: Subject) -> str:
    if subject.rank is None:
        return "a process that dlmon does not observe"
    whose = f"rank {subject.rank.rank} of {subject.rank.run}"
    if subject.worker is None or subject.loader is None:
        return whose
    return f"worker {subject.worker.slot} of {subject.loader.name}, {whose}"


def _doing(doing: Doing) -> str:
    known = [f"state {doing.state or _table.UNKNOWN}"]
    if doing.syscall:
        known.append("running" if doing.syscall == "running" else f"in {doing.syscall}()")
    if doing.wchan:
        known.append(f"waits in {doing.wchan}")
    return ", ".join(known)


def _at(subject: Subject, now: float) -> Iterator[str]:
    """Yield what a worker fetches, or what the loops of a rank are at."""
    worker, rank = subject.worker, subject.rank
    if worker is not None:
        owes = "" if worker.owed is None else f", owes {worker.owed}"
        if worker.fetching_since is None:
            yield f"does not fetch{owes}"
            return
        what = batch(worker.fetch_index, worker.fetch_samples)
        lasted = _table.duration(max(0.0, now - worker.fetching_since))
        yield f"has been fetching {what} for {lasted}{owes}"
        return
    for loader in rank.loaders if rank else ():
        if loader.phase is Phase.IDLE or loader.phase_since is None:
            yield f"{loader.name}: idle"
        else:
            lasted = _table.duration(max(0.0, now - loader.phase_since))
            queue = f", {loader.ready}/{loader.capacity} ready" if loader.capacity else ""
            yield f"{loader.name}: {loader.phase.name.lower()} for {lasted}{queue}"


def _flags(thread: Thread) -> str:
    flags = [", holds the GIL"] if thread.owns_gil else []
    flags += [", on a CPU"] if thread.active else []
    return "".join(flags)
