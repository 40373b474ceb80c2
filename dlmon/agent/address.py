"""Listen addresses as people write them."""

from __future__ import annotations

import re
import socket
import typing

FORM = "host:port, [IPv6]:port or :port, with a port from 0 (any free one) to 65535"

_ADDRESS = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.%\w]*)\]|(?P<host>[^\[\]:/\s]*)):(?P<port>[0-9]{1,5})"
)

Endpoint = tuple[socket.AddressFamily, tuple[typing.Any, ...]]


def parse(text: str) -> tuple[str, int]:
    """Return host and port; the host is "" where all addresses of the machine are meant.

    Raises:
        ValueError: It is not of the form `FORM`.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise ValueError(f"{text!r}: expected {FORM}")
    return match["six"] or match["host"] or "", int(match["port"])


def resolve(host: str, port: int) -> list[Endpoint]:
    """Return what to try to listen on, the likeliest first.

    Raises:
        OSError: The name does not resolve (`socket.gaierror`).
    """
    if not host:
        # One IPv6 socket serves both where the kernel has IPv6 (the server makes it dual-stack).
        return [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]  # noqa: S104  # asked for with `:port`
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, address) for family, _, _, _, address in found]


def shown(host: str, port: int) -> str:
    """Return an address as in a URL: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Tell whether a peer's numeric address is this machine's loopback."""
    plain = host.removeprefix("::ffff:")  # IPv4 on a dual-stack socket
    return plain == "::1" or (plain.startswith("127.") and ":" not in plain)
