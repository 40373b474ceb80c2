"""The `dlmon` command: picks a subcommand and turns errors into one line and an exit status."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from dlmon import __version__
from dlmon.errors import DlmonError

COMMANDS = {
    "run": "start a job instrumented, no code change",
    "agent": "run the daemon: metrics, health, API and a page",
    "ps": "list the ranks and loaders on this node",
    "stacks": "print the Python stacks of a rank and its workers",
    "dump": "print a segment, decoded",
    "demo": "run a real training job and watch its loaders",
    "gen": "regenerate the documents that come from code",
}
"""Every command and its summary; module `dlmon.commands.<name>` does the work."""

EXIT_USAGE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments without the program's name; `sys.argv[1:]` by default.

    Returns:
        The exit status: 0 for success, 2 for wrong use, 130 after Ctrl-C, else the command's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(arguments[0] if arguments else None)
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return EXIT_USAGE
    try:
        status = int(_module(args.command).main(args))
        sys.stdout.flush()
    except DlmonError as error:
        print(f"dlmon {args.command}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `dlmon ps | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _module(command: str):  # type: ignore[no-untyped-def]  # a module has no better type
    return importlib.import_module(f"dlmon.commands.{command}")


def _parser(chosen: str | None) -> argparse.ArgumentParser:
    """Build the parser, importing the module of the chosen command only."""
    parser = argparse.ArgumentParser(
        prog="dlmon",
        description="See inside PyTorch's DataLoader: who waits for whom, and why.",
    )
    parser.add_argument("--version", action="version", version=f"dlmon {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command, summary in COMMANDS.items():
        if command == chosen:
            module = _module(command)
            subparser = subparsers.add_parser(
                command,
                help=summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.configure(subparser)
        else:
            subparsers.add_parser(command, help=summary)
    return parser
