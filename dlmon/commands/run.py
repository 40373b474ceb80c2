"""Start a job with its DataLoaders observed; nothing in it changes, and no agent is needed.

  dlmon run train.py --lr 0.1            a script, run by the Python that runs dlmon
  dlmon run -m package.train --lr 0.1    a module, likewise
  dlmon run torchrun train.py --lr 0.1   any other command, found as the shell finds it

Options of dlmon come first; from the job's own first word on, everything is the job's. The job
takes the place of dlmon: same process, terminal, directory, signals and exit status. Every Python
process that it starts is observed too, ranks and spawned workers included, unless it ignores
PYTHONPATH (python -I, -E, -S) or is given another one.

DLMON_DISABLE=1 in the environment starts the job unobserved.

With --serve an agent runs beside the job, with the page and /metrics of `dlmon agent`, unless one
reads the directory of the segments already: one for all jobs there, however many start at once. It
prints where, and ends some seconds after the last job that was started with --serve. It is no child
of the job's, and if it cannot be started the job runs on without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import dlmon
from dlmon.errors import UsageError
from dlmon.segment import files

BOOTSTRAP = str(Path(dlmon.__file__).absolute().parent / "shim" / "bootstrap")
"""Its sitecustomize.py instruments each Python process that finds it on PYTHONPATH."""

EXPECTED = "give a script, -m MODULE or a command"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.usage = (
        "dlmon run [--serve [ADDR]] [--run ID] [--rank N] [--dir DIR] [--]\n"
        "                 SCRIPT.py [ARG ...] | -m MODULE [ARG ...] | COMMAND [ARG ...]"
    )
    parser.allow_abbrev = False  # else the job's own `--r` is an ambiguous option of ours
    _let_address_be_left_out(parser)
    parser.add_argument(
        "--serve",
        nargs="?",
        type=_address,
        const="",
        metavar="ADDR",
        help="run an agent beside the job; ADDR is HOST:PORT, [IPv6]:PORT or :PORT, by default "
        "that of `dlmon agent`, or another port where that one is taken",
    )
    parser.add_argument("--run", metavar="ID", help="name this launch; default: the launcher's id")
    parser.add_argument(
        "--rank", type=_rank, metavar="N", help="the global rank; default: the launcher's, else 0"
    )
    parser.add_argument(
        "--dir",
        metavar="DIR",
        help=f"where segments are kept, on tmpfs; default {files.NODE_DIR} where it is, "
        f"else {files.SHM}/{files.USER_PREFIX}UID",
    )
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        metavar=("MODULE", "ARG"),
        help="run a module instead of a script",
    )
    parser.add_argument(
        "job", nargs=argparse.REMAINDER, metavar="JOB", help="what to run, and its arguments"
    )


def main(args: argparse.Namespace) -> NoReturn:
    """Replace this process by the job.

    Raises:
        UsageError: There is no job, or it cannot be started.
        SegmentError: The directory that was asked for cannot be used.
    """
    command = job_command(args.module, args.job)
    directory = files.choose(args.dir) if args.dir else None
    environment = job_environment(os.environ, run=args.run, rank=args.rank, directory=directory)
    if args.serve is not None and _can_be_observed(command, environment):
        _start_agent(args.serve, environment)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who started it
            stream.flush()
    # Python ignores these, and what is ignored stays ignored in what is executed.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        raise UsageError(f"{command[0]}: no such command; {EXPECTED}") from None
    except OSError as error:
        raise UsageError(f"{command[0]}: {error.strerror}; {EXPECTED}") from None


def job_command(module: Sequence[str] | None, job: Sequence[str]) -> list[str]:
    """Return the words to execute.

    Args:
        module: What followed `-m`, None without `-m`.
        job: The words that nothing else took, a leading `--` included.

    Raises:
        UsageError: There is no job, or its script does not exist.
    """
    if module is not None:
        # argparse ends REMAINDER of an option at `--`, and the rest is in `job`: all is the job's.
        if not module:
            raise UsageError(f"-m without a module; {EXPECTED}")
        return [sys.executable, "-m", *module, *job]
    words = list(job[1:] if job[:1] == ["--"] else job)
    if not words:
        raise UsageError(f"nothing to run; {EXPECTED}")
    if words[0] == "-m":  # after `--`
        return job_command(words[1:], [])
    if not words[0].endswith(".py"):
        return words
    if not os.path.exists(words[0]):
        raise UsageError(f"{words[0]}: no such file in {os.getcwd()}; {EXPECTED}")
    return [sys.executable, *words]


def job_environment(
    environment: Mapping[str, str], *, run: str | None, rank: str | None, directory: str | None
) -> dict[str, str]:
    """Return the environment in which a job is observed.

    Args:
        environment: What the job would have had.
        run: DLMON_RUN; None leaves the variable as it is, here and below.
        rank: DLMON_RANK.
        directory: DLMON_DIR.
    """
    options = {"DLMON_RUN": run, "DLMON_RANK": rank, "DLMON_DIR": directory}
    entries = environment.get("PYTHONPATH", "")
    if entries.split(os.pathsep)[0] != BOOTSTRAP:
        entries = BOOTSTRAP + os.pathsep + entries if entries else BOOTSTRAP
    given = {name: value for name, value in options.items() if value is not None}
    return {**environment, "PYTHONPATH": entries, **given}


def _can_be_observed(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether it makes sense to have an agent: the job will start, and is not disabled."""
    found = shutil.which(command[0], path=environment.get("PATH"))
    return found is not None and environment.get("DLMON_DISABLE") != "1"


def _start_agent(address: str, environment: Mapping[str, str]) -> None:
    """Have an agent beside the job; whatever goes wrong costs the job one line."""
    try:
        from dlmon.commands import _serve  # noqa: PLC0415  # no other job need wait for it

        said = _serve.serve(address, environment, BOOTSTRAP)
    except Exception as error:  # noqa: BLE001  # no agent is worth a job
        said = f"no agent: {str(error) or type(error).__name__}; the job runs on without one"
    if said and sys.stderr is not None:
        with suppress(OSError):
            print(f"dlmon: {' '.join(said.split())}", file=sys.stderr, flush=True)


def _let_address_be_left_out(parser: argparse.ArgumentParser) -> None:
    """Have the word after `--serve` be the job's if it is no address.

    argparse itself gives an option whose value may be missing whatever word comes next.
    """
    parse = parser.parse_known_args

    def parse_known_args(args: Sequence[str], namespace: object = None) -> Any:
        return parse(spelled_out(args), namespace)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign,assignment]


def spelled_out(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `--serve ADDR` as `--serve=ADDR`, else `--serve=`.

    Only where an option of dlmon can be: the job's own words stay what they are.
    """
    result: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        if rest[0].startswith("-m"):
            break
        option = rest.pop(0)
        if option == "--serve":
            option += "=" + (rest.pop(0) if rest and _is_address(rest[0]) else "")
        elif option in ("--run", "--rank", "--dir"):
            result.append(option)
            option = rest.pop(0) if rest else ""
        result.append(option)
    return result + rest


def _is_address(text: str) -> bool:
    from dlmon.agent import address  # noqa: PLC0415  # as above

    try:
        address.parse(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    if text and not _is_address(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address; give HOST:PORT, [IPv6]:PORT or :PORT"
        )
    return text


def _rank(text: str) -> str:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a rank; give a whole number, 0 or more")
    return str(int(text))
