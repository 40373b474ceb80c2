"""The HTTP server: one thread a connection, one request a connection, all of it bounded.

A client may be slow, huge, broken or gone: it costs one thread for a bounded time, and when too
many connections are open the oldest goes, so that nobody can keep others out by holding on.
"""

from __future__ import annotations

import errno
import io
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from dlmon import __version__
from dlmon.agent import address
from dlmon.agent.routes import SECURITY_HEADERS, Request, Response, text
from dlmon.errors import UsageError

MAX_CONNECTIONS = 128
MAX_REQUEST_BYTES = 32 << 10
"""Request line and headers together."""
READ_SECONDS = 5.0
"""For the whole request to arrive."""
WRITE_SECONDS = 10.0
"""For the whole response to be taken."""

_LINGER_SECONDS = 1.0
_LINGER_BYTES = 256 << 10
_NEXT_ADDRESS = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)

logger = logging.getLogger(__name__)

Respond = Callable[[Request], Response]


def listen(listen_address: str, respond: Respond) -> Server:
    """Open the socket; nothing is served until `Server.start`.

    Args:
        listen_address: As in the setting `web.listen_address`.
        respond: Answers a request; called from many threads at once.

    Raises:
        UsageError: It cannot listen there; the message says why and what to do.
    """
    host, port = address.parse(listen_address)
    error: OSError | None = None
    try:
        for family, endpoint in address.resolve(host, port):
            try:
                return Server(family, endpoint, respond, dual_stack=not host)
            except OSError as refusal:
                error = refusal
                if refusal.errno not in _NEXT_ADDRESS:
                    break
    except OSError as failure:  # the name does not resolve
        error = failure
    assert error is not None
    raise UsageError(_cannot_listen(listen_address, error)) from error


def _cannot_listen(listen_address: str, error: OSError) -> str:
    what = f"cannot listen on {listen_address}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return (
            f"{what}; perhaps another agent runs there: stop it, or choose another port with"
            " --web.listen-address (port 0 takes any free one)"
        )
    if error.errno == errno.EACCES:
        return f"{what}; ports below 1024 need root, choose another with --web.listen-address"
    return f"{what}; choose an address of this machine with --web.listen-address"


class Server(socketserver.ThreadingTCPServer):
    """Serves on one socket from threads of its own."""

    allow_reuse_address = True  # a restart must not wait for old connections to time out
    daemon_threads = True
    block_on_close = False  # a slow client does not hold up the end
    request_queue_size = 64

    def __init__(
        self,
        family: socket.AddressFamily,
        endpoint: tuple[Any, ...],
        respond: Respond,
        *,
        dual_stack: bool = False,
    ) -> None:
        """Bind and listen.

        Args:
            family: Of the endpoint.
            endpoint: Address and port, as `socket.bind` takes them.
            respond: Answers a request.
            dual_stack: With IPv6: serve IPv4 too.

        Raises:
            OSError: The address is in use, not of this machine, or not allowed.
        """
        self.address_family = family
        self.respond = respond
        self._dual_stack = dual_stack
        self._lock = threading.Lock()
        self._open: dict[socket.socket, None] = {}
        self._thread: threading.Thread | None = None
        super().__init__(endpoint, _Handler)

    @property
    def address(self) -> str:
        """Where it listens, the port it really has included."""
        host, port = self.server_address[:2]
        return address.shown(str(host), port)

    def start(self) -> None:
        """Begin to serve, on a thread."""
        thread = threading.Thread(
            target=self.serve_forever,
            kwargs={"poll_interval": None},
            name="dlmon-http",
            daemon=True,
        )
        thread.start()
        self._thread = thread  # only now: `shutdown` waits for ever on one that never ran

    def close(self) -> None:
        """Stop serving and drop whoever is still connected; safe to call twice."""
        if self._thread is not None:
            with suppress(OSError):  # who waits for connections is told that there are none to come
                self.socket.shutdown(socket.SHUT_RDWR)
            self.shutdown()
            self._thread.join()
            self._thread = None
        self.server_close()
        with self._lock:
            left = list(self._open)
            self._open.clear()
        for connection in left:
            _hang_up(connection)

    def server_bind(self) -> None:
        """Bind, for IPv6 saying whether IPv4 is meant too."""
        if self.address_family == socket.AF_INET6:
            only = 0 if self._dual_stack else 1
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; out of descriptors, do not spin on it."""
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                time.sleep(0.1)  # the connection stays in the queue and would be offered at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread; above the limit the oldest one goes."""
        oldest = None
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
            self._open[request] = None
        if oldest is not None:
            _hang_up(oldest)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection that was answered."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, _request: Any, client_address: Any) -> None:
        """Log what went wrong in a handler, in one line; a client that left is no error."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logger.error("request of %s failed", client_address[0], exc_info=error)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):  # it ended by itself
        connection.shutdown(socket.SHUT_RDWR)


class _RequestTooLargeError(OSError):
    """More came than a request may have."""


class _Input(io.RawIOBase):
    """What a client sends, up to a number of bytes and a point in time."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + READ_SECONDS
        self._left = MAX_REQUEST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise _RequestTooLargeError
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    """Reads one request, answers it, and is done."""

    server: Server
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.1"  # a status line for who names none too
    disable_nagle_algorithm = True  # head and body are two writes; no wait between them
    # For an answer to what never became a request:
    command = ""
    requestline = ""
    request_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Input(self.connection))

    def version_string(self) -> str:
        """Return the header `Server`."""
        return f"dlmon/{__version__}"

    def handle(self) -> None:
        try:
            self.handle_one_request()
        except _RequestTooLargeError:
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            self._linger()

    def do_GET(self) -> None:
        self._send(self._answer())

    do_HEAD = do_GET  # noqa: N815  # the base class looks for this name

    def send_error(self, code: int, *_: str | None) -> None:
        """Answer, for the base class, what is no GET or HEAD."""
        if code == HTTPStatus.NOT_IMPLEMENTED:  # it has no method for this command
            allowed = text(HTTPStatus.METHOD_NOT_ALLOWED, "method not allowed; use GET or HEAD")
            self._send(allowed, {"Allow": "GET, HEAD"})
            self._linger()
            return
        status = HTTPStatus(code)
        self._send(text(status, status.phrase.lower()))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        """Log no request: scrapes would fill the journal."""

    def _answer(self) -> Response:
        try:
            parts = urlsplit(self.path)
        except ValueError:  # `http://[`
            return text(HTTPStatus.BAD_REQUEST, "bad request")
        headers = {name.lower(): value for name, value in self.headers.items()}
        proxied = any(name in headers for name in ("forwarded", "x-forwarded-for", "via"))
        trusted = address.is_loopback(self.client_address[0]) and not proxied
        try:
            return self.server.respond(Request(parts.path, headers, trusted, parts.query))
        except Exception:  # the client is told that, the journal why
            logger.exception("%s failed", parts.path)
            return text(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the agent's log")

    def _send(self, response: Response, extra: dict[str, str] | None = None) -> None:
        self.connection.settimeout(WRITE_SECONDS)
        self.send_response(response.status)
        headers = {
            "Content-Type": response.content_type,
            "Content-Length": str(len(response.body)),
            "Connection": "close",
            **SECURITY_HEADERS,
            **response.headers,
            **(extra or {}),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def _linger(self) -> None:
        """Take in what the client still sends: closing on it would destroy our answer."""
        deadline = time.monotonic() + _LINGER_SECONDS
        left = _LINGER_BYTES
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0 and (remaining := deadline - time.monotonic()) > 0:
                self.connection.settimeout(remaining)
                chunk = self.connection.recv(min(left, 1 << 16))
                if not chunk:
                    return
                left -= len(chunk)
