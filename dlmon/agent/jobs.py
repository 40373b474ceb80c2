"""Which jobs want an agent beside them: an empty file each, named by its pid and start time.

They are in `dlmon-serve-<uid>/` in the directory of the segments. A job is entered before it looks
for an agent, and an agent that ends looks here once more after it let its lock go: one of the two
sees the other. A job has no part in taking its entry out: /proc tells who has ended, or was killed.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dlmon.observe import processes

PREFIX = "dlmon-serve-"

_TRIES = 100
_ENTRY = re.compile(r"(?P<pid>[1-9][0-9]{0,9})-(?P<start>[0-9]{1,19})")


def enter(directory: str) -> None:
    """Enter this process, which may execute another program and stays what it is.

    Raises:
        OSError: The directory is full, gone or not writable, or the folder is somebody else's.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    entry = _own_entry()
    for _ in range(_TRIES):
        with suppress(FileExistsError):
            os.mkdir(_path(directory), 0o700)
        with suppress(FileNotFoundError), _folder(directory) as folder:
            os.close(os.open(entry, flags, 0o600, dir_fd=folder))
            _sweep(folder)
            return
        # An agent that ended has removed the folder between the two: again.
    raise FileNotFoundError(errno.ENOENT, "is removed again and again", _path(directory))


def withdraw(directory: str) -> None:
    """Take this process's entry out: there will be no agent."""
    with suppress(OSError), _folder(directory) as folder:
        os.unlink(_own_entry(), dir_fd=folder)
    clear(directory)


def any_living(directory: str) -> bool:
    """Return whether a job that was entered runs; entries of those that have ended are removed."""
    with suppress(OSError), _folder(directory) as folder:
        return _sweep(folder)
    return False


def clear(directory: str) -> None:
    """Remove the folder, unless a job that was entered runs."""
    if not any_living(directory):
        with suppress(OSError):
            os.rmdir(_path(directory))


def _own_entry() -> str:
    own = processes.sample(os.getpid())
    return f"{os.getpid()}-{own.start_ticks if own is not None else 0}"


def _path(directory: str) -> str:
    return os.path.join(directory, f"{PREFIX}{os.geteuid()}")


@contextmanager
def _folder(directory: str) -> Iterator[int]:
    """Open the folder, which must be this user's: others may write to the directory it is in."""
    path = _path(directory)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            raise PermissionError(errno.EPERM, f"belongs to uid {owner}, remove it", path)
        yield fd
    finally:
        os.close(fd)


def _sweep(folder: int) -> bool:
    found = False
    for name in os.listdir(folder):
        entry = _ENTRY.fullmatch(name)
        if entry is None:
            continue
        if _lives(int(entry["pid"]), int(entry["start"])):
            found = True
        else:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
    return found


def _lives(pid: int, start: int) -> bool:
    seen = processes.sample(pid)
    return seen is not None and seen.start_ticks == start and seen.status not in ("Z", "X")
