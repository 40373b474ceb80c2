"""Doing several things at once.

In plain threads: a worker that is forked in a thread of an executor ends with exit code 1, because
it tries to join itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from tests.jobs import DEADLINE_SECONDS

T = TypeVar("T")


class Doing(threading.Thread, Generic[T]):
    """A thread that has begun to do something."""

    def __init__(self, what: Callable[[], T]) -> None:
        super().__init__()
        self._what = what
        self._results: list[T] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do it."""
        try:
            self._results.append(self._what())
        except BaseException as error:  # noqa: BLE001  # raised again by whoever asks
            self._error = error

    def result(self) -> T:
        """Wait for its end, and return or raise what came out."""
        self.join(DEADLINE_SECONDS)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._results[0]


def at_once(whats: Iterable[Callable[[], T]]) -> list[T]:
    """Do things at the same time, and return what came out."""
    doing = [Doing(what) for what in whats]
    for one in doing:
        one.join(DEADLINE_SECONDS)
    return [one.result() for one in doing]
