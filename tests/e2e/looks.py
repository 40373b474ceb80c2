"""What an agent tells at each of its looks, and how many it needs to tell of something.

A busy machine makes an agent look late and a test still later, so no time is measured: what counts
is which look, of those that began after it happened, was the first to tell.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from tests.agents import Agent
from tests.jobs import DEADLINE_SECONDS, wait_for

Look = dict[str, Any]

WITHIN_SECONDS = 2.0
"""From a death or an error to the look that tells it, where the agent is not late itself."""


@contextmanager
def noting(note: Callable[[], None]) -> Iterator[None]:
    """Meanwhile ask an agent again and again, which may not have looked yet."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            with suppress(OSError, KeyError):
                note()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class Looks:
    """The snapshots of an agent, as far as they were seen."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._seen: dict[float, Look] = {}

    def noted(self) -> AbstractContextManager[None]:
        """Note meanwhile what the agent tells."""

        def note() -> None:
            look = json.loads(self._agent.get("/api/v1/snapshot")[1])
            self._seen[look["time"]] = look

        return noting(note)

    def check_told(self, moment: float, told: Callable[[Look], bool], what: str) -> None:
        """Of the looks that began after a moment, none came too late for the first that told.

        Args:
            moment: Unix time.
            told: Says if a look tells what happened then.
            what: That.
        """
        wait_for(lambda: any(map(told, self._after(moment))), what)
        after = self._after(moment)
        enough = int(WITHIN_SECONDS / after[0]["agent"]["interval_seconds"])
        assert any(map(told, after[:enough])), (what, moment, [look["time"] for look in after])

    def _after(self, moment: float) -> list[Look]:
        looks = sorted(self._seen.copy().items())
        return [look for time, look in looks if time - look["duration_seconds"] > moment]


def end_of_one(pids: Sequence[int], let: Callable[[], object]) -> float:
    """Let the first of some processes end, and return the Unix time when it had."""
    poll = select.poll()
    fds = [os.pidfd_open(pid) for pid in pids]
    try:
        for fd in fds:
            poll.register(fd, select.POLLIN)
        let()
        assert poll.poll(1000 * DEADLINE_SECONDS), f"none of {pids} ends"
        return time.time()
    finally:
        for fd in fds:
            os.close(fd)
