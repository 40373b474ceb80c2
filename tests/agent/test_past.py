"""History, last words and evidence: what is remembered, for how long, and who may ask."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import tracemalloc
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from dlmon.agent import evidence, past
from dlmon.agent.deaths import HOLD_SECONDS, MOST, Deaths
from dlmon.agent.evidence import Evidence
from dlmon.agent.history import MOST_POINTS, History
from dlmon.agent.routes import Request
from dlmon.agent.watch import Watch
from dlmon.analysis import deaths as last_words
from dlmon.analysis.deaths import Death
from dlmon.analysis.orphans import AFTER_SECONDS
from dlmon.observe.snapshot import Ended, Finding, Rank, Snapshot
from tests.agent.samples import NOW, make_loader, make_rank, make_snapshot, make_worker

WORKER = ("job-17", "0", "train", "1")


def at(time: float, **changes: Any) -> Snapshot:
    return make_snapshot(make_rank(key="k", **changes), time=time)


def ended(time: float, **changes: Any) -> Ended:
    made = Ended("1-a.seg/1/1", "k", "job-17", "0", "train", 1, 5001, "sigkill", -9, time)
    return dataclasses.replace(made, **changes)


# --- history ---


def test_the_last_minutes_are_kept_and_no_more() -> None:
    history = History(900, 1)
    for second in range(2000):
        history.look(at(NOW + second))
    points = history.points(WORKER)
    assert points is not None
    assert points["time"] == [NOW + second for second in range(1100, 2000)]
    assert points["resident_bytes"][0] == 412_000_000
    assert points["unique_bytes"][0] == 90_000_000
    assert {len(column) for column in points.values()} == {900}
    some = history.points(WORKER, NOW + 1998)
    assert some is not None
    assert some["time"] == [NOW + 1998, NOW + 1999]


def test_of_a_long_time_the_points_are_further_apart() -> None:
    history = History(36_000, 1)
    for second in range(100):
        history.look(at(NOW + second))
    points = history.points(WORKER)
    assert points is not None
    assert points["time"] == [NOW + second for second in range(0, 100, 36_000 // MOST_POINTS)]


def test_who_is_gone_for_that_long_is_forgotten() -> None:
    history = History(60, 1)
    history.look(at(NOW))
    history.look(make_snapshot(make_rank("7"), time=NOW + 59))
    assert WORKER in history.subjects()
    history.look(make_snapshot(make_rank("7"), time=NOW + 61))
    assert WORKER not in history.subjects()


def test_without_history_nothing_is_kept() -> None:
    history = History(0, 1)
    history.look(at(NOW))
    assert history.points(WORKER) is None


def test_the_history_of_128_workers_fits() -> None:
    rank = make_rank(loaders=(make_loader(workers=tuple(map(make_worker, range(128)))),))
    snapshots = [make_snapshot(rank, time=NOW + second) for second in range(1000)]
    history = History(900, 1)
    tracemalloc.start()
    try:
        for snapshot in snapshots:
            history.look(snapshot)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 8_000_000


# --- who died ---


def names(found: tuple[Snapshot, Any]) -> list[str]:
    return [one.name for one in found[1]]


def only(found: tuple[Snapshot, Any]) -> Finding:
    (one,) = found[1]
    assert isinstance(one, Finding)
    return one


def dead(time: float, **changes: Any) -> Snapshot:
    return at(time, up=False, died=NOW, died_of="sigkill", **changes)


def test_a_dead_worker_is_told_until_its_loader_delivers_in_a_later_iteration() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW))
    death = dataclasses.replace(at(NOW + 1), ended=(ended(NOW + 1),))
    finding = only(deaths.look(death))
    assert (finding.name, finding.worker, finding.since) == ("worker_died", "1", NOW + 1)
    assert "PSS 180 MB" in finding.sentence
    later = NOW + 2 + HOLD_SECONDS
    for epochs, delivered, expected in (
        (3, later, ["worker_died"]),
        (4, NOW, ["worker_died"]),
        (4, later, []),
    ):
        loader = make_loader(epochs=epochs, last_delivery=delivered)
        assert names(deaths.look(at(later, loaders=(loader,)))) == expected
    assert [one.key for one in deaths.known()] == [ended(0).key], "it is kept"


def test_a_death_is_kept_and_told_for_a_time_and_then_forgotten() -> None:
    deaths = Deaths(History(0, 1), 600, None)
    deaths.look(dataclasses.replace(at(NOW), ended=(ended(NOW),)))
    assert names(deaths.look(make_snapshot(make_rank("7"), time=NOW + 599))) == ["worker_died"]
    assert names(deaths.look(make_snapshot(make_rank("7"), time=NOW + 601))) == []
    assert deaths.known() == []


def test_a_reason_that_becomes_known_later_replaces_the_first() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    for reason in ("lost", "oom_kill", "lost"):
        deaths.look(dataclasses.replace(at(NOW), ended=(ended(NOW, reason=reason),)))
    (death,) = deaths.known()
    assert death.reason == "oom_kill"


def test_only_the_newest_deaths_are_kept() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    for i in range(MOST + 5):
        deaths.look(dataclasses.replace(at(NOW + i), ended=(ended(NOW + i, key=str(i)),)))
    known = deaths.known()
    assert [known[0].key, known[-1].key, len(known)] == [str(MOST + 4), "5", MOST]


def test_a_dead_rank_is_told_and_its_orphans_when_they_had_time_to_end() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW - 1))
    loaders = (make_loader(workers=(make_worker(2, orphan=True),)),)
    early = deaths.look(dead(NOW, orphan_workers=1, loaders=loaders))
    assert names(early) == ["rank_died"]
    later = deaths.look(dead(NOW + AFTER_SECONDS, orphan_workers=1, loaders=loaders))
    assert names(later) == ["rank_died", "orphan_workers"]


def replaced(time: float, *dead: Rank) -> Snapshot:
    """The rank lives, after processes that are dead."""
    return make_snapshot(make_rank(key="new"), superseded=dead, time=time, findings=())


def died(time: float, key: str = "k", **changes: Any) -> Rank:
    values = {"up": False, "died": time, "died_of": "sigkill", **changes}
    return make_rank(key=key, **values)


@pytest.mark.parametrize("shown", [True, False])
def test_the_death_of_a_rank_that_is_replaced_at_once_is_told_for_a_time(shown: bool) -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW))
    if shown:
        assert names(deaths.look(make_snapshot(died(NOW + 1), time=NOW + 1))) == ["rank_died"]
    for second in (2, HOLD_SECONDS):
        finding = only(deaths.look(replaced(NOW + second, died(NOW + 1))))
        assert (finding.name, finding.rank, finding.since) == ("rank_died", "0", NOW + 1)
    assert names(deaths.look(replaced(NOW + 1 + HOLD_SECONDS, died(NOW + 1)))) == []


def test_who_had_died_and_was_replaced_before_the_agent_began_is_no_news() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    for second in range(3):
        assert names(deaths.look(replaced(NOW + second, died(NOW)))) == []
    late = died(NOW + 3, "of a container", started=NOW - 100)
    assert names(deaths.look(replaced(NOW + 3, died(NOW), late))) == []
    unseen = died(NOW + 4, "began and died between two looks", started=NOW + 3.5)
    assert names(deaths.look(replaced(NOW + 4, died(NOW), late, unseen))) == ["rank_died"]


def test_of_a_rank_that_dies_again_and_again_the_last_death_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = Watch([Deaths(History(0, 1), 3600, None)])
    watch.look(make_snapshot(make_rank(key="first"), time=NOW, findings=()))
    first, second = died(NOW + 1, "first"), died(NOW + 9, "second", pid=7, died_of="oom_kill")
    for snapshot, reason in (
        (replaced(NOW + 2, first), "sigkill"),
        (make_snapshot(second, superseded=(first,), time=NOW + 9, findings=()), "oom_kill"),
        (replaced(NOW + 12, second, first), "oom_kill"),
        (replaced(NOW + 13, first, second), "oom_kill"),
    ):
        (finding,) = watch.look(snapshot).findings
        assert finding.evidence == {"reason": reason}
    assert [line.partition(": ")[0] for line in caplog.messages] == ["rank_died", "again"]


def test_a_rank_that_ended_with_status_0_has_last_words_but_is_no_crash() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW))
    exited = died(NOW + 1, died_of="normal")
    assert names(deaths.look(make_snapshot(exited, time=NOW + 1))) == []
    assert names(deaths.look(replaced(NOW + 2, exited))) == []
    assert [one.reason for one in deaths.known()] == ["normal"]


def test_a_crash_is_told_although_the_process_that_followed_ended_with_status_0() -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW))
    last = died(NOW + 3, "last", died_of="normal")
    found = deaths.look(make_snapshot(last, superseded=(died(NOW + 1),), time=NOW + 3))
    assert only(found).evidence == {"reason": "sigkill"}


class Counting:
    """Evidence that is only counted."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, death: Death) -> None:
        self.written.append(death.key)

    def read(self) -> list[Death]:
        return []


def test_of_more_dead_ranks_than_are_kept_each_is_told_and_written_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ranks = [
        make_rank(str(i), key=f"k{i}", up=False, died=NOW + i / 1000, died_of="sigkill")
        for i in range(MOST + 60)
    ]
    kept = Counting()
    deaths = Deaths(History(0, 1), 3600, kept)
    watch = Watch([deaths])
    first = watch.look(make_snapshot(*ranks, time=NOW + 1, findings=()))
    assert len(first.findings) == len(ranks)
    died = ended(NOW + 2, key="worker")
    for second in range(2, 6):
        gone = (died,) if second == 2 else ()
        now = make_snapshot(*ranks, time=NOW + second, ended=gone, findings=())
        found = watch.look(now).findings
        assert [one for one in found if one.name == "rank_died"] == list(first.findings)
    assert sorted(kept.written) == sorted([*(rank.key for rank in ranks), "worker"])
    newest = [ranks[-1 - i].key for i in range(MOST - 1)]
    assert [one.key for one in deaths.known()] == ["worker", *newest]
    assert len(caplog.messages) == len(ranks) + 1


# --- evidence ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "evidence"


def make_death(key: str = "k", **changes: Any) -> Death:
    death = Death(key, "worker", "r", "0", "train", "1", 7, "sigkill", -9, NOW, "worker 1 died")
    return dataclasses.replace(death, **changes)


def test_evidence_outlives_its_agent(folder: Path) -> None:
    death = make_death(memory={"time": [NOW], "resident_bytes": [1.0]}, others=({"worker": "2"},))
    Evidence(str(folder)).write(death)
    assert Evidence(str(folder)).read() == [death]
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    (path,) = folder.iterdir()
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    deaths = Deaths(History(0, 1), 3600, Evidence(str(folder)))
    deaths.look(at(NOW + 10))
    assert deaths.known() == [death]


def test_the_name_of_a_segment_need_not_be_utf_8(folder: Path) -> None:
    odd = os.fsdecode(b"1-\xff.seg/1/1")
    deaths = Deaths(History(0, 1), 3600, Evidence(str(folder)))
    gone = (ended(NOW, key=odd), ended(NOW, key="1-b.seg/0/1", worker=0))
    found = deaths.look(dataclasses.replace(at(NOW), ended=gone))
    assert names(found) == ["worker_died", "worker_died"]
    assert {death.key for death in Evidence(str(folder)).read()} == {odd, "1-b.seg/0/1"}
    answer = past.deaths(deaths, Request("/api/v1/deaths"))
    assert {one["key"] for one in json.loads(answer.body)["deaths"]} == {odd, "1-b.seg/0/1"}


def test_a_death_that_cannot_be_taken_in_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    of_worker = last_words.of_worker

    def fails_for_one(ended: Ended, *others: Any) -> Death:
        if ended.worker == 0:
            raise ValueError("a defect")
        return of_worker(ended, *others)

    monkeypatch.setattr(last_words, "of_worker", fails_for_one)
    gone = [ended(NOW, key=str(slot), worker=slot) for slot in (0, 0, 1)]
    snapshot = make_snapshot(died(NOW), ended=tuple(gone), time=NOW)
    assert names(deaths.look(snapshot)) == ["worker_died", "rank_died"]
    assert caplog.messages == ["no last words of 0"]


def test_evidence_is_bounded_in_number_and_size(folder: Path) -> None:
    kept = Evidence(str(folder))
    for i in range(evidence.MOST_FILES + 3):
        kept.write(make_death(str(i)))
        os.utime(max(folder.iterdir(), key=lambda p: p.stat().st_mtime_ns), (NOW + i, NOW + i))
    assert len(list(folder.iterdir())) == evidence.MOST_FILES
    kept.write(make_death("large", others=[{"worker": "x" * evidence.MOST_BYTES}]))
    assert {path.stat().st_size < 1000 for path in folder.iterdir()} == {True}


def test_a_disk_that_does_not_take_it_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept = Evidence(str(tmp_path / "file" / "evidence"))
    with caplog.at_level(logging.WARNING, "dlmon"):
        for _ in range(3):
            kept.write(make_death())
    (line,) = caplog.messages
    assert line.startswith(f"cannot keep last words in {tmp_path}/file/evidence: ")
    assert kept.read() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        '{"key": 1}',
        "\xff",
        "[" * 50_000,
        '{"key": "k", "kind": "rank"}',
    ],
)
def test_what_is_no_evidence_is_passed_over(folder: Path, content: str) -> None:
    kept = Evidence(str(folder))
    kept.write(make_death())
    (folder / "death-x.json").write_text(content, encoding="latin-1")
    (folder / "death-link.json").symlink_to("/etc/passwd")
    os.mkfifo(folder / "death-fifo.json")
    assert kept.read() == [make_death()]


# --- who asks ---


def test_history_answers_with_columns_and_says_what_is_wrong_with_a_query() -> None:
    history = History(900, 1)
    history.look(at(NOW))

    def ask(query: str) -> tuple[int, dict[str, Any]]:
        answer = past.history(history, Request("/api/v1/history", query=query))
        found: dict[str, Any] = json.loads(answer.body)
        return answer.status, found

    status, found = ask("run=job-17&rank=0&loader=train")
    assert (status, found["worker"], found["points"]["batches"]) == (HTTPStatus.OK, "", [400.0])
    assert found["points"]["wait_seconds"] == [73.0]
    for query, code, words in (
        ("", 400, "parameter 'run' is missing"),
        ("run=a", 400, "parameter 'rank' is missing"),
        ("run=a&rank=0&worker=1", 400, "parameter 'worker' needs 'loader'"),
        ("run=a&rank=0&rank=1", 400, "parameter 'rank' is given twice"),
        ("run=a&rank=0&x=1", 400, "unknown parameter 'x'; there are run, rank, loader, worker"),
        ("run", 400, "query 'run' is not of the form"),
        ("run=%ff&rank=0", 400, "is not of the form"),
        ("run=a&rank=0", 404, "no history of run=a, rank=0; there is run=job-17, rank=0; "),
    ):
        status, found = ask(query)
        assert status == code, query
        assert words in found["error"]


@pytest.mark.parametrize("trusted", [True, False])
def test_paths_are_for_trusted_clients_only(trusted: bool) -> None:
    deaths = Deaths(History(0, 1), 3600, None)
    deaths.look(at(NOW))
    deaths.look(dead(NOW + 1))
    answer = past.deaths(deaths, Request("/api/v1/deaths", trusted=trusted))
    (found,) = json.loads(answer.body)["deaths"]
    assert found["kind"] == "rank"
    assert ("train.py" in answer.body.decode()) is trusted
    assert ("/user.slice" in answer.body.decode()) is trusted
