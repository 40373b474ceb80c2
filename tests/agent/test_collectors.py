"""From a Snapshot to /metrics: everything in the catalogue, nothing else, nothing twice."""

from __future__ import annotations

import dataclasses
import math
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dlmon import catalog
from dlmon.agent.admission import Detail
from dlmon.agent.collectors import collect
from dlmon.agent.state import Board
from dlmon.catalog import METRICS, Kind, Subject
from dlmon.observe.snapshot import (
    CgroupMemory,
    Histogram,
    Loader,
    Process,
    Rank,
    Snapshot,
    Worker,
    WorkerState,
)
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HISTOGRAM_BUCKETS, HOOKS, Phase
from tests.agent.samples import (
    make_histogram,
    make_loader,
    make_rank,
    make_snapshot,
    make_worker,
)

PLENTY = 10_000_000


def expose(snapshot: Snapshot, detail: Detail = Detail.FULL, limit: int = PLENTY) -> str:
    board = Board(detail, limit)
    board.publish(snapshot)
    return generate_latest(collect(board.status)).decode()


def families(text: str) -> list[Family]:
    return list(parse_text(text))


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def value(text: str, metric: catalog.Metric, **labels: str) -> list[float]:
    """The values of the series of a metric that have these labels."""
    wanted = set(labels.items())
    return [
        number
        for (name, own), number in samples(text).items()
        if name == metric.name and wanted <= own
    ]


# --- the catalogue and what is emitted are the same ---


def test_everything_in_the_catalogue_is_emitted_and_nothing_else() -> None:
    text = expose(make_snapshot())
    emitted = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert emitted == {metric.name for metric in METRICS}


def test_kinds_helps_and_labels_are_the_catalogues() -> None:
    text = expose(make_snapshot())
    for metric in METRICS:
        kind = "gauge" if metric.kind is Kind.INFO else metric.kind.value
        assert f"# TYPE {metric.name} {kind}\n" in text
        assert f"# HELP {metric.name} {metric.help}\n" in text
    names = {metric.name: set(metric.labels) for metric in METRICS}
    for name, labels in samples(text):
        if name in names:
            assert {label for label, _ in labels} == names[name]


def test_a_subject_has_no_more_series_than_the_catalogue_counts() -> None:
    counted = Counter[Subject]()
    subjects = {metric.name: metric.subject for metric in METRICS}
    for name, _ in samples(expose(make_snapshot())):
        for suffix in ("", "_bucket", "_sum", "_count"):
            if subject := subjects.get(name.removesuffix(suffix)):
                counted[subject] += 1
                break
    # The loader of the sample has everything, and it has four workers.
    assert counted == {
        Subject.AGENT: catalog.series_per(Subject.AGENT),
        Subject.RANK: catalog.series_per(Subject.RANK),
        Subject.LOADER: catalog.series_per(Subject.LOADER),
        Subject.WORKER: 4 * catalog.series_per(Subject.WORKER),
        Subject.FINDING: 1,
        Subject.GPU: catalog.series_per(Subject.GPU),
        Subject.UNOBSERVED: catalog.series_per(Subject.UNOBSERVED),
        Subject.CGROUP: catalog.series_per(Subject.CGROUP),
    }


def test_closed_sets_of_label_values_are_exported_at_zero() -> None:
    loader = make_loader(errors={}, worker_exits={}, phase_seconds={})
    text = expose(make_snapshot(make_rank(loaders=(loader,)), refused_total={}, dropped_total={}))
    for metric, label in (
        (catalog.LOADER_ERRORS, "error"),
        (catalog.LOADER_WORKER_EXITS, "reason"),
        (catalog.LOADER_TIME, "phase"),
        (catalog.AGENT_SEGMENTS_REFUSED, "reason"),
        (catalog.AGENT_SERIES_DROPPED, "reason"),
    ):
        for each in metric.values:
            assert value(text, metric, **{label: each}) == [0]


def test_there_is_no_created_series_and_no_timestamp() -> None:
    text = expose(make_snapshot())
    assert "_created" not in text
    assert all(sample.timestamp is None for family in families(text) for sample in family.samples)


# --- values ---


def test_values_are_the_snapshots() -> None:
    text = expose(make_snapshot())
    assert value(text, catalog.RANK_UP) == [1]
    assert value(text, catalog.RANK_CPUS) == [7.5]
    assert value(text, catalog.LOADER_TIME, phase="wait") == [73]
    assert value(text, catalog.LOADER_TIME, phase="startup") == [1.5]
    assert value(text, catalog.LOADER_PHASE) == [Phase.WAIT.value]
    assert value(text, catalog.WORKER_STATE, worker="2") == [WorkerState.FETCHING.value]
    assert value(text, catalog.WORKER_BATCHES, worker="3") == [103]
    assert value(text, catalog.AGENT_SEGMENTS_REFUSED, reason="owner") == [3]
    assert value(text, catalog.AGENT_SERIES_DROPPED, reason="rank") == [5]
    assert value(text, catalog.AGENT_SERIES_DROPPED, reason="user") == [6]


def test_what_is_not_known_is_absent_and_never_zero() -> None:
    worker = make_worker(
        up=None, state=None, pid=None, last_progress=None, cpu_seconds=None, resident_bytes=None
    )
    loader = make_loader(
        last_delivery=None,
        last_epoch=None,
        last_abnormal_exit=None,
        reorder=None,
        workers=(worker,),
    )
    text = expose(make_snapshot(make_rank(process=Process(), hooks={}, loaders=(loader,))))
    for metric in (
        catalog.RANK_CPU_SECONDS,
        catalog.RANK_OPEN_FDS,
        catalog.SHIM_HOOK_ACTIVE,
        catalog.LOADER_LAST_DELIVERY,
        catalog.LOADER_REORDER,
        catalog.WORKER_UP,
        catalog.WORKER_STATE,
        catalog.WORKER_RESIDENT_MEMORY,
    ):
        assert value(text, metric) == []
    assert value(text, catalog.WORKER_BATCHES) == [100]


def test_no_number_is_no_value() -> None:
    worker = make_worker(fetch_seconds=math.nan, last_progress=math.inf)
    text = expose(make_snapshot(make_rank(loaders=(make_loader(workers=(worker,)),))))
    assert value(text, catalog.WORKER_FETCH_SECONDS) == []
    assert value(text, catalog.WORKER_LAST_PROGRESS) == []


def test_a_dead_rank_is_down_and_keeps_its_counters() -> None:
    text = expose(make_snapshot(make_rank(up=False, died=1.0, process=Process())))
    assert value(text, catalog.RANK_UP) == [0]
    assert value(text, catalog.LOADER_BATCHES) == [400]


def test_a_configuration_key_that_is_not_known_is_an_empty_label() -> None:
    text = expose(make_snapshot(make_rank(loaders=(make_loader(config={"dataset": "D"}),))))
    assert value(text, catalog.LOADER_INFO, dataset="D", num_workers="", read_ahead="") == [1]


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = make_histogram(b0=1, b19=2, b20=4, b36=8, b37=16, b63=32)
    text = expose(make_snapshot(make_rank(loaders=(make_loader(wait=histogram),))))
    buckets = {
        dict(labels)["le"]: number
        for (name, labels), number in samples(text).items()
        if name == f"{catalog.LOADER_WAIT.name}_bucket"
    }
    assert len(buckets) == 19
    assert buckets["0.000524288"] == 3  # 2^19 ns, exactly
    assert buckets["0.001048576"] == 7
    assert buckets["34.359738368"] == 7
    assert buckets["68.719476736"] == 15  # 2^36 ns
    assert buckets["+Inf"] == 63
    bounds = [float(bound) for bound in buckets]
    assert bounds == sorted(bounds)
    assert list(buckets.values()) == sorted(buckets.values())


def test_a_histogram_has_21_series() -> None:
    names = [name for name, _ in samples(expose(make_snapshot()))]
    mine = [name for name in names if name.startswith(catalog.LOADER_STEP.name + "_")]
    assert len(mine) == 21


# --- detail ---


@pytest.mark.parametrize("detail", [Detail.FULL, Detail.LEAN, Detail.OFF])
def test_the_detail_decides_which_series_a_worker_has(detail: Detail) -> None:
    text = expose(make_snapshot(), detail)
    shown = {
        metric
        for metric in METRICS
        if metric.subject is Subject.WORKER and value(text, metric, worker="0")
    }
    assert sum(metric.series for metric in shown) == detail.series
    assert all(detail.shows(metric) for metric in shown)


def test_at_the_limit_up_and_loaders_stay_and_the_loss_is_counted_at_every_snapshot() -> None:
    board = Board(Detail.FULL, 100)
    for _ in range(3):
        board.publish(make_snapshot())
    text = generate_latest(collect(board.status)).decode()
    assert len(value(text, catalog.WORKER_UP)) == 4
    assert value(text, catalog.WORKER_BATCHES) == []
    assert value(text, catalog.LOADER_BATCHES) == [400]
    lost = 3 * 4 * (Detail.FULL.series - Detail.UP.series)
    assert value(text, catalog.AGENT_SERIES_DROPPED, reason="series_limit") == [lost]


def test_a_failed_snapshot_is_counted_and_the_last_good_one_stays() -> None:
    board = Board(Detail.FULL, PLENTY)
    board.publish(make_snapshot())
    board.fail("boom")
    text = generate_latest(collect(board.status)).decode()
    assert value(text, catalog.AGENT_SNAPSHOT_ERRORS) == [1]
    assert value(text, catalog.LOADER_BATCHES) == [400]


def test_the_limit_of_a_cgroup_is_the_one_of_which_the_least_is_left() -> None:
    groups = {
        "/job/task": CgroupMemory(
            limit_bytes=2000, anon_bytes=100, room_bytes=500, binding_limit_bytes=8000
        ),
        "/unread": CgroupMemory(limit_bytes=2000),  # nothing told what is used
    }
    text = expose(make_snapshot(cgroups=groups))
    assert value(text, catalog.CGROUP_MEMORY_LIMIT) == [8000, 2000]
    assert value(text, catalog.CGROUP_MEMORY_ROOM) == [500]


def test_before_the_first_snapshot_there_is_the_agent() -> None:
    text = generate_latest(collect(Board(Detail.FULL, PLENTY).status)).decode()
    assert value(text, catalog.AGENT_BUILD_INFO) == [1]
    assert value(text, catalog.AGENT_SNAPSHOT_AGE) == []


# --- any snapshot ---

NAMES = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["", "0", "train", 'a"b', "back\\slash", "x\n", "x\t", "line\u2028", "é" * 70, "é" * 71, "{le}"]
)
COUNT = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e12, allow_nan=False)
ANY_FLOAT = st.none() | st.floats()
TEXTS = st.dictionaries(st.sampled_from(["dataset", "script", "cgroup", "pid", "x"]), NAMES)
HISTOGRAMS = st.builds(
    Histogram,
    st.lists(st.integers(0, 2**40), min_size=HISTOGRAM_BUCKETS, max_size=HISTOGRAM_BUCKETS).map(
        tuple
    ),
    SECONDS,
)


def counts_of(keys: Any) -> st.SearchStrategy[dict[Any, int]]:
    return st.dictionaries(st.sampled_from(sorted(keys)), COUNT)


WORKERS = st.builds(
    Worker,
    slot=st.integers(0, 3),
    up=st.none() | st.booleans(),
    state=st.none() | st.sampled_from(WorkerState),
    last_progress=ANY_FLOAT,
    batches=COUNT,
    fetch_seconds=SECONDS,
    cpu_seconds=st.none() | SECONDS,
    resident_bytes=st.none() | COUNT,
    unique_bytes=st.none() | COUNT,
)
LOADERS = st.builds(
    Loader,
    name=NAMES,
    config=TEXTS,
    phase=st.sampled_from(Phase),
    phase_seconds=st.dictionaries(st.sampled_from(Phase), SECONDS),
    batches=COUNT,
    samples=COUNT,
    epochs=COUNT,
    startups=COUNT,
    discarded=COUNT,
    last_delivery=ANY_FLOAT,
    last_epoch=ANY_FLOAT,
    wait=HISTOGRAMS,
    step=st.just(make_histogram(b25=1)),
    fetch=st.just(make_histogram()),
    timeouts=COUNT,
    errors=counts_of(ERRORS),
    worker_starts=COUNT,
    worker_exits=counts_of(EXIT_REASONS),
    workers=st.lists(WORKERS, max_size=3).map(tuple),
)
PROCESSES = st.builds(
    Process,
    cpu_seconds=st.none() | SECONDS,
    cpus=ANY_FLOAT,
    cpu_throttled_seconds=st.none() | SECONDS,
    cgroup=st.none() | NAMES,
)
RANKS = st.builds(
    Rank,
    run=NAMES,
    rank=NAMES,
    info=TEXTS,
    hooks=st.dictionaries(st.sampled_from(HOOKS), st.booleans()),
    shim_errors=COUNT,
    orphan_workers=COUNT,
    process=PROCESSES,
    loaders=st.lists(LOADERS, max_size=2).map(tuple),
)
SNAPSHOTS = st.builds(
    Snapshot,
    time=st.just(1.0),
    ranks=st.lists(RANKS, max_size=3).map(tuple),
    superseded=st.lists(RANKS, max_size=3).map(tuple),
    stale_reads_total=COUNT,
    clamped_total=COUNT,
    refused_total=counts_of(["owner", "io"]),
    dropped_total=counts_of(["rank", "user"]),
    cgroups=st.dictionaries(NAMES, st.builds(CgroupMemory, anon_bytes=COUNT), max_size=3),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(SNAPSHOTS, st.sampled_from([Detail.FULL, Detail.LEAN, Detail.OFF]), st.integers(1, 1000))
def test_any_snapshot_makes_a_page_that_parses_without_a_series_twice(
    snapshot: Snapshot, detail: Detail, limit: int
) -> None:
    board = Board(detail, limit)
    board.publish(snapshot)
    text = generate_latest(collect(board.status)).decode()
    found = samples(text)  # parses, and fails on a duplicate
    names = {family.name for family in families(text)}
    assert names <= {metric.name.removesuffix("_total") for metric in METRICS}
    for _, labels in found:
        assert all(len(label_value.encode()) <= 128 for _, label_value in labels)
    openmetrics = generate_openmetrics(collect(board.status)).decode()  # type: ignore[no-untyped-call]
    parsed = list(parse_openmetrics(openmetrics))  # type: ignore[no-untyped-call]
    assert sum(len(family.samples) for family in parsed) == len(found)


def test_ranks_equal_after_cleaning_make_no_series_twice() -> None:
    rank = make_rank(run="same\n")
    assert samples(expose(make_snapshot(rank, dataclasses.replace(rank, run="same\t"))))


def test_orphans_of_all_processes_of_a_rank_are_counted_in_one_series() -> None:
    living, other = make_rank("0"), make_rank("1")
    dead = [make_rank("0", up=False, orphan_workers=count) for count in (3, 2)]
    page = samples(expose(make_snapshot(living, other, superseded=(*dead, living))))
    labels = {"run": "job-17", "rank": "0"}
    assert page["dlmon_rank_orphan_workers", frozenset(labels.items())] == 5
    assert page["dlmon_rank_up", frozenset(labels.items())] == 1
    assert page["dlmon_rank_orphan_workers", frozenset({**labels, "rank": "1"}.items())] == 0


def test_promtool_finds_nothing_to_complain_about(promtool: Path) -> None:
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=expose(make_snapshot()),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
