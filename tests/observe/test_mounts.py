"""Whether a path is in memory, from the table of mounts: whatever is mounted on whatever."""

from __future__ import annotations

import os

import pytest

from dlmon.observe.mounts import Mounts

CONTAINER = """\
600 500 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/a
601 600 0:51 / /proc rw - proc proc rw
602 600 0:52 / /dev rw - tmpfs tmpfs rw
603 602 0:53 / /dev/shm rw - tmpfs shm rw,size=65536k
604 600 0:54 /export/run /run rw - nfs4 server:/export rw
605 604 0:55 / /run/lock rw - tmpfs tmpfs rw
606 600 0:56 / /with\\040space\\134 rw - ramfs none rw
"""


@pytest.mark.parametrize(
    ("path", "in_memory"),
    [
        ("/dev/shm", True),
        ("/dev/shm/dlmon-1000", True),
        ("/dev/shmother", True),
        ("/run/dlmon", False),
        ("/run/lock/dlmon", True),
        ("/tmp", False),
        ("/", False),
        ("/with space\\/x", True),
    ],
)
def test_a_path_is_on_the_last_mount_on_its_way(path: str, in_memory: bool) -> None:
    assert Mounts(CONTAINER.splitlines()).in_memory(path) == in_memory


def test_what_is_mounted_over_counts_and_what_is_below_that_is_hidden() -> None:
    over = CONTAINER + "607 603 0:57 / /dev/shm rw - fuse.sshfs there rw\n"
    assert not Mounts(over.splitlines()).in_memory("/dev/shm")
    hidden = CONTAINER + "607 602 0:57 / /dev rw - fuse x rw\n"
    assert not Mounts(hidden.splitlines()).in_memory("/dev/shm")


def test_of_a_root_in_the_middle_of_a_mount_what_is_mounted_below_is_known() -> None:
    mounts = Mounts(["603 602 0:53 / /dev/shm rw - tmpfs shm rw"])
    assert mounts.in_memory("/dev/shm")
    assert not mounts.in_memory("/run/dlmon")


def test_the_devices_in_memory_are_those_of_all_mounts_there() -> None:
    mounts = Mounts(CONTAINER.splitlines())
    assert mounts.memory_devices == {os.makedev(0, minor) for minor in (52, 53, 55, 56)}


@pytest.mark.parametrize(
    "line", ["", "x", "1 2 3 4", "1 2 x:y / / rw - tmpfs x rw", "1 2 0:3 / /\\x"]
)
def test_a_line_that_is_no_mount_is_left_out(line: str) -> None:
    mounts = Mounts([line, *CONTAINER.splitlines()])
    assert mounts.in_memory("/dev/shm")


def test_this_process_has_its_shared_memory_in_memory() -> None:
    mounts = Mounts.of(os.getpid())
    assert mounts.in_memory("/dev/shm")
    assert os.stat("/dev/shm").st_dev in mounts.memory_devices
    assert not mounts.in_memory("/proc/self")
