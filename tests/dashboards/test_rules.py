"""The rules of Grafana's dashboard-linter, and further ones of this house.

Of the linter's rules these are not applied, or not everywhere:

- template-job, template-instance, target-job and target-instance only to the Node dashboard. What
  the others are about, a run, has ranks on many nodes, and recording rules keep no instance.
- target-logql and target-logql-auto: there is no Loki.
"""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from dlmon.gen.dashboards import palette
from dlmon.gen.rules import speed
from dlmon.observe.snapshot import WorkerState
from dlmon.segment.layout import Phase
from tests.dashboards.reading import (
    ROOT,
    Json,
    boards,
    panels,
    queries,
    shown,
    variables,
)

KINDS = {"row", "stat", "timeseries", "table", "bargauge", "heatmap", "state-timeline"}
UNITS = {"none", "short", "percentunit", "s", "bytes", "Bps", "cps"}
"""Those of Grafana's that are used here."""

NODE = "dlmon-node"

Panel = tuple[str, Json]


def by_title(panel: Any) -> str:
    return f"{panel[0]}/{panel[1]['title']}"


each_panel = pytest.mark.parametrize("panel", shown(), ids=by_title)
each_board = pytest.mark.parametrize("board", list(boards().values()), ids=lambda b: str(b["uid"]))


# --- dashboards ---


def test_there_are_four() -> None:
    assert list(boards()) == ["dlmon-cluster", "dlmon-run", "dlmon-loader", "dlmon-node"]


@each_board
def test_a_dashboard_is_current_not_editable_and_says_what_it_is_for(board: Json) -> None:
    assert board["schemaVersion"] >= 41
    assert board["editable"] is False
    assert board["title"].startswith("dlmon / ")
    assert board["description"].endswith(".")
    assert board["tags"] == ["dlmon"]
    assert not {"__inputs", "id", "rows", "style", "version", "gnetId"} & set(board)


@each_board
def test_the_data_source_is_a_variable(board: Json) -> None:
    (source,) = [v for v in board["templating"]["list"] if v["type"] == "datasource"]
    assert (source["name"], source["label"]) == ("datasource", "Data source")
    assert source["query"] == "prometheus"


@each_board
def test_variables_are_asked_anew_when_the_time_changes(board: Json) -> None:
    for variable in variables(board):
        assert variable["refresh"] == 2
        assert variable["datasource"]["uid"] == "${datasource}"
        assert variable["query"]["query"] == variable["definition"]
        assert re.fullmatch(
            rf"label_values\(dlmon_\w+(\{{.+\}})?, {variable['name']}\)", variable["definition"]
        )
        assert variable["description"]


@each_board
def test_all_values_of_a_variable_are_a_short_query(board: Json) -> None:
    for variable in variables(board):
        assert variable["multi"] == variable["includeAll"] == ("current" in variable)
        assert variable.get("allValue") == (".+" if variable["multi"] else None)


@each_board
def test_a_variable_of_several_values_is_matched_by_a_regular_expression(board: Json) -> None:
    many = {v["name"]: v["multi"] for v in variables(board)}
    exprs = [query.expr for query in queries() if query.board == board["uid"]]
    exprs += [variable["definition"] for variable in variables(board)]
    for expr in exprs:
        for operator, name in re.findall(r'(=~|=)"\$(\w+)\|?"', expr):
            assert operator == "=~" or not many[name], expr
        used = set(re.findall(r"\$(\w+)", expr)) - {"__rate_interval", "__range"}
        assert used <= set(many), expr


def test_the_node_dashboard_has_job_and_instance_and_its_queries_use_both() -> None:
    assert [v["name"] for v in variables(boards()[NODE])] == ["job", "instance"]
    assert [v["label"] for v in variables(boards()[NODE])] == ["job", "instance"]
    for query in queries():
        if query.board == NODE and query.kind != "annotation":
            selectors = re.findall(r"\{([^}]*)\}", query.expr)
            assert selectors
            for selector in selectors:
                assert 'job=~"$job"' in selector
                assert 'instance=~"$instance"' in selector


# --- panels ---


@each_panel
def test_a_panel_says_what_it_shows_in_which_unit_and_what_none_means(panel: Panel) -> None:
    _, it = panel
    assert it["type"] in KINDS
    assert it["title"]
    assert re.search(r"[.:]$", it["description"])
    assert it["description"] != it["title"]
    defaults = it["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    assert defaults["noValue"]
    assert it["targets"]
    assert it["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in it["targets"]:
        assert target["datasource"] == it["datasource"]


@each_panel
def test_the_lowest_threshold_has_no_value_and_the_others_rise(panel: Panel) -> None:
    values = [step["value"] for step in panel[1]["fieldConfig"]["defaults"]["thresholds"]["steps"]]
    assert values[0] is None
    assert values[1:] == sorted(values[1:])


@each_panel
def test_what_says_how_it_is_now_asks_for_now(panel: Panel) -> None:
    """Over the range, the last value of what is no more would be shown as if it still were."""
    now = panel[1]["type"] in ("stat", "bargauge", "table")
    assert {target["instant"] for target in panel[1]["targets"]} == {now}
    assert {target["range"] for target in panel[1]["targets"]} == {not now}


def _units(panel: Json) -> set[str]:
    return {
        found["value"]
        for override in panel["fieldConfig"]["overrides"]
        for found in override["properties"]
        if found["id"] == "unit"
    }


@each_panel
def test_units_of_columns_and_series_are_grafanas_too(panel: Panel) -> None:
    assert _units(panel[1]) <= UNITS


def nulls(item: Any, path: str = "") -> list[str]:
    """The paths of what is null."""
    if isinstance(item, dict):
        return [found for key, value in item.items() for found in nulls(value, f"{path}.{key}")]
    if isinstance(item, list):
        return [found for value in item for found in nulls(value, path)]
    return [path] if item is None or item == "null" else []


def test_nothing_is_null_but_the_value_of_the_lowest_threshold() -> None:
    for board in boards().values():
        assert {path.rpartition(".steps")[2] for path in nulls(board)} == {".value"}


@each_board
def test_ids_are_unique_and_the_grid_has_no_overlap(board: Json) -> None:
    ids = [panel["id"] for panel in panels(board)]
    assert len(set(ids)) == len(ids)
    for inside in ([board["panels"]], [p["panels"] for p in board["panels"] if p.get("panels")]):
        for group in inside:
            for one, other in itertools.combinations([p["gridPos"] for p in group], 2):
                beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
                above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
                assert beside or above
    for panel in panels(board):
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_titles_are_unique_in_a_dashboard() -> None:
    for uid, board in boards().items():
        titles = [panel["title"] for panel in panels(board) if panel["type"] != "row"]
        assert len(set(titles)) == len(titles), uid


def test_one_thing_has_one_colour_everywhere() -> None:
    colours: dict[str, set[str]] = {}
    for _, panel in shown():
        for override in panel["fieldConfig"]["overrides"]:
            for found in override["properties"]:
                if found["id"] == "color":
                    name = override["matcher"]["options"].strip("/^")
                    colours.setdefault(name, set()).add(found["value"]["fixedColor"])
    assert {name: found for name, found in colours.items() if len(found) > 1} == {}
    assert (colours["wait"], colours["step"]) == ({"orange"}, {"green"})


@pytest.mark.parametrize(
    ("title", "enumeration"),
    [("What each worker does", WorkerState), ("What each rank does", Phase)],
)
def test_every_state_has_its_name_and_a_colour_of_its_own(title: str, enumeration: Any) -> None:
    (panel,) = [panel for _, panel in shown() if panel["title"] == title]
    ((mapping,),) = [[m["options"] for m in panel["fieldConfig"]["defaults"]["mappings"]]]
    assert {value: found["text"] for value, found in mapping.items()} == {
        str(state.value): state.name.lower().replace("_", " ") for state in enumeration
    }
    assert len({found["color"] for found in mapping.values()}) == len(enumeration)


def test_a_wait_ratio_is_red_from_where_its_alert_begins() -> None:
    begins = re.search(r"ratio_rate5m > ([\d.]+)", speed.LOADER_STARVED.expression)
    assert begins
    assert palette.WAIT_RATIO[-1] == (float(begins[1]), palette.BAD)


def test_phases_in_graphs_have_the_colours_of_the_timeline() -> None:
    assert {phase.name.lower(): palette.PHASES[phase] for phase in Phase} == palette.PHASE_COLOURS


@pytest.mark.parametrize(
    "panel", [panel for panel in shown() if panel[1]["type"] == "table"], ids=by_title
)
def test_the_columns_of_a_table_are_those_of_its_queries(panel: Panel) -> None:
    _, it = panel
    options = it["transformations"][-1]["options"]
    shown_columns = options["renameByName"]
    letters = [target["refId"] for target in it["targets"]]
    values = [f"Value #{letter}" for letter in letters] if len(letters) > 1 else ["Value"]
    hidden = [name for name in options["excludeByName"] if name != "Time"]
    assert sorted(hidden + [n for n in shown_columns if n.startswith("Value")]) == values
    assert set(options["indexByName"]) == set(shown_columns)
    titles = set(shown_columns.values())
    assert {override["matcher"]["options"] for override in it["fieldConfig"]["overrides"]} <= titles
    assert {sort["displayName"] for sort in it["options"]["sortBy"]} <= titles
    for target in it["targets"]:
        assert (target["format"], target["instant"]) == ("table", True)
        # A series of its own name, or with further labels, would be lines of their own.
        labels = re.match(r"(?:sum|max|avg|count) by \(([^)]*)\)", target["expr"])
        assert labels
        assert set(labels[1].split(", ")) <= set(shown_columns)


# --- links ---


def _addresses(item: Any) -> list[str]:
    if isinstance(item, dict):
        own = [item["url"]] if isinstance(item.get("url"), str) and item["url"] else []
        return own + [found for value in item.values() for found in _addresses(value)]
    return (
        [found for value in item for found in _addresses(value)] if isinstance(item, list) else []
    )


def test_links_lead_to_dashboards_and_variables_that_exist_and_keep_the_time() -> None:
    links = [link for board in boards().values() for link in _addresses(board) if link[0] == "/"]
    assert len(links) > 20
    for link in links:
        path, _, parameters = link.partition("?")
        target = boards()[path.removeprefix("/d/")]
        assert "${__url_time_range}" in parameters
        assert "${datasource:queryparam}" in parameters
        chosen = re.findall(r"var-(\w+)=", parameters)
        assert set(chosen) <= {variable["name"] for variable in variables(target)}
        for value in re.findall(r"var-\w+=([^&]+)", parameters):
            assert re.fullmatch(r"\$\{.+:percentencode\}", value)


def test_links_name_columns_that_their_table_has() -> None:
    for uid, panel in shown():
        if panel["type"] == "table":
            titles = set(panel["transformations"][-1]["options"]["renameByName"].values())
            for link in _addresses(panel):
                fields = set(re.findall(r'__data\.fields\["([^"]+)"\]', link))
                assert fields <= titles, (uid, panel["title"], link)


def test_documents_that_are_linked_to_exist() -> None:
    prefix = "https://github.com/dlmon/dlmon/blob/main/"
    others = {link for board in boards().values() for link in _addresses(board) if link[0] != "/"}
    assert others
    for link in others:
        path = link.removeprefix(prefix).partition("#")[0]
        if "${" not in path:
            assert (ROOT / path).exists(), link


@each_board
def test_every_dashboard_links_to_the_others_with_all_that_is_chosen(board: Json) -> None:
    links = {link["title"]: link for link in board["links"]}
    others = links["dlmon"]
    assert (others["type"], others["tags"]) == ("dashboards", ["dlmon"])
    assert others["includeVars"]
    assert others["keepTime"]
    assert "runbooks" in links["Runbooks"]["url"]


# --- files ---


def test_the_files_are_json_that_ends_with_a_line() -> None:
    for uid in boards():
        text = (ROOT / "dashboards" / f"{uid}.json").read_text()
        assert json.loads(text) == boards()[uid]
        assert text.endswith("}\n")
