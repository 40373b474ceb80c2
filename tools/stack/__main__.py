"""Run Prometheus and Alertmanager with the configuration in deploy/ beside `dlmon demo`.

`make stack` does it. Ctrl-C ends everything and leaves nothing behind. What is not among the
options below goes to `dlmon demo`: make stack ARGS="--fault hang".
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from dlmon.demo.children import Children
from dlmon.demo.interruptions import InterruptionError, Interruptions
from dlmon.errors import UsageError
from dlmon.segment.files import SHM
from tools.stack import configuration, servers
from tools.stack.notifications import Receiver, told

HOST = "127.0.0.1"
READY_SECONDS = 60.0
DEMO_SECONDS = 20.0
"""The demo ends its own processes first."""
LOG_LINES = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stack until it is ended, or the demo ends.

    Returns:
        The demo's status, 1 if a server ended by itself, 2 for wrong use, 128 plus the number of
        the signal that ended it.
    """
    args, for_demo = _parser().parse_known_args(argv)
    try:
        if args.faster < 1:
            raise UsageError(f"--faster {args.faster:g}: expected 1 or more")
        for flag, port in _ports(args).items():
            _check_free(flag, port)
        return _run(args, for_demo)
    except UsageError as error:
        print(f"make stack: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make stack", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name, port in (("prometheus", 9090), ("alertmanager", 9093), ("agent", 10356)):
        text = f"where it listens on {HOST}; default {port}"
        parser.add_argument(f"--{name}-port", type=int, default=port, metavar="N", help=text)
    parser.add_argument(
        "--faster",
        type=float,
        default=1.0,
        metavar="N",
        help="divide every duration in the rules by N: with 15, alerts come in seconds",
    )
    return parser


def _ports(args: argparse.Namespace) -> dict[str, int]:
    return {f"--{name}-port": vars(args)[f"{name}_port"] for name in _NAMES}


_NAMES = ("prometheus", "alertmanager", "agent")


def _check_free(flag: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UsageError(f"{flag} {port}: expected 1 to 65535")
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        raise UsageError(
            f"cannot listen on {HOST}:{port}: {error.strerror}; choose another port with {flag}, "
            f'as in make stack ARGS="{flag} {port + 10000 if port < 50000 else port - 10000}"'
        ) from None


def _run(args: argparse.Namespace, for_demo: Sequence[str]) -> int:
    with (
        closing(Interruptions()) as interruptions,
        closing(Children(Path(SHM))) as children,
        closing(Receiver(lambda alert: print(told(alert), flush=True))) as receiver,
    ):
        stack = Stack(args, children, interruptions)
        try:
            status = stack.run(receiver.url, for_demo)
        except InterruptionError as interruption:
            status = 128 + interruption.signal
        finally:
            stack.end_demo()
    print("Prometheus and Alertmanager ended, their data removed")
    return status


class Stack:
    """The two servers and the demo.

    Args:
        args: The options.
        children: Starts the processes, and ends them when it is closed.
        interruptions: Tells when to end.
    """

    def __init__(
        self, args: argparse.Namespace, children: Children, interruptions: Interruptions
    ) -> None:
        self._args = args
        self._children = children
        self._interruptions = interruptions
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._demo: subprocess.Popen[bytes] | None = None

    def run(self, webhook: str, for_demo: Sequence[str]) -> int:
        """Show it all; see `main`.

        Raises:
            InterruptionError: A signal says that it is enough.
            UsageError: A server is not installed.
        """
        addresses = {name: f"{HOST}:{vars(self._args)[f'{name}_port']}" for name in _NAMES}
        self._start_servers(addresses, webhook)
        for name in self._servers:
            if not self._wait_until_ready(name, addresses[name]):
                return 1
        amtool = f"{_shown(servers.program('amtool'))} alert"
        print(
            f"\n  http://{addresses['prometheus']}/    Prometheus: queries, alerts, what is scraped"
            f"\n  {amtool} --alertmanager.url=http://{addresses['alertmanager']}    what fires"
            "\n  what Alertmanager tells, by run, is printed here, lines beginning with [\n",
            flush=True,
        )
        self._demo = self._children.start(
            "dlmon", "demo", "--port", str(self._args.agent_port), *for_demo
        )
        while (status := self._demo.poll()) is None:
            for name, server in self._servers.items():
                if server.poll() is not None:
                    self._report(name, f"ended by itself: status {server.returncode}")
                    return 1
            self._interruptions.wait(1.0)
        return status if status >= 0 else 128 - status

    def end_demo(self) -> None:
        """Let the demo end what it started before anything else ends."""
        if self._demo is not None and self._demo.poll() is None:
            self._demo.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._demo.wait(DEMO_SECONDS)

    def _start_servers(self, addresses: dict[str, str], webhook: str) -> None:
        folder = self._children.folder
        place = configuration.Place(
            agents=[addresses["agent"]],
            alertmanager=addresses["alertmanager"],
            webhook=webhook,
            faster=self._args.faster,
        )
        commands = (servers.prometheus, servers.alertmanager)
        files = configuration.write(folder, place)
        for name, command, config in zip(_NAMES, commands, files, strict=False):
            line = command(config, folder / f"{name}-data", addresses[name])
            self._servers[name] = self._children.run(line, log=self._log(name))

    def _wait_until_ready(self, name: str, address: str) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while not servers.is_ready(address):
            self._interruptions.wait(0.1)
            if self._servers[name].poll() is not None:
                self._report(name, f"ended by itself: status {self._servers[name].returncode}")
                return False
            if time.monotonic() > deadline:
                self._report(name, f"was not ready within {READY_SECONDS:.0f} s")
                return False
        return True

    def _report(self, name: str, problem: str) -> None:
        lines = self._log(name).read_text(errors="replace").splitlines()[-LOG_LINES:]
        said = "\n".join(["the end of what it printed:", *lines]) if lines else "it printed nothing"
        print(f"make stack: {name} {problem}; {said}", file=sys.stderr, flush=True)

    def _log(self, name: str) -> Path:
        return self._children.folder / f"{name}.log"


def _shown(program: str) -> str:
    """Return a program's path as one would type it here."""
    path = Path(program)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else program


if __name__ == "__main__":
    sys.exit(main())
