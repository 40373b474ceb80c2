"""The snapshot as JSON: names instead of numbers, null for what is not known."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from dlmon.agent.admission import Detail
from dlmon.agent.api import snapshot_json
from dlmon.agent.state import Board
from dlmon.observe.snapshot import Loader, Process, Rank, Snapshot, Worker
from tests.agent.samples import make_loader, make_rank, make_snapshot, make_worker


def document(snapshot: Snapshot, *, trusted: bool = True) -> dict[str, Any]:
    board = Board(Detail.FULL, 1000)
    board.publish(snapshot)
    assert board.status.latest is not None
    body = snapshot_json(board.status.latest, 1.0, trusted=trusted)
    found: dict[str, Any] = json.loads(body, parse_constant=pytest.fail)  # NaN, Infinity
    return found


def names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_attribute_of_the_snapshot_is_there() -> None:
    whole = document(make_snapshot())
    assert whole.keys() == names(Snapshot) | {"agent"}
    (rank,) = whole["ranks"]
    assert rank.keys() == names(Rank)
    assert rank["process"].keys() == names(Process)
    (loader,) = rank["loaders"]
    assert loader.keys() == names(Loader) | {"wait_ratio"}
    assert loader["workers"][0].keys() == names(Worker)


def test_phases_and_states_are_names() -> None:
    (rank,) = document(make_snapshot())["ranks"]
    (loader,) = rank["loaders"]
    assert loader["phase"] == "wait"
    assert loader["phase_seconds"]["startup"] == 1.5
    assert loader["workers"][0]["state"] == "fetching"
    assert loader["workers"][0]["up"] is True
    assert loader["wait_ratio"] == 0.73


def test_unknown_and_not_finite_values_are_null() -> None:
    workers = (make_worker(0, fetch_seconds=math.nan), make_worker(1, state=None, up=None))
    loader = make_loader(workers=workers, last_delivery=math.inf)
    (rank,) = document(make_snapshot(make_rank(loaders=(loader,))))["ranks"]
    (found,) = rank["loaders"]
    assert found["last_delivery"] is None
    assert found["workers"][0]["fetch_seconds"] is None
    assert found["workers"][1]["state"] is None


def test_the_agent_says_its_version_and_how_old_the_snapshot_is() -> None:
    agent = document(make_snapshot())["agent"]
    assert agent.keys() == {"version", "interval_seconds", "age_seconds"}
    assert agent["age_seconds"] >= 0


def test_paths_of_refused_files_are_for_trusted_clients_only() -> None:
    (shown,) = document(make_snapshot())["refused"]
    assert shown["path"] == "/dev/shm/x.seg"
    assert shown["path"] in shown["message"]
    whole = document(make_snapshot(), trusted=False)
    assert whole["refused"] == [{"path": "", "reason": "owner", "message": ""}]


def test_a_lone_surrogate_in_a_name_does_not_break_the_document() -> None:
    (rank,) = document(make_snapshot(make_rank(run="a\ud800b")))["ranks"]
    assert rank["run"] == "a\ud800b"
