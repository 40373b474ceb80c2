"""Start an agent beside the job of `dlmon run --serve`, unless one reads its directory already.

The job takes the place of this process and must find nothing that it would not have had: no child,
no descriptor, no signal. So the agent is a grandchild whose parent has ended, in a session of its
own, with nothing open but its log, its lock and, until it serves, a pipe on which it says so.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn

from dlmon.agent import jobs
from dlmon.agent.lock import AT, NO, TAKEN, AgentLock, find, log_path, open_log, url
from dlmon.errors import DlmonError
from dlmon.segment import files
from dlmon.shim import _run

START_SECONDS = 5.0
"""How long the job waits to be told where the agent is: its own start matters more."""

CLOCK_SECONDS = 0.1
"""What times of files and of processes may be off by. An agent needs longer to begin to serve."""


def serve(address: str, environment: Mapping[str, str], bootstrap: str) -> str:
    """Have an agent beside the job that this process is about to become.

    Args:
        address: Where it is to listen; "" for the usual address, or a free port if that is taken.
        environment: The job's.
        bootstrap: The directory that makes a job observed, which an agent has no use for.

    Returns:
        What to tell the user, "" for nothing.

    Raises:
        DlmonError: There is none.
    """
    try:
        return _serve(address, environment, bootstrap)
    except OSError as error:
        raise DlmonError(_reason(error)) from error


def _serve(address: str, environment: Mapping[str, str], bootstrap: str) -> str:
    directory = files.choose(environment.get("DLMON_DIR"))
    jobs.enter(directory)  # before the look: an agent that ends looks the other way round
    running = find(directory)
    if running is None:
        return _start(directory, address, _agent_environment(environment, bootstrap))
    # Of the ranks that start at once, only the one that started the agent says so; when it was
    # there before, the first rank does.
    before = running.since < _began() + CLOCK_SECONDS
    if running.address and before and _run.local_rank(environment) in ("", "0"):
        return f"agent at {url(running.address)}, already running"
    return ""


def _start(directory: str, address: str, environment: Mapping[str, str]) -> str:
    """Start an agent and return what to tell the user, "" if another one was faster.

    Raises:
        OSError, DlmonError: It could not be started.
    """
    read, write = os.pipe()
    try:
        child = os.fork()
        if not child:
            _detach(directory, address, environment, write)
        os.close(write)
        with suppress(ChildProcessError):  # where SIGCHLD is ignored
            os.waitpid(child, 0)
        report = _read_line(read)
    finally:
        os.close(read)
    if report is None:
        return f"an agent is starting; its log is {log_path(directory)}"
    word, _, rest = report.partition(" ")
    if word == AT:
        return f"agent at {url(rest)}"
    if word == TAKEN:
        return ""
    jobs.withdraw(directory)
    why = rest.replace("--web.listen-address", "--serve")
    raise DlmonError(why or f"it ended at once, its log is {log_path(directory)}")


def _detach(directory: str, address: str, environment: Mapping[str, str], report: int) -> NoReturn:
    """Leave a grandchild to become the agent."""
    try:
        os.setsid()
        if not os.fork():
            # Above the three that are about to be replaced; and inherited, unlike `report`.
            report = fcntl.fcntl(report, fcntl.F_DUPFD, 3)
            try:
                _become_agent(directory, address, environment, report)
            except BaseException as error:  # noqa: BLE001  # there is nobody else to tell
                os.write(report, f"{NO} {_reason(error)}\n".encode())
    finally:
        os._exit(0)


def _become_agent(
    directory: str, address: str, environment: Mapping[str, str], report: int
) -> None:
    """Let go of everything of the job's, take the lock and execute the agent.

    On failure: another process has the lock.
    """
    for fd in sorted(int(name) for name in os.listdir("/proc/self/fd")):
        if fd != report:
            with suppress(OSError):  # the one that listed them
                os.close(fd)
    os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: 0
    os.dup2(0, 1)
    os.dup2(0, 2)
    lock = AgentLock.take(directory)
    if lock is None:
        os.write(report, f"{TAKEN}\n".encode())
        return
    os.dup2(open_log(directory), 2)
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.set_inheritable(lock.fd, True)
    words = ["-m", "dlmon.agent.beside", directory, address, str(lock.fd), str(report)]
    os.execve(sys.executable, [sys.executable, *words], environment)


def _agent_environment(environment: Mapping[str, str], bootstrap: str) -> dict[str, str]:
    """Return the job's environment, with a path that holds wherever the agent is."""
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    path = [os.path.abspath(entry) for entry in given if entry and entry != bootstrap]
    path.append(os.path.join(bootstrap, "fallback"))  # a dlmon found by the working directory
    return {**environment, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


def _read_line(fd: int) -> str | None:
    """Return what the agent reports, "" if it ended before; None if that takes too long."""
    deadline = time.monotonic() + START_SECONDS
    text = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(fd, 4096)
        text += part
        if not part or text.endswith(b"\n"):
            return text.decode(errors="replace").strip()
    return None


def _began() -> float:
    """Return the Unix time at which this process began."""
    ticks = _run.start_ticks(os.getpid()) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks)


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split())
