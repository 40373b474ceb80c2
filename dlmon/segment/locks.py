"""Who is alive, attested by the kernel: POSIX record locks on one byte per writer.

A record lock goes when its process dies, however it dies, and F_GETLK names the holder's pid in
the asker's pid namespace. It also goes when its process closes *any* descriptor of the file, so a
writer opens a segment once and keeps descriptor and mapping for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length, pid."""

ALIVE_ELSEWHERE = 0
"""The pid `holder` gives for a process that lives in a pid namespace not visible from here."""


def hold(fd: int, offset: int) -> bool:
    """Lock the byte at `offset` for this process, without waiting.

    Runs in: rank, worker. On failure: returns False where another process holds it.

    Raises:
        OSError: The file system cannot lock.
    """
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset, os.SEEK_SET)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def holder(fd: int, offset: int) -> int | None:
    """Return the pid that holds the byte at `offset`, None if no other process does.

    The question is asked for a *read* lock: a stranger who may read the file can hold a read lock
    on it, and must not pass for a living writer.

    Runs in: rank, agent. A process does not see its own locks.

    Returns:
        A pid in the asker's namespace, ALIVE_ELSEWHERE (0) for one not visible from here.
    """
    request = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, offset, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, request))
    return None if kind == fcntl.F_UNLCK else max(int(pid), ALIVE_ELSEWHERE)
