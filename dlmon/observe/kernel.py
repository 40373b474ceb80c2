"""What the kernel says a process does: its state, where it waits, its system call, its threads.

Runs in: agent and the commands. On failure: what may not be read is None.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from dlmon.observe import processes

PIN_THREAD = b"pt_data_pin"
"""The name that torch gives to a thread that pins memory, from 2.6 on."""

_MAX_TASKS = 4096

_CALLS = {
    0: "read",
    1: "write",
    7: "poll",
    9: "mmap",
    16: "ioctl",
    17: "pread64",
    18: "pwrite64",
    19: "readv",
    20: "writev",
    23: "select",
    34: "pause",
    35: "nanosleep",
    42: "connect",
    43: "accept",
    44: "sendto",
    45: "recvfrom",
    46: "sendmsg",
    47: "recvmsg",
    58: "vfork",
    61: "wait4",
    72: "fcntl",
    73: "flock",
    74: "fsync",
    128: "rt_sigtimedwait",
    202: "futex",
    230: "clock_nanosleep",
    232: "epoll_wait",
    247: "waitid",
    257: "openat",
    262: "newfstatat",
    270: "pselect6",
    271: "ppoll",
    281: "epoll_pwait",
    332: "statx",
    435: "clone3",
}
"""Of x86-64, those in which a process may be for long (arch/x86/entry/syscalls/syscall_64.tbl)."""


@dataclass(frozen=True, slots=True)
class Doing:
    """What the main thread of a process does.

    Attributes:
        state: A letter as in /proc/<pid>/stat: R, S, D, T, t, Z.
        wchan: The kernel function in which it waits; "" while it does not.
        syscall: The system call it is in, by name or number; "running" outside of any.
    """

    state: str | None = None
    wchan: str | None = None
    syscall: str | None = None


def doing(pid: int) -> Doing:
    """Look at a process once."""
    seen = processes.sample(pid)
    wchan = _read(pid, "wchan")
    return Doing(
        state=seen.status if seen else None,
        wchan="" if wchan == "0" else wchan,
        syscall=_syscall(_read(pid, "syscall")),
    )


def pin_threads(pid: int) -> int | None:
    """Count the living threads of a process that pin memory; None if it cannot be looked into."""
    found = 0
    try:
        tasks = os.listdir(f"/proc/{pid}/task")[:_MAX_TASKS]
    except OSError:
        return None
    for task in tasks:
        with suppress(OSError), open(f"/proc/{pid}/task/{task}/comm", "rb") as file:
            found += file.read(64).strip() == PIN_THREAD
    return found


def _read(pid: int, name: str) -> str | None:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read(256).decode("ascii", "replace").strip()
    except OSError:
        return None


def _syscall(text: str | None) -> str | None:
    number = (text or "").partition(" ")[0]
    if number.isdecimal():
        call = int(number)
        return _CALLS.get(call, str(call)) if os.uname().machine == "x86_64" else str(call)
    return "running" if number == "running" else None
