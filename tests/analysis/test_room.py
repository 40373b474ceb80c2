"""What is nearly full or soon will be: memory of cgroups, /dev/shm, descriptors."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import pytest

from dlmon.analysis.room import RoomWatcher
from dlmon.analysis.sizes import duration, size
from dlmon.observe.snapshot import CgroupMemory, Finding, Process, Rank, Snapshot
from tests.agent.samples import NOW, make_loader, make_rank, make_snapshot, make_worker

GB = 1_000_000_000
LIMIT = 100 * GB
STEP = 5


def ranks(*processes: Process) -> tuple[Rank, ...]:
    return tuple(make_rank(str(i), process=process) for i, process in enumerate(processes))


def at_memory(used: float, second: float, *, members: int = 1) -> Snapshot:
    memory = CgroupMemory(
        limit_bytes=LIMIT, room_bytes=max(0, int(LIMIT - used)), binding_limit_bytes=LIMIT
    )
    process = Process(cgroup="/job", resident_bytes=3 * GB)
    return make_snapshot(
        *ranks(*[process] * members), time=NOW + second, cgroups={"/job": memory}, findings=()
    )


def over(used: Callable[[float], float], seconds: int) -> list[list[Finding]]:
    """Look at a cgroup whose use is a function of the second; return what is found each time."""
    watcher = RoomWatcher()
    return [
        list(watcher.look(at_memory(used(second), second))[1]) for second in range(0, seconds, STEP)
    ]


# --- memory ---


def test_a_limit_within_the_hour_is_told_with_the_time_that_is_left() -> None:
    found = over(lambda second: 60 * GB + 0.02 * GB * second, 900)
    assert not any(found[: 280 // STEP]), "it takes some minutes to be sure"
    assert all(found[320 // STEP :])
    one = found[-1][0]
    assert (one.name, one.run, one.rank, one.loader) == ("memory_limit_soon", "job-17", "0", "")
    assert one.sentence == (
        "77.9 GB of the 100 GB that cgroup /job may have are in use, 20 MB/s more: its limit in"
        " 18 min"
    )
    assert one.evidence["cgroup"] == "/job"
    assert float(one.evidence["seconds_to_limit"]) == pytest.approx(22.1 * GB / 0.02 / GB, rel=0.02)
    assert one.evidence["the training process"] == "3 GB"
    assert one.evidence["worker 0 of train"] == "90 MB"


@pytest.mark.parametrize(
    "used",
    [
        pytest.param(lambda _: 80 * GB, id="much, but steady"),
        pytest.param(lambda second: min(45, 0.1 * second) * GB, id="loads, then stays"),
        pytest.param(lambda second: 45 * GB * (1 - math.exp(-second / 300)), id="levels off"),
        pytest.param(lambda second: (70 + 15 * math.sin(second / 30)) * GB, id="waves"),
        pytest.param(lambda _: random.gauss(70, 5) * GB, id="noise"),
        pytest.param(lambda second: (80 - 0.01 * second) * GB, id="shrinks"),
        pytest.param(lambda second: (60 + 0.005 * second) * GB, id="in two hours"),
        pytest.param(lambda second: 0.02 * GB * second, id="not half full yet"),
    ],
)
def test_what_will_not_reach_the_limit_soon_is_not_reported(used: Callable[[float], float]) -> None:
    random.seed(3)
    assert not any(over(used, 2400))


def test_a_limit_that_is_reached_but_for_little_is_reported_at_once() -> None:
    found = over(lambda _: 96 * GB, 10)
    assert all(found)
    assert found[0][0].sentence == "96 GB of the 100 GB that cgroup /job may have are in use"


def test_ranks_of_a_run_that_share_a_cgroup_share_the_finding() -> None:
    found = RoomWatcher().look(at_memory(99 * GB, 0, members=3))[1]
    assert [(one.rank, one.since) for one in found] == [("", NOW)]
    assert "rank 2" in found[0].evidence


def test_a_cgroup_without_a_limit_is_never_full() -> None:
    memory = CgroupMemory(anon_bytes=900 * GB)
    snapshot = make_snapshot(*ranks(Process(cgroup="/job")), cgroups={"/job": memory})
    assert RoomWatcher().look(snapshot)[1] == []


# --- /dev/shm ---


def at_shm(share: float, second: float = 0.0, **changes: object) -> Snapshot:
    process = Process(
        shm_size_bytes=10 * GB, shm_used_bytes=int(share * 10 * GB), shm_bytes=int(0.2 * GB)
    )
    workers = tuple(make_worker(i, shm_bytes=i * GB) for i in range(4))
    rank = make_rank(process=process, loaders=(make_loader(workers=workers),))
    rank = dataclasses.replace(rank, **changes)  # type: ignore[arg-type]
    return Snapshot(time=NOW + second, ranks=(rank,))


def test_dev_shm_that_is_nearly_full_is_told_with_who_has_it() -> None:
    seen, found = RoomWatcher().look(at_shm(0.92))
    assert seen.ranks
    assert [one.name for one in found] == ["shm_nearly_full"]
    assert found[0].sentence == (
        "9.2 GB of the 10 GB of /dev/shm are in use; the most in worker 3 of train (3 GB),"
        " worker 2 of train (2 GB), worker 1 of train (1 GB), the training process (200 MB)"
    )
    assert found[0].evidence["worker 2 of train"] == "2 GB"


def test_what_is_found_holds_until_there_is_clearly_more_room() -> None:
    watcher = RoomWatcher()
    shares = [0.85, 0.91, 0.89, 0.87, 0.91, 0.84, 0.89]
    found = [watcher.look(at_shm(share, at))[1] for at, share in enumerate(shares)]
    assert [bool(some) for some in found] == [False, True, True, True, True, False, False]
    assert {one.since for some in found for one in some} == {NOW + 1}


def test_the_dev_shm_of_a_dead_rank_is_no_matter() -> None:
    assert RoomWatcher().look(at_shm(1.0, up=False))[1] == []


def test_a_dev_shm_that_may_not_be_read_is_no_matter() -> None:
    assert RoomWatcher().look(Snapshot(time=NOW, ranks=ranks(Process())))[1] == []


# --- descriptors ---


def test_descriptors_that_are_nearly_exhausted_are_told_of_rank_and_worker() -> None:
    workers = (make_worker(0, open_fds=100), make_worker(1, open_fds=1000), make_worker(2))
    loader = make_loader(workers=workers)
    rank = make_rank(process=Process(open_fds=950, max_fds=1024), loaders=(loader,))
    _, found = RoomWatcher().look(Snapshot(time=NOW, ranks=(rank,)))
    assert [(one.name, one.loader, one.worker) for one in found] == [
        ("open_files_nearly_exhausted", "", ""),
        ("open_files_nearly_exhausted", "train", "1"),
    ]
    assert found[0].sentence == "the training process has 950 of 1024 descriptors open"
    assert found[1].sentence == "worker 1 of train has 1000 of 1024 descriptors open"


# --- how it is written ---


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (9_940_000, "9.9 MB"),
        (9_960_000, "10 MB"),
        (2_100_000_000, "2.1 GB"),
        (4e15, "4000 TB"),
        (-5e6, "-5 MB"),
    ],
)
def test_sizes_have_two_or_three_digits(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (120, "2 min"), (720, "12 min"), (9000, "2.5 h"), (1e6, "12 days")],
)
def test_durations_are_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text
