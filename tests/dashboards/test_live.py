"""Every query of every dashboard, asked of a real Prometheus that scrapes a real agent.

What it answers is compared with what the agent's own `/api/v1/snapshot` says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboards.reading import Query, boards, queries, variables
from tests.dashboards.world import (
    LIMIT,
    MEMORY_CGROUPS,
    UTILIZATION,
    Values,
    World,
    interpolated,
    world,
)
from tests.jobs import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EMPTY_WHEN_HEALTHY = {
    "dlmon-cluster/Critical findings/A": "gone",  # its rank was killed
    "dlmon-cluster/Runs/G": "gone",
    "dlmon-cluster/Runs/H": "gone",
    "dlmon-cluster/Alerts/A": "gone",
    "dlmon-cluster/Alerts/marks": "gone",
    "dlmon-cluster/What is wrong now/A": "gone",
    "dlmon-cluster/Findings/A": "gone",
    "dlmon-cluster/Workers that died/A": "faulty",  # a worker was killed
    "dlmon-cluster/Workers that died/B": "faulty",  # in its cgroup memory ran out
    "dlmon-node/Working set, and OOM kills/B": "faulty",
    "dlmon-run/Findings/A": "gone",
    "dlmon-run/Alerts/A": "gone",
    "dlmon-run/Alerts/marks": "gone",
    "dlmon-run/What is wrong now/A": "gone",
    "dlmon-run/Memory of cgroups, of their limit/A": "faulty",  # is in a cgroup with a limit
    "dlmon-run/What the shim could not observe/A": "gone",  # its torch lacks a place to hook into
    "dlmon-loader/Findings/A": "faulty",
    "dlmon-loader/Alerts/A": "gone",
    "dlmon-loader/Alerts/marks": "gone",
    "dlmon-loader/What is wrong now/A": "gone",
    "dlmon-loader/Restarts and deaths of workers/B": "faulty",
    "dlmon-loader/Errors, timeouts, batches thrown away/A": "faulty",  # a dataset that raises
    "dlmon-loader/Errors, timeouts, batches thrown away/B": "faulty",  # slower than its timeout=
    "dlmon-loader/Errors, timeouts, batches thrown away/C": "faulty",  # a loop with break
}
"""Queries that a healthy run leaves without an answer, and the run whose fault fills them."""

OF_CGROUPS = {
    "dlmon-cluster/Workers that died/B",
    "dlmon-node/Working set, and OOM kills/B",
    "dlmon-run/Memory of cgroups, of their limit/A",
}
"""Those that need a memory cgroup of the test's own."""

NOT_TRIED_HERE = {
    "dlmon-run/What the shim could not observe/B": "an error in the shim: it would be a defect",
    "dlmon-node/What agents could not show/A": "a look that fails: it would be a defect",
    "dlmon-node/What agents could not show/C": "too many series: tests/agent/test_admission.py",
}
"""Queries that stay empty here, and what fills them."""

EVERYWHERE = {"rank": [".+"], "loader": [".+"], "instance": [".+"], "job": [".+"]}

Ask = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


def chosen(query: Query, run: str) -> Values:
    """Values with a run chosen, and all of everything else."""
    return {**EVERYWHERE, "run": [run] if query.board == "dlmon-cluster" else run}


def answer(live: World, query: Query, values: Values) -> list[dict[str, Any]]:
    """The series that answer a query."""
    expr = interpolated(query.expr, values)
    return live.prometheus.now(expr) if query.instant else live.prometheus.over_time(expr)


OWN_CGROUP = pytest.mark.skipif(
    not MEMORY_CGROUPS, reason="needs root and a memory controller of version 1"
)

ASKED = [
    pytest.param(query, id=str(query.name), marks=[OWN_CGROUP] * (query.name in OF_CGROUPS))
    for query in queries()
    if query.name not in NOT_TRIED_HERE
]


@pytest.mark.parametrize("query", ASKED)
def test_a_query_is_answered(live: World, query: Query) -> None:
    run = EMPTY_WHEN_HEALTHY.get(query.name, "vision")
    found = wait_for(lambda: answer(live, query, chosen(query, run)), query.expr, deadline=90)
    for series in found:
        # Further labels, or a name, would be columns of their own that do not join.
        assert query.kind != "table" or set(series["metric"]) <= set(query.fields)


@pytest.mark.parametrize("query", ASKED)
def test_values_that_are_chosen_one_by_one_are_all_of_them(live: World, query: Query) -> None:
    """Several values, with what is special in a regular expression, are found as they are."""
    run = EMPTY_WHEN_HEALTHY.get(query.name, "vision")
    instance = live.agent.url.removeprefix("http://")
    loaders = ["train", "val", "left", "killed", "bad", "late"]
    several = {"rank": ["0", "1"], "loader": loaders, "instance": [instance], "job": ["dlmon"]}
    values = {**chosen(query, run), **several}
    assert wait_for(lambda: answer(live, query, values), query.expr, deadline=90)


def test_the_lists_name_queries_that_there_are() -> None:
    names = {query.name for query in queries()}
    assert set(EMPTY_WHEN_HEALTHY) <= names
    assert set(NOT_TRIED_HERE) <= names


# --- variables ---


def values_of(live: World, definition: str, run: str) -> set[str]:
    """The values of a variable, asked for as Grafana does."""
    inside = definition.removeprefix("label_values(").removesuffix(")")
    selector, label = inside.rsplit(", ", 1)
    match = interpolated(selector, {**EVERYWHERE, "run": run})
    return set(live.prometheus.ask(f"label/{label}/values", **{"match[]": match}))


def test_variables_offer_what_the_snapshot_has(live: World) -> None:
    ranks = live.snapshot()["ranks"]
    mine = [rank for rank in ranks if rank["run"] == "vision"]
    expected = {
        "run": {rank["run"] for rank in ranks},
        "rank": {rank["rank"] for rank in mine},
        "loader": {loader["name"] for rank in mine for loader in rank["loaders"]},
        "instance": {live.agent.url.removeprefix("http://")},
        "job": {"dlmon"},
    }
    assert expected["rank"] == {"0", "1"}
    for board in boards().values():
        for variable in variables(board):
            found = values_of(live, variable["definition"], "vision")
            assert found == expected[variable["name"]], variable["definition"]


# --- what they say is what the agent says ---


def find(name: str) -> Query:
    (query,) = [query for query in queries() if query.name == name]
    return query


def value(live: World, name: str, of: str = "vision", **labels: str) -> float:
    """The value now of the one series with these labels that answers a query."""
    query = find(name)
    found = live.prometheus.now(interpolated(query.expr, chosen(query, of)))
    (series,) = [one for one in found if labels.items() <= one["metric"].items()]
    return float(series["value"][1])


def workers(live: World, run: str = "vision") -> list[dict[str, Any]]:
    ranks = [rank for rank in live.snapshot()["ranks"] if rank["run"] == run]
    return [w for rank in ranks for loader in rank["loaders"] for w in loader["workers"]]


def settled(live: World, name: str, expected: Callable[[], float], **labels: str) -> None:
    """Wait until a query says what the snapshot says, which may be a scrape ahead."""
    seen: list[tuple[float, float]] = []

    def agree() -> bool:
        seen.append((value(live, name, **labels), expected()))
        return seen[-1][0] == pytest.approx(seen[-1][1], rel=0.01)

    wait_for(agree, f"{name} to agree with the snapshot")


def up(live: World, run: str | None = None) -> int:
    return sum(rank["up"] for rank in live.snapshot()["ranks"] if run in (None, rank["run"]))


def test_ranks_and_workers_are_counted_as_the_snapshot_does(live: World) -> None:
    assert up(live, "vision") == 2
    settled(live, "dlmon-cluster/Live ranks/A", lambda: up(live, "vision"))
    settled(live, "dlmon-cluster/Runs/F", lambda: up(live, "vision"), run="vision")
    settled(live, "dlmon-run/Ranks up/A", lambda: up(live, "vision"))
    settled(live, "dlmon-node/Ranks/A", lambda: up(live))
    for rank in "01":
        settled(live, "dlmon-run/Ranks/A", lambda: 1, rank=rank)
    gone = value(live, "dlmon-cluster/Runs/G", "gone", run="gone")
    assert gone == 1 - up(live, "gone") == 1


def test_findings_are_those_of_the_snapshot(live: World) -> None:
    query = find("dlmon-cluster/What is wrong now/A")
    values = {**EVERYWHERE, "run": [".+"]}

    def agree() -> bool:
        shown = [series["metric"] for series in answer(live, query, values)]
        said = live.snapshot()["findings"]
        return bool(said) and sorted((s.get("finding"), s.get("run")) for s in shown) == sorted(
            (finding["name"], finding["run"]) for finding in said
        )

    wait_for(agree, "the findings of the snapshot")


def test_gpus_are_those_of_nvml(live: World) -> None:
    ratio = UTILIZATION / 100
    assert value(live, "dlmon-run/GPU utilisation/A") == pytest.approx(ratio)
    for rank, gpu in (("0", "GPU-0"), ("1", "GPU-1")):
        assert live.rank("vision", rank)["gpus"] == [gpu]
        assert value(live, "dlmon-run/GPU utilisation by rank/A", rank=rank) == ratio
        assert value(live, "dlmon-node/GPU utilisation/A", uuid=gpu) == ratio
        assert value(live, "dlmon-node/GPU memory in use/A", uuid=gpu) == pytest.approx(3 / 8)
    assert value(live, "dlmon-cluster/Runs/E", run="vision") == 2


def wait_ratio(live: World, rank: str) -> float:
    (train,) = [one for one in live.rank("vision", rank)["loaders"] if one["name"] == "train"]
    return float(train["wait_ratio"])


def test_wait_ratios_are_those_of_the_snapshot(live: World) -> None:
    """Of the whole life of the job, which the five minutes of the rules still cover."""
    for rank in "01":
        said = wait_ratio(live, rank)
        assert 0.2 < said < 1
        name = "dlmon-loader/Wait ratio by loader/A"
        assert value(live, name, rank=rank, loader="train") == pytest.approx(said, abs=0.1)
        assert value(live, "dlmon-run/Ranks/B", rank=rank) == pytest.approx(said, abs=0.15)
    assert wait_ratio(live, "1") > wait_ratio(live, "0")
    slower = value(live, "dlmon-run/Who waits more than the others/A", rank="1")
    assert slower > 1 > value(live, "dlmon-run/Who waits more than the others/A", rank="0")
    assert value(live, "dlmon-run/Who is slower than the others/A", rank="1") < 1


def test_gpus_wasted_are_the_waiting_times_what_idles(live: World) -> None:
    idle = 1 - UTILIZATION / 100
    wasted = sum(value(live, "dlmon-run/Ranks/H", rank=rank) for rank in "01")
    assert 0 < wasted < 2 * idle
    assert value(live, "dlmon-cluster/GPUs wasted now/A") == pytest.approx(wasted, rel=0.2)
    hours = value(live, "dlmon-cluster/GPU-hours wasted/A")
    assert 0 < hours < wasted * 2 * 120 / 3600 * 2  # of two minutes, a value a minute


def test_batches_per_second_are_those_between_two_snapshots(live: World) -> None:
    def batches() -> tuple[float, int]:
        snapshot = live.snapshot()
        ranks = [rank for rank in snapshot["ranks"] if rank["run"] == "vision"]
        return snapshot["time"], sum(one["batches"] for r in ranks for one in r["loaders"])

    began, before = batches()
    wait_for(lambda: time.time() > began + 60, "a minute", deadline=90)  # of which rates are
    ended, after = batches()
    rate = (after - before) / (ended - began)
    assert value(live, "dlmon-loader/Batches per second/A") == pytest.approx(rate, rel=0.25)


def test_the_queue_has_the_capacity_of_its_configuration(live: World) -> None:
    (train,) = [x for x in live.rank("vision", "0")["loaders"] if x["name"] == "train"]
    assert train["capacity"] == 4
    assert value(live, "dlmon-loader/The prefetch queue, against its capacity/D") == 8
    ready = value(live, "dlmon-loader/The prefetch queue, against its capacity/A")
    outstanding = value(live, "dlmon-loader/The prefetch queue, against its capacity/C")
    assert 0 <= ready <= outstanding <= 8
    query = find("dlmon-loader/Loaders/A")
    shown = answer(live, query, chosen(query, "vision"))
    labels = {series["metric"]["loader"]: series["metric"] for series in shown}["train"]
    said = {name: text for name, text in train["config"].items() if text}
    assert said.items() <= labels.items()


def test_memory_is_the_sum_of_the_workers(live: World) -> None:
    for letter, key in zip("ABC", ("resident", "proportional", "unique"), strict=True):
        name = f"dlmon-loader/RSS, PSS and USS of all workers/{letter}"
        query = find(name)

        def known(key: str = key) -> float:
            return sum(worker[f"{key}_bytes"] or 0 for worker in workers(live))

        def close(query: Query = query, known: Callable[[], float] = known) -> bool:
            # Workers are replaced at every epoch: between two looks it may be another number.
            found = live.prometheus.now(interpolated(query.expr, chosen(query, "vision")))
            return bool(found) and float(found[0]["value"][1]) == pytest.approx(known(), rel=0.1)

        wait_for(close, name)


def test_what_a_rank_may_use_and_uses_is_what_the_snapshot_says(live: World) -> None:
    def process() -> dict[str, float]:
        found: dict[str, float] = live.rank("vision", "0")["process"]
        return found

    def share(used: str, limit: str) -> Callable[[], float]:
        return lambda: process()[used] / process()[limit]

    settled(
        live, "dlmon-run//dev/shm in use/A", share("shm_used_bytes", "shm_size_bytes"), rank="0"
    )
    settled(live, "dlmon-run/File descriptors in use/A", share("open_fds", "max_fds"), rank="0")
    granted = sum(
        rank["process"]["cpus"] for rank in live.snapshot()["ranks"] if rank["run"] == "vision"
    )
    assert value(live, "dlmon-run/CPUs used, against those granted/C") == granted


def test_the_agent_is_what_it_says_of_itself(live: World) -> None:
    settled(live, "dlmon-node/Segments read/A", lambda: float(live.snapshot()["segments"]))
    assert value(live, "dlmon-node/Agents/A") == 1
    assert value(live, "dlmon-cluster/Nodes/A") == 1
    query = find("dlmon-node/Versions/A")
    (shown,) = answer(live, query, chosen(query, "vision"))
    assert shown["metric"]["version"] == live.snapshot()["agent"]["version"]
    refused = find("dlmon-node/What agents could not show/B")
    reasons = {one["metric"]["reason"] for one in answer(live, refused, chosen(refused, "vision"))}
    said = {reason for reason, count in live.snapshot()["refused_total"].items() if count}
    assert reasons == said == {"bounds"}


def test_states_and_phases_are_numbers_that_have_a_name(live: World) -> None:
    for name, title in (
        ("dlmon-loader/What each worker does/A", "What each worker does"),
        ("dlmon-run/What each rank does/A", "What each rank does"),
    ):
        query = find(name)
        (panel,) = [panel for panel in boards()[query.board]["panels"] if panel["title"] == title]
        known = set(panel["fieldConfig"]["defaults"]["mappings"][0]["options"])
        seen = {
            point
            for series in answer(live, query, chosen(query, "vision"))
            for _, point in series["values"]
        }
        assert seen
        assert seen <= known


def test_epochs_are_marked_where_they_began(live: World) -> None:
    query = find("dlmon-loader/Epochs/marks")
    marked = {
        float(point)
        for series in answer(live, query, {**chosen(query, "vision"), "loader": ["train"]})
        for _, point in series["values"]
    }
    began = live.rank("vision", "0")["started"] * 1000
    assert marked
    assert began - 1000 <= min(marked)
    assert max(marked) <= time.time() * 1000

    def last() -> bool:
        (train,) = [x for x in live.rank("vision", "0")["loaders"] if x["name"] == "train"]
        shown = value(live, "dlmon-loader/Epochs/marks", rank="0", loader="train")
        return shown == pytest.approx(train["last_epoch"] * 1000, abs=1)

    wait_for(last, "the last epoch of the snapshot")


def test_deaths_are_marked_and_counted_by_reason(live: World) -> None:
    query = find("dlmon-loader/Restarts and deaths of workers/B")
    reasons = {one["metric"]["reason"] for one in answer(live, query, chosen(query, "faulty"))}
    assert "sigkill" in reasons
    (killed,) = [x for x in live.rank("faulty", "0")["loaders"] if x["name"] == "killed"]
    assert killed["worker_exits"]["sigkill"] >= 1
    marks = find("dlmon-run/Alerts/marks")
    assert answer(live, marks, chosen(marks, "gone"))


@OWN_CGROUP
def test_the_memory_of_a_cgroup_is_compared_with_its_limit(live: World) -> None:
    (group,) = [
        group for group in live.snapshot()["cgroups"].values() if group["limit_bytes"] == LIMIT
    ]
    shown = value(live, "dlmon-run/Memory of cgroups, of their limit/A", "faulty")
    assert shown == pytest.approx(group["anon_bytes"] / LIMIT, abs=0.1)


def test_workers_without_dlmon_are_those_of_the_snapshot(live: World) -> None:
    def count() -> float:
        return float(
            sum(
                len(one["workers"])
                for one in live.snapshot()["unobserved"]
                if one["script"] == "unobserved.py"
            )
        )

    wait_for(lambda: count() == 1, "the worker of the job without dlmon")
    settled(
        live,
        "dlmon-cluster/Jobs that do not use dlmon/A",
        count,
        script="unobserved.py",
    )


def test_the_files_are_what_was_tried() -> None:
    for uid in boards():
        path = Path(__file__).resolve().parents[2] / "dashboards" / f"{uid}.json"
        assert json.loads(path.read_text()) == boards()[uid]
