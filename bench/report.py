"""Say what was measured: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dlmon
from bench import traceml
from bench.aims import Rows, aims
from bench.plan import MEASUREMENTS, Options
from bench.results import PLACES, Row
from bench.variants import BARE, DLMON, DLMON_NEXT, NULL, PEERS
from bench.workloads import Cores
from dlmon.commands._table import UNKNOWN, Cell, Column, render

NUMBERS = tuple(
    Column(title, right=True)
    for title in ("CPU µs", "added", "95 % interval", "added %", "interval in %", "blocks")
)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured.

    Attributes:
        options: How.
        seconds: How long it took.
        rows: In the main process.
        traceml: In TraceML's; or why there are none.
        failed: TraceML was to be measured, and could not be.
    """

    options: Options
    seconds: float
    rows: Rows
    traceml: Rows | str
    failed: bool

    def text(self, *, colour: bool) -> str:
        """Return tables, and how they compare with what is aimed at."""
        lines = [_machine(), _pinned(self.options), "", *_legend(self.options)]
        for name in self.rows:
            lines += ["", f"{MEASUREMENTS[name].title}: CPU microseconds per batch"]
            for where in dict.fromkeys(row.where for row in self.rows[name]):
                lines += ["", *self._table(name, where, colour=colour)]
        if found := self._aims(colour=colour):
            lines += ["", *found]
        return "\n".join([*lines, "", f"measured in {self.seconds / 60:.1f} minutes"])

    def as_json(self) -> dict[str, Any]:
        """Return the same for programs; times are CPU microseconds per batch."""
        return {
            "machine": _machine(),
            "seconds": round(self.seconds, 1),
            "options": dataclasses.asdict(self.options),
            "measurements": {
                name: {
                    "title": MEASUREMENTS[name].title,
                    "rows": [dataclasses.asdict(row) for row in rows],
                    "traceml": self._traceml_json(name),
                }
                for name, rows in self.rows.items()
            },
            "aims": [
                {**dataclasses.asdict(aim), "aim": aim.text, "verdict": aim.verdict}
                for aim in aims(self.rows)
            ],
        }

    def _has_traceml(self, name: str) -> bool:
        return self.options.peers and MEASUREMENTS[name].workload is not None

    def _traceml_json(self, name: str) -> Any:
        if not self._has_traceml(name):
            return None
        if isinstance(self.traceml, str):
            return self.traceml
        return [dataclasses.asdict(row) for row in self.traceml[name]]

    def _table(self, name: str, where: str, *, colour: bool) -> list[str]:
        rows = [_cells(row, row.variant) for row in self.rows[name] if row.where == where]
        notes = []
        if self._has_traceml(name):
            if isinstance(self.traceml, str):
                notes = [f"{traceml.NAME}: {self.traceml}"]
            else:
                theirs = [row for row in self.traceml[name] if row.where == where]
                rows += [_cells(row, _beside(row.variant)) for row in theirs]
        return [*render([Column(PLACES[where]), *NUMBERS], rows, colour=colour), *notes]

    def _aims(self, *, colour: bool) -> list[str]:
        rows = []
        for aim in aims(self.rows):
            met = aim.verdict.startswith("met")
            verdict = Cell(aim.verdict, "" if met else "yellow")
            rows.append([Cell(aim.of), *_numbers(aim.row)[1:-1], Cell(aim.text), verdict])
        columns = [Column("what dlmon adds to"), *NUMBERS[1:-1], Column("aim"), Column("verdict")]
        return render(columns, rows, colour=colour) if rows else []


def _beside(variant: str) -> str:
    """Return what a row of TraceML's process is called."""
    return variant if variant == traceml.NAME else f"{variant}, TraceML's"


def _cells(row: Row, name: str) -> list[Cell]:
    return [Cell(name), *_numbers(row)]


def _numbers(row: Row) -> list[Cell]:
    """Return what stands in the columns NUMBERS."""
    texts = [f"{row.median:.2f}", "", "", "", "", str(row.blocks)]
    if (added := row.added) is not None:
        texts[1] = f"{added.median:+.2f}"
        texts[3] = f"{100 * added.median / row.bare:+.2f}"
        texts[2] = texts[4] = UNKNOWN
        if added.low is not None and added.high is not None:
            texts[2] = f"[{added.low:+.2f}, {added.high:+.2f}]"
            texts[4] = f"[{100 * added.low / row.bare:+.2f}, {100 * added.high / row.bare:+.2f}]"
    return [Cell(text) for text in texts]


def _legend(options: Options) -> list[str]:
    variants = [BARE, NULL, DLMON, DLMON_NEXT, *(PEERS if options.peers else ())]
    texts = {variant.name: variant.about for variant in variants}
    if options.peers:
        texts[traceml.NAME] = traceml.ABOUT
    width = max(map(len, texts))
    return [
        *(f"{name:{width}}  {about}" for name, about in texts.items()),
        "",
        "Medians over blocks that alternate in one process. Added: to the bare blocks right before",
        "and after, with the 95 % interval of that median (bootstrap); in %: of the bare loop.",
    ]


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    versions = f"dlmon {dlmon.__version__}, torch {torch.__version__}"
    cpus = f"{len(os.sched_getaffinity(0))} CPUs ({cpu})"
    return f"{versions}, Python {platform.python_version()}, {cpus}"


def _pinned(options: Options) -> str:
    cores = Cores.placed(options.pin)
    if not cores.main:
        return "processes are pinned to no core"
    main, workers = (", ".join(map(str, sorted(side))) for side in (cores.main, cores.workers))
    return f"where there are workers: main process on core {main}, workers on core {workers}"
