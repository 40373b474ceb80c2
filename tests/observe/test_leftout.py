"""Files that are no segments, and too many that are: what they cost is bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dlmon.observe import leftout, segments
from dlmon.observe.leftout import MOST_TOLD, NAMES_PER_SEGMENT, RETRY_SECONDS, YOUNG_SECONDS
from dlmon.observe.observer import Observer
from dlmon.segment.reader import SegmentFile
from tests.jobs import wait_for
from tests.observing import observer, only_rank
from tests.segment import forge

WRONG = b"\0" * 200


class Clock:
    """The time as the agent has it; files have the real one."""

    def __init__(self) -> None:
        self.later = 0.0
        self._time, self._monotonic = time.time, time.monotonic

    def time(self) -> float:
        return self._time() + self.later

    def monotonic(self) -> float:
        return self._monotonic() + self.later


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock by which all files that a test has made before are old."""
    clock = Clock()
    monkeypatch.setattr("dlmon.observe.leftout.time", clock)
    clock.later = 2 * YOUNG_SECONDS
    return clock


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were tried."""
    names: list[str] = []

    def open_it(path: str, *, owner: int | None, dir_fd: int) -> SegmentFile:
        names.append(os.path.basename(path))
        return SegmentFile(path, owner=owner, dir_fd=dir_fd)

    monkeypatch.setattr(segments, "SegmentFile", open_it)
    return names


def put(directory: Path, name: str) -> Path:
    return forge.put(directory, forge.forge(info={**forge.INFO, "rank": name}), f"{name}.seg")


def test_a_file_refused_is_not_tried_again_until_it_changes_or_a_minute_has_passed(
    segment_dir: Path, clock: Clock, opened: list[str]
) -> None:
    path = forge.put(segment_dir, WRONG, "bad.seg")
    with observer(segment_dir) as observing:
        for _ in range(3):
            (refused,) = observing.observe().refused
            assert (refused.path, refused.reason) == (str(path), "format")
        assert len(opened) == 1
        clock.later += RETRY_SECONDS
        snapshot = observing.observe()
        assert len(opened) == 2
        assert snapshot.refused_total["format"] == 1
        path.write_bytes(forge.forge())
        assert only_rank(observing.observe()).run == "forged"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 150),
        os.utime,
        lambda path: path.chmod(0o640),
        lambda path: os.replace(forge.put(path.parent, WRONG, "new"), path),
    ],
    ids=["size", "time", "mode", "another"],
)
def test_whatever_changes_of_a_refused_file_it_is_tried_again(
    segment_dir: Path, clock: Clock, opened: list[str], change: Callable[[Path], None]
) -> None:
    path = forge.put(segment_dir, WRONG, "bad.seg")
    with observer(segment_dir) as observing:
        observing.observe()
        changed = path.stat().st_ctime_ns  # by a clock that ticks a few hundred times a second

        def later() -> bool:
            change(path)
            return path.stat().st_ctime_ns > changed

        wait_for(later, "another tick")
        observing.observe()
        assert opened == ["bad.seg"] * 2


def test_a_file_that_has_just_changed_is_tried_at_each_look(
    segment_dir: Path, opened: list[str]
) -> None:
    forge.put(segment_dir, WRONG, "bad.seg")
    with observer(segment_dir) as observing:
        for _ in range(3):
            observing.observe()
    assert opened == ["bad.seg"] * 3


def test_what_may_pass_by_itself_is_tried_again_soon(
    segment_dir: Path, clock: Clock, opened: list[str]
) -> None:
    forge.put(segment_dir, forge.forge(header={"ready": 0}), "slow.seg")
    with observer(segment_dir) as observing:
        for _ in range(3):
            assert [one.reason for one in observing.observe().refused] == ["not_ready"]
        assert len(opened) == 1
        clock.later += leftout.PASSING_SECONDS
        observing.observe()
        assert len(opened) == 2


def test_of_a_user_above_the_limit_no_file_is_opened(segment_dir: Path, opened: list[str]) -> None:
    for name in "abc":
        put(segment_dir, name)
    with closing(Observer([str(segment_dir)], segments_per_user=2)) as observing:
        for _ in range(3):
            assert observing.observe().dropped_total["user"] == 1
        assert opened == ["a.seg", "b.seg"]


def test_of_many_files_refused_all_are_counted_and_some_are_told(segment_dir: Path) -> None:
    for number in range(MOST_TOLD + 5):
        forge.put(segment_dir, b"", f"{number}.seg")
    with observer(segment_dir) as observing:
        for _ in range(2):
            snapshot = observing.observe()
            assert len(snapshot.refused) == MOST_TOLD
            assert snapshot.refused_total["bounds"] == MOST_TOLD + 5


def test_behind_many_files_that_are_no_segments_one_that_is_has_its_turn(
    segment_dir: Path, opened: list[str]
) -> None:
    limit = 3
    for number in range(40):
        forge.put(segment_dir, b"", f"{number}.seg")
    put(segment_dir, "zz")
    with closing(Observer([str(segment_dir)], segments_per_user=limit)) as observing:
        for _ in range(41):
            opened.clear()
            snapshot = observing.observe()
            assert len(opened) <= NAMES_PER_SEGMENT * limit
            assert snapshot.dropped_total["user"] == 41 - NAMES_PER_SEGMENT * limit
        assert [rank.rank for rank in snapshot.ranks] == ["zz"]
