"""What `dlmon ps --dead` lists: the last words of ranks and workers, from segments and an agent."""

from __future__ import annotations

import dataclasses
import http.client
import json
import textwrap
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress

from dlmon.agent import address, evidence, lock
from dlmon.agent.deaths import Deaths
from dlmon.agent.history import History
from dlmon.analysis.deaths import Death
from dlmon.commands import _table
from dlmon.commands._table import UNKNOWN, Cell, Column, Squeeze
from dlmon.observe.snapshot import Snapshot

COLUMNS = (
    Column("RUN"),
    Column("RANK", right=True),
    Column("PID", right=True),
    Column("LOADER"),
    Column("WORKER", right=True),
    Column("REASON"),
    Column("DIED", right=True),
)

SQUEEZES = (Squeeze("LOADER", 8), Squeeze("RUN", 12), Squeeze("PID"))
"""What a narrow terminal can do without, first to last."""

AGENT_SECONDS = 3.0
"""How long an agent has to answer."""

AGENT_BYTES = 16 << 20
INDENT = "    "


def known(directories: Iterable[str], snapshot: Snapshot, keep_seconds: float) -> list[Death]:
    """Return who died, the newest last: as the agent knows it, where one reads these directories.

    Args:
        directories: Where segments were looked for.
        snapshot: What was found there.
        keep_seconds: How long a death is of interest.
    """
    looked = Deaths(History(0, 1), keep_seconds, None)
    looked.look(snapshot)
    deaths = {death.key: death for death in looked.known()}
    for place in dict.fromkeys(directories):
        agent = lock.find(place)
        if agent is not None and agent.address:
            deaths.update({death.key: death for death in _told_by(agent.address)})
    return sorted(deaths.values(), key=lambda death: death.died or 0.0)


def lines(deaths: Sequence[Death], now: float, width: int | None, *, colour: bool) -> list[str]:
    """Return the table: a line for each death, and what happened below it.

    Args:
        deaths: From top to bottom.
        now: Unix time.
        width: Characters that fit on a line, None for no limit.
        colour: Whether reasons have theirs.
    """
    rows = [_cells(death, now) for death in deaths]
    heading, *table = _table.render(COLUMNS, rows, width=width, squeezes=SQUEEZES, colour=colour)
    shown = [heading]
    for line, death in zip(table, deaths, strict=True):
        shown.append(line)
        sentence = INDENT + _table.printable(death.sentence)
        if width is None:
            shown.append(sentence)
        else:
            shown += textwrap.wrap(sentence, max(width, 40), subsequent_indent=INDENT)
    return shown


def plain(death: Death) -> dict[str, object]:
    """Return a death as JSON has it: the attributes of `Death`."""
    return dataclasses.asdict(death)


def _cells(death: Death, now: float) -> list[Cell]:
    ago = None if death.died is None else now - death.died
    return [
        Cell(death.run),
        Cell(death.rank),
        Cell(UNKNOWN if death.pid is None else str(death.pid)),
        Cell(death.loader if death.kind == "worker" else UNKNOWN),
        Cell(death.worker or UNKNOWN),
        Cell(death.reason, "red"),
        Cell(f"{_table.duration(ago)} ago" if ago is not None else UNKNOWN),
    ]


def _told_by(where: str) -> list[Death]:
    """Return what an agent tells, nothing if it does not answer or answers with something else."""
    host, port = address.parse(where)
    if host in ("", "::", "0.0.0.0"):  # noqa: S104  # compared, not bound
        host = "127.0.0.1"
    with suppress(OSError, http.client.HTTPException, ValueError, TypeError, RecursionError):
        with closing(http.client.HTTPConnection(host, port, timeout=AGENT_SECONDS)) as connection:
            connection.request("GET", "/api/v1/deaths")
            document = json.loads(connection.getresponse().read(AGENT_BYTES))
        return [evidence.from_json(one) for one in document["deaths"]]
    return []
