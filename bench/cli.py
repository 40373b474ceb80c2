"""The command `python -m bench`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from bench import traceml
from bench.aims import Rows
from bench.plan import FULL_MINUTES, MEASUREMENTS, QUICK_MINUTES, Options, measure
from bench.progress import Progress
from bench.recorded import NotRecordedError
from bench.report import Report
from bench.workloads import PINS
from dlmon.commands._table import has_colour
from dlmon.errors import UsageError

DESCRIPTION = """\
Measure what dlmon adds to a DataLoader's loop in CPU time, beside the bare loop and beside what
else people put into one. Leave the machine alone meanwhile.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        0; 1 if a variant did not record what was iterated; 130 after Ctrl-C.
    """
    args = _parser().parse_args(arguments)
    default = QUICK_MINUTES if args.quick else FULL_MINUTES
    minutes = default if args.minutes is None else args.minutes
    options = Options(minutes, args.quick, args.pin, args.peers)
    names = [name for name in MEASUREMENTS if not args.only or name in args.only]
    progress = Progress(sys.stderr)
    try:
        report = _measured(names, options, progress)
    except (NotRecordedError, UsageError) as error:
        progress.say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        progress.say("interrupted: nothing was measured to the end")
        return 128 + signal.SIGINT
    if args.json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        print(report.text(colour=has_colour(sys.stdout, os.environ)))
    return 1 if report.failed else 0


def _measured(names: Sequence[str], options: Options, progress: Progress) -> Report:
    torch.set_num_threads(1)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="dlmon-bench-", dir=_memory()) as directory:
        rows = {name: measure(MEASUREMENTS[name], options, directory, progress) for name in names}
    theirs: Rows | str = traceml.NOT_INSTALLED
    failed = False
    if options.peers and traceml.installed():
        try:
            theirs = traceml.rows(names, options)
        except NotRecordedError as error:  # it costs nobody else a row
            theirs, failed = f"not measured: {error}", True
    return Report(options, time.monotonic() - begun, rows, theirs, failed)


def _memory() -> str | None:
    """Return where files are kept in memory; None for where temporary files usually are."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=DESCRIPTION)
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        metavar="NAME",
        help=f"measure this only, may be given again: {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help=f"how long to measure if all is measured (default: {FULL_MINUTES:.0f})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"short blocks, and {QUICK_MINUTES} minutes unless told otherwise: a first look",
    )
    parser.add_argument(
        "--no-peers", dest="peers", action="store_false", help="leave out all but dlmon"
    )
    parser.add_argument(
        "--pin",
        choices=PINS,
        default=PINS[0],
        help="on which cores the main process and its workers are (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser
