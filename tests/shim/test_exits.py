"""Counting how workers ended, while threads and signal handlers count them too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dlmon.segment import layout, writer
from dlmon.shim._exits import WorkerExits


class Interrupted:
    """A process that has ended; between the question for its exit code and the answer, others act.

    Attributes:
        meanwhile: What they do, once.
    """

    def __init__(self) -> None:
        process = multiprocessing.get_context("fork").Process(target=str)
        process.start()
        process.join()
        self._process = process
        self.meanwhile: Callable[[], None] | None = None

    @property
    def exitcode(self) -> int | None:
        others, self.meanwhile = self.meanwhile, None
        if others is not None:
            others()
        return self._process.exitcode


class Running:
    """A process that has not ended yet, as another thread may take it from who waits for it."""

    def __init__(self) -> None:
        self.exitcode: int | None = None


class Reaped:
    """A process that another thread has just reaped: it has the exit code in a moment."""

    def __init__(self) -> None:
        self._answers = [None, None, 0]

    @property
    def exitcode(self) -> int | None:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture
def segment(segment_dir: Path) -> writer.Segment:
    return writer.create(str(segment_dir), {}, 2)


def counting(segment: writer.Segment) -> WorkerExits:
    return WorkerExits(segment, segment.cells[layout.cell_index(0, "lock") :])


def ends(segment: writer.Segment) -> int:
    first = layout.cell_index(0, "worker_exits")
    return sum(segment.cells[first : first + len(layout.EXIT_REASONS)])


@pytest.mark.parametrize("how", ["record", "leave"])
def test_two_that_count_at_once_count_once(how: str, segment: writer.Segment) -> None:
    process = Interrupted()
    iterator = SimpleNamespace(_workers=[process])
    exits = counting(segment)
    process.meanwhile = lambda: exits.record(iterator)
    getattr(exits, how)(iterator)
    exits.settle()
    assert ends(segment) == 1


def test_who_has_no_exit_code_for_a_moment_is_counted(segment: writer.Segment) -> None:
    exits = counting(segment)
    exits.leave(SimpleNamespace(_workers=[Reaped(), Interrupted()]))
    assert ends(segment) == 2


def test_who_was_left_and_settled_is_not_counted_again(segment: writer.Segment) -> None:
    left = Running()
    iterator = SimpleNamespace(_workers=[Interrupted(), left])
    exits = counting(segment)
    exits.leave(iterator)
    assert ends(segment) == 1
    left.exitcode = 0
    exits.settle()
    assert ends(segment) == 2
    exits.record(iterator)
    exits.leave(iterator)
    exits.settle()
    assert ends(segment) == 2
