"""Which agent reads a directory: a lock file there, held for as long as that agent lives.

`dlmon-agent-<uid>.lock`, by record lock as a segment's writers: it is free when its agent is gone,
however that ended, and what a killed one left does no harm. Each user has one of his own, because
in a directory that many may write to nobody could take, or be kept from, another's. It holds the
agent's pid and address in one line, once it serves.

A process that closes *any* descriptor of a file loses its locks on it. So what this process holds
is opened once; it is never asked about here, nor opened again by another name of its directory.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from dlmon.agent import address as addresses
from dlmon.segment import files, locks

PREFIX = "dlmon-agent-"

AT, NO, TAKEN = "at", "no", "taken"
"""What an agent that starts reports first: it serves at …; it cannot, because …; another one has
the lock."""

_TRIES = 10
_LONGEST = 128
_BYTE = 0

logger = logging.getLogger(__name__)

_held: set[tuple[int, int]] = set()
"""(device, inode) of each lock file that this process holds."""


@dataclass(frozen=True, slots=True)
class Running:
    """Another process, the agent that reads a directory.

    Attributes:
        pid: 0 if it is in a pid namespace that is not visible from here.
        address: Where it serves; "" until it does.
        since: Unix time since when.
    """

    pid: int
    address: str
    since: float


class AgentLock:
    """A lock that this process holds; made by `take`, or by `adopt` after an exec.

    Attributes:
        directory: What the agent reads.
        fd: Of the lock file.
    """

    def __init__(self, directory: str, fd: int) -> None:
        self.directory = directory
        self.fd = fd
        _held.add(_identity(os.fstat(fd)))

    @classmethod
    def take(cls, directory: str) -> AgentLock | None:
        """Take the lock of a directory, without waiting; None if it is taken, by whomever.

        Raises:
            OSError: There is no such directory, it is not writable, or cannot lock.
        """
        path = _path(directory, os.geteuid())
        if _is_ours(path):
            return None
        mode = 0o644 if os.geteuid() in (0, os.stat(directory).st_uid) else 0o600
        for _ in range(_TRIES):
            fd = _create(path, mode)
            try:
                held = locks.hold(fd, _BYTE)
                if held and _is_still(path, fd):
                    os.ftruncate(fd, 0)
                    lock, fd = cls(directory, fd), -1
                    return lock
            finally:
                if fd >= 0:
                    os.close(fd)
            if not held:
                return None
            # Its last holder removed it between the two: again.
        return None

    @classmethod
    def adopt(cls, directory: str, fd: int) -> AgentLock | None:
        """Go on with a lock that this process took before it executed another program."""
        os.set_inheritable(fd, False)
        held = locks.hold(fd, _BYTE) and _is_still(_path(directory, os.geteuid()), fd)
        return cls(directory, fd) if held else None

    def tell(self, address: str) -> None:
        """Write down where the agent serves; without room for it nobody learns that from here."""
        with suppress(OSError):
            os.ftruncate(self.fd, 0)
            os.pwrite(self.fd, f"{os.getpid()} {address}\n".encode(), 0)

    def release(self) -> None:
        """Remove the file and let the lock go; safe to call twice."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        path = _path(self.directory, os.geteuid())
        if _is_still(path, fd):
            with suppress(OSError):
                os.unlink(path)
        _held.discard(_identity(os.fstat(fd)))
        os.close(fd)


class AgentLocks:
    """The locks of the directories that an agent reads, as far as it can have them.

    Without one the agent goes on: the lock only keeps others from starting a second one.

    Args:
        directories: What it reads; they need not be there yet.
        address: Where it serves.
    """

    def __init__(self, directories: Iterable[str], address: str) -> None:
        self._wanted = list(dict.fromkeys(directories))
        self._address = address
        self._held: list[AgentLock] = []
        self._said: set[str] = set()

    def take(self) -> None:
        """Take what is free and not held yet: directories come, and other agents go."""
        for directory in list(self._wanted):
            if _is_ours(_path(directory, os.geteuid())):  # by another name of the directory
                self._wanted.remove(directory)
                continue
            with suppress(OSError):  # not there, or not to be written to
                lock = AgentLock.take(directory)
                if lock is None:
                    self._say(directory)
                    continue
                lock.tell(self._address)
                self._held.append(lock)
                self._wanted.remove(directory)

    def release(self) -> None:
        """Let all go."""
        for lock in self._held:
            lock.release()
        self._held.clear()

    def _say(self, directory: str) -> None:
        if directory not in self._said:
            self._said.add(directory)
            other = find(directory)
            where = f" at {url(other.address)}" if other is not None and other.address else ""
            logger.info("another agent%s reads %s too", where, directory)


def find(directory: str) -> Running | None:
    """Return the agent that reads the segments of this user in `directory`, None without one.

    It may read the directory itself, or the one in which that is dlmon-<uid>, and belong to this
    user, to root, or to the owner of that directory.
    """
    for folder in _read_with(directory):
        with suppress(OSError):
            for uid in sorted({os.geteuid(), 0, os.stat(folder).st_uid}):
                running = _ask(_path(folder, uid), uid)
                if running is not None:
                    return running
    return None


def url(address: str) -> str:
    """Return an agent's address as one that a browser can open."""
    host, port = addresses.parse(address)
    everywhere = host in ("", "::", "0.0.0.0")  # noqa: S104  # compared, not bound
    return f"http://{addresses.shown(os.uname().nodename if everywhere else host, port)}/"


def log_path(directory: str) -> str:
    """Return the name of the log of an agent that has no terminal."""
    return os.path.join(directory, f"{PREFIX}{os.geteuid()}.log")


def open_log(directory: str) -> int:
    """Return a descriptor for a new log of an agent that holds the lock of `directory`.

    What an earlier agent wrote is gone. It is the null device where there cannot be one.
    """
    with suppress(OSError):
        fd = _create(log_path(directory), 0o600, os.O_APPEND)
        os.ftruncate(fd, 0)
        return fd
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _path(directory: str, uid: int) -> str:
    return os.path.join(directory, f"{PREFIX}{uid}.lock")


def _read_with(directory: str) -> Iterator[str]:
    yield directory
    parent, name = os.path.split(os.path.abspath(directory))
    if name.startswith(files.USER_PREFIX) and name.removeprefix(files.USER_PREFIX).isdecimal():
        yield parent


def _ask(path: str, uid: int) -> Running | None:
    """Return the holder of a lock file that belongs to `uid`, as its agent left it."""
    if _is_ours(path):
        return None
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
                return None
            pid = locks.holder(fd, _BYTE)
            if pid is None:
                return None
            return Running(pid, _address(os.pread(fd, _LONGEST, 0), pid), status.st_mtime)
        finally:
            os.close(fd)
    return None


def _address(line: bytes, holder: int) -> str:
    """Return the address in a lock file, "" if it is not its holder's or none at all."""
    pid, _, address = line.decode("ascii", "replace").partition(" ")
    with suppress(ValueError):
        if int(pid) == holder and address.endswith("\n"):
            addresses.parse(address[:-1])
            return address[:-1]
    return ""


def _create(path: str, mode: int, flags: int = 0) -> int:
    """Open a file of this user's for writing, new or not.

    Raises:
        OSError: It cannot be opened, or is somebody else's.
    """
    flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    status = os.fstat(fd)
    own = status.st_uid == os.geteuid() and status.st_nlink <= 1
    if not (own and stat.S_ISREG(status.st_mode)):
        os.close(fd)
        raise PermissionError(errno.EPERM, f"belongs to uid {status.st_uid}, remove it", path)
    os.fchmod(fd, mode)  # the umask must not decide who may ask
    return fd


def _is_ours(path: str) -> bool:
    """Return whether this process holds that file: to open and close it would let it go."""
    with suppress(OSError):
        return _identity(os.stat(path)) in _held
    return False


def _is_still(path: str, fd: int) -> bool:
    with suppress(OSError):
        return _identity(os.lstat(path)) == _identity(os.fstat(fd))
    return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
