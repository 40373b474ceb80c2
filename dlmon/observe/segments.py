"""Find segments on this node and read each one, again and again, whatever state they are in.

Runs in: agent and the commands. On failure: the segment is refused, with a reason; others go on.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from dlmon.errors import SegmentError
from dlmon.observe import processes
from dlmon.observe.containers import Place
from dlmon.observe.leftout import NAMES_PER_SEGMENT, LeftOut
from dlmon.segment import files
from dlmon.segment.reader import Reading, SegmentFile

_LISTED = 4 * NAMES_PER_SEGMENT
"""So many times the segments that a user may have is how many names of one directory are listed."""


@dataclass(slots=True)
class Tracked:
    """One segment over time.

    Attributes:
        reading: The last one.
        last_alive_ns: CLOCK_MONOTONIC of the last reading in which the rank lived, 0 if never.
        died: Unix time its death was noticed, None while it lives.
        removed: Its time is over: it will not be read again.
        retired: Its counters are kept elsewhere.
        where: The directory in another mount namespace in which it was found, "" for one of ours.
        place: That directory, None once no process sees it any more: then the file is closed.
        directory_uid: To whom the directory must belong in which it is, None for anybody.
    """

    file: SegmentFile
    reading: Reading
    last_alive_ns: int = 0
    died: float | None = None
    removed: bool = False
    retired: bool = False
    where: str = ""
    place: Place | None = None
    directory_uid: int | None = None

    @property
    def gone(self) -> bool:
        """The rank has ended in order, or died long ago."""
        ended = bool(self.reading.rank["goodbye"]) and self.reading.rank_holder is None
        return ended or self.removed

    @property
    def worker_alive(self) -> bool:
        """Some worker byte is held."""
        return any(holder is not None for holder in self.reading.worker_holders)


class Segments:
    """All segments below some directories.

    Attributes:
        tracked: By path.
        removed: Those whose time was over this time.
        left_out: What could not be read, or was too much.
        stale_reads: Slots served from an earlier read, since the beginning.
    """

    def __init__(
        self,
        directories: Iterable[str],
        *,
        dead_seconds: float,
        segments_per_user: int,
        containers: Callable[[], tuple[Place, ...]] = tuple,
    ) -> None:
        self._containers = containers
        self._directories = tuple(directories)
        self._dead_seconds = dead_seconds
        self._per_user = segments_per_user
        self._counts: Counter[int] = Counter()  # of tracked ones, by owner
        self.tracked: dict[str, Tracked] = {}
        self.removed: list[Tracked] = []
        self.left_out = LeftOut(segments_per_user)
        self.stale_reads = 0
        _allow_many_files()

    def read(self) -> Sequence[Tracked]:
        """Look for new segments, read all, and return them; the others are in `left_out`."""
        self.left_out.begin()
        self.removed = []
        for directory in self._directories:
            for path, uid in files.user_directories(directory):
                self._open_new(path, uid)
        places = self._containers()
        for place in places:
            self._open_new_in(place)
        self._leave_all_but(places)
        for path, tracked in list(self.tracked.items()):
            self._read_again(path, tracked)
        self.left_out.end()
        return list(self.tracked.values())

    def close(self) -> None:
        """Close every file."""
        for tracked in self.tracked.values():
            tracked.file.close()
        self.tracked.clear()
        self._counts.clear()

    def _new(self, directory: str, listed: str | int) -> Sequence[str]:
        """Return the files in a directory that may be segments and are not read yet."""
        prefix = os.path.join(directory, "")
        names = files.segment_names(listed, _LISTED * self._per_user)
        paths = [path for name in names if (path := prefix + name) not in self.tracked]
        return self.left_out.choose(directory, paths)

    def _open_new(self, directory: str, uid: int | None) -> None:
        new = self._new(directory, directory)
        if not new:
            return
        try:
            dir_fd = _open_directory(directory, uid)
        except SegmentError as error:
            self.left_out.refuse(directory, error)
            return
        try:
            for path in new:
                self._open(path, uid, dir_fd)
        finally:
            os.close(dir_fd)

    def _open_new_in(self, place: Place) -> None:
        for path in self._new(place.path, place.fd):
            self._open(path, place.uid, place.fd)
            if path in self.tracked:
                self.tracked[path].where, self.tracked[path].place = place.path, place

    def _leave_all_but(self, places: Iterable[Place]) -> None:
        """Close what is in a namespace that no process has any more.

        An open file would keep the whole of the container's shared memory. What was read last
        stays.
        """
        left = [t for t in self.tracked.values() if t.place is not None and t.place not in places]
        for tracked in left:
            self._read_again(tracked.file.path, tracked)
            reading = tracked.reading
            if reading.rank_holder is None and not tracked.worker_alive:
                tracked.file.close()
                tracked.place = None

    def _open(self, path: str, uid: int | None, dir_fd: int) -> None:
        if self.left_out.over_limit(path, self._counts):
            return
        status = _status(path, dir_fd)
        if status is None or self.left_out.still(path, status):
            return
        if self._counts[status.st_uid] >= self._per_user:
            self.left_out.drop(path, status.st_uid)
            return
        try:
            file = SegmentFile(path, owner=uid, dir_fd=dir_fd)
        except SegmentError as error:
            if _status(path, dir_fd) is not None:  # else it ended between listing and opening
                self.left_out.refuse(path, error, status)
            return
        try:
            reading = file.read(time.monotonic_ns())
        except SegmentError as error:
            file.close()
            self.left_out.refuse(path, error, status)
            return
        self._counts[file.uid] += 1
        self.tracked[path] = Tracked(file, reading, directory_uid=uid)

    def _read_again(self, path: str, tracked: Tracked) -> None:
        now = time.monotonic_ns()
        try:
            if tracked.file.fd >= 0:
                tracked.reading = tracked.file.read(now)
            if not tracked.where:  # else its pids may be of another namespace
                tracked.reading = _attested(tracked.reading, tracked.file.uid)
        except SegmentError as error:
            self.left_out.refuse(path, error)
            self._drop(path, tracked)
            return
        self.stale_reads += tracked.reading.stale
        if tracked.reading.rank_holder is not None:
            tracked.last_alive_ns = now
            tracked.died = None
        elif tracked.died is None:
            tracked.died = time.time()
        if tracked.worker_alive:
            return
        if tracked.gone or (tracked.died and time.time() - tracked.died >= self._dead_seconds):
            self._remove(path, tracked)

    def _remove(self, path: str, tracked: Tracked) -> None:
        """Forget a segment that nobody writes any more; remove the file where that is allowed."""
        with suppress(OSError, SegmentError):
            if tracked.place is not None:
                _unlink(path, tracked.place.fd, tracked.file.fd)
            elif not tracked.where:
                dir_fd = _open_directory(os.path.dirname(path), tracked.directory_uid)
                try:
                    _unlink(path, dir_fd, tracked.file.fd)
                finally:
                    os.close(dir_fd)
        tracked.removed = True
        self.removed.append(tracked)
        self._drop(path, tracked)

    def _drop(self, path: str, tracked: Tracked) -> None:
        tracked.file.close()
        self._counts[tracked.file.uid] -= 1
        del self.tracked[path]


def _status(path: str, dir_fd: int) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(os.path.basename(path), dir_fd=dir_fd, follow_symlinks=False)
    return None


def _open_directory(directory: str, uid: int | None) -> int:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SegmentError(f"directory {directory}: {error.strerror}", "io") from None
    owner = os.fstat(fd).st_uid
    if uid is not None and owner != uid:
        os.close(fd)
        raise SegmentError(
            f"directory {directory}: belongs to uid {owner}, expected {uid}", "owner"
        )
    return fd


def _unlink(path: str, dir_fd: int, fd: int) -> None:
    """Remove a file from its directory, if what has its name is the open one.

    Whose the directory is may put another one in its place between the two calls, were they given
    its path.
    """
    ours = os.fstat(fd)
    status = _status(path, dir_fd)
    if status and (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino):
        os.unlink(os.path.basename(path), dir_fd=dir_fd)


def _attested(reading: Reading, uid: int) -> Reading:
    """Return a reading in which a rank that lost its lock, but lives, is the holder.

    The lock goes when the rank closes any descriptor of its segment, as a copy of the directory
    does. A process of the same pid, start time and owner is the rank.
    """
    pid, start_ticks = reading.info.get("pid"), reading.info.get("start_ticks")
    if reading.rank_holder is not None or reading.rank["goodbye"] or type(pid) is not int:
        return reading
    seen = processes.sample(pid)
    with suppress(OSError):
        if (
            seen is not None
            and seen.start_ticks == start_ticks
            and seen.status not in ("Z", "X")
            and os.stat(f"/proc/{pid}").st_uid == uid
        ):
            return replace(reading, rank_holder=pid)
    return reading


def _allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: each segment stays open."""
    with suppress(OSError, ValueError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
