"""Last words on disk, by a thread of its own: a directory that does not answer holds up nobody."""

from __future__ import annotations

import logging
import queue
import threading
import time

from dlmon.agent.evidence import MOST_FILES, Evidence
from dlmon.agent.seldom import Seldom
from dlmon.analysis.deaths import Death
from dlmon.observe.aside import Aside

START_SECONDS = 1.0
"""So long the agent waits at start for what is kept there; what comes later is taken in then."""

CLOSE_SECONDS = 3.0
"""So long it waits at its end until what has died is written."""

logger = logging.getLogger(__name__)


class Archive:
    """Evidence that is read once, then written, in the order in which it comes.

    Args:
        evidence: Used by the thread only.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._aside = Aside("dlmon-evidence", self._turn)
        self._waiting: queue.Queue[Death | None] = queue.Queue(MOST_FILES)  # no more are kept
        self._found: list[Death] | None = None
        self._started = False
        self._written = threading.Event()
        self._complaints = Seldom()

    def start(self, wait_seconds: float = START_SECONDS) -> None:
        """Begin to read, and wait that long for what is found."""
        self._started = True
        self._aside.start(wait_seconds)

    def read(self) -> list[Death] | None:
        """Return what was kept at the start, the oldest first; None while that is not known."""
        return self._found

    def write(self, death: Death) -> None:
        """Have a death written later. It is left out if very many wait already."""
        try:
            self._waiting.put_nowait(death)
        except queue.Full:
            self._complain("last words are left out: %d wait to be written", self._waiting.maxsize)

    def close(self, wait_seconds: float = CLOSE_SECONDS) -> None:
        """Have the thread end after what waits; a directory that hangs is not waited for longer."""
        if not self._started:
            return
        end = time.monotonic() + wait_seconds
        try:
            self._waiting.put(None, timeout=wait_seconds)
            written = self._written.wait(max(0.0, end - time.monotonic()))
        except queue.Full:
            written = False
        if not written:
            logger.warning("last words are not all written: the directory does not answer")

    def _turn(self) -> float:
        """Read, or wait for one death and write it: a turn of the thread's."""
        found: list[Death] = []
        try:
            if self._found is None:
                found = self._evidence.read()
            elif (death := self._waiting.get()) is None:
                self._aside.close()
                self._written.set()
            else:
                self._evidence.write(death)
        except Exception as error:  # noqa: BLE001  # the thread goes on with the next one
            self._complain("last words cannot be kept", error=error)
        if self._found is None:
            self._found = found
        return 0.0

    def _complain(self, message: str, *values: object, error: Exception | None = None) -> None:
        if self._complaints.due():
            logger.warning(message, *values, exc_info=error)
