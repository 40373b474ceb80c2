"""Grafana's typed models know all that the dashboards say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.dashboards.models import differences
from tests.dashboards.reading import Json, boards, panels


@pytest.mark.parametrize("uid", boards())
def test_a_dashboard_is_what_grafanas_models_say(uid: str) -> None:
    assert sorted(set(differences(boards()[uid]))) == []


def first(board: Json, kind: str) -> Json:
    """The first panel of a kind."""
    return next(panel for panel in panels(board) if panel["type"] == kind)


def spoil(kind: str, *path: str, value: Any) -> Callable[[Json], None]:
    """Set something in the first panel of a kind."""

    def change(board: Json) -> None:
        item = first(board, kind)
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda board: board.update(style="dark"),
        spoil("stat", "span", value=6),
        spoil("stat", "options", "fieldOptions", value={}),
        spoil("stat", "options", "graphMode", value="lines"),
        spoil("stat", "gridPos", "w", value="6"),
        spoil("timeseries", "fieldConfig", "defaults", "custom", "drawStyle", value="graph"),
        spoil("timeseries", "fieldConfig", "defaults", "custom", "pointSize", value="big"),
        spoil("timeseries", "fieldConfig", "defaults", "noSuchThing", value=1),
        spoil("timeseries", "fieldConfig", "defaults", "thresholds", "mode", value="relative"),
        spoil("heatmap", "options", "yBucketBound", value="auto"),
        spoil("heatmap", "options", "color", "mode", value="spectrum"),
        spoil("bargauge", "options", "displayMode", value="retro"),
        spoil("state-timeline", "options", "rowHeight", value="tall"),
        spoil("table", "options", "sortBy", value=[{"displayName": 1}]),
        spoil("table", "transformations", value=[{"options": {}, "name": "merge"}]),
        lambda board: first(board, "table")["targets"][0].update(intervalFactor="2"),
        lambda board: first(board, "table")["targets"][0].update(format="csv"),
        lambda board: board["templating"]["list"][1].update(refresh=7),
        lambda board: board["templating"]["list"][1].update(useTags=False),
        lambda board: board["annotations"]["list"][0].update(enable="yes"),
        lambda board: board["links"][0].update(type="boards"),
    ],
)
def test_what_they_do_not_know_is_found(change: Callable[[Json], None]) -> None:
    board = copy.deepcopy(boards()["dlmon-loader"])
    if not any(panel["type"] == "bargauge" for panel in panels(board)):
        pytest.fail("the Loader dashboard has no bar gauge; spoil another one")
    change(board)
    assert next(differences(board), None)
