"""Growth of workers' memory: leaks, copies of shared pages, and what is neither."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlmon.analysis.memory import LEAK_BYTES, MemoryWatcher
from dlmon.analysis.robust import slope
from dlmon.observe.snapshot import CgroupMemory, Finding, Snapshot, Worker
from tests.agent.samples import NOW, make_loader, make_rank, make_worker

MB = 1_000_000
EPOCH_SECONDS = 200.0
STEP = 5
BASE = 400 * MB


# --- the fit ---


def test_growth_is_the_slope() -> None:
    assert slope([(0, 100), (1, 150), (3, 250)]) == 50
    assert slope([(3, 250), (0, 100), (1, 150)]) == 50
    assert slope([(0, 100), (10, 50)]) == -5


@pytest.mark.parametrize("points", [[], [(1.0, 5)], [(1.0, 5), (1.0, 9)]])
def test_without_two_times_there_is_no_growth(points: list[tuple[float, int]]) -> None:
    assert slope(points) is None


@given(st.integers(-1000, 1000), st.lists(st.integers(0, 10**12), min_size=5, max_size=5))
def test_a_quarter_of_the_points_may_be_anything(rate: int, wild: list[int]) -> None:
    points = [(float(t), 10**6 + rate * t) for t in range(20)]
    for at, value in zip((3, 7, 8, 14, 19), wild, strict=True):
        points[at] = (float(at), value)
    found = slope(points)
    assert found is not None
    others = [number for number in wild if number > 10**6]
    assert abs(found - rate) <= abs(rate) + 1 if len(others) < 5 else found >= min(rate, 0)


# --- one worker over time ---

Shape = Callable[[float], float]
"""Bytes that a process has grown by at an age in seconds."""


def still(_: float) -> float:
    return 0


def run(
    grown: Shape,
    *,
    copied: Shape = still,
    seconds: float = 4 * EPOCH_SECONDS,
    epoch: float = EPOCH_SECONDS,
    fresh: bool = False,
    memory: CgroupMemory | None = None,
    up: bool = True,
) -> Iterator[list[Finding]]:
    """Look again and again at a worker that grows; yield what is found each time."""
    watcher = MemoryWatcher()
    for second in range(0, int(seconds), STEP):
        number = int(second // epoch)
        began = number * epoch if fresh else 0.0
        age = second - began
        worker = make_worker(
            0,
            pid=5000 + number if fresh else 5000,
            started=NOW + began,
            anonymous_bytes=int(BASE + grown(age // 10 * 10)),
            copied_bytes=int(copied(age // 60 * 60)),
            scanned=NOW + began + age // 60 * 60,
        )
        yield list(look(watcher, worker, second, number, epoch, memory, up=up))


def look(
    watcher: MemoryWatcher,
    worker: Worker,
    second: float,
    number: int,
    epoch: float,
    memory: CgroupMemory | None = None,
    *,
    up: bool = True,
) -> list[Finding]:
    jitter = random.Random(second).uniform(-1e-5, 1e-5)
    loader = make_loader(
        workers=(worker,), epochs=number + 1, last_epoch=NOW + number * epoch + jitter
    )
    groups = {"/user.slice": memory} if memory else {}
    rank = make_rank(loaders=(loader,), up=up)
    snapshot = Snapshot(time=NOW + second, ranks=(rank,), cgroups=groups)
    seen, found = watcher.look(snapshot)
    assert seen is snapshot
    return list(found)


def names(found: Iterator[list[Finding]]) -> set[str]:
    return {one.name for some in found for one in some}


NOISE = random.Random(4)


def noise(_: float) -> float:
    return NOISE.gauss(0, 20 * MB)


def leaking(age: float) -> float:
    return 0.5 * MB * age


def test_a_steady_leak_is_found_in_its_third_epoch_with_its_rate() -> None:
    memory = CgroupMemory(room_bytes=360 * MB, binding_limit_bytes=1000 * MB)
    found = list(run(leaking, memory=memory))
    first = next(at for at, some in enumerate(found) if some)
    assert 2 * EPOCH_SECONDS <= first * STEP < 3 * EPOCH_SECONDS
    assert all(found[first:]), "it stays"
    assert len({some[0].since for some in found[first:]}) == 1
    one = found[-1][0]
    assert (one.name, one.run, one.rank, one.loader) == (
        "worker_memory_leak",
        "job-17",
        "0",
        "train",
    )
    assert one.sentence == (
        "worker 0 of train: USS 90 MB, growing 500 kB/s / 100 MB per epoch;"
        " the limit of their cgroup in 12 min"
    )
    assert float(one.evidence["growth_bytes_per_hour"]) == pytest.approx(1800 * MB, rel=0.05)
    assert float(one.evidence["growth_bytes_per_epoch"]) == pytest.approx(100 * MB, rel=0.05)


def test_a_leak_is_found_under_noise() -> None:
    assert names(run(lambda age: leaking(age) + noise(age))) == {"worker_memory_leak"}


def test_a_leak_of_processes_that_live_for_one_epoch_is_found_in_the_third() -> None:
    found = list(run(leaking, fresh=True))
    first = next(at for at, some in enumerate(found) if some)
    assert 2 * EPOCH_SECONDS <= first * STEP < 3 * EPOCH_SECONDS
    assert "freed when they end" in found[first][0].sentence


def test_a_leak_in_one_endless_epoch_is_found_within_the_hour() -> None:
    found = list(run(lambda age: 0.1 * MB * age, seconds=3600, epoch=1e9))
    assert not any(found[: 1700 // STEP])
    assert found[-1][0].name == "worker_memory_leak"
    assert "per hour" in found[-1][0].sentence


def test_a_leak_that_begins_after_many_hours_is_found_within_three() -> None:
    begun = 8 * 3600.0
    watcher = MemoryWatcher()
    found: list[Finding] = []
    for second in range(0, int(begun) + 3 * 3600, 60):
        grown = max(0.0, second - begun) * 0.02 * MB
        worker = make_worker(0, started=NOW, anonymous_bytes=int(BASE + grown))
        found = look(watcher, worker, second, second // 3600, 3600)
        assert not found or second > begun
    assert [one.name for one in found] == ["worker_memory_leak"]


def test_a_clock_that_drifts_or_is_set_makes_no_leak_and_hides_none() -> None:
    watcher = MemoryWatcher()
    found: list[Finding] = []
    for second in range(0, 2000, STEP):
        drift = 0.01 * second + 3600 * (second > 900)
        worker = make_worker(
            0, started=NOW + drift, anonymous_bytes=int(BASE + leaking(second // 10 * 10))
        )
        found = look(watcher, worker, second + drift, second // 200, 200)
    assert [one.name for one in found] == ["worker_memory_leak"]


def test_a_leak_that_has_ended_is_no_longer_reported() -> None:
    found = list(run(lambda age: leaking(min(age, 600)), seconds=3000))
    assert found[600 // STEP]
    assert not found[-1]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(still, id="flat"),
        pytest.param(noise, id="noise"),
        pytest.param(lambda age: 30 * MB * math.sin(age / 40), id="waves"),
        pytest.param(lambda age: 300 * MB * min(age / 20, 1), id="warm-up"),
        pytest.param(lambda age: 500 * MB * (1 - math.exp(-age / 20)), id="plateau"),
        pytest.param(lambda age: 150 * MB * (age > 330), id="one step"),
        pytest.param(lambda age: -0.2 * MB * age, id="shrinks"),
        pytest.param(lambda age: 0.9 * LEAK_BYTES * age / 800, id="too little to matter"),
    ],
)
def test_what_is_no_leak_is_not_reported(shape: Shape, fresh: bool) -> None:
    assert names(run(shape, fresh=fresh)) == set()


def test_a_cache_that_fills_in_the_first_epoch_is_no_leak() -> None:
    assert names(run(lambda age: 5 * MB * min(age, EPOCH_SECONDS))) == set()


def test_a_growing_rank_does_not_make_leaks_of_its_fresh_workers() -> None:
    watcher, found = MemoryWatcher(), set()
    for second in range(0, 1000, STEP):
        number = second // 100
        worker = make_worker(
            0,
            pid=5000 + number,
            started=NOW + 100 * number,
            anonymous_bytes=BASE + 200 * MB * number,
        )
        found |= {one.name for one in look(watcher, worker, second, number, 100)}
    assert found == set()


# --- copies ---


def test_copies_of_shared_pages_are_erosion_and_no_leak() -> None:
    found = list(run(noise, copied=lambda age: 300 * MB * (1 - math.exp(-age / 200))))
    assert {one.name for some in found for one in some} == {"copy_on_write_erosion"}
    assert found[-1], "also when all is copied"
    assert found[-1][0].sentence.startswith("worker 0 of train has copied 29")
    assert int(found[-1][0].evidence["copied_bytes"]) > 280 * MB


def test_a_leak_beside_erosion_is_found_too() -> None:
    both = names(run(leaking, copied=lambda age: 0.3 * MB * age))
    assert both == {"worker_memory_leak", "copy_on_write_erosion"}


def test_erosion_that_begins_anew_in_every_epoch_is_one_finding() -> None:
    found = list(run(still, copied=lambda age: MB * age, fresh=True, seconds=1000))
    first = next(at for at, some in enumerate(found) if some)
    assert first * STEP < EPOCH_SECONDS
    assert all(found[first:])
    assert len({some[0].since for some in found[first:]}) == 1


def test_what_garbage_collection_copies_is_not_worth_a_word() -> None:
    assert names(run(still, copied=lambda age: 60 * MB * (age > 100))) == set()


def test_copies_of_a_small_share_of_a_large_worker_are_not_worth_a_word() -> None:
    large = names(run(lambda _: 3000 * MB, copied=lambda age: 200 * MB * (age > 100)))
    assert large == set()


# --- who is not looked at ---


def test_the_workers_of_a_dead_rank_are_left_alone() -> None:
    assert names(run(leaking, copied=leaking, up=False)) == set()


def test_a_worker_whose_memory_may_not_be_read_is_left_alone() -> None:
    watcher = MemoryWatcher()
    for second in range(0, 1000, STEP):
        worker = make_worker(0, started=NOW, anonymous_bytes=None, copied_bytes=None)
        assert look(watcher, worker, second, second // 200, 200) == []


def test_what_ended_long_ago_is_forgotten() -> None:
    watcher = MemoryWatcher()
    gone = make_worker(0, pid=None, up=None, started=None, anonymous_bytes=None)
    for second in range(0, 700, STEP):
        worker = make_worker(0, started=NOW, anonymous_bytes=int(BASE + leaking(second)))
        found = look(watcher, worker, second, second // 200, 200)
    assert found
    assert look(watcher, gone, 800, 4, 200)
    assert look(watcher, gone, 1400, 4, 200) == []


def test_the_worst_worker_is_named_and_all_are_in_the_evidence() -> None:
    watcher = MemoryWatcher()
    for second in range(0, 700, STEP):
        workers = tuple(
            make_worker(
                slot, started=NOW, anonymous_bytes=int(BASE + slot * leaking(second // 10 * 10))
            )
            for slot in range(4)
        )
        loader = make_loader(workers=workers, epochs=1 + second // 200, last_epoch=None)
        _, found = watcher.look(Snapshot(time=NOW + second, ranks=(make_rank(loaders=(loader,)),)))
    assert [one.name for one in found] == ["worker_memory_leak"]
    assert found[0].sentence == (
        "worker 3 of train: USS 90 MB, growing 1.5 MB/s / 5.4 GB per hour; 3 of its 4 workers grow"
    )
    assert found[0].evidence["workers"] == "3, 2, 1"
    assert found[0].evidence["worker 2"] == "1 MB/s, USS 90 MB, PSS 180 MB, RSS 412 MB"
