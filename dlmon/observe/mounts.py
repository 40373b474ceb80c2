"""Which file system a path is on, from a process's table of mounts: without touching the path.

A path on storage that does not answer cannot be asked for its file system.

Source: proc_pid_mountinfo(5).

Runs in: agent and the commands. On failure: a line that cannot be read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from dlmon.segment.files import MEMORY_FILE_SYSTEMS


@dataclass(frozen=True, slots=True)
class _Mount:
    identity: str
    parent: str
    point: str
    in_memory: bool


_OUTSIDE = _Mount("", "", "/", in_memory=False)
"""What the root of a process is on that is in the middle of a mount."""


class Mounts:
    """The mounts below the root of a process.

    Attributes:
        memory_devices: Of the file systems in memory.
    """

    def __init__(self, lines: Iterable[str] = ()) -> None:
        """Understand a table.

        Args:
            lines: As in /proc/<pid>/mountinfo.
        """
        self.memory_devices: set[int] = set()
        found = []
        for line in lines:
            with suppress(ValueError):
                found.append(self._parse(line))
        known = {mount.identity for mount in found}
        self._root = _OUTSIDE
        self._upon: dict[tuple[str, str], _Mount] = {}
        for mount in found:
            if mount.parent in known - {mount.identity}:
                self._upon[mount.parent, mount.point] = mount
            elif mount.point == "/":
                self._root = mount
            else:
                self._upon[_OUTSIDE.identity, mount.point] = mount

    @classmethod
    def of(cls, pid: int) -> Mounts:
        """Read the table of a process.

        Raises:
            OSError: It may not be read, or the process is gone.
        """
        with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            return cls(lines)

    def in_memory(self, path: str) -> bool:
        """Return whether a path without links is on a file system in memory.

        Args:
            path: From the process's root on, absolute.
        """
        mount, point = self._root, ""
        for name in path.strip("/").split("/"):
            point += f"/{name}"
            # What is mounted there, on that mount: what is below another one is hidden.
            while (upper := self._upon.get((mount.identity, point))) is not None:
                mount = upper
        return mount.in_memory

    def _parse(self, line: str) -> _Mount:
        fields, _, tail = line.partition(" - ")
        identity, parent, device, _, point = fields.split(" ")[:5]
        major, _, minor = device.partition(":")
        in_memory = tail.split(" ", 1)[0] in MEMORY_FILE_SYSTEMS
        if in_memory:
            self.memory_devices.add(os.makedev(int(major), int(minor)))
        return _Mount(identity, parent, _plain(point), in_memory)


def _plain(point: str) -> str:
    r"""Return a path in which space, tab, line feed and \ are not escaped as \040 and so on."""
    first, *others = point.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)
