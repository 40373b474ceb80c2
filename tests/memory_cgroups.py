"""Cgroups of the kernel's for tests, version 1, below the root of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.jobs import wait_for

ROOT = Path("/sys/fs/cgroup/memory")
FREEZER = Path("/sys/fs/cgroup/freezer")


@contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """Make a cgroup with a limit; skip the test where that cannot be done.

    Its members must have ended, or soon end, when it is left.
    """
    if not os.access(ROOT / "cgroup.procs", os.W_OK):
        pytest.skip("needs root and a memory controller of version 1")
    directory = ROOT / f"dlmon-test-{os.getpid()}"
    directory.mkdir()
    try:
        (directory / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield directory
    finally:
        wait_for(lambda: not (directory / "cgroup.procs").read_text(), "end of its members")
        directory.rmdir()


@contextmanager
def freezer_cgroup() -> Iterator[Path]:
    """Make a cgroup that can be frozen, and thaw it; skip the test where that cannot be done.

    Its members go back to the root when it is left.
    """
    if not os.access(FREEZER / "cgroup.procs", os.W_OK):
        pytest.skip("needs root and a freezer of version 1")
    directory = FREEZER / f"dlmon-test-{os.getpid()}"
    directory.mkdir()
    try:
        yield directory
    finally:
        (directory / "freezer.state").write_text("THAWED")
        for pid in (directory / "cgroup.procs").read_text().split():
            (FREEZER / "cgroup.procs").write_text(pid)
        wait_for(lambda: not (directory / "cgroup.procs").read_text(), "end of its members")
        directory.rmdir()
