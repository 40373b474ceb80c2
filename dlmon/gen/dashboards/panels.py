"""Panels, one function for each kind: grafanalib's, with the options that Grafana has today."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafanalib import core as G  # noqa: N812  # as its own documentation does

from dlmon.gen.dashboards.palette import PLAIN, Json, Steps, thresholds

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

NO_DATA = "no data: nothing that this is about ran in the time range"
"""Shown where a query has no answer, unless a panel can say it better."""

WIDTH = 24
"""Of a dashboard, in Grafana's columns."""


@dataclass(frozen=True)
class Look:
    """What all kinds of panels have.

    Attributes:
        title: A few words.
        description: What it shows, how to read it, and what to do about it.
        unit: One of Grafana's.
        width: In columns of 24; 0 for what is usual of its kind.
        height: In rows of 30 pixels; likewise.
        no_value: Shown where nothing answers.
        links: Where its values link to, as pairs of title and address.
    """

    title: str
    description: str
    unit: str
    width: int = 0
    height: int = 0
    no_value: str = NO_DATA
    links: Sequence[tuple[str, str]] = ()

    def arguments(self, targets: Sequence[Any], width: int = 12, height: int = 8) -> Json:
        """Return what every panel of grafanalib takes; its place is given later.

        Args:
            targets: Queries.
            width: What is usual of its kind.
            height: Likewise.
        """
        return {
            "title": self.title,
            "description": self.description,
            "dataSource": DATASOURCE,
            "maxDataPoints": None,
            "targets": _lettered(targets),
            "gridPos": G.GridPos(h=self.height or height, w=self.width or width, x=0, y=0),
        }

    def defaults(self, **further: Any) -> Json:
        """Return the defaults of its fields."""
        links = [{"title": title, "url": url} for title, url in self.links]
        return {
            "unit": self.unit,
            "noValue": self.no_value,
            **({"links": links} if links else {}),
            **further,
        }


def query(expr: str, legend: str = "", *, now: bool = False) -> Any:
    """Return a query over the time range, or of its end.

    Args:
        expr: PromQL.
        legend: How Grafana names its series, with labels as `{{rank}}`.
        now: Ask for one moment only, the end of the range.
    """
    return G.Target(expr=expr, legendFormat=legend or "__auto", instant=now, datasource=DATASOURCE)


def _lettered(targets: Sequence[Any]) -> list[Any]:
    for number, target in enumerate(targets):
        target.refId = chr(ord("A") + number)
    return list(targets)


def override(name: str, **properties: Any) -> Json:
    """Return properties of what is called so; `__` in a key stands for a dot.

    Args:
        name: Of a series or column, or a regular expression between slashes.
        properties: What is different for it.
    """
    return {
        "matcher": {"id": "byRegexp" if name.startswith("/") else "byName", "options": name},
        "properties": [
            {"id": key.replace("__", "."), "value": value} for key, value in properties.items()
        ],
    }


def colour(name: str) -> Json:
    """Return a fixed colour."""
    return {"mode": "fixed", "fixedColor": name}


def timeseries(
    look: Look,
    *targets: Any,
    colours: Mapping[str, str] | None = None,
    units: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    stack: str = "none",
    steps: Steps | None = None,
    top: float | None = None,
    bars: bool = False,
) -> Any:
    """Return lines over time.

    Args:
        look: Title, unit and so on.
        targets: Queries.
        colours: Of series, by their names in the legend or a regular expression between slashes.
        units: Of series that have another one, likewise; they get an axis on the right.
        dashed: Series drawn as dashed lines without filling: limits.
        stack: none, normal or percent.
        steps: Thresholds, drawn as dashed lines.
        top: The axis's upper end; else it follows the values.
        bars: Draw bars: for what is counted from point to point.
    """
    filled = bars or stack != "none"
    wide = look.width in (0, 12, WIDTH)
    defaults = look.defaults(min=0, max=top, custom=_line(dashed=steps is not None))
    return G.TimeSeries(
        **look.arguments(targets),
        unit=look.unit,
        drawStyle="bars" if bars else "line",
        fillOpacity=70 if filled else 8,
        lineWidth=0 if filled else 1,
        showPoints="never",
        stacking={"mode": stack, "group": "A"},
        thresholds=thresholds(steps or PLAIN),
        legendDisplayMode="table" if wide else "list",
        legendCalcs=["mean", "max", "lastNotNull"] if wide else [],
        tooltipMode="multi",
        tooltipSort="desc",
        overrides=_overrides(colours or {}, units or {}, dashed),
        extraJson={
            "fieldConfig": {"defaults": defaults},
            "options": {"legend": {"showLegend": True}, "tooltip": {"hideZeros": False}},
        },
    )


def _line(*, dashed: bool) -> Json:
    """Return what grafanalib does not say of lines; a logarithm's base is for such scales."""
    return {
        "scaleDistribution": {"type": "linear", "log": None},
        "thresholdsStyle": {"mode": "dashed" if dashed else "off"},
        "axisBorderShow": False,
        "insertNulls": False,
    }


def _overrides(
    colours: Mapping[str, str], units: Mapping[str, str], dashed: Sequence[str]
) -> list[Json]:
    """Return what is different for single series."""
    apart = {"mode": "none", "group": "A"}
    line = {"fill": "dash", "dash": [10, 10]}
    return [
        *(override(name, color=colour(shade)) for name, shade in colours.items()),
        *(override(name, unit=unit, custom__axisPlacement="right") for name, unit in units.items()),
        *(
            override(name, custom__lineStyle=line, custom__fillOpacity=0, custom__stacking=apart)
            for name in dashed
        ),
    ]


def stat(look: Look, expr: str, *, steps: Steps = PLAIN, fill: bool = False) -> Any:
    """Return one number: how it is now, at the end of the time range.

    A query over the range would go on showing the last of what is no more.

    Args:
        look: Title, unit and so on.
        expr: PromQL with one answer.
        steps: Thresholds that colour it.
        fill: Colour the whole panel: for what should be looked at first.
    """
    return G.Stat(
        **look.arguments([query(expr, now=True)], width=4, height=4),
        format=look.unit,
        noValue=look.no_value,
        color={"mode": "thresholds"},
        colorMode="background" if fill else "value",
        graphMode="none",
        reduceCalc="lastNotNull",
        thresholds=thresholds(steps),
        extraJson={
            "fieldConfig": {"defaults": look.defaults(), "overrides": []},
            "options": {
                "wideLayout": True,
                "showPercentChange": False,
                "percentChangeColorMode": "standard",
            },
        },
    )


def bars(look: Look, *targets: Any, steps: Steps, top: float | None = None) -> Any:
    """Return a bar for each series, by its latest value.

    Args:
        look: Title, unit and so on.
        targets: Queries.
        steps: Thresholds that colour the bars.
        top: Where bars end; else at the largest value.
    """
    defaults = look.defaults(
        min=0, max=top, color={"mode": "thresholds"}, thresholds=_absolute(steps), mappings=[]
    )
    options = {
        "displayMode": "gradient",
        "orientation": "horizontal",
        "valueMode": "color",
        "namePlacement": "auto",
        "showUnfilled": True,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "legend": _NO_LEGEND,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return G.BarGauge(
        **look.arguments(targets),
        extraJson={"fieldConfig": {"defaults": defaults}, "options": options},
    )


_NO_LEGEND = {"showLegend": False, "displayMode": "hidden", "placement": "bottom", "calcs": []}


def _absolute(steps: Steps) -> Json:
    return {"mode": "absolute", "steps": thresholds(steps)}


def states(look: Look, *targets: Any, mappings: Sequence[Json]) -> Any:
    """Return a state timeline: a line for each series, coloured by what it was."""
    return G.StateTimeline(
        **look.arguments(targets),
        mappings=list(mappings),
        fillOpacity=85,
        showValue="never",
        tooltipMode="single",
        thresholds=thresholds(PLAIN),
        extraJson={
            "fieldConfig": {
                "defaults": {
                    **look.defaults(),
                    "custom": {"spanNulls": False, "insertNulls": False, "hideFrom": _SHOWN},
                }
            },
            "options": {
                "perPage": 20,
                "legend": {"showLegend": True, "calcs": []},
                "tooltip": {"sort": "none", "hideZeros": False},
            },
        },
    )


_SHOWN = {"legend": False, "tooltip": False, "viz": False}


def heatmap(look: Look, target: Any) -> Any:
    """Return a heatmap of a histogram's buckets over time.

    Args:
        look: Title and so on; its unit is that of the buckets.
        target: A query by `le`.
    """
    target.format = "heatmap"
    target.legendFormat = "{{le}}"
    options = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "short"},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "fill": "dark-orange",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
        },
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": look.unit},
    }
    custom = {"hideFrom": _SHOWN, "scaleDistribution": {"type": "linear"}}
    return G.Heatmap(
        **look.arguments([target]),
        options=options,
        extraJson={
            "fieldConfig": {
                "defaults": {
                    **look.defaults(custom=custom),
                    "unit": "short",  # of the cells: how many were counted
                    "thresholds": _absolute(PLAIN),
                },
                "overrides": [],
            }
        },
    )
