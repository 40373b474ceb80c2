"""The Python stacks of another process, by py-spy, without stopping it.

py-spy reads the memory of the process while that goes on (`--nonblocking`), in 10 to 20 ms, so it
works on a stopped process or one that cannot be interrupted, and a stack may be incomplete: take
several. Never the values of local variables.

Runs in: agent and the commands, as a process group of its own with a time limit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 5.0
MAX_THREADS = 64
MAX_FRAMES = 128
MAX_TEXT = 256
_MAX_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of a function that has not returned; what was not to be had is "" or 0."""

    function: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Thread:
    """One Python thread.

    Attributes:
        name: As in Python; "" if it has none.
        os_id: As in /proc/<pid>/task.
        active: It was on a CPU.
        owns_gil: It holds the interpreter.
        frames: The innermost first.
    """

    name: str
    os_id: int
    active: bool
    owns_gil: bool
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """All threads of a process at one moment.

    Attributes:
        threads: The main thread first; none if `trouble`.
        trouble: Why there is no stack, a sentence; "" if there is one.
        refused: That is since this process may not look into that one.
    """

    threads: tuple[Thread, ...] = ()
    trouble: str = ""
    refused: bool = False


def program() -> str | None:
    """Return the path of py-spy: beside this Python's, else on PATH; None if there is none."""
    own = Path(sys.executable).with_name("py-spy")
    return str(own) if own.exists() else shutil.which("py-spy")


def take(pid: int) -> Stack:
    """Take the stack of a process once, within `LIMIT_SECONDS`.

    Args:
        pid: In this process's pid namespace.
    """
    spy = program()
    if spy is None:
        return Stack(trouble="py-spy is not installed beside dlmon; `pip install py-spy`")
    try:
        status, output, complaint = _run(
            [spy, "dump", "--nonblocking", "--json", "--pid", f"{pid}"]
        )
    except OSError as error:
        return Stack(trouble=f"{spy} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Stack(trouble=f"py-spy did not end within {LIMIT_SECONDS:g} s")
    if status != 0:
        return _failed(pid, complaint)
    try:
        threads = tuple(_threads(json.loads(output)))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Stack(trouble="py-spy's answer makes no sense")
    return Stack(tuple(sorted(threads, key=lambda thread: thread.os_id != pid)))


def _run(command: Sequence[str]) -> tuple[int, bytes, bytes]:
    environment = {**os.environ, "RUST_BACKTRACE": "0", "RUST_LIB_BACKTRACE": "0"}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as process:
        try:
            output, complaint = process.communicate(timeout=LIMIT_SECONDS)
        except BaseException:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output[:_MAX_BYTES], complaint


def _failed(pid: int, complaint: bytes) -> Stack:
    if not os.path.exists(f"/proc/{pid}"):
        return Stack(trouble=f"process {pid} has ended")
    lines = complaint.decode(errors="replace").strip().splitlines() or ["no reason given"]
    if any("permission denied" in line.lower() or "os error 1)" in line for line in lines):
        return Stack(
            trouble=f"not permitted to look into process {pid}: that needs its user and ptrace"
            " (sysctl kernel.yama.ptrace_scope=0), or CAP_SYS_PTRACE",
            refused=True,
        )
    causes = [line.strip() for line in lines[1:] if line.strip()[:2] in ("0:", "1:")]
    return Stack(trouble="py-spy: " + _text("; ".join([lines[0].removeprefix("Error: "), *causes])))


def _threads(document: Any) -> Iterator[Thread]:
    for thread in document[:MAX_THREADS]:
        frames = (
            Frame(
                _text(frame.get("name")), _text(frame.get("filename")), _number(frame.get("line"))
            )
            for frame in thread["frames"][:MAX_FRAMES]
        )
        yield Thread(
            name=_text(thread.get("thread_name")),
            os_id=_number(thread.get("os_thread_id")),
            active=thread.get("active") is True,
            owns_gil=thread.get("owns_gil") is True,
            frames=tuple(frames),
        )


def _text(value: object) -> str:
    """Return what a watched process calls something as at most `MAX_TEXT` printable characters."""
    shown = value[:MAX_TEXT] if isinstance(value, str) else ""
    return "".join(c if c.isprintable() else "\ufffd" for c in shown)


def _number(value: object) -> int:
    return value if type(value) is int else 0
