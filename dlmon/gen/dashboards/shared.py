"""Panels that several dashboards have: what is wrong now, and the marks of alerts."""

from __future__ import annotations

from typing import Any

from dlmon.catalog import FINDING
from dlmon.gen.dashboards import board, palette
from dlmon.gen.dashboards.board import CELL, field, to
from dlmon.gen.dashboards.panels import Look
from dlmon.gen.dashboards.promql import ALERTS, select
from dlmon.gen.dashboards.tables import Column, table

OURS = 'alertname=~"Dlmon.+"'
"""Alerts of dlmon's rules, whose names all begin so."""

RANK_LINK = to(board.LOADER, run=field("Run"), rank=CELL)
LOADER_LINK = to(board.LOADER, run=field("Run"), rank=field("Rank"), loader=CELL)

_WHO = (
    Column("Run", label="run", link=to(board.RUN_BOARD, run=CELL)),
    Column("Rank", label="rank", link=RANK_LINK, width=70),
    Column("Loader", label="loader", link=LOADER_LINK),
    Column("Worker", label="worker", width=80),
    Column("Node", label="instance", link=to(board.NODE, instance=CELL)),
)
"""Who it is, in a table of findings or alerts."""


def findings(*matchers: str) -> Any:
    """Return the table of what agents find wrong now, each with what to do about it."""
    return table(
        Look(
            "What is wrong now",
            "What the agents diagnose at this moment: what, and with whom. A click on a finding"
            " opens what it means, by which signals it is recognised and what to do; on a rank or"
            " loader its dashboard.",
            "none",
            width=12,
            no_value="nothing is wrong: no agent has a finding here",
        ),
        Column("Severity", label="severity", mappings=palette.SEVERITY_NAMES, width=90),
        Column("Finding", label="finding", link=f"{board.DOCUMENTS}/findings.md#{CELL}"),
        *_WHO,
        source="sum by (severity, finding, run, rank, loader, worker, instance) "
        f"({select(FINDING, *matchers)})",
        rising=["Severity"],  # critical comes first in the alphabet, too
    )


def alerts(*matchers: str) -> Any:
    """Return the table of alerts that are firing or about to, each with its runbook."""
    return table(
        Look(
            "Alerts",
            "Alerts of dlmon's rules that fire, or hold but not yet for as long as they must"
            " (pending). A click on a name opens its runbook: meaning, impact, diagnosis,"
            " mitigation.",
            "none",
            width=12,
            no_value="no alert is firing or pending",
        ),
        Column("Severity", label="severity", mappings=palette.SEVERITY_NAMES, width=90),
        Column("State", label="alertstate", width=80),
        Column("Alert", label="alertname", link=f"{board.DOCUMENTS}/runbooks/{CELL}.md"),
        *_WHO,
        source="sum by (severity, alertstate, alertname, run, rank, loader, worker, instance) "
        f"({_alerts(*matchers)})",
        rising=["Severity", "State"],
    )


def alert_marks(*matchers: str) -> Any:
    """Return the annotation of alerts: a span for as long as each fires."""
    firing = _alerts('alertstate="firing"', *matchers)
    return board.annotation(
        "Alerts",
        f"sum by (alertname, severity, run, rank, loader, worker) ({firing})",
        palette.BAD,
        "{{alertname}}",
        "{{severity}}: run {{run}} rank {{rank}} {{loader}} {{worker}}",
    )


def _alerts(*matchers: str) -> str:
    return select(ALERTS, OURS, *matchers)
