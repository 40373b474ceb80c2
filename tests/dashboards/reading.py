"""Reading the generated dashboards: panels, queries, and the names in PromQL."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dlmon
from dlmon.gen.dashboards import render

ROOT = Path(dlmon.__file__).resolve().parent.parent
Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One query of a dashboard.

    Attributes:
        board: Uid of its dashboard.
        panel: Title of its panel, or the annotation's name.
        kind: Type of the panel, `annotation` for one.
        letter: Its refId, `marks` for an annotation.
        expr: PromQL, with Grafana's variables.
        instant: Asked for one moment.
        fields: For a table: the labels that its columns show.
    """

    board: str
    panel: str
    kind: str
    letter: str
    expr: str
    instant: bool
    fields: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.board}/{self.panel}/{self.letter}"


@functools.cache
def boards() -> Mapping[str, Json]:
    """The dashboards by uid."""
    made = [json.loads(text) for text in render().values()]
    return {board["uid"]: board for board in made}


def panels(board: Json) -> Iterator[Json]:
    """All panels, those in closed rows and the rows themselves too."""
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def shown() -> list[tuple[str, Json]]:
    """Every panel that is no row, with its dashboard's uid."""
    return [
        (uid, panel)
        for uid, board in boards().items()
        for panel in panels(board)
        if panel["type"] != "row"
    ]


def queries() -> Iterator[Query]:
    """Every query of panels and annotations."""
    for uid, panel in shown():
        for target in panel["targets"]:
            yield Query(
                uid,
                panel["title"],
                panel["type"],
                target["refId"],
                target["expr"],
                target["instant"],
                columns(panel),
            )
    for uid, board in boards().items():
        for annotation in board["annotations"]["list"]:
            expr = annotation["target"]["expr"]
            yield Query(uid, annotation["name"], "annotation", "marks", expr, instant=False)


def columns(panel: Json) -> tuple[str, ...]:
    """The labels that a table's columns show."""
    if panel["type"] != "table":
        return ()
    names: Json = panel["transformations"][-1]["options"]["renameByName"]
    return tuple(name for name in names if not name.startswith("Value"))


def variables(board: Json) -> Iterator[Json]:
    """The variables that are asked for, the data source left out."""
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable


_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)")
_WORDS = {"and", "or", "unless", "bool", "offset", "by", "on"}


def names(expr: str) -> set[str]:
    """The names of the series that PromQL asks for."""
    rest = re.sub(r"[{\[][^}\]]*[}\]]", " ", _STRING.sub("", expr))
    rest = _LABELS.sub(" ", rest)
    found = re.findall(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", rest)
    return {name for name in found if name not in _WORDS}
