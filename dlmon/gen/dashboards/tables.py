"""Tables: columns of labels and of queries, joined by their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafanalib import core as G  # noqa: N812  # as its own documentation does

from dlmon.gen.dashboards.palette import PLAIN, Json, Steps, thresholds
from dlmon.gen.dashboards.panels import WIDTH, Look, override, query


@dataclass(frozen=True)
class Column:
    """One column of a table, of a label or of a query's values.

    Attributes:
        title: Its head.
        label: The label it shows; empty for values.
        expr: The query whose values it shows, at the end of the range; empty for a label.
        unit: Of values.
        steps: Thresholds that colour values.
        gauge: Draw values as bars between 0 and 1.
        mappings: Values shown as words.
        link: Address that a cell links to; `${__value.raw}` in it is the cell's value.
        width: In pixels; else what is left is shared.
    """

    title: str
    label: str = ""
    expr: str = ""
    unit: str = "none"
    steps: Steps = ()
    gauge: bool = False
    mappings: Sequence[Json] = ()
    link: str = ""
    width: int = 0

    def properties(self) -> Json:
        """Return how it differs from the table's other columns."""
        found: Json = {"unit": self.unit} if self.expr else {}
        if self.steps:
            found["thresholds"] = {"mode": "absolute", "steps": thresholds(self.steps)}
        if self.mappings:
            found["mappings"] = list(self.mappings)
        if self.gauge:
            found |= {"min": 0, "max": 1}
            found["custom__cellOptions"] = {
                "type": "gauge",
                "mode": "gradient",
                "valueDisplayMode": "text",
            }
        elif self.steps or self.mappings:
            found["custom__cellOptions"] = {"type": "color-text"}
        if self.link:
            found["links"] = [{"title": f"Open {self.title.lower()}", "url": self.link}]
        if self.width:
            found["custom__width"] = self.width
        return found


def table(
    look: Look,
    *columns: Column,
    source: str = "",
    sort: Sequence[str] = (),
    rising: Sequence[str] = (),
) -> Any:
    """Return a table.

    Args:
        look: Title, unit and so on; the unit is that of columns that say none.
        columns: From left to right.
        source: The query that the labels are of, where no column shows its values.
        sort: Titles of the columns that it is sorted by, largest first; one that has no data is
            passed over.
        rising: Likewise, smallest first.
    """
    valued = [column for column in columns if column.expr]
    exprs = [*([source] if source else []), *(column.expr for column in valued)]
    targets = [query(expr, now=True) for expr in exprs]
    for target in targets:
        target.format = "table"
    return G.Table(
        **look.arguments(targets, width=WIDTH, height=7),
        thresholds=thresholds(PLAIN),
        unit=look.unit,
        overrides=[
            override(column.title, **properties)
            for column in columns
            if (properties := column.properties())
        ],
        sortBy=[
            G.TableSortByField(displayName=title, desc=title in sort) for title in (*sort, *rising)
        ],
        transformations=_transformations(columns, valued, bool(source), len(targets)),
        extraJson={
            "fieldConfig": {
                "defaults": {
                    **look.defaults(color={"mode": "thresholds"}, mappings=[]),
                    "custom": {"cellOptions": {"type": "auto"}, "inspect": False},
                }
            },
            "options": {"cellHeight": "sm", "footer": _NO_FOOTER},
        },
    )


_NO_FOOTER = {"show": False, "reducer": ["sum"], "countRows": False}


def _transformations(
    columns: Sequence[Column], valued: Sequence[Column], has_source: bool, targets: int
) -> list[Json]:
    """Return how the answers become one table: joined by labels, renamed, put in order.

    Grafana calls a query's values `Value #A`, or `Value` if there is one query.
    """

    def name(number: int) -> str:
        return f"Value #{chr(ord('A') + number)}" if targets > 1 else "Value"

    hidden = {"Time": True, **({name(0): True} if has_source else {})}
    names = {name(number + has_source): column.title for number, column in enumerate(valued)}
    names |= {column.label: column.title for column in columns if column.label}
    fields = {title: field for field, title in names.items()}
    order = {fields[column.title]: index for index, column in enumerate(columns)}
    organize = {
        "id": "organize",
        "options": {
            "excludeByName": hidden,
            "includeByName": {},
            "indexByName": order,
            "renameByName": names,
        },
    }
    return [{"id": "merge", "options": {}}, organize] if targets > 1 else [organize]
