"""What the commands that look at this node themselves share: where, at what, and how they print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from io import TextIOWrapper

from dlmon.observe.containers import Containers
from dlmon.observe.gpus import Gpus
from dlmon.observe.memory import Scanner
from dlmon.observe.observer import Observer
from dlmon.observe.snapshot import Snapshot
from dlmon.observe.unobserved import Finder
from dlmon.segment import files

SCAN_SECONDS = 0.5
"""CPU time that reading PSS and USS may take: they cost 14 ms per GB."""

ANSWER_SECONDS = 1.0
"""How long NVML, or a process that is stuck, has to answer."""


def add_options(parser: argparse.ArgumentParser, json_help: str) -> None:
    """Add `--json` and `--dir` to `parser`."""
    parser.add_argument("--json", action="store_true", help=json_help)
    parser.add_argument(
        "--dir",
        action="append",
        metavar="DIR",
        help="look for segments here instead, may be repeated; "
        f"default: DLMON_DIR where it is set, {', '.join(files.SEARCHED)}",
    )


def directories(args: argparse.Namespace) -> tuple[str, ...]:
    """Return where to look for segments."""
    return tuple(args.dir or files.searched(os.environ))


def observe(where: Sequence[str]) -> Snapshot:
    """Look once, at what costs nobody anything."""
    with closing(Observer(where, containers=Containers(where).look)) as observer:
        return observer.observe()


def observe_all(where: Sequence[str], *, unobserved: bool) -> Snapshot:
    """Look at all there is, at PSS and USS within `SCAN_SECONDS`.

    Args:
        where: Directories.
        unobserved: Whether to look for workers of which no segment there tells.
    """
    gpus, finder = Gpus(ANSWER_SECONDS), Finder()
    observer = Observer(
        where,
        containers=Containers(where).look,
        gpus=gpus.now,
        unobserved=finder.now,
        scanner=Scanner.at_once(SCAN_SECONDS),
    )
    with closing(gpus), closing(finder), closing(observer):
        gpus.start(ANSWER_SECONDS)
        observer.observe()  # scans, and tells the finder who is observed
        if unobserved:
            finder.start(ANSWER_SECONDS)
        return observer.observe()


def print_any_text(instead: str) -> None:
    """Let what the locale's encoding lacks, such as a dash, be printed as something else.

    Args:
        instead: An error handler of `codecs`.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors=instead)
