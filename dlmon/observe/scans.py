"""Scan processes for PSS and USS beside the clock, in a thread of its own.

A scan waits for the mmap lock of the process that it is about. One that is stuck while it maps a
file, on storage that does not answer, holds it for ever; then nobody else is scanned either, and
all other values go on.

Runs in: agent. On failure: the last scans stay, with their times; whoever asks never waits.
"""

from __future__ import annotations

import logging
import math
import time

from dlmon.observe.aside import Aside
from dlmon.observe.memory import Scanner

STUCK_SECONDS = 60.0
"""A scan under way for longer is logged: one of 64 GB takes a second."""

logger = logging.getLogger(__name__)


class Scans:
    """Has a scanner run whenever it is asked to, unless it still does."""

    def __init__(self, scanner: Scanner, name: str = "dlmon-scans") -> None:
        """Start no thread before one is needed.

        Args:
            scanner: What to run; others may take notes with it meanwhile.
            name: The thread's.
        """
        self._scanner = scanner
        self._aside = Aside(name, self._turn)
        self._started = False
        self._told: tuple[int, float] | None = None
        self._failed = False

    def run(self) -> None:
        """Have scanned what is due, and return at once."""
        if not self._started:
            self._started = True
            self._aside.start()
        self._aside.wake()
        self._tell()

    def close(self) -> None:
        """Scan no more."""
        self._aside.close()

    def _turn(self) -> float:
        try:
            self._scanner.run()
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("scans for PSS and USS failed")
        return math.inf  # until it is woken

    def _tell(self) -> None:
        """Log once which process holds up the scans."""
        scan = self._scanner.under_way
        if scan is None or scan == self._told or time.monotonic() - scan[1] < STUCK_SECONDS:
            return
        self._told = scan
        logger.warning(
            "the scan of process %d has been waiting for %.0f s, for its mmap lock presumably: no "
            "PSS and USS of other processes until it is over; see in /proc/%d/task/*/wchan what "
            "its threads wait for",
            scan[0],
            time.monotonic() - scan[1],
            scan[0],
        )
