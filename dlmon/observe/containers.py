"""Find the directories with segments that jobs in other mount namespaces see: in containers.

`/proc/<pid>/root` is the root of such a process. What is below it belongs to the job: it is walked
one name at a time without following a link, so that nothing in it leads out of it, and in a thread
of its own, because it may be on storage that does not answer. A directory that is not in memory, as
the table of mounts says, is not gone to at all.

Source: namespaces(7), proc_pid_root(5). It takes CAP_SYS_PTRACE, which root has, or
the same user.

Runs in: agent and the commands. On failure: what may not be looked into is left out.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
import weakref
from collections.abc import Iterable, Iterator
from contextlib import suppress

from dlmon.observe import processes
from dlmon.observe.aside import Aside
from dlmon.observe.due import Due
from dlmon.observe.mounts import Mounts
from dlmon.segment import files

LOOK_SECONDS = 5.0
"""From one look to the next."""

MOST_PLACES = 1024
"""Directories that are kept open at most."""

MOST_USERS = 64
"""Of so many users in one namespace."""

ROOTS_TRIED = 8
"""Processes of one namespace whose root is looked at until one has a directory."""

CAP_SYS_PTRACE = 1 << 19

_THROUGH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

logger = logging.getLogger(__name__)

Identity = tuple[int, int]
"""Device and inode."""


class Place:
    """A directory in another mount namespace, open for as long as anybody holds this.

    Attributes:
        path: As seen from here when it was found; the process in it may be gone.
        fd: The directory.
        uid: The user, as seen from here, to whom the files in it must belong; None for any.
        namespace: The mount namespace in which it was found.
    """

    __slots__ = ("__weakref__", "fd", "namespace", "path", "uid")

    def __init__(self, path: str, fd: int, uid: int | None, namespace: str) -> None:
        self.path = path
        self.fd = fd
        self.uid = uid
        self.namespace = namespace
        weakref.finalize(self, os.close, fd)


class Containers:
    """Keeps looking for directories with segments in other mount namespaces."""

    def __init__(self, directories: Iterable[str]) -> None:
        """Prepare; nothing is looked for before `start` or `look`.

        Args:
            directories: The same in each namespace.
        """
        self._directories = tuple(os.path.abspath(directory) for directory in directories)
        self._due = Due()
        self._namespaces: dict[int, str] = {}
        self._places: dict[Identity, Place] = {}
        self._namespace = ""
        self._mounts = Mounts()
        self._found: tuple[Place, ...] = ()
        self._failed = False
        self._aside = Aside("dlmon-containers", self._turn)

    def start(self, wait_seconds: float = 0.0) -> None:
        """Begin to look, and wait up to `wait_seconds` for the end of the first look."""
        self._aside.start(wait_seconds)

    def close(self) -> None:
        """Look no more, and let go of all directories."""
        self._aside.close()
        self._found = ()

    def now(self) -> tuple[Place, ...]:
        """Return what was found last; a place that is missing has no process any more."""
        return self._found

    def look(self) -> tuple[Place, ...]:
        """Look once. A directory that was found before is the same `Place` again."""
        self._ask_namespaces()
        before, self._places = self._places, {}
        taken = {identity for d in self._directories for identity in _own(d)}
        namespaces = self._by_namespace()
        for self._namespace, pids in namespaces.items():
            # Some processes of a container may have a root of their own, or none any more.
            any(self._search(pid, before, taken) for pid in pids[:ROOTS_TRIED])
        for identity, place in before.items():
            # Not seen for once; opened anew by another path, its segments would be there twice.
            if identity not in taken and place.namespace in namespaces and _linked(place.fd):
                self._places[identity] = place
        return tuple(self._places.values())

    def say(self) -> str:
        """Say in a few words what can be seen."""
        if processes.capabilities() & CAP_SYS_PTRACE:
            return "looking into containers"
        return "not looking into other users' containers (that needs CAP_SYS_PTRACE)"

    def _turn(self) -> float:
        try:
            self._found = self.look()
        except Exception:
            if not self._failed:
                self._failed = True
                logger.exception("the search for containers failed")
        return LOOK_SECONDS

    def _ask_namespaces(self) -> None:
        due, pids = self._due.look(time.monotonic())
        self._namespaces = {pid: ns for pid, ns in self._namespaces.items() if pid in pids}
        for pid in due:
            self._namespaces.pop(pid, None)
            with suppress(OSError):
                self._namespaces[pid] = os.readlink(f"/proc/{pid}/ns/mnt")

    def _by_namespace(self) -> dict[str, list[int]]:
        """Return the processes of each mount namespace other than this process's."""
        groups: dict[str, list[int]] = {}
        for pid, namespace in sorted(self._namespaces.items()):
            groups.setdefault(namespace, []).append(pid)
        with suppress(OSError):
            groups.pop(os.readlink("/proc/self/ns/mnt"), None)
        return groups

    def _search(self, pid: int, before: dict[Identity, Place], taken: set[Identity]) -> bool:
        """Add what is below a process's root, unless it is to be seen from elsewhere too.

        Returns:
            Whether any of the directories is there, in memory.
        """
        there = False
        with suppress(OSError):
            self._mounts = Mounts.of(pid)
            candidates = [d for d in self._directories if self._mounts.in_memory(d)]
            if not candidates:
                return False
            # Follows a link, the only one: it is the kernel's.
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for directory in candidates:
                    with suppress(OSError):
                        base = _below(root, directory)
                        there = True
                        path = f"/proc/{pid}/root{directory}"
                        if self._add(path, base, None, before, taken):
                            self._search_users(path, base, before, taken)
            finally:
                os.close(root)
        return there

    def _search_users(
        self, path: str, base: int, before: dict[Identity, Place], taken: set[Identity]
    ) -> None:
        """Add the users' directories in a directory.

        Their names have uids as the container counts them; who owns one is what counts here.
        """
        for name in itertools.islice(files.user_names(base), MOST_USERS):
            with suppress(OSError):
                fd = os.open(name, _STEP, dir_fd=base)
                self._add(f"{path}/{name}", fd, os.fstat(fd).st_uid, before, taken)

    def _add(
        self,
        path: str,
        fd: int,
        uid: int | None,
        before: dict[Identity, Place],
        taken: set[Identity],
    ) -> bool:
        """Keep an open directory, or close it; tell whether it is new among the `taken`."""
        identity = _identity(os.fstat(fd))
        elsewhere = identity[0] not in self._mounts.memory_devices  # reading could take for ever
        if elsewhere or identity in taken or len(self._places) >= MOST_PLACES:
            os.close(fd)
            return False
        taken.add(identity)
        place = Place(path, fd, uid, self._namespace)
        self._places[identity] = before.get(identity, place)
        return True


def _below(root: int, path: str) -> int:
    """Open a directory below `root`, by names none of which may be a link.

    Raises:
        OSError: There is none, or a link is in the way.
    """
    fd = os.dup(root)
    *through, last = path.strip("/").split("/")
    for name, how in (*((name, _THROUGH) for name in through), (last, _STEP)):
        try:
            inner = os.open(name, how, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _own(directory: str) -> Iterator[Identity]:
    """Yield what is searched anyway, by its name here."""
    for path, _ in files.user_directories(directory):
        with suppress(OSError):
            yield _identity(os.stat(path))


def _linked(fd: int) -> bool:
    """Return whether an open directory still is in its file system."""
    return os.fstat(fd).st_nlink > 0


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
