"""With which exit code processes ended that are no children of this one.

A descriptor of a process (pidfd) is kept while it lives; Linux 6.15 and newer tell by it how the
process ended, when somebody has waited for it. Before that /proc tells, while it is a zombie, whom
it allows to trace it. Nothing is signalled, traced or waited for.

Runs in: agent and the commands. On failure: what cannot be learned is None.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Collection
from contextlib import suppress

from dlmon.observe import processes

Process = tuple[int, int]
"""pid and start time, field 22 of /proc/<pid>/stat."""

_INFO = struct.Struct("<QQ11Ii")
"""struct pidfd_info as of Linux 6.13, include/uapi/linux/pidfd.h: mask, cgroup, ids, exit code."""
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(PIDFS_IOCTL_MAGIC, 11, …)
_EXIT = 1 << 3


class ExitStatuses:
    """Follows processes, each from when it is first seen alive.

    Of those for which it may keep no file open only /proc is asked.
    """

    def __init__(self) -> None:
        self._most = processes.most_kept()
        self._fds: dict[Process, int] = {}
        self._supported = True

    def follow(self, process: Process) -> None:
        """Be able to tell later how a process ended that lives now; again is no more."""
        if process in self._fds or not self._supported or len(self._fds) >= self._most:
            return
        with suppress(OSError):
            fd = os.pidfd_open(process[0])
            try:
                sample = processes.sample(process[0])
                if sample is not None and sample.start_ticks == process[1]:
                    _reaped(fd)  # raises where the kernel has no such question
                    self._fds[process], fd = fd, -1
            except OSError:
                self._supported = False
            finally:
                if fd >= 0:
                    os.close(fd)

    def exitcode(self, process: Process) -> int | None:
        """Return an exit code as `multiprocessing` has it, None while or if it cannot be known."""
        status = None
        fd = self._fds.get(process)
        if fd is not None:
            with suppress(OSError):
                status = _reaped(fd)
        if status is None:
            status = _zombie(*process)
        return None if status is None else os.waitstatus_to_exitcode(status)

    def keep(self, wanted: Collection[Process]) -> None:
        """Follow no others any more."""
        for process in self._fds.keys() - wanted:
            os.close(self._fds.pop(process))

    def close(self) -> None:
        """Follow none any more."""
        self.keep(())


def _reaped(fd: int) -> int | None:
    """Return the wait status of a process that was waited for, None before."""
    answer = bytearray(_INFO.pack(_EXIT, *[0] * 13))
    fcntl.ioctl(fd, _GET_INFO, answer)
    mask, *_, status = _INFO.unpack(answer)
    return int(status) if mask & _EXIT else None


def _zombie(pid: int, start_ticks: int) -> int | None:
    """Return the wait status of a zombie; 0 is also what /proc says to whom it does not tell."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
        if fields[0] == b"Z" and int(fields[19]) == start_ticks:
            return int(fields[49]) or None
    return None
