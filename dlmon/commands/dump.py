"""Print a segment, decoded: who it belongs to, who of its writers lives, and every field.

Segments are in /run/dlmon and /dev/shm/dlmon-<uid>, or where DLMON_DIR says. Fields are found by
name in the file's own table, so one written by another release of dlmon is shown too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time

from dlmon.segment import dump
from dlmon.segment.reader import SegmentFile

_STYLES = {"bold": "1", "good": "32", "bad": "31", "faint": "2"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", metavar="FILE", help="a segment (*.seg)")
    parser.add_argument("--json", action="store_true", help="print JSON, cells as they are")


def main(args: argparse.Namespace) -> int:
    """Print it.

    Raises:
        SegmentError: It is no segment this release can read.
    """
    file = SegmentFile(args.file)
    try:
        reading = file.read(time.monotonic_ns())
    finally:
        file.close()
    unix = time.time()
    if args.json:
        print(json.dumps(dump.as_json(reading, unix), indent=2))
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal's encoding may lack a character
        sys.stdout.reconfigure(errors="backslashreplace")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in dump.lines(reading, unix, _painted if colour else _plain):
        print(line)
    return 0


def _painted(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def _plain(text: str, _: str) -> str:
    return text
