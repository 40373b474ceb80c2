"""Train a small network on real photographs, with an agent beside it, and say what to look at.

Nothing is downloaded and nothing is left behind: Ctrl-C ends all processes and removes all files.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import socket
import sys
from contextlib import closing
from pathlib import Path

from dlmon.agent import address
from dlmon.demo.children import Children
from dlmon.demo.faults import FAULTS, FIRST_EPOCH
from dlmon.demo.interruptions import InterruptionError, Interruptions
from dlmon.errors import UsageError
from dlmon.segment.files import SHM

HOST = "127.0.0.1"
PORT = 10356
FILES_PER_PHOTOGRAPH = 100

_ANY = ("", "::", "0.0.0.0")  # noqa: S104  # compared with, not listened on

_MODULES = {"PIL": "Pillow", "numpy": "NumPy", "skimage": "scikit-image", "torch": "torch"}
"""What the training imports, and what it is called."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument(
        "--fault", choices=sorted(FAULTS), help=f"what goes wrong, from epoch {FIRST_EPOCH} on"
    )
    parser.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="of the train loader; default 2"
    )
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="end after so many; default: only at Ctrl-C"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=FILES_PER_PHOTOGRAPH,
        metavar="N",
        help=f"files cut out of each photograph; default {FILES_PER_PHOTOGRAPH}",
    )
    listen = parser.add_mutually_exclusive_group()
    listen.add_argument(
        "--web.listen-address",
        dest="listen",
        metavar="ADDRESS",
        help=f"where the agent serves; default {HOST}:{PORT}, or a free port if that is in use",
    )
    listen.add_argument("--port", type=int, metavar="N", help=f"the same on {HOST}")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path(SHM),
        metavar="DIR",
        help=f"a directory on tmpfs, to make a private one for segments in; default {SHM}",
    )


def main(args: argparse.Namespace) -> int:
    """Run the demo until it ends or is ended.

    Returns:
        0 after the last epoch; 128 plus the number of the signal that ended it; with `--epochs`
        the status of a training that failed; 1 if the agent ended by itself.

    Raises:
        UsageError: A value is out of range, a package is missing or an address cannot be used.
    """
    _check(args)
    from dlmon.demo.session import Plan, Session  # noqa: PLC0415  # Pillow: _check has found it

    host, port = _free_address(args)
    plan = Plan(
        listen=address.shown(host, port),
        url=f"http://{address.shown(host if host not in _ANY else 'localhost', port)}/",
        num_workers=args.num_workers,
        epochs=args.epochs,
        per_photograph=args.images,
        fault=args.fault,
    )
    with closing(Interruptions()) as interruptions, closing(Children(args.dir)) as children:
        try:
            status = Session(plan, children, interruptions).run()
        except InterruptionError as interruption:
            print("\nending the training and the agent", flush=True)
            status = 128 + interruption.signal
    print("ended; nothing is left behind")
    return status


def _check(args: argparse.Namespace) -> None:
    if args.num_workers < 0:
        raise UsageError(f"--num-workers {args.num_workers}: expected 0 or more")
    if args.epochs is not None and args.epochs < 1:
        raise UsageError(f"--epochs {args.epochs}: expected 1 or more")
    if args.images < 4:
        raise UsageError(f"--images {args.images}: expected 4 or more")
    if args.fault is not None:
        needed = FAULTS[args.fault].workers
        if args.num_workers < needed:
            raise UsageError(
                f"--num-workers {args.num_workers}: fault {args.fault} needs {needed} or more"
            )
        if args.epochs is not None and args.epochs < FIRST_EPOCH:
            raise UsageError(
                f"--epochs {args.epochs}: a fault begins in epoch {FIRST_EPOCH}; "
                f"give {FIRST_EPOCH} or more, or leave it out"
            )
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        packages = ["torch"] * ("torch" in missing) + ["'dlmon[demo]'"] * (missing != ["torch"])
        raise UsageError(
            f"{' and '.join(_MODULES[name] for name in missing)} not installed for "
            f"{sys.executable}; install: {sys.executable} -m pip install {' '.join(packages)}"
        )


def _free_address(args: argparse.Namespace) -> tuple[str, int]:
    """Return the host and port to serve on: as asked for, else the usual or a free one."""
    if args.listen is None and args.port is None:
        if _can_listen(HOST, PORT):
            return HOST, PORT
        with socket.create_server((HOST, 0)) as server:
            port: int = server.getsockname()[1]
        print(f"port {PORT} is in use, by an agent perhaps: taking {port}")
        return HOST, port
    text = args.listen if args.listen is not None else f"{HOST}:{args.port}"
    try:
        host, port = address.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not _can_listen(host, port):
        raise UsageError(f"{text} is in use; choose another port, or none to have one chosen")
    if port == 0:
        with socket.create_server((HOST, 0)) as server:
            port = server.getsockname()[1]
    return host, port


def _can_listen(host: str, port: int) -> bool:
    try:
        family, endpoint = address.resolve(host, port)[0]
        with socket.socket(family, socket.SOCK_STREAM) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(endpoint)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        shown = address.shown(host, port)
        raise UsageError(f"cannot listen on {shown}: {error.strerror}") from None
    return True
