"""List the ranks and loaders on this node, one line each, as they are now; no agent is needed.

  RUN RANK PID   the training launch, and the process that is this rank of it
  LOADER         as named by dlmon.name(), else after the code that builds it
  PHASE          what its loop does: idle, startup, wait, step, pause or teardown; or the process is
                 dead, or superseded by a newer one of the same run and rank
  WAIT           share of the loop's time spent waiting for data, so far: wait / (wait + step)
  BATCHES EPOCHS delivered to the loop, and iterations begun
  QUEUE          batches ready now / what can be prefetched at most
  WORKERS        alive / configured, and those that are stopped, hung or dead; of a dead rank, the
                 orphans it left
  LAST           since the last batch was delivered

A narrow terminal shows fewer columns; a pipe gets all of them. Ranks that ended in order are gone.

With --dead: who died, rank or worker, of what, how long ago, and what it was doing, as an agent of
this node remembers it, and without one as the segments still tell.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import TextIOWrapper

from dlmon.commands import _dead, _table
from dlmon.commands._table import UNKNOWN, Cell, Column, Squeeze
from dlmon.observe.containers import Containers
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Loader, Rank, Refused, Snapshot, Worker, WorkerState
from dlmon.segment.files import SEARCHED

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
    Column("LAST", right=True),
)

SQUEEZES = (
    Squeeze("EPOCHS"),
    Squeeze("LOADER", 12),
    Squeeze("BATCHES"),
    Squeeze("LOADER", 8),
    Squeeze("RUN", 12),
    Squeeze("QUEUE"),
    Squeeze("LAST"),
)
"""What a narrow terminal can do without, first to last: other commands ask for the run's name."""

HIGH_WAIT_RATIO = 0.5
"""From here on the loop waits more than it works: shown in yellow."""

TROUBLE = (WorkerState.STOPPED, WorkerState.HUNG, WorkerState.ZOMBIE, WorkerState.DEAD)

HINT = (
    "start a job with `dlmon run train.py`, or call dlmon.instrument() in it; "
    "a job is listed once it iterates a DataLoader"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line: a loader of a rank.

    Attributes:
        superseded: Another process is this rank of this run now.
    """

    rank: Rank
    loader: Loader
    superseded: bool


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON array, an object per rank and loader, or per death: times in seconds, "
        "sizes in bytes, ratios 0 to 1, null for what is not known",
    )
    parser.add_argument(
        "--dead", action="store_true", help="list ranks and workers that died, with last words"
    )
    parser.add_argument(
        "--dir",
        action="append",
        metavar="DIR",
        help="look for segments here instead, may be repeated; "
        f"default: DLMON_DIR where it is set, {', '.join(SEARCHED)}",
    )


def main(args: argparse.Namespace) -> int:
    """Print the list.

    Returns:
        0, also when there is nothing to list.
    """
    directories = args.dir or _default_directories()
    with closing(Observer(directories, containers=Containers(directories).look)) as observer:
        snapshot = observer.observe()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale may lack the dash and the ellipsis
    if args.dead:
        _list_dead(directories, snapshot, as_json=args.json)
    else:
        _list(directories, snapshot, as_json=args.json)
    if snapshot.refused:
        _say(_refused(snapshot.refused))
    return 0


def _list(directories: Sequence[str], snapshot: Snapshot, *, as_json: bool) -> None:
    found = list(rows(snapshot))
    if as_json:
        print(json.dumps([plain(row) for row in found], indent=2, allow_nan=False))
    elif found:
        _print_table(found, snapshot.time)
    else:
        _say(f"no DataLoader is observed in {_looked(directories)}; {HINT}")


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
    """Yield what to list, by run, rank and loader: all but the dead superseded ones.

    Args:
        snapshot: What there is.
    """
    listed = [(rank, False) for rank in snapshot.ranks]
    listed += [(rank, True) for rank in snapshot.superseded if rank.up]
    for rank, superseded in sorted(listed, key=_order):
        for loader in rank.loaders:
            yield Row(rank, loader, superseded)


def plain(row: Row) -> dict[str, object]:
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
        "workers": [_plain_worker(worker) for worker in loader.workers],
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
        Cell(_table.duration(since)),
    ]


def _default_directories() -> list[str]:
    own = os.environ.get("DLMON_DIR")
    return [os.path.abspath(own), *SEARCHED] if own else list(SEARCHED)


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


def _plain_worker(worker: Worker) -> dict[str, object]:
    return {
        "slot": worker.slot,
        "up": worker.up,
        "state": None if worker.state is None else worker.state.name.lower(),
        "pid": worker.pid,
        "orphan": worker.orphan,
        "last_progress": worker.last_progress,
        "batches": worker.batches,
        "fetch_seconds": worker.fetch_seconds,
        "cpu_seconds": worker.cpu_seconds,
        "resident_bytes": worker.resident_bytes,
    }


def _print_table(found: Sequence[Row], now: float) -> None:
    lines = _table.render(
        COLUMNS,
        [cells(row, now) for row in found],
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
    return f"{len(refused)} files refused, the first: {first}"


def _say(message: str) -> None:
    print(f"dlmon ps: {_table.printable(message)}", file=sys.stderr)
