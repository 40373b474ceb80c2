"""Last words on disk: a file of JSON each, so that they outlive the agent.

A disk that is full, slow to come or not there costs what would be written, and a line of the log.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dlmon.analysis.deaths import Death

MOST_FILES = 200
MOST_BYTES = 64 * 1024
"""Of one file: what is longer is not written, nor read."""

_PREFIX, _SUFFIX = "death-", ".json"

logger = logging.getLogger(__name__)


class Evidence:
    """One directory with the last words of the newest deaths.

    Args:
        directory: Made if it is not there; an absolute path.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._complaint = ""

    def write(self, death: Death) -> None:
        """Keep a death, or what is known better of one that was kept."""
        # The name of a segment, which is in the key, need not be UTF-8.
        digest = hashlib.sha256(death.key.encode(errors="surrogatepass")).hexdigest()
        name = f"{_PREFIX}{digest[:24]}{_SUFFIX}"
        data = json.dumps(dataclasses.asdict(death)).encode("ascii")
        if len(data) > MOST_BYTES:
            data = json.dumps(dataclasses.asdict(_short(death))).encode("ascii")
        try:
            if len(data) > MOST_BYTES:
                raise OSError(f"the last words of {name} have {len(data)} bytes")
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            _replace(os.path.join(self._directory, name), data)
            self._remove_oldest()
            self._complaint = ""
        except OSError as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("cannot keep last words in %s: %s", self._directory, error)

    def read(self) -> list[Death]:
        """Return what is kept, the oldest first; files that are no last words are passed over."""
        deaths = (_read(path) for _, path in self._files()[-MOST_FILES:])
        return [death for death in deaths if death is not None]

    def _files(self) -> list[tuple[float, str]]:
        """Return when each file was written, and its path, the oldest first."""
        found = []
        with suppress(OSError), os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                    with suppress(OSError):
                        written = entry.stat(follow_symlinks=False).st_mtime
                        found.append((written, entry.path))
        return sorted(found)

    def _remove_oldest(self) -> None:
        for _, path in self._files()[:-MOST_FILES]:
            with suppress(OSError):
                os.unlink(path)


def _short(death: Death) -> Death:
    """Leave out what can be long."""
    return dataclasses.replace(death, memory={}, others=())


def _replace(path: str, data: bytes) -> None:
    """Write a file as a whole: whoever reads it sees the old one or the new one."""
    temporary = f"{path}.{os.getpid()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: str) -> Death | None:
    with suppress(OSError, ValueError, TypeError, RecursionError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return None
            return from_json(json.loads(file.read(MOST_BYTES)))
    return None


_TEXTS = ("key", "kind", "run", "rank", "loader", "worker", "reason", "sentence", "doing")
_MAPPINGS = ("memory", "private")


def from_json(document: object) -> Death:
    """Return a death from what `json` makes of one.

    Raises:
        TypeError: It is none, or lacks something.
    """
    if not isinstance(document, dict):
        raise TypeError("not an object")
    known = {field.name for field in dataclasses.fields(Death)}
    values: Mapping[str, Any] = {name: v for name, v in document.items() if name in known}
    for name, value in values.items():
        if name in _TEXTS:
            fits = isinstance(value, str)
        elif name in _MAPPINGS:
            fits = isinstance(value, dict)
        elif name == "others":
            fits = isinstance(value, list)
        else:
            fits = value is None or isinstance(value, int | float)
        if not fits:
            raise TypeError(name)
    return Death(**{**values, "others": tuple(values.get("others", ()))})
