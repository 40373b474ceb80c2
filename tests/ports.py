"""Ports for servers that must be told where to listen before they do."""

from __future__ import annotations

import contextlib
import secrets
import socket
from pathlib import Path

HOST = "127.0.0.1"
FIRST, LAST = 11_000, 32_000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(number: int) -> list[int]:
    """Return so many ports that are free, and still are when a server comes to listen there.

    Whoever asks the kernel for any port gets one of `RANGE`: these are below, as far as it lets.
    """
    beyond = max(FIRST + 1000, min(LAST, int(RANGE.read_text().split()[0])))
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < number:
            port = FIRST + secrets.randbelow(beyond - FIRST)
            with contextlib.suppress(OSError):  # taken
                held.enter_context(socket.create_server((HOST, port)))
                ports.append(port)
    return ports
