"""Choose which processes of the node to ask something that only few of them have an answer to."""

from __future__ import annotations

import os

YOUNG_SECONDS = 30.0
"""For how long a new process is asked at each look: it may yet become what is looked for."""

ALL_SECONDS = 60.0
"""How often every process is asked again: a pid may be another process by now."""


class Due:
    """Chooses the new and the young ones, and all of them once a minute."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}
        self._all_asked = 0.0

    def look(self, now: float) -> tuple[list[int], set[int]]:
        """Return the pids to ask, and all that there are.

        Args:
            now: `time.monotonic()`.
        """
        pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        everybody = now - self._all_asked >= ALL_SECONDS
        if everybody:
            self._all_asked = now
        self._seen = {pid: self._seen.get(pid, now) for pid in pids}
        due = [p for p, since in self._seen.items() if everybody or now - since <= YOUNG_SECONDS]
        return due, pids
