"""No label set twice, and above the limit workers' detail goes first."""

from __future__ import annotations

from dlmon.agent.admission import Admitted, Detail, admit
from dlmon.catalog import Subject, series_per
from tests.agent.samples import make_loader, make_rank, make_snapshot, make_worker

PLENTY = 1_000_000
PER_AGENT = series_per(Subject.AGENT)
PER_RANK = series_per(Subject.RANK)
PER_LOADER = series_per(Subject.LOADER)
PER_OTHERS = sum(map(series_per, (Subject.CGROUP, Subject.GPU, Subject.UNOBSERVED)))


def details(admitted: Admitted) -> dict[tuple[str, ...], Detail]:
    return {
        worker.labels: worker.detail
        for rank in admitted.ranks
        for loader in rank.loaders
        for worker in loader.workers
    }


def test_what_fits_is_admitted_whole() -> None:
    admitted = admit(make_snapshot(make_rank("0"), make_rank("1")), Detail.FULL, PLENTY)
    assert [rank.labels for rank in admitted.ranks] == [("job-17", "0"), ("job-17", "1")]
    assert set(details(admitted).values()) == {Detail.FULL}
    assert admitted.dropped == {"duplicate": 0, "series_limit": 0}


def test_of_two_ranks_equal_after_cleaning_the_first_stays_and_the_other_is_counted() -> None:
    first, second = make_rank("0", run="a\n"), make_rank("0", run="a\t", pid=7)
    admitted = admit(make_snapshot(first, second), Detail.FULL, PLENTY)
    assert [rank.rank.pid for rank in admitted.ranks] == [first.pid]
    assert admitted.dropped["duplicate"] == PER_RANK + PER_LOADER + 4 * Detail.FULL.series


def test_of_two_loaders_equal_after_cleaning_the_first_stays_and_the_other_is_counted() -> None:
    loaders = (make_loader("x" * 128 + "1"), make_loader("x" * 128 + "2"))
    admitted = admit(make_snapshot(make_rank(loaders=loaders)), Detail.LEAN, PLENTY)
    assert [loader.loader.name[-1] for loader in admitted.ranks[0].loaders] == ["1"]
    assert admitted.dropped["duplicate"] == PER_LOADER + 4 * Detail.LEAN.series


def test_loaders_of_the_same_name_in_two_ranks_are_no_duplicates() -> None:
    snapshot = make_snapshot(make_rank("0"), make_rank("1"), make_rank("0", run="other"))
    assert admit(snapshot, Detail.FULL, PLENTY).dropped["duplicate"] == 0


def test_above_the_limit_the_last_workers_lose_all_but_up() -> None:
    fixed = PER_AGENT + PER_RANK + PER_LOADER + PER_OTHERS
    extra = Detail.FULL.series - Detail.UP.series
    limit = fixed + 4 * Detail.UP.series + 2 * extra
    admitted = admit(make_snapshot(), Detail.FULL, limit)
    assert list(details(admitted).values()) == [Detail.FULL, Detail.FULL, Detail.UP, Detail.UP]
    assert admitted.dropped["series_limit"] == 2 * extra
    assert admit(make_snapshot(), Detail.FULL, limit - 1).dropped["series_limit"] == 3 * extra


def test_the_workers_of_dead_ranks_lose_their_detail_first() -> None:
    dead, alive = make_rank("0", up=False), make_rank("1")
    extra = Detail.FULL.series - Detail.UP.series
    fixed = PER_AGENT + 2 * (PER_RANK + PER_LOADER) + PER_OTHERS
    limit = fixed + 8 * Detail.UP.series + 4 * extra
    admitted = admit(make_snapshot(dead, alive), Detail.FULL, limit)
    by_rank = {labels[1]: detail for labels, detail in details(admitted).items()}
    assert by_rank == {"0": Detail.UP, "1": Detail.FULL}


def test_ranks_loaders_and_up_stay_whatever_the_limit() -> None:
    admitted = admit(make_snapshot(make_rank("0"), make_rank("1")), Detail.FULL, 1)
    assert [len(rank.loaders) for rank in admitted.ranks] == [1, 1]
    assert list(details(admitted).values()) == [Detail.UP] * 8


def test_with_workers_off_there_is_nothing_to_lose() -> None:
    admitted = admit(make_snapshot(), Detail.OFF, 1)
    assert set(details(admitted).values()) == {Detail.OFF}
    assert admitted.dropped["series_limit"] == 0


def test_a_slot_that_is_there_twice_is_shown_once() -> None:
    loader = make_loader(workers=(make_worker(0), make_worker(0)))
    admitted = admit(make_snapshot(make_rank(loaders=(loader,))), Detail.FULL, PLENTY)
    assert len(details(admitted)) == 1
    assert admitted.dropped["duplicate"] == Detail.FULL.series
