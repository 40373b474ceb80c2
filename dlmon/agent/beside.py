"""The agent that `dlmon run --serve` starts beside its job: it ends after the last of such jobs.

Run as `python -m dlmon.agent.beside DIRECTORY ADDRESS LOCK REPORT`, by a process that has taken the
lock of the directory and left everything else behind. LOCK is the lock's descriptor. ADDRESS may be
empty: the usual one then, or any free port where that is taken. On the descriptor REPORT it says
once, in one line, where it serves or why it cannot.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import replace

from dlmon.agent import assembly, jobs, log
from dlmon.agent.config import Config, Web
from dlmon.agent.daemon import Daemon
from dlmon.agent.lock import AT, NO, AgentLock, log_path, open_log
from dlmon.errors import DlmonError, UsageError
from dlmon.observe.snapshot import Snapshot

LINGER_SECONDS = 5.0
"""How long it stays after the last job, for a last scrape and for who looks at the page."""

LOG_BYTES = 1 << 20

_FREE_PORT = "127.0.0.1:0"


def main(directory: str, address: str, lock_fd: int, report_fd: int) -> int:
    """Watch one directory until its jobs have ended."""
    log.configure(limit=LOG_BYTES)
    lock = AgentLock.adopt(directory, lock_fd)
    os.set_inheritable(report_fd, False)
    if lock is None:
        return 1
    try:
        daemon = _daemon(directory, address)
    except DlmonError as error:
        _leave(lock)
        _report(report_fd, f"{NO} {error}")
        return 2
    lock.tell(daemon.address)
    _report(report_fd, f"{AT} {daemon.address}")
    stay = _Stay(lock, daemon.address)
    try:
        daemon.run(stay.is_over)
    finally:
        _leave(stay.lock)
    return 0


class _Stay:
    """Tells when nobody is left for whom the agent is there.

    Args:
        lock: Held.
        address: Where the agent serves.

    Attributes:
        lock: The one it has now, or had.
    """

    def __init__(self, lock: AgentLock, address: str) -> None:
        self._directory = lock.directory
        self.lock = lock
        self._address = address
        self._needed = time.monotonic()

    def is_over(self, seen: Snapshot | None) -> bool:
        """Look for jobs, and end the agent when there have been none for a while."""
        now = time.monotonic()
        ranks = () if seen is None else (*seen.ranks, *seen.superseded)
        if jobs.any_living(self._directory) or any(rank.up for rank in ranks):
            self._needed = now
            return False
        if now - self._needed < LINGER_SECONDS:
            return False
        _leave(self.lock)
        # A job that was entered before the lock was free may have counted on this agent.
        return not (jobs.any_living(self._directory) and self._come_back())

    def _come_back(self) -> bool:
        """Take the lock again, unless another agent has it."""
        with suppress(OSError):
            lock = AgentLock.take(self._directory)
            if lock is not None:
                self.lock = lock
                self._needed = time.monotonic()
                lock.tell(self._address)
                fd = open_log(self._directory)
                os.dup2(fd, sys.stderr.fileno())
                os.close(fd)
                return True
        return False


def _leave(lock: AgentLock) -> None:
    """Remove what only this agent needed, then let the lock go; safe to call twice."""
    if lock.fd >= 0:
        with suppress(OSError):
            os.unlink(log_path(lock.directory))
        jobs.clear(lock.directory)
        lock.release()


def _daemon(directory: str, address: str) -> Daemon:
    config = Config(dirs=(directory,))
    if address:
        return assembly.daemon(replace(config, web=Web(listen_address=address)), node=False)
    try:
        return assembly.daemon(config, node=False)
    except UsageError:
        return assembly.daemon(replace(config, web=Web(listen_address=_FREE_PORT)), node=False)


def _report(fd: int, line: str) -> None:
    with suppress(OSError):  # nobody waits for it any more
        os.write(fd, f"{' '.join(line.split())}\n".encode())
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
