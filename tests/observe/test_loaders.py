"""What cells mean: how full the queue is, who is waited for, and what a loader was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlmon.observe import loaders
from dlmon.observe.parts import Part, Seen
from dlmon.observe.snapshot import Loader, WorkerState
from dlmon.segment import layout, reader
from dlmon.segment.layout import Phase
from dlmon.segment.reader import Reading
from tests.observing import observe, only_rank
from tests.segment import forge
from tests.segment.locker import Locker

NOW = forge.NOW_NS


@pytest.fixture
def locker() -> Iterator[Locker]:
    with contextlib.closing(Locker()) as process:
        yield process


def iteration(
    fetched: Sequence[int],
    *,
    delivered: int,
    dispatched: int,
    phase: Phase = Phase.WAIT,
    raised: int = 0,
) -> forge.CellValues:
    """Return the cells of a second iteration; in the first, 3 were delivered and each fetched 3."""
    cells: dict[tuple[int, str], int | Sequence[int]] = {
        (0, "generation"): 1,
        (0, "iterations"): 2,
        (0, "phase"): NOW << layout.STATE_BITS | phase,
        (0, "startups"): 2,
        (0, "wait_histogram"): [0, 2 + delivered - 1],
        (0, "batches_before"): 3,
        (0, "dispatched"): dispatched,
        (0, "raised"): raised,
        (0, "last_iteration_ns"): NOW,
    }
    for worker, count in enumerate(fetched, start=1):
        cells[worker, "attested_generation"] = 1
        cells[worker, "fetch_iteration"] = 2
        cells[worker, "fetched_before"] = 3
        cells[worker, "fetch_histogram"] = [0, 3 + count]
    return cells


def seen(
    directory: Path, locker: Locker, cells: forge.CellValues, *, workers: int = 2, **info: object
) -> Loader:
    said = {**forge.INFO, **info}
    path = forge.put(directory, forge.forge(workers=workers, cells=cells, info=said))
    locker.hold(path, [layout.slot_offset(slot) for slot in range(workers + 1)])
    return only_rank(observe(directory)).loaders[0]


def fill(loader: Loader) -> tuple[int, int, int, int | None]:
    return loader.ready, loader.outstanding, loader.capacity, loader.reorder


@pytest.mark.parametrize(
    ("fetched", "delivered", "dispatched", "expected"),
    [
        ((0, 0), 1, 5, (0, 4, 4, 0)),
        ((1, 1), 1, 5, (1, 4, 4, 0)),
        ((1, 3), 1, 5, (3, 4, 4, 2)),  # task 1 is there, task 2 is not: 3 and 5 wait for it
        ((0, 2), 0, 4, (2, 4, 4, 2)),  # worker 0 is slow: what worker 1 has is held
        ((2, 2), 0, 4, (4, 4, 4, 0)),
        ((9, 9), 0, 4, (4, 4, 4, 0)),  # more than can be: bounded
        ((1, 1), 2, 2, (0, 0, 4, 0)),
    ],
)
def test_ready_outstanding_capacity_and_reorder(
    segment_dir: Path,
    locker: Locker,
    fetched: tuple[int, int],
    delivered: int,
    dispatched: int,
    expected: tuple[int, int, int, int],
) -> None:
    cells = iteration(fetched, delivered=delivered, dispatched=dispatched)
    assert fill(seen(segment_dir, locker, cells)) == expected


small = st.one_of(st.integers(-3, 12), st.sampled_from((2**63 - 1, -(2**63))))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(0, 9),
    small,
    small,
    st.sampled_from(("0", "1", "2", "9" * 900)),
    st.sampled_from(tuple(Phase)),
)
def test_ready_is_never_more_than_outstanding_nor_that_more_than_capacity(
    fetched: list[int], delivered: int, dispatched: int, raised: int, factor: str, phase: Phase
) -> None:
    cells = iteration(
        fetched, delivered=delivered, dispatched=dispatched, raised=raised, phase=phase
    )
    config = {"in_order": "true", "prefetch_factor": factor}
    found = loaders.fill(part(forge.forge(workers=len(fetched), cells=cells), {"config": config}))
    assert 0 <= found.ready <= found.outstanding <= found.capacity
    assert found.reorder is not None
    assert 0 <= found.reorder <= found.ready


def part(data: bytes, info: Mapping[str, object]) -> Part:
    """Return a segment as read, without a file."""
    plan = reader.parse("a.seg", data, len(data))
    rank, *workers = (plan.cells(data, slot) for slot in range(plan.workers + 1))
    holders = (None,) * plan.workers
    reading = Reading("a.seg", plan, info, rank, tuple(workers), 1, holders, NOW, 0)
    return Part(reading, NOW, (Seen(),) * plan.workers)


def test_a_batch_that_came_back_as_an_exception_is_no_longer_outstanding(
    segment_dir: Path, locker: Locker
) -> None:
    cells = iteration((1, 1), delivered=1, dispatched=5, raised=1)
    assert fill(seen(segment_dir, locker, cells)) == (0, 3, 4, 0)


@pytest.mark.parametrize(
    ("info", "reorder"),
    [
        ({"config": {**forge.INFO["config"], "in_order": "false"}}, None),
        ({"iterable": True}, None),
        ({}, 2),
    ],
)
def test_reorder_is_known_only_where_tasks_are_dealt_out_in_turn(
    segment_dir: Path, locker: Locker, info: dict[str, Any], reorder: int | None
) -> None:
    cells = iteration((0, 2), delivered=0, dispatched=4)
    assert seen(segment_dir, locker, cells, **info).reorder == reorder


@pytest.mark.parametrize("factor", ["", "²", "-2", "2.5", "None", [2], None, {"a": 1}])
def test_a_prefetch_factor_that_is_no_number_gives_no_capacity(
    segment_dir: Path, locker: Locker, factor: object
) -> None:
    cells = iteration((1, 1), delivered=1, dispatched=5)
    config = {**forge.INFO["config"], "prefetch_factor": factor}
    assert fill(seen(segment_dir, locker, cells, config=config)) == (0, 0, 0, 0)


@pytest.mark.parametrize("factor", ["4", 4, "٤"])
def test_a_prefetch_factor_that_is_a_number_counts(
    segment_dir: Path, locker: Locker, factor: object
) -> None:
    cells = iteration((1, 1), delivered=1, dispatched=5)
    config = {**forge.INFO["config"], "prefetch_factor": factor}
    assert seen(segment_dir, locker, cells, config=config).capacity == 8


def test_between_iterations_nothing_is_ready_and_the_rest_was_discarded(
    segment_dir: Path, locker: Locker
) -> None:
    cells = iteration((3, 2), delivered=2, dispatched=6, phase=Phase.IDLE)
    loader = seen(segment_dir, locker, cells)
    assert fill(loader) == (0, 0, 4, None)
    assert loader.discarded == (3 + 3) + (3 + 2) - (3 + 2)


def test_during_an_iteration_only_what_earlier_ones_left_is_discarded(
    segment_dir: Path, locker: Locker
) -> None:
    loader = seen(segment_dir, locker, iteration((3, 2), delivered=2, dispatched=6))
    assert loader.discarded == 3 + 3 - 3


def test_a_worker_whose_batch_the_rank_waits_for_is_handing_over(
    segment_dir: Path, locker: Locker
) -> None:
    states = [
        worker.state
        for worker in seen(
            segment_dir, locker, iteration((1, 1), delivered=1, dispatched=5)
        ).workers
    ]
    assert states == [WorkerState.IDLE, WorkerState.HANDING_OVER]


def test_moments_are_in_unix_time_and_none_before_the_first(
    segment_dir: Path, locker: Locker
) -> None:
    loader = seen(segment_dir, locker, {})
    assert (loader.last_delivery, loader.last_epoch, loader.last_abnormal_exit) == (None,) * 3
    assert [worker.last_progress for worker in loader.workers] == [None, None]
    assert [worker.up for worker in loader.workers] == [None, None]
    assert loader.wait_ratio is None


def test_two_segments_of_one_loader_are_one_loader(segment_dir: Path, locker: Locker) -> None:
    """Iterators alive at once, or another number of workers later."""
    older = iteration((1, 1), delivered=1, dispatched=5, phase=Phase.IDLE)
    other = {**forge.INFO, "config": {**forge.INFO["config"], "num_workers": "3"}}
    forge.put(segment_dir, forge.forge(cells=older), "a.seg")
    newer = {**iteration((2, 2, 2), delivered=2, dispatched=8), (0, "last_iteration_ns"): NOW + 1}
    forge.put(segment_dir, forge.forge(workers=3, cells=newer, info=other), "b.seg")
    locker.hold(segment_dir / "b.seg", [layout.slot_offset(0)])
    (loader,) = only_rank(observe(segment_dir)).loaders
    assert loader.batches == (3 + 1) + (3 + 2)
    assert loader.config["num_workers"] == "3"
    assert loader.phase is Phase.WAIT
    assert len(loader.workers) == 3
    assert [worker.batches for worker in loader.workers] == [4 + 5, 4 + 5, 5]


def test_an_unknown_phase_reads_as_not_iterating(segment_dir: Path, locker: Locker) -> None:
    cells: forge.CellValues = {(0, "phase"): NOW << layout.STATE_BITS | 7}
    loader = seen(segment_dir, locker, cells)
    assert loader.phase is Phase.IDLE
    assert set(loader.phase_seconds.values()) == {0.0}
