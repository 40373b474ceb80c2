"""Children of a process that is tested: are there any, and what do they return."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

CHILD_SECONDS = 60


def children() -> bool:
    """Return whether this process has any child, ended or not."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def in_child(live: Callable[[], T]) -> T:
    """Fork, do something in the child, and return what it returns; it must not fail."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(CHILD_SECONDS)
            os.write(writing, pickle.dumps(live()))
            os._exit(0)
        finally:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    result: T = pickle.loads(told)
    return result
