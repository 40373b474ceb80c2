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
from dlmon.observe.snapshot import Refused
from dlmon.segment import files
from dlmon.segment.reader import Reading, SegmentFile

DROP_REASONS = ("user", "rank")


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
    """

    file: SegmentFile
    reading: Reading
    last_alive_ns: int = 0
    died: float | None = None
    removed: bool = False
    retired: bool = False
    where: str = ""
    place: Place | None = None

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
        refused: What could not be read this time.
        refused_total, dropped_total: Since the beginning, by reason.
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
        self._over_limit: set[str] = set()
        self._refused_paths: set[tuple[str, str]] = set()
        self.tracked: dict[str, Tracked] = {}
        self.removed: list[Tracked] = []
        self.refused: list[Refused] = []
        self.refused_total = Counter(dict.fromkeys(SegmentError.REASONS, 0))
        self.dropped_total = Counter(dict.fromkeys(DROP_REASONS, 0))
        self.stale_reads = 0
        _allow_many_files()

    def read(self) -> Sequence[Tracked]:
        """Look for new segments, read all, and return them; those not readable are in `refused`."""
        self.refused = []
        self.removed = []
        for directory in self._directories:
            for path, uid in files.user_directories(directory):
                self._open_new(path, uid)
        places = self._containers()
        for place in places:
            self._open_new_in(place)
        self._leave_all_but(places)
        self._over_limit = {path for path in self._over_limit if os.path.lexists(path)}
        for path, tracked in list(self.tracked.items()):
            self._read_again(path, tracked)
        refused = {(r.path, r.reason) for r in self.refused}
        for _, reason in refused - self._refused_paths:  # count a file once, not once a second
            self.refused_total[reason] += 1
        self._refused_paths = refused
        return list(self.tracked.values())

    def close(self) -> None:
        """Close every file."""
        for tracked in self.tracked.values():
            tracked.file.close()
        self.tracked.clear()

    def _open_new(self, directory: str, uid: int | None) -> None:
        names = files.segment_names(directory)
        new = [n for n in names if os.path.join(directory, n) not in self.tracked]
        if not new:
            return
        try:
            dir_fd = _open_directory(directory, uid)
        except SegmentError as error:
            self._refuse(directory, error)
            return
        try:
            counts = Counter(tracked.file.uid for tracked in self.tracked.values())
            for name in new:
                self._open(os.path.join(directory, name), uid, dir_fd, counts)
        finally:
            os.close(dir_fd)

    def _open_new_in(self, place: Place) -> None:
        paths = [os.path.join(place.path, name) for name in files.segment_names(place.fd)]
        new = [path for path in paths if path not in self.tracked]
        counts = (
            Counter(tracked.file.uid for tracked in self.tracked.values()) if new else Counter()
        )
        for path in new:
            self._open(path, place.uid, place.fd, counts)
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

    def _open(self, path: str, uid: int | None, dir_fd: int, counts: Counter[int]) -> None:
        try:
            file = SegmentFile(path, owner=uid, dir_fd=dir_fd)
        except SegmentError as error:
            if _exists(path, dir_fd):  # else it ended between listing and opening
                self._refuse(path, error)
            return
        try:
            if counts[file.uid] >= self._per_user:
                if path not in self._over_limit:
                    self._over_limit.add(path)
                    self.dropped_total["user"] += 1
                file.close()
                return
            reading = file.read(time.monotonic_ns())
        except SegmentError as error:
            file.close()
            self._refuse(path, error)
            return
        counts[file.uid] += 1
        self.tracked[path] = Tracked(file, reading)

    def _read_again(self, path: str, tracked: Tracked) -> None:
        now = time.monotonic_ns()
        try:
            if tracked.file.fd >= 0:
                tracked.reading = tracked.file.read(now)
            if not tracked.where:  # else its pids may be of another namespace
                tracked.reading = _attested(tracked.reading, tracked.file.uid)
        except SegmentError as error:
            self._refuse(path, error)
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
        name, dir_fd = path, None
        if tracked.place is not None:
            name, dir_fd = os.path.basename(path), tracked.place.fd
        with suppress(OSError):
            ours = os.fstat(tracked.file.fd)
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if (status.st_dev, status.st_ino) == (ours.st_dev, ours.st_ino):
                os.unlink(name, dir_fd=dir_fd)
        tracked.removed = True
        self.removed.append(tracked)
        self._drop(path, tracked)

    def _drop(self, path: str, tracked: Tracked) -> None:
        tracked.file.close()
        del self.tracked[path]

    def _refuse(self, path: str, error: SegmentError) -> None:
        self.refused.append(Refused(path, error.reason, str(error)))


def _exists(path: str, dir_fd: int) -> bool:
    with suppress(OSError):
        os.stat(os.path.basename(path), dir_fd=dir_fd, follow_symlinks=False)
        return True
    return False


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
