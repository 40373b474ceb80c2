"""Where segments are kept: the directory, its permissions, file names and what is left behind.

Runs in: rank (choosing, making, cleaning) and agent (finding).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from dlmon.errors import SegmentError
from dlmon.segment.layout import SUFFIX

NODE_DIR = "/run/dlmon"
"""Made by the node's unit (tmpfs, mode 3777, group dlmon); strangers may not read there."""

SHM = "/dev/shm"
USER_PREFIX = "dlmon-"
TEMPORARY_PREFIX = ".new-"
SEARCHED = (NODE_DIR, SHM)
"""Where an agent looks unless told otherwise."""

MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs")

own: set[tuple[int, int]] = set()
"""(device, inode) of each segment this process writes: closing one again would drop its locks."""


def choose(configured: str | None) -> str:
    """Return the directory for this process's segments, made if need be.

    Args:
        configured: What `DLMON_DIR` or `instrument(dir=)` says; None or "" for the default:
            NODE_DIR where it is, else /dev/shm/dlmon-<uid>.

    Raises:
        SegmentError: It cannot be used; the message says which directory, why and what to do.
    """
    if configured:
        directory = os.path.abspath(configured)
        _make_private(directory)
    elif os.path.isdir(NODE_DIR) and os.access(NODE_DIR, os.W_OK | os.X_OK):
        directory = NODE_DIR
    else:
        directory = os.path.join(SHM, f"{USER_PREFIX}{os.getuid()}")
        _make_private(directory)
        _check_own(directory)
    _check_in_memory(directory)
    return directory


def searched(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return where to look for segments: `SEARCHED`, and in `DLMON_DIR` before that."""
    own = environment.get("DLMON_DIR")
    return (os.path.abspath(own), *SEARCHED) if own else SEARCHED


def file_mode(directory: str) -> int:
    """Return the mode for a segment there: readable by the group only in the node's directory."""
    return 0o640 if directory == NODE_DIR else 0o600


def user_directories(directory: str) -> Iterator[tuple[str, int | None]]:
    """Yield `directory` and each dlmon-<uid> in it with the uid that must own the files there.

    The uid is None for `directory` itself: files there belong to whoever owns them.
    """
    yield directory, None
    for name in user_names(directory):
        yield os.path.join(directory, name), int(name.removeprefix(USER_PREFIX))


def user_names(directory: str | int) -> Iterator[str]:
    """Yield the names dlmon-<uid> of directories in `directory`, a path or a descriptor."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            uid = entry.name.removeprefix(USER_PREFIX)
            if uid != entry.name and uid.isdecimal() and entry.is_dir(follow_symlinks=False):
                yield entry.name


def segment_names(directory: str | int, most: int | None = None) -> list[str]:
    """Return the names of the finished segments in `directory`, sorted; empty if unreadable.

    Args:
        directory: A path or a descriptor.
        most: How many names at most; None for all.
    """
    try:
        with os.scandir(directory) as entries:
            names = (e.name for e in entries if e.name.endswith(SUFFIX) and e.name[0] != ".")
            return sorted(itertools.islice(names, most))
    except OSError:
        return []


def _make_private(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise SegmentError(
            f"directory {directory}: cannot be made ({error.strerror}); "
            "set DLMON_DIR to a directory on tmpfs that this user may write",
            "io",
        ) from None


def _check_own(directory: str) -> None:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise SegmentError(
            f"directory {directory}: belongs to uid {status.st_uid} with mode "
            f"{stat.S_IMODE(status.st_mode):o}, expected a directory of uid {os.getuid()} that "
            "only it may write; remove it or set DLMON_DIR",
            "owner",
        )


def _check_in_memory(directory: str) -> None:
    """Refuse disks: a store to a mapping of a disk file can block for 100s of milliseconds."""
    if not os.access(directory, os.W_OK | os.X_OK):
        raise SegmentError(
            f"directory {directory}: not writable for uid {os.getuid()}; "
            "set DLMON_DIR to a directory on tmpfs that this user may write",
            "io",
        )
    kind = _file_system(directory)
    if kind is not None and kind not in MEMORY_FILE_SYSTEMS:
        raise SegmentError(
            f"directory {directory}: is on {kind}, expected one of "
            f"{', '.join(MEMORY_FILE_SYSTEMS)}; set DLMON_DIR to a directory under {SHM}",
            "io",
        )


def _file_system(directory: str) -> str | None:
    """Return the type of the file system `directory` is on, None if /proc does not tell."""
    device = os.stat(directory).st_dev
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            return _kind(
                mounts, f"{os.major(device)}:{os.minor(device)}", os.path.realpath(directory)
            )
    except (OSError, ValueError, IndexError):
        return None


def _kind(mounts: Iterable[str], device: str, path: str) -> str | None:
    """Find a type in the lines of mountinfo, proc_pid_mountinfo(5): by device, else by path.

    btrfs gives each subvolume a device of its own, which is not in the table.
    """
    deepest, kind = "", None
    for line in mounts:
        fields, _, tail = line.partition(" - ")
        _, _, its_device, _, point = fields.split()[:5]
        if its_device == device:
            return tail.split()[0]
        if len(point) >= len(deepest) and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            deepest, kind = point, tail.split()[0]
    return kind
