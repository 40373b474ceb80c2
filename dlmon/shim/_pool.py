"""The segments of this process: made once, kept for as long as it lives, taken again and again.

They outlive `uninstrument()`: closing one would drop the locks of all, and a job that is observed
off and on must not run out of descriptors.

Runs in: rank, and any process that iterates a DataLoader. On failure: the iterator at hand runs
unobserved, and the user is told once.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, writer
from dlmon.segment.writer import Segment
from dlmon.shim import _guard, _others
from dlmon.shim._recorder import IteratorRecorder

MAX_SEGMENTS = 256
SHARE_OF_FILES = 16
"""A process has at most MAX_SEGMENTS segments, with two descriptors each, and no more than its soft
limit of open files divided by SHARE_OF_FILES; iterators beyond run unobserved."""

_GENERATION = layout.cell_index(0, "generation")
_GOODBYE = layout.cell_index(0, "goodbye")

Key = tuple[str | None, ...]
"""Which segments an iterator can take: those of its directory, run, rank, loader and workers."""

_kept: dict[Key, dict[Segment, IteratorRecorder | None]] = {}
_directories: dict[str | None, str] = {}
_pid = 0
_made = 0


def take(info: Mapping[str, Any], directory: str | None, workers: int) -> Segment | None:
    """Return a segment that nobody writes to, None if there can be no more.

    The taker says with `use` who writes to it.

    Args:
        info: What the segment will say of its owner.
        directory: Where segments are kept, None for the default.
        workers: Slots besides the rank's.
    """
    global _pid, _made
    if _pid != os.getpid():  # those of the parent are not this process's
        _kept.clear()
        _directories.clear()
        _pid, _made = os.getpid(), 0
    key = _key(info, directory, workers)
    segment = _recycle(_kept.get(key, {}))
    if segment is None and (segment := _create(info, directory, workers)) is not None:
        # Until `use`, which what a signal handler raises may prevent.
        _kept.setdefault(key, {})[segment] = None
    return segment


def use(
    segment: Segment, info: Mapping[str, Any], directory: str | None, user: IteratorRecorder
) -> None:
    """Have `user` write to a segment until it is released."""
    _kept.setdefault(_key(info, directory, segment.workers), {})[segment] = user


def move(user: IteratorRecorder, before: Mapping[str, Any], directory: str | None) -> None:
    """Keep a segment for the loader that its info names now, no more for the one it named before.

    Args:
        user: Who writes to it.
        before: What its info was.
        directory: Where it is kept, None for the default.
    """
    segment = user.segment
    del _kept[_key(before, directory, segment.workers)][segment]
    use(segment, user.info, directory, user)


def _key(info: Mapping[str, Any], directory: str | None, workers: int) -> Key:
    return (directory, info["run"], info["rank"], info["loader"], str(workers))


def _recycle(used: Mapping[Segment, IteratorRecorder | None]) -> Segment | None:
    """Return a segment that nobody writes to any more, None if there is none."""
    for segment, user in used.items():
        if user is None or user.released or user.alive() is None:
            if user is not None:
                user.exits.settle()
            segment.cells[_GENERATION] += 1  # first: a worker compares after it took its byte
            if not segment.worker_held():
                return segment
    return None


def _create(info: Mapping[str, Any], asked: str | None, workers: int) -> Segment | None:
    global _made
    files_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(MAX_SEGMENTS, files_limit // SHARE_OF_FILES)
    if _made >= most:
        _guard.warn_once(
            f"{most} segments are in use, one for each loader and for each of its iterators "
            "at once; further ones are not observed"
        )
        return None
    try:
        directory = _directories.get(asked)
        if directory is None:
            directory = _directories[asked] = files.choose(asked)
            if f"{info['pid']}-{info['start_ticks']}" == info["root"]:
                _others.remove_stale(directory)
        segment = writer.create(directory, info, workers)
    except (SegmentError, OSError, ValueError) as error:
        _guard.warn_once(f"DataLoaders are not observed: {error}")
        return None
    _made += 1
    if _made == 1:
        _at_end(_say_goodbye)
    segment.cells[_GENERATION] = 1
    return segment


def _say_goodbye() -> None:
    """Say goodbye in every segment, and remove those that no worker still uses."""
    if os.getpid() != _pid:
        return
    for used in list(_kept.values()):
        for segment, user in list(used.items()):
            if user is not None:
                user.exits.settle()
            segment.cells[_GOODBYE] = 1
            if not segment.worker_held():
                with suppress(OSError):
                    os.unlink(segment.path)


def _at_end(function: Callable[[], None]) -> None:
    """Call `function` when the process ends in order, after multiprocessing ended its children."""
    from multiprocessing import util  # torch has imported it

    util.Finalize(None, function, exitpriority=-1000)
