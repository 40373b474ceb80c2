"""Which files are read, which refused and which left out; all of that is counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dlmon.errors import SegmentError
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Snapshot
from dlmon.segment import layout
from tests.observing import observe, observer, only_rank
from tests.segment import forge
from tests.segment.locker import Locker

NOBODY = 65534
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def locker() -> Iterator[Locker]:
    with closing(Locker()) as process:
        yield process


def put(directory: Path, name: str, **info: object) -> Path:
    return forge.put(directory, forge.forge(info={**forge.INFO, **info}), f"{name}.seg")


def refusals(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    return [(one.path, one.reason, one.message) for one in snapshot.refused]


def test_a_directory_that_is_not_there_is_nothing_to_say(segment_dir: Path) -> None:
    with observer(segment_dir / "none") as observing:
        snapshot = observing.observe()
        assert (snapshot.ranks, snapshot.refused, snapshot.segments) == ((), (), 0)
        assert set(snapshot.refused_total) == set(SegmentError.REASONS)
        assert set(snapshot.dropped_total) == {"rank", "user"}
        put(segment_dir, "late")
        assert observing.observe().segments == 0
        (segment_dir / "none").mkdir()
        put(segment_dir / "none", "late")
        assert observing.observe().segments == 1


def test_several_directories_are_one_node(segment_dir: Path) -> None:
    for name in ("a", "b"):
        (segment_dir / name).mkdir()
        put(segment_dir / name, "one", rank=name)
    with closing(Observer([str(segment_dir / "a"), str(segment_dir / "b")])) as observing:
        assert [rank.rank for rank in observing.observe().ranks] == ["a", "b"]


def test_a_file_refused_is_told_at_every_look_and_counted_once(segment_dir: Path) -> None:
    path = forge.put(segment_dir, b"\0" * 200, "bad.seg")
    good = put(segment_dir, "good")
    said = (
        str(path),
        "format",
        f"segment {path}: magic {bytes(8)!r}, expected {layout.MAGIC!r}",
    )
    with observer(segment_dir) as observing:
        for _ in range(3):
            snapshot = observing.observe()
            assert refusals(snapshot) == [said]
            assert snapshot.refused_total["format"] == 1
            assert sum(snapshot.refused_total.values()) == 1
            assert snapshot.segments == 1
        os.truncate(good, 500)
        snapshot = observing.observe()
        assert [one.reason for one in snapshot.refused] == ["format", "bounds"]
        assert snapshot.ranks == ()
        path.unlink()
        good.unlink()
        snapshot = observing.observe()
        assert snapshot.refused == ()
        assert sum(snapshot.refused_total.values()) == 2


def test_a_file_refused_is_read_once_it_is_right(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forge.forge(header={"ready": 0}), "slow.seg")
    with observer(segment_dir) as observing:
        assert [one.reason for one in observing.observe().refused] == ["not_ready"]
        path.write_bytes(forge.forge())
        assert only_rank(observing.observe()).run == "forged"


def test_a_name_that_is_no_text_is_refused_like_any_other(segment_dir: Path) -> None:
    path = os.fsencode(segment_dir) + b"/\xff.seg"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    (refused,) = observe(segment_dir).refused
    assert refused.reason == "bounds"


# ── other users ──────────────────────────────────────────────────────────────────────────────────


def of_user(directory: Path, uid: int) -> Path:
    own = directory / f"dlmon-{uid}"
    own.mkdir(0o700)
    if os.getuid() == 0:
        os.chown(own, uid, -1)
    return own


@root_only
def test_each_users_directory_is_read(segment_dir: Path) -> None:
    own, theirs = of_user(segment_dir, 0), of_user(segment_dir, NOBODY)
    put(own, "a", run="own")
    os.chown(put(theirs, "b", run="theirs"), NOBODY, -1)
    snapshot = observe(segment_dir)
    assert [rank.run for rank in snapshot.ranks] == ["own", "theirs"]
    assert snapshot.refused == ()


@root_only
def test_in_a_users_directory_only_that_users_files_are_read(segment_dir: Path) -> None:
    path = put(of_user(segment_dir, NOBODY), "a")
    assert refusals(observe(segment_dir)) == [
        (str(path), "owner", f"segment {path}: belongs to uid 0, expected {NOBODY}")
    ]


@root_only
def test_a_users_directory_that_another_made_is_not_read(segment_dir: Path) -> None:
    theirs = segment_dir / f"dlmon-{NOBODY}"
    theirs.mkdir()
    os.chown(put(theirs, "a"), NOBODY, -1)
    assert refusals(observe(segment_dir)) == [
        (str(theirs), "owner", f"directory {theirs}: belongs to uid 0, expected {NOBODY}")
    ]


def test_a_link_in_place_of_a_users_directory_is_not_followed(segment_dir: Path) -> None:
    (segment_dir / "elsewhere").mkdir()
    put(segment_dir / "elsewhere", "a")
    (segment_dir / f"dlmon-{os.getuid()}").symlink_to(segment_dir / "elsewhere")
    snapshot = observe(segment_dir)
    assert (snapshot.segments, snapshot.refused) == (0, ())


def test_a_directory_that_is_exchanged_while_a_file_of_it_is_removed_costs_nobody_else_a_file(
    segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, elsewhere = of_user(segment_dir, os.getuid()), segment_dir / "elsewhere"
    elsewhere.mkdir()
    forge.put(own, forge.forge(cells={(0, "goodbye"): 1}), "a.seg")
    theirs = put(elsewhere, "a")
    unlink = os.unlink

    def exchange(path: str, *, dir_fd: int | None = None) -> None:
        own.rename(segment_dir / "aside")
        own.symlink_to(elsewhere)
        unlink(path, dir_fd=dir_fd)

    with observer(segment_dir) as observing:
        monkeypatch.setattr(os, "unlink", exchange)
        observing.observe()
        monkeypatch.undo()
    assert theirs.exists()
    assert os.listdir(segment_dir / "aside") == []


@root_only
def test_what_another_user_claims_is_not_added_to_a_rank(segment_dir: Path, locker: Locker) -> None:
    """Run, rank and root can be copied by anyone; the owner of a file cannot."""
    cells = forge.busy()
    mine = forge.put(of_user(segment_dir, 0), forge.forge(cells=cells), "a.seg")
    theirs = forge.put(of_user(segment_dir, NOBODY), forge.forge(cells=cells), "b.seg")
    os.chown(theirs, NOBODY, -1)
    locker.hold(mine, [layout.slot_offset(0)])
    snapshot = observe(segment_dir)
    assert only_rank(snapshot).up
    assert only_rank(snapshot).loaders[0].samples == 58
    assert [rank.up for rank in snapshot.superseded] == [False]


# ── limits ───────────────────────────────────────────────────────────────────────────────────────


def test_segments_past_a_users_limit_are_left_out_and_counted_once(segment_dir: Path) -> None:
    for name in "abc":
        put(segment_dir, name, rank=name)
    with closing(Observer([str(segment_dir)], segments_per_user=2)) as observing:
        for _ in range(2):
            snapshot = observing.observe()
            assert [rank.rank for rank in snapshot.ranks] == ["a", "b"]
            assert snapshot.dropped_total == {"user": 1, "rank": 0}
        forge.put(segment_dir, forge.forge(cells={(0, "goodbye"): 1}), "a.seg")
        observing.observe()  # a.seg is over: it goes, and makes room
        snapshot = observing.observe()
        assert [rank.rank for rank in snapshot.ranks] == ["b", "c"]
        assert snapshot.dropped_total == {"user": 1, "rank": 0}


@root_only
def test_a_users_limit_is_no_other_users(segment_dir: Path) -> None:
    own, theirs = of_user(segment_dir, 0), of_user(segment_dir, NOBODY)
    for name in "ab":
        put(own, name, rank=name)
        os.chown(put(theirs, name, rank=name.upper()), NOBODY, -1)
    with closing(Observer([str(segment_dir)], segments_per_user=1)) as observing:
        snapshot = observing.observe()
        assert [rank.rank for rank in snapshot.ranks] == ["A", "a"]
        assert snapshot.dropped_total == {"user": 2, "rank": 0}


def test_loaders_past_a_ranks_limit_are_left_out_and_counted_once(segment_dir: Path) -> None:
    for name in "abc":
        put(segment_dir, name, loader=name)
    put(segment_dir, "d", loader="d", run="another")
    with closing(Observer([str(segment_dir)], loaders_per_rank=2)) as observing:
        for _ in range(2):
            another, forged = observing.observe().ranks
            assert [loader.name for loader in forged.loaders] == ["a", "b"]
            assert [loader.name for loader in another.loaders] == ["d"]
        assert observing.observe().dropped_total == {"user": 0, "rank": 1}


def test_a_loader_of_another_name_at_each_look_is_not_remembered_for_ever(
    segment_dir: Path,
) -> None:
    """Neither what is held at its highest nor what is kept of segments that have gone."""
    put(segment_dir, "stays", loader="stays")
    changing = put(segment_dir, "changing")
    with closing(Observer([str(segment_dir)], loaders_per_rank=2)) as observing:
        for number in range(20):
            info = {**forge.INFO, "loader": str(number)}
            changing.write_bytes(forge.forge(info=info))  # in place: the observer has it open
            forge.put(segment_dir, forge.forge(info=info, cells={(0, "goodbye"): 1}), "over.seg")
            names = [loader.name for loader in only_rank(observing.observe()).loaders]
            assert names == [str(number), "stays"]
        (highest,) = observing._highest.values()
        (retired,) = observing._retired._loaders.values()
    assert list(highest) == ["17", "18", "19", "stays"]
    assert list(retired) == ["16", "17", "18", "19"]


def test_an_observer_keeps_one_descriptor_for_each_segment(segment_dir: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for name in "abc":
        put(segment_dir, name, rank=name)
    forge.put(segment_dir, b"bad", "d.seg")
    with closing(Observer([str(segment_dir)], segments_per_user=2)) as observing:
        for _ in range(3):
            observing.observe()
            assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    assert len(os.listdir("/proc/self/fd")) == descriptors


# ── pid namespaces ───────────────────────────────────────────────────────────────────────────────


def test_of_a_rank_in_another_pid_namespace_no_process_is_read(
    segment_dir: Path, locker: Locker
) -> None:
    """Its pid is then a number from elsewhere: here it may be anybody's."""
    path = put(segment_dir, "a", pid=os.getpid(), start_ticks=0)
    locker.hold(path, [layout.slot_offset(0)])
    looks = (
        "import sys; from dlmon.observe.observer import Observer\n"
        "(rank,) = Observer([sys.argv[1]]).observe().ranks\n"
        "print(rank.up, rank.pid, rank.process.cpu_seconds)"
    )
    looked = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", looks, str(segment_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in looked.stderr or "Operation not permitted" in looked.stderr:
        pytest.skip("no pid namespace can be made here")
    assert looked.stdout == f"True {os.getpid()} None\n", looked.stderr
