"""Every query of every dashboard, asked of a real Prometheus that scrapes real agents.

What it answers, all of its series with all of their labels, is compared with what the agents' own
`/api/v1/snapshot` said at those scrapes: `expected.py`.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dashboards.expected import EXPECTED, ONLY_PROMETHEUS_KNOWS
from tests.dashboards.past import ALL, Labels, Series
from tests.dashboards.reading import Query, boards, queries, variables
from tests.dashboards.relay import now_ms
from tests.dashboards.world import MEMORY_CGROUPS, World, interpolated, world
from tests.jobs import DEADLINE_SECONDS, wait_for

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
    "dlmon-run/Findings/A": "faulty",
    "dlmon-run/Alerts/A": "faulty",
    "dlmon-run/Alerts/marks": "faulty",
    "dlmon-run/What is wrong now/A": "faulty",
    "dlmon-run/Memory of cgroups, of their limit/A": "faulty",  # is in a cgroup with a limit
    "dlmon-run/What the shim could not observe/A": "gone",  # its torch lacks a place to hook into
    "dlmon-run/What the shim could not observe/B": "strange",  # what it raises cannot be looked at
    "dlmon-loader/Findings/A": "faulty",
    "dlmon-loader/Alerts/A": "faulty",
    "dlmon-loader/Alerts/marks": "faulty",
    "dlmon-loader/What is wrong now/A": "faulty",
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

LATE_MS = (0, 30, 100, 300, 1000)
"""For how long a scrape may have been on its way when a rule was evaluated."""

AGE_MS = 75_000
"""How old the world is before it is asked: windows of a minute leave its beginning out by then."""

EVERYTHING = dict.fromkeys(("rank", "loader", "instance", "job"), ALL)
SOME = {"rank": ["1"], "loader": ["train"]}
SOME_OF_FAULTS = {"rank": ["0"], "loader": ["bad", "killed"]}

OWN_CGROUP = pytest.mark.skipif(
    not MEMORY_CGROUPS, reason="needs root and a memory controller of version 1"
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        wait_for(lambda: now_ms() > made.prometheus.began * 1000 + AGE_MS, "its age", deadline=120)
        yield made


Choice = Mapping[str, Sequence[str]]


def choices(live: World, query: Query) -> list[Choice]:
    """Values of the variables of a query's dashboard: all, some, and of each in turn nobody's.

    A dashboard that is about one run is about that one, where it is not about nobody's.
    """
    run = EMPTY_WHEN_HEALTHY.get(query.name, "vision")
    faulty = query.name in EMPTY_WHEN_HEALTHY
    (own, *_) = live.relays
    few = {"run": [run], "instance": [own], "job": ["dlmon"]} | (SOME_OF_FAULTS if faulty else SOME)
    all_of = {**EVERYTHING, "run": ALL if query.board == "dlmon-cluster" else [run]}
    names = [variable["name"] for variable in variables(boards()[query.board])]
    chosen = [{name: values[name] for name in names} for values in (all_of, few)]
    return [*chosen, *({**chosen[0], name: ["nobody"]} for name in names)]


def asked(live: World, query: Query, chosen: Choice, moment: int) -> Series:
    """What a query answers."""
    return {
        frozenset(labels.items()): value
        for labels, value in live.prometheus.at(interpolated(query.expr, chosen), moment)
    }


Difference = tuple[Labels, float | None, float | None]


def differences(answer: Series, expected: Series) -> list[Difference]:
    """Series that only one has, or of other values; each with the value here and there."""
    values = [(key, answer.get(key), expected.get(key)) for key in answer.keys() | expected.keys()]
    return [(key, one, other) for key, one, other in values if not _equal(one, other)]


def _equal(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return False
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def times(live: World, query: Query, chosen: Choice) -> list[int]:
    """When a query was answered last, and at half of the times that it was, or was not, in ms.

    The last is now, but that a fault may be over. What only Prometheus knows, it knows of now only.
    """
    expr = interpolated(query.expr, chosen)

    def found() -> list[int]:
        now = now_ms()
        if query.name in ONLY_PROMETHEUS_KNOWS:
            return [now] if live.prometheus.at(expr, now) else []
        answered, silent = live.prometheus.answered(expr, now)
        middles = (some[len(some) // 2] for some in (answered, silent) if some)
        return [answered[-1], *middles] if answered else []

    return wait_for(found, f"answer to {query.expr}", deadline=90)


def disagreement(live: World, query: Query) -> str:
    """In what a query's answers differ from the snapshots, "" for nothing."""
    chosen_ones = choices(live, query)
    moments, known = times(live, query, chosen_ones[0]), live.moment()
    for asked_at, chosen in itertools.product(moments, chosen_ones):
        answer = asked(live, query, chosen, asked_at)
        wrong: list[Difference] = []
        for late in LATE_MS:
            moment = replace(known, time=asked_at, chosen=chosen, late=late)
            wrong = differences(answer, EXPECTED[query.name](moment))
            if not wrong:
                break
        if wrong:
            shown = "".join(f"\n{sorted(labels)}: {a} instead of {b}" for labels, a, b in wrong)
            return f"{query.expr}\nwith {chosen}, at {asked_at} of {known.time}:{shown}"
    return ""


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(query, id=query.name, marks=[OWN_CGROUP] * (query.name in OF_CGROUPS))
        for query in queries()
    ],
)
def test_a_query_answers_what_the_snapshots_say(live: World, query: Query) -> None:
    """Asked for all, some and none; again, where a scrape came between question and look."""
    end = time.monotonic() + DEADLINE_SECONDS
    while wrong := disagreement(live, query):
        if time.monotonic() > end:
            pytest.fail(wrong)


WRONG = [
    ("dlmon-run/Samples per second/A", "sum(", "max("),
    ("dlmon-run/Ranks/K", "rate(", "increase("),
    ("dlmon-run/Loaders/A", "loader:dlmon_wait:ratio_rate5m", "loader:dlmon_wait:rate5m"),
    ("dlmon-run/Ranks up/A", 'run="$run", ', ""),
    ("dlmon-loader/Batches per second/A", ', loader=~"$loader"', ""),
    ("dlmon-loader/Restarts and deaths of workers/B", ', reason!~"normal|sigterm"', ""),
    ("dlmon-loader/Errors, timeouts, batches thrown away/A", " > 0", ""),
    ("dlmon-node/Runs/A", "run, instance", "run"),
]
"""Queries, and what is put in place of what in them."""


@pytest.mark.parametrize(("name", "right", "wrong"), WRONG)
def test_a_wrong_query_is_noticed(live: World, name: str, right: str, wrong: str) -> None:
    (query,) = [query for query in queries() if query.name == name]
    assert right in query.expr
    assert disagreement(live, replace(query, expr=query.expr.replace(right, wrong)))


def test_a_missing_a_further_and_another_series_or_value_are_differences() -> None:
    one, two = frozenset({("rank", "0")}), frozenset({("rank", "1")})
    assert differences({one: 1.0}, {one: 1.0 + 1e-8}) == []
    assert differences({one: 1.0}, {one: 1.0001}) == [(one, 1.0, 1.0001)]
    assert differences({}, {one: 0.0}) == [(one, None, 0.0)]
    assert differences({one: 0.0}, {}) == [(one, 0.0, None)]
    assert len(differences({one: 1.0}, {two: 1.0})) == 2


def test_the_lists_name_queries_that_there_are() -> None:
    names = {query.name for query in queries()}
    assert EMPTY_WHEN_HEALTHY.keys() <= names
    assert names >= OF_CGROUPS


# --- variables ---


def values_of(live: World, definition: str, run: str) -> set[str]:
    """The values of a variable, asked for as Grafana does."""
    inside = definition.removeprefix("label_values(").removesuffix(")")
    selector, label = inside.rsplit(", ", 1)
    match = interpolated(selector, {**EVERYTHING, "run": run})
    return set(live.prometheus.ask(f"label/{label}/values", **{"match[]": match}))


def test_variables_offer_what_the_snapshot_has(live: World) -> None:
    ranks = [rank for snapshot in live.snapshots() for rank in snapshot["ranks"]]
    mine = [rank for rank in ranks if rank["run"] == "vision"]
    expected = {
        "run": {rank["run"] for rank in ranks},
        "rank": {rank["rank"] for rank in mine},
        "loader": {loader["name"] for rank in mine for loader in rank["loaders"]},
        "instance": set(live.relays),
        "job": {"dlmon"},
    }
    assert expected["rank"] == {"0", "1"}
    for board in boards().values():
        for variable in variables(board):
            found = values_of(live, variable["definition"], "vision")
            assert found == expected[variable["name"]], variable["definition"]


def test_the_files_are_what_was_tried() -> None:
    for uid in boards():
        path = Path(__file__).resolve().parents[2] / "dashboards" / f"{uid}.json"
        assert json.loads(path.read_text()) == boards()[uid]
