"""Last words on disk, also on one that does not answer."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.agent.archive import Archive
from dlmon.agent.deaths import Deaths
from dlmon.agent.evidence import MOST_FILES, Evidence
from dlmon.agent.history import History
from dlmon.analysis.deaths import Death
from tests.agent.samples import NOW, make_rank, make_snapshot
from tests.jobs import DEADLINE_SECONDS, wait_for

LONG = DEADLINE_SECONDS


class Mount(Evidence):
    """A directory that answers only while it is let.

    Attributes:
        answers: Set while it does.
        asked: Set once it was asked for something.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory))
        self.answers = threading.Event()
        self.asked = threading.Event()

    def write(self, death: Death) -> None:
        self._wait()
        super().write(death)

    def read(self) -> list[Death]:
        self._wait()
        return super().read()

    def _wait(self) -> None:
        self.asked.set()
        assert self.answers.wait(LONG)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    mount = Mount(tmp_path / "evidence")
    yield mount
    mount.answers.set()  # for its thread to end


def death(key: str) -> Death:
    return Death(key, "worker", "r", "0", "train", "1", 7, "sigkill", -9, NOW, "worker 1 died")


def keys(directory: Path) -> set[str]:
    return {one.key for one in Evidence(str(directory)).read()}


def test_what_waits_is_written_before_the_agent_ends(tmp_path: Path) -> None:
    archive = Archive(Evidence(str(tmp_path)))
    archive.start(LONG)
    assert archive.read() == []
    for i in range(50):
        archive.write(death(str(i)))
    archive.close(LONG)
    assert keys(tmp_path) == {str(i) for i in range(50)}


def test_a_directory_that_does_not_answer_holds_up_neither_a_look_nor_the_end(
    mount: Mount, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(mount)
    archive.start(0.0)
    assert mount.asked.wait(LONG)
    assert archive.read() is None
    deaths = Deaths(History(0, 1), 3600, archive)
    dead = make_rank(key="k", up=False, died=NOW, died_of="sigkill")
    deaths.look(make_snapshot(dead))
    assert [one.key for one in deaths.known()] == ["k"]
    archive.close(0.01)
    assert caplog.messages == ["last words are not all written: the directory does not answer"]
    mount.answers.set()
    wait_for(lambda: keys(tmp_path / "evidence") == {"k"}, "what was to be written")


def test_what_an_earlier_agent_kept_is_taken_in_when_it_can_be_read(mount: Mount) -> None:
    mount.answers.set()
    mount.write(death("earlier"))
    mount.answers.clear()
    archive = Archive(mount)
    archive.start(0.0)
    deaths = Deaths(History(0, 1), 3600, archive)
    deaths.look(make_snapshot())
    assert deaths.known() == []
    mount.answers.set()
    wait_for(lambda: archive.read() is not None, "what is kept")
    deaths.look(make_snapshot())
    assert [one.key for one in deaths.known()] == ["earlier"]
    archive.close(LONG)


def test_more_than_can_wait_is_left_out_with_a_line_of_the_log(
    mount: Mount, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(mount)
    archive.start(0.0)
    with caplog.at_level(logging.WARNING, "dlmon"):
        for i in range(MOST_FILES + 10):
            archive.write(death(str(i)))
    assert caplog.messages == [f"last words are left out: {MOST_FILES} wait to be written"]


def test_a_defect_costs_one_death_and_not_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    archive = Archive(Evidence(str(tmp_path)))
    archive.start(LONG)
    odd = dataclasses.replace(death("odd"), memory={"time": {object()}})  # type: ignore[dict-item]
    archive.write(odd)
    archive.write(death("next"))
    archive.close(LONG)
    assert keys(tmp_path) == {"next"}
    assert caplog.messages == ["last words cannot be kept"]


def test_one_that_was_never_started_ends_at_once(tmp_path: Path) -> None:
    Archive(Evidence(str(tmp_path))).close(LONG)
