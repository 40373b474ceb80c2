"""Brings grafanalib's JSON up to date: what Grafana knows today stays, the rest goes.

grafanalib 0.7.1 writes the schema of years ago beside what is current: keys of panels that are gone
(Angular's heatmap, the bar gauge's `fieldOptions`), nulls for everything unset, a hundred points a
panel. The lists below say what is kept; tests compare the result with Grafana's own models.
"""

from __future__ import annotations

import json
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 41
PLUGIN_VERSION = "12.0.0"
"""The Grafana whose panels these are; without it Grafana takes them for those of version 6."""

_DASHBOARD = (
    "uid title description tags editable graphTooltip time timepicker timezone refresh"
    " schemaVersion annotations templating links panels"
)
_PANEL = (
    "id type title description datasource targets gridPos fieldConfig options transformations links"
    " pluginVersion"
)
_ROW = "id type title collapsed gridPos panels"
_TARGET = "refId datasource editorMode expr format instant range legendFormat"
_VARIABLE = {
    "datasource": "name label type query refresh description",
    "query": (
        "name label type datasource query definition refresh sort multi includeAll allValue current"
        " description"
    ),
}
_OBSOLETE_OPTIONS = ("fieldOptions", "showThresholdLabels", "showThresholdMarkers")


def current(dashboard: Json) -> Json:
    """Return a dashboard as Grafana would save it.

    Args:
        dashboard: What grafanalib made, as plain JSON.
    """
    dashboard["schemaVersion"] = SCHEMA_VERSION
    dashboard["timepicker"] = {}
    variables = dashboard["templating"]["list"]
    dashboard["templating"] = {"list": [_variable(variable) for variable in variables]}
    dashboard["panels"] = [_panel(panel) for panel in dashboard["panels"]]
    kept: Json = _without_nulls(_keep(dashboard, _DASHBOARD))
    return kept


def text(dashboard: Json) -> str:
    """Return a dashboard as the text of its file."""
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


def _panel(panel: Json) -> Json:
    if panel["type"] == "row":
        panel["panels"] = [_panel(inner) for inner in panel["panels"]]
        return _keep(panel, _ROW)
    panel["pluginVersion"] = PLUGIN_VERSION
    panel["targets"] = [_target(target) for target in panel["targets"]]
    panel["fieldConfig"].setdefault("overrides", [])
    for key in _OBSOLETE_OPTIONS:
        panel["options"].pop(key, None)
    for key in ("transformations", "links"):
        if not panel[key]:
            del panel[key]
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    custom.pop("displayMode", None)  # of tables: cellOptions says it now
    return _keep(panel, _PANEL)


def _target(target: Json) -> Json:
    target["editorMode"] = "code"
    target["range"] = not target["instant"]
    return _keep(target, _TARGET)


def _variable(variable: Json) -> Json:
    name = variable["name"]
    if variable["type"] == "query":
        variable["definition"] = variable["query"]
        variable["query"] = {
            "qryType": 1,
            "query": variable["definition"],
            "refId": "PrometheusVariableQueryEditor-VariableQuery",
        }
    if variable["includeAll"]:
        variable["current"] = {"selected": True, "text": ["All"], "value": ["$__all"]}
    else:
        del variable["current"]  # the first there is
    variable["description"] = _VARIABLE_HELP[name]
    return _keep(variable, _VARIABLE[variable["type"]])


_VARIABLE_HELP = {
    "datasource": "The Prometheus that scrapes the agents and has dlmon's recording rules.",
    "run": "A training launch.",
    "rank": "A process of the run, by its number in torch.distributed.",
    "loader": "A DataLoader, by its name in the job.",
    "job": "What Prometheus calls the scraping of the agents.",
    "instance": "A node, by the address of its agent.",
}


def _keep(item: Json, keys: str) -> Json:
    """Return an object with these keys only, in their order."""
    return {key: item[key] for key in keys.split() if key in item}


def _without_nulls(item: Any) -> Any:
    """Return JSON without unset values; the value of a lowest threshold is null and stays."""
    if isinstance(item, dict):
        return {
            key: _without_nulls(value)
            for key, value in item.items()
            if value is not None or (key == "value" and "color" in item)
        }
    return [_without_nulls(one) for one in item] if isinstance(item, list) else item
