"""What dlmon has counted, from the segments of a process and of its children that are dead."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from dlmon.segment import cells, layout, meaning, reader, writer
from dlmon.shim import _pool
from tests.shim.modelled import Counts

MARK = "watched"
"""How the names of loaders begin whose counts are known."""

_layouts: dict[str, cells.Layout] = {}


def of_this_process() -> Counts:
    """Return what this process has counted; it must not open its own segments.

    A worker that another thread just reaps, as every start of a process does, has no exit code for
    that moment: it is counted later, with the next iterator or at the end of this process.
    """
    for used in _pool._kept.values():
        for user in used.values():
            if user is not None:
                user.exits.settle()
    counts: Counts = Counter()
    for segment in writer._kept:
        data = bytes(segment.bytes)
        if segment.path not in _layouts:
            _layouts[segment.path] = reader.parse(segment.path, data, len(data))
        counts += _of(_layouts[segment.path], data)
    return counts


def of_the_dead(directory: Path) -> Counts:
    """Return what children have counted that are no more, and remove their segments."""
    own = {segment.path for segment in writer._kept}
    counts: Counts = Counter()
    for path in directory.iterdir():
        if str(path) not in own:
            assert not path.name.startswith("."), path  # half made
            data = path.read_bytes()
            counts += _of(reader.parse(str(path), data, len(data)), data)
            os.unlink(path)
    return counts


def known(counts: Counts) -> Counts:
    """Return those counts of which the model knows what they have to be."""
    return Counter({key: count for key, count in counts.items() if count and _is_known(*key)})


def _is_known(name: str, what: str) -> bool:
    with_workers = not name.startswith(f"{MARK} 0")
    if not name.startswith(MARK) or (with_workers and name.endswith("inner")):
        return False  # what a worker itself iterates is in segments that go with it
    return not (with_workers and what == "samples")  # what is read ahead depends on who is faster


def _of(plan: cells.Layout, data: bytes) -> Counts:
    counts: Counts = Counter()
    rank = plan.cells(data, 0)
    offset, size = plan.info
    name = str(reader.parse_info("", data[offset : offset + size])["loader"]).partition("#")[0]
    counts[name, "epochs"] = rank["iterations"]
    counts[name, "batches"] = meaning.batches(rank)
    counts[name, "errors"] = rank.run("errors")[layout.ERRORS.index("fetch")]
    counts[name, "starts"] = rank["worker_starts"]
    counts[name, "ends"] = sum(rank.run("worker_exits"))
    counts[name, "samples"] = meaning.samples(rank)
    return counts
