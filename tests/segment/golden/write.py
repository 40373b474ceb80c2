"""Write the golden segment of today's layout: run it when `dlmon.segment.layout.MINOR` was raised.

    python -m tests.segment.golden.write

It lets the real writer make a segment, fills it with `forge.busy()`, and keeps the bytes as
v<MAJOR>.<MINOR>.seg beside this file, with what `dlmon dump` says of it. A golden file of a release
is never changed: it stands for the jobs that an agent may meet.
"""

from __future__ import annotations

import os
import struct
import sys
import tempfile
from pathlib import Path

from dlmon.segment import dump, layout
from dlmon.segment.layout import HEADER
from dlmon.segment.reader import SegmentFile
from dlmon.segment.writer import create
from tests.segment import forge

HERE = Path(__file__).parent
CURRENT = f"v{layout.MAJOR}.{layout.MINOR}"
FUTURE = "future-minor"


def today() -> bytes:
    """Return what today's writer makes, with times and cells that are always the same."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        segment = create(directory, forge.INFO, 2)
        for (slot, name), values in forge.busy().items():
            first = layout.cell_index(slot, name)
            for i, value in enumerate([values] if isinstance(values, int) else values):
                segment.cells[first + i] = value
        data = bytearray(segment.bytes)
    struct.pack_into("<Q", data, HEADER.size - 8, forge.CREATED)
    return bytes(data)


def text(name: str) -> str:
    """Return what `dlmon dump` says of a golden file 100 s after it was made."""
    directory = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = SegmentFile(f"{name}.seg", dir_fd=directory)
    finally:
        os.close(directory)
    try:
        reading = file.read(forge.NOW_NS)
    finally:
        file.close()
    lines = dump.lines(reading, forge.CREATED / 1e9 + 100, lambda text, _: text)
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write what is missing; the golden file of a version that is there stays as it is."""
    for name, data in ((CURRENT, today()), (FUTURE, forge.future_minor())):
        path = HERE / f"{name}.seg"
        if path.exists() and path.read_bytes() != data and name != FUTURE:
            print(
                f"{path}: today's layout gives other bytes. If {name} was released, raise MINOR "
                "(fields appended) or MAJOR (anything else); if not, remove the file and run again"
            )
            return 1
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(text(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
