"""List the ranks and loaders on this node, one line each, as they are now; no agent is needed.

  RUN RANK PID   the training launch, and the process that is this rank of it
  LOADER         as named by dlmon.name(), else after the code that builds it
  PHASE          what its loop does: idle, startup, wait, step, pause or teardown; or the process is
                 dead, or superseded by a newer one of the same run and rank
  WAIT           share of the loop's time spent waiting for data, so far: wait / (wait + step)
  BATCHES EPOCHS delivered to the loop, and iterations begun
  QUEUE          batches ready now / what can be prefetched at most
  WORKERS        alive / configured, and those that are stopped, hung or dead; of a dead rank, the
                 orphans it left, also if a newer one has replaced it
  USS            memory that its workers have for themselves, all together: what would be free
                 without them
  GPU            how busy those are on which this process computes, where the node has any
  LAST           since the last batch was delivered

A narrow terminal shows fewer columns; a pipe gets all of them. Ranks that ended in order are gone.
Below it, in one line: DataLoader workers of which no segment tells, by script (not with --dir).

Reading USS holds up what a worker maps meanwhile: 14 ms per GB, as at each scan of an agent. After
half a second of it the rest is not read; what is not known is a dash, and null with --json, which
has no line about workers that are not observed: an agent's /api/v1/snapshot lists them.

With --dead: who died, rank or worker, of what, how long ago, and what it was doing, as an agent of
this node remembers it, and without one as the segments still tell.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dlmon.agent import api
from dlmon.analysis.sizes import size
from dlmon.commands import _dead, _looking, _table
from dlmon.commands._table import UNKNOWN, Cell, Column, Squeeze
from dlmon.observe.leftout import MOST_TOLD
from dlmon.observe.snapshot import (
    CgroupMemory,
    Gpu,
    Loader,
    Rank,
    Refused,
    Snapshot,
    Unobserved,
    WorkerState,
)

COLUMNS = (
    Column("RUN"),
    Column("RANK", right=True),
    Column("PID", right=True),
    Column("LOADER"),
    Column("PHASE"),
    Column("WAIT", right=True),
    Column("BATCHES", right=True),
    Column("EPOCHS", right=True),
    Column("QUEUE", right=True),
    Column("WORKERS"),
    Column("USS", right=True),
    Column("GPU", right=True),
    Column("LAST", right=True),
)

SQUEEZES = (
    Squeeze("EPOCHS"),
    Squeeze("LOADER", 12),
    Squeeze("BATCHES"),
    Squeeze("LOADER", 8),
    Squeeze("RUN", 12),
    Squeeze("LAST"),
    Squeeze("USS"),
    Squeeze("QUEUE"),
    Squeeze("GPU"),
)
"""What a narrow terminal can do without, first to last: other commands ask for the run's name."""

HIGH_WAIT_RATIO = 0.5
"""From here on the loop waits more than it works: shown in yellow."""

TROUBLE = (WorkerState.STOPPED, WorkerState.HUNG, WorkerState.ZOMBIE, WorkerState.DEAD)

SCRIPTS_NAMED = 3
"""Of so many scripts that are not observed the line below the table gives the names."""

HINT = (
    "start a job with `dlmon run train.py`, or call dlmon.instrument() in it; "
    "a job is listed once it iterates a DataLoader"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a loader of a rank.

    Attributes:
        superseded: Another process is this rank of this run now.
        gpus: Those on which the rank computes.
        memory: Of the rank's cgroup; None if it is not known.
    """

    rank: Rank
    loader: Loader
    superseded: bool
    gpus: tuple[Gpu, ...] = ()
    memory: CgroupMemory | None = None


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "--dead", action="store_true", help="list ranks and workers that died, with last words"
    )
    _looking.add_options(
        parser,
        "print a JSON array, an object per rank and loader, or with --dead per death: times in "
        "seconds, sizes in bytes, ratios 0 to 1, null for what is not known",
    )


def main(args: argparse.Namespace) -> int:
    """Print the list.

    Returns:
        0, also when there is nothing to list.
    """
    directories = _looking.directories(args)
    _looking.print_any_text("replace")
    if args.dead:
        snapshot = _looking.observe(directories)
        _list_dead(directories, snapshot, as_json=args.json)
    else:
        # With --dir who is observed elsewhere would seem not to be; --json has no line about them.
        snapshot = _looking.observe_all(directories, unobserved=not (args.dir or args.json))
        _list(directories, snapshot, as_json=args.json)
    if snapshot.refused:
        _say(_refused(snapshot.refused))
    return 0


def _list(directories: Sequence[str], snapshot: Snapshot, *, as_json: bool) -> None:
    found = list(rows(snapshot))
    if as_json:
        print(json.dumps([_plain(row) for row in found], indent=2, allow_nan=False))
        return
    if found:
        _print_table(found, snapshot)
    else:
        _say(f"no DataLoader is observed in {_looked(directories)}; {HINT}")
    if snapshot.unobserved:
        width = _table.terminal_width(sys.stdout)
        line = _table.printable(others(snapshot.unobserved))
        print("\n".join(textwrap.wrap(line, max(width, 40)) if width else [line]))


def _list_dead(directories: Sequence[str], snapshot: Snapshot, *, as_json: bool) -> None:
    found = _dead.known(directories, snapshot, math.inf)
    if as_json:
        print(json.dumps([_dead.plain(death) for death in found], indent=2))
    elif found:
        width = _table.terminal_width(sys.stdout)
        colour = _table.has_colour(sys.stdout, os.environ)
        print("\n".join(_dead.lines(found, snapshot.time, width, colour=colour)))
    else:
        _say(f"nobody died in {_looked(directories)}, as far as is known")


def rows(snapshot: Snapshot) -> Iterator[Row]:
    """Yield what to list, by run, rank and loader.

    Of the dead superseded ones these are the loaders whose workers live on.

    Args:
        snapshot: What there is.
    """
    listed = [(rank, False) for rank in snapshot.ranks]
    listed += [(_with_orphans(rank), True) for rank in snapshot.superseded]
    for rank, superseded in sorted(listed, key=_order):
        gpus = tuple(gpu for gpu in snapshot.gpus if gpu.uuid in rank.gpus)
        memory = snapshot.cgroups.get(rank.process.cgroup or "")
        for loader in rank.loaders:
            yield Row(rank, loader, superseded, gpus, memory)


def _with_orphans(rank: Rank) -> Rank:
    """Return a superseded rank, if it is dead with those of its loaders only that have orphans."""
    if rank.up:
        return rank
    left = tuple(one for one in rank.loaders if any(worker.orphan for worker in one.workers))
    return replace(rank, loaders=left)


def others(unobserved: Sequence[Unobserved]) -> str:
    """Return the line about workers that are not observed.

    Args:
        unobserved: By user and script, one at least.
    """
    workers = sum(len(group.workers) for group in unobserved)
    # An orphan has no parent that is known: all those of a group count as of one job.
    jobs = sum(len({worker.parent for worker in group.workers}) for group in unobserved)
    named = [
        f"{group.script or 'a script not known'} by {group.user} ({len(group.workers)})"
        for group in unobserved[:SCRIPTS_NAMED]
    ]
    listed = ", ".join(named) + (", …" if len(unobserved) > SCRIPTS_NAMED else "")
    return (
        f"{workers} DataLoader worker{'s' if workers > 1 else ''} of {jobs} "
        f"job{'s' if jobs > 1 else ''} not observed: {listed}; `dlmon run` shows more"
    )


def _plain(row: Row) -> dict[str, object]:
    """Return a row as JSON has it; keys are those of the agent's API where it has the same."""
    rank, loader = row.rank, row.loader
    return {
        "run": rank.run,
        "rank": rank.rank,
        "pid": rank.pid,
        "up": rank.up,
        "superseded": row.superseded,
        "started": rank.started,
        "user": rank.info.get("user", ""),
        "script": rank.info.get("script", ""),
        "loader": loader.name,
        "phase": loader.phase.name.lower(),
        "phase_seconds": {phase.name.lower(): s for phase, s in loader.phase_seconds.items()},
        "wait_ratio": loader.wait_ratio,
        "epochs": loader.epochs,
        "batches": loader.batches,
        "samples": loader.samples,
        "ready": loader.ready,
        "outstanding": loader.outstanding,
        "capacity": loader.capacity,
        "last_delivery": loader.last_delivery,
        "orphan_workers": sum(worker.orphan for worker in loader.workers),
        # What a worker has copied shows between two scans, and this was the first.
        "workers": api.plain([replace(worker, copied_bytes=None) for worker in loader.workers]),
        "process": api.plain(rank.process),
        "cgroup_memory": api.plain(row.memory) if row.memory else None,
        "gpus": api.plain(row.gpus),
    }


def cells(row: Row, now: float) -> list[Cell]:
    """Return a row as the table has it, one cell per column of `COLUMNS`.

    Args:
        row: What to show.
        now: Unix time of the snapshot.
    """
    rank, loader = row.rank, row.loader
    ratio = loader.wait_ratio
    waits = ratio is not None and ratio >= HIGH_WAIT_RATIO
    since = None if loader.last_delivery is None else now - loader.last_delivery
    queue = f"{_table.counted(loader.ready)}/{_table.counted(loader.capacity)}"
    return [
        Cell(rank.run),
        Cell(rank.rank),
        Cell(str(rank.pid)),
        Cell(loader.name),
        _phase(row),
        Cell(_table.percent(ratio), "yellow" if waits else ""),
        Cell(_table.counted(loader.batches)),
        Cell(_table.counted(loader.epochs)),
        Cell(queue if loader.capacity and rank.up else UNKNOWN),
        _workers(rank, loader),
        Cell(_unique(loader)),
        Cell(_busy(row.gpus)),
        Cell(_table.duration(since)),
    ]


def _order(listed: tuple[Rank, bool]) -> tuple[str, int, str, float]:
    rank = listed[0]
    number = int(rank.rank) if rank.rank.isdecimal() and len(rank.rank) < 10 else -1
    return rank.run, number, rank.rank, rank.started


def _phase(row: Row) -> Cell:
    if not row.rank.up:
        return Cell("dead", "red")
    if row.superseded:
        return Cell("superseded", "yellow")
    return Cell(row.loader.phase.name.lower())


def _workers(rank: Rank, loader: Loader) -> Cell:
    if not loader.workers:
        return Cell(UNKNOWN)
    if not rank.up:
        orphans = sum(worker.orphan for worker in loader.workers)
        if not orphans:
            return Cell(UNKNOWN)
        return Cell(f"{orphans} orphan{'s' if orphans > 1 else ''}", "red")
    expected = any(worker.up is not None for worker in loader.workers)
    up = str(sum(worker.up is True for worker in loader.workers)) if expected else UNKNOWN
    states = Counter(worker.state for worker in loader.workers)
    trouble = [f"{states[state]} {state.name.lower()}" for state in TROUBLE if states[state]]
    text = f"{up}/{len(loader.workers)} {', '.join(trouble)}".rstrip()
    return Cell(text, "red" if trouble else "")


def _unique(loader: Loader) -> str:
    """Return the USS of all workers that live: a sum without one of them would mislead."""
    known = [worker.unique_bytes for worker in loader.workers if worker.up]
    return size(sum(b or 0 for b in known)) if known and None not in known else UNKNOWN


def _busy(gpus: Sequence[Gpu]) -> str:
    known = [gpu.utilization for gpu in gpus if gpu.utilization is not None]
    return _table.percent(statistics.fmean(known) if known else None)


def _print_table(found: Sequence[Row], snapshot: Snapshot) -> None:
    columns = [column for column in COLUMNS if column.title != "GPU" or snapshot.gpus]
    by_column = [dict(zip(COLUMNS, cells(row, snapshot.time), strict=True)) for row in found]
    lines = _table.render(
        columns,
        [[row[column] for column in columns] for row in by_column],
        width=_table.terminal_width(sys.stdout),
        squeezes=SQUEEZES,
        colour=_table.has_colour(sys.stdout, os.environ),
    )
    print("\n".join(lines))


def _looked(directories: Sequence[str]) -> str:
    return ", ".join(
        directory if os.path.isdir(directory) else f"{directory} (no such directory)"
        for directory in directories
    )


def _refused(refused: Sequence[Refused]) -> str:
    first = refused[0].message
    if len(refused) == 1:
        return f"1 file refused: {first}"
    more = " or more" if len(refused) >= MOST_TOLD else ""
    return f"{len(refused)}{more} files refused, the first: {first}"


def _say(message: str) -> None:
    print(f"dlmon ps: {_table.printable(message)}", file=sys.stderr)
