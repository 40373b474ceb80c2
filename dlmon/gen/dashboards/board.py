"""A dashboard put together: rows laid out on the grid, variables, links and annotations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from grafanalib import core as G  # noqa: N812  # as its own documentation does
from grafanalib._gen import DashboardEncoder

from dlmon.catalog import AGENT_BUILD_INFO, LOADER_PHASE, RANK_UP, Metric
from dlmon.gen.dashboards.current import current, text
from dlmon.gen.dashboards.panels import DATASOURCE, WIDTH
from dlmon.gen.dashboards.promql import JOBS, RANKS, RUN, select
from dlmon.gen.rules.model import REPOSITORY

TAG = "dlmon"
CLUSTER, RUN_BOARD, LOADER, NODE = (
    f"{TAG}-{name}" for name in ("cluster", "run", "loader", "node")
)

DOCUMENTS = f"{REPOSITORY}docs"
"""Where the documents are that panels link to."""

ALL = ".+"
"""What a variable stands for when all of its values are chosen: short, whatever there is."""


@dataclass(frozen=True)
class Row:
    """A titled row of panels, placed from left to right in as many lines as they need.

    Attributes:
        title: A few words.
        panels: Made by `panels` and `tables`.
        collapsed: Closed until somebody opens it; its queries run only then.
    """

    title: str
    panels: Sequence[Any]
    collapsed: bool = False


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    variables: Sequence[Any],
    rows: Sequence[Row],
    annotations: Sequence[Any] = (),
    time: str = "now-1h",
) -> str:
    """Return the JSON of a dashboard.

    Args:
        uid: Its stable name in addresses.
        title: Without `dlmon`.
        description: What it answers.
        variables: After the data source.
        rows: From top to bottom.
        annotations: Moments marked in all graphs.
        time: Where its time range begins.
    """
    made = G.Dashboard(
        title=f"dlmon / {title}",
        uid=uid,
        description=description,
        tags=[TAG],
        editable=False,  # what is provisioned comes from this code
        graphTooltip=G.GRAPH_TOOLTIP_MODE_SHARED_CROSSHAIR,
        time=G.Time(time, "now"),
        timezone="browser",
        refresh="30s",
        templating=G.Templating(list=[_datasource(), *variables]),
        annotations=G.Annotations(list=list(annotations)),
        links=_links(),
        panels=_placed(rows),
    ).auto_panel_ids()
    return text(current(json.loads(json.dumps(made, cls=DashboardEncoder))))


def _placed(rows: Sequence[Row]) -> list[Any]:
    """Return all panels with their places on the grid, and the rows above them."""
    found = []
    y = 0
    for row in rows:
        place = G.GridPos(h=1, w=WIDTH, x=0, y=y)
        below = _place(row.panels, y + 1)
        inside = list(row.panels) if row.collapsed else []
        found.append(
            G.RowPanel(title=row.title, collapsed=row.collapsed, panels=inside, gridPos=place)
        )
        found += [] if row.collapsed else row.panels
        y = y + 1 if row.collapsed else below
    return found


def _place(panels: Sequence[Any], y: int) -> int:
    """Place panels from a height on, and return the height below them."""
    x = tallest = 0
    for panel in panels:
        if x + panel.gridPos.w > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        panel.gridPos.x, panel.gridPos.y = x, y
        x += panel.gridPos.w
        tallest = max(tallest, panel.gridPos.h)
    return y + tallest


# --- variables ---


def _datasource() -> Any:
    return G.Template(name="datasource", label="Data source", type="datasource", query="prometheus")


def variable(
    name: str, metric: Metric, *matchers: str, many: bool = False, label: str | None = None
) -> Any:
    """Return a variable whose values are those of the label of its name.

    Args:
        name: Of the label.
        metric: One that has it.
        matchers: Which of its series.
        many: Several values can be chosen, or all.
        label: What it is called; else its name with a capital.
    """
    return G.Template(
        name=name,
        label=label or name.capitalize(),
        dataSource=DATASOURCE,
        query=f"label_values({select(metric, *matchers)}, {name})",
        refresh=G.REFRESH_ON_TIME_RANGE_CHANGE,
        sort=G.SORT_ALPHA_IGNORE_CASE_ASC if name != "rank" else G.SORT_NUMERIC_ASC,
        multi=many,
        includeAll=many,
        allValue=ALL if many else None,
    )


def runs() -> Any:
    """Return the variable of any number of runs."""
    return variable("run", RANK_UP, many=True)


def run() -> Any:
    """Return the variable of one run."""
    return variable("run", RANK_UP)


def ranks() -> Any:
    """Return the variable of the ranks of the run."""
    return variable("rank", RANK_UP, RUN, many=True)


def loaders() -> Any:
    """Return the variable of the loaders of these ranks."""
    return variable("loader", LOADER_PHASE, RUN, RANKS, many=True)


def jobs() -> Any:
    """Return the variable of Prometheus's jobs that scrape agents."""
    return variable("job", AGENT_BUILD_INFO, many=True, label="job")


def instances() -> Any:
    """Return the variable of nodes."""
    return variable("instance", AGENT_BUILD_INFO, JOBS, many=True, label="instance")


# --- links ---


def _links() -> list[Any]:
    """Return the links at the top: to the other dashboards, all chosen and the time kept."""
    return [
        G.DashboardLink(
            title="dlmon",
            type="dashboards",
            tags=[TAG],
            includeVars=True,
            keepTime=True,
            tooltip="The other dashboards, for what is chosen here",
        ),
        G.DashboardLink(
            title="Runbooks",
            type="link",
            icon="doc",
            uri=f"{DOCUMENTS}/runbooks",
            keepTime=False,
            targetBlank=True,
            tooltip="What each alert means, and what to do",
        ),
    ]


def to(uid: str, **variables: str) -> str:
    """Return the address of a dashboard, keeping the data source and the time.

    Args:
        uid: Of the dashboard.
        variables: What is to be chosen there: `CELL`, `HERE`, a `field` or a `label`.
    """
    kept = "${datasource:queryparam}&${__url_time_range}"
    chosen = urlencode({f"var-{name}": value for name, value in variables.items()}, safe='${}:[]"')
    return f"/d/{uid}?{kept}&{chosen}" if chosen else f"/d/{uid}?{kept}"


CELL = "${__value.raw:percentencode}"
"""In an address: the value of the cell that is clicked."""

HERE = "${run:percentencode}"
"""In an address: the run that is chosen."""


def field(title: str) -> str:
    """Return, for an address, the value of the row's column of that title."""
    return f'${{__data.fields["{title}"]:percentencode}}'


def label(name: str) -> str:
    """Return, for an address, the label of the series that is clicked."""
    return f"${{__field.labels.{name}:percentencode}}"


# --- annotations ---


def annotation(
    name: str, expr: str, colour: str, title: str, body: str, *, at_value: bool = False
) -> Any:
    """Return moments or spans to be marked in all graphs.

    Args:
        name: Of its switch at the top.
        expr: Its query.
        colour: Of the marks.
        title: With labels as `{{rank}}`.
        body: Likewise.
        at_value: The value of the query is the moment, in Unix milliseconds.
    """
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "target": {"refId": "Anno", "expr": expr, "interval": ""},
        "titleFormat": title,
        "textFormat": body,
        **({"useValueForTime": True} if at_value else {}),
    }
