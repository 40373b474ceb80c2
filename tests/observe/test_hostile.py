"""Whatever is in one segment, a snapshot is made, holds what it promises, and loses no other."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlmon.observe.snapshot import Loader, Snapshot
from dlmon.segment import layout
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HOOKS, Phase
from tests.observing import counters, observer, only_rank
from tests.segment import forge, hostile
from tests.segment.locker import Locker

SLOTS = [layout.slot_offset(slot) for slot in range(hostile.WORKERS + 1)]
HONEST = {**forge.INFO, "run": "honest", "root": "1-1", "pid": 1, "start_ticks": 1}


DERIVED = (
    "discarded",
    *(f"seconds {phase.name}" for phase in Phase if phase is not Phase.IDLE),
    *(f"worker {slot} fetch" for slot in range(hostile.WORKERS)),
)


@pytest.fixture(scope="module")
def locker() -> Iterator[Locker]:
    with contextlib.closing(Locker()) as process:
        yield process


def check(snapshot: Snapshot) -> None:
    names = [(rank.run, rank.rank) for rank in snapshot.ranks]
    assert len(set(names)) == len(names)
    assert set(names) >= {(rank.run, rank.rank) for rank in snapshot.superseded}
    for rank in (*snapshot.ranks, *snapshot.superseded):
        assert 0 <= rank.pid < 1 << 31
        assert type(rank.pid) is int
        assert (rank.died is None) == rank.up
        assert set(rank.hooks) == set(HOOKS)
        assert [loader.name for loader in rank.loaders] == sorted({x.name for x in rank.loaders})
        for loader in rank.loaders:
            check_loader(loader)
    text = json.dumps(asdict(snapshot), allow_nan=False, ensure_ascii=False)
    assert text.isprintable()
    text.encode()


def check_loader(loader: Loader) -> None:
    assert 0 <= loader.ready <= loader.outstanding <= loader.capacity
    assert loader.reorder is None or 0 <= loader.reorder <= loader.ready
    assert set(loader.phase_seconds) == set(Phase) - {Phase.IDLE}
    assert set(loader.errors) == set(ERRORS)
    assert set(loader.worker_exits) == set(EXIT_REASONS)
    assert len(loader.workers) == hostile.WORKERS
    for histogram in (loader.wait, loader.step, loader.fetch):
        assert len(histogram.counts) == layout.HISTOGRAM_BUCKETS
    assert loader.wait_ratio is None or 0 <= loader.wait_ratio <= 1
    for name, value in counters(loader).items():
        assert value >= 0, name
        assert math.isfinite(value), name
    for moment in (loader.last_delivery, loader.last_epoch, loader.last_abnormal_exit):
        assert moment is None or math.isfinite(moment)


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    try:
        yield path
    finally:
        shutil.rmtree(path)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hostile.segments(), hostile.segments(), st.sets(st.sampled_from(SLOTS)))
@example(forge.forge(info=b'{"config": {"dataset": ' + b"[" * 980 + b"]" * 980 + b"}}"), b"", set())
@example(forge.forge(info={**forge.INFO, "pid": True, "start_ticks": None}), b"", {SLOTS[0]})
@example(forge.forge(info={}), b"", set(SLOTS))
def test_a_hostile_segment_costs_no_other_its_series(
    locker: Locker, data: bytes, later: bytes, locked: set[int]
) -> None:
    with directory() as path:
        bad = forge.put(path, data, "a.seg")
        forge.put(path, forge.forge(info=HONEST, cells=forge.busy()), "b.seg")
        locker.hold(bad, sorted(locked))
        with observer(path) as observing:
            for content in (data, data, later):
                bad.write_bytes(content)  # in place: the observer has it open
                snapshot = observing.observe()
                check(snapshot)
                (honest,) = [rank for rank in snapshot.ranks if rank.run == "honest"]
                assert honest.loaders[0].samples == 58


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(hostile.cells(), min_size=2, max_size=4))
def test_no_counter_of_living_cells_goes_down_but_by_a_store(
    locker: Locker, states: list[forge.CellValues]
) -> None:
    """What is derived from several cells is held at its highest, whatever they say."""
    with directory() as path:
        file = forge.put(path, forge.forge())
        locker.hold(file, SLOTS)
        before: dict[str, float] = {}
        with observer(path) as observing:
            for state in states:
                file.write_bytes(forge.forge(cells=state))
                now = counters(only_rank(observing.observe()).loaders[0])
                for name in DERIVED:
                    assert now[name] >= before.get(name, 0.0), name
                before = now
