"""Remember which files are not read as segments, so that they cost next to nothing at each look.

Any user may put files of any name and number where segments are looked for.

Runs in: agent and the commands.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dlmon.errors import SegmentError
from dlmon.observe.snapshot import Refused

DROP_REASONS = ("user", "rank")

MOST_TOLD = 100
"""Of more refusals at one look only the number is told."""

NAMES_PER_SEGMENT = 4
"""So many times the segments that a user may have is how many names of one directory are looked at;
of more, each time others."""

RETRY_SECONDS = 60.0
"""A file refused that has not changed is tried again so much later."""

PASSING_SECONDS = 5.0
"""The same where the reason may pass though the file does not change."""

PASSING = ("io", "not_ready")

YOUNG_SECONDS = 10.0
"""A file that changed so lately is tried at each look: who makes it may not be done, and may change
it once more within the same tick of the kernel's clock."""

_Identity = tuple[int, int, int, int]


@dataclass(slots=True)
class _Left:
    """Why a file is not read.

    Attributes:
        uid: Its owner.
        refused: What is wrong with it, None if its owner has too many.
        identity: Of the file as it was then, None if that is not known.
        retry: CLOCK_MONOTONIC seconds from when on it is tried again.
        look: The last one that came across it.
    """

    uid: int
    refused: Refused | None
    identity: _Identity | None
    retry: float
    look: int


class LeftOut:
    """The files that are not read, from look to look.

    Attributes:
        refused: Of this look, the first `MOST_TOLD`.
        refused_total, dropped_total: Since the beginning, by reason.
    """

    def __init__(self, per_user: int) -> None:
        """Start with nothing.

        Args:
            per_user: How many segments a user may have.
        """
        self._per_user = per_user
        self._left: dict[str, _Left] = {}
        self._excess: dict[str, int] = {}
        self._excess_before: dict[str, int] = {}
        self._look = 0
        self._now = 0.0
        self.refused: list[Refused] = []
        self.refused_total = Counter(dict.fromkeys(SegmentError.REASONS, 0))
        self.dropped_total = Counter(dict.fromkeys(DROP_REASONS, 0))

    def begin(self) -> None:
        """Begin a look."""
        self._look += 1
        self._now = time.monotonic()
        self.refused = []
        self._excess_before, self._excess = self._excess, {}

    def end(self) -> None:
        """Forget what this look has not come across."""
        self._left = {path: one for path, one in self._left.items() if one.look == self._look}

    def choose(self, directory: str, paths: Sequence[str]) -> Sequence[str]:
        """Return which of the files in a directory to look at this time.

        Of too many each one has its turn, so that nobody's segments stay hidden behind the files of
        somebody else.
        """
        most = NAMES_PER_SEGMENT * self._per_user
        excess = len(paths) - most
        if excess <= 0:
            return paths
        self.dropped_total["user"] += max(0, excess - self._excess_before.get(directory, 0))
        self._excess[directory] = excess
        start = self._look * self._per_user % len(paths)
        return [*paths[start:], *paths[:start]][:most]

    def over_limit(self, path: str, counts: Counter[int]) -> bool:
        """Return whether a file still is left out since its owner has so many; costs nothing."""
        left = self._left.get(path)
        if left is None or left.refused or self._now >= left.retry:
            return False
        if counts[left.uid] < self._per_user:
            return False
        left.look = self._look
        return True

    def still(self, path: str, status: os.stat_result) -> bool:
        """Return whether a file still is what it was when it was refused, and tell it again."""
        left = self._left.get(path)
        if left is None or left.refused is None or self._now >= left.retry:
            return False
        if left.identity != _identity(status):
            return False
        left.look = self._look
        self._tell(left.refused)
        return True

    def drop(self, path: str, uid: int) -> None:
        """Leave a file out since its owner has so many, and count it once."""
        before = self._left.get(path)
        if before is None or before.refused is not None:
            self.dropped_total["user"] += 1
        self._left[path] = _Left(uid, None, None, self._now + RETRY_SECONDS, self._look)

    def refuse(self, path: str, error: SegmentError, status: os.stat_result | None = None) -> None:
        """Leave a file out since it is no segment that can be read, and count it once.

        Args:
            path: The file.
            error: What is wrong with it.
            status: Of the file, from before it was tried; None to try again at the next look.
        """
        before = self._left.get(path)
        if before is None or before.refused is None or before.refused.reason != error.reason:
            self.refused_total[error.reason] += 1
        refused = Refused(path, error.reason, str(error))
        left = self._left[path] = _Left(-1, refused, None, self._now, self._look)
        if status is not None and abs(time.time() - status.st_ctime) >= YOUNG_SECONDS:
            left.identity = _identity(status)
            left.retry += PASSING_SECONDS if error.reason in PASSING else RETRY_SECONDS
        self._tell(refused)

    def _tell(self, refused: Refused) -> None:
        if len(self.refused) < MOST_TOLD:
            self.refused.append(refused)


def _identity(status: os.stat_result) -> _Identity:
    """Return what differs once a file is another one, or written to, given away or permitted."""
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size
