"""What each path answers: from a request and the state to a response, no socket in sight."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib import resources

from prometheus_client.exposition import choose_encoder

from dlmon.agent.api import findings_json, hangs_json, snapshot_json
from dlmon.agent.collectors import collect
from dlmon.agent.hangs import Hangs
from dlmon.agent.state import Board

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_ASSETS = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/findings.js": ("findings.js", "text/javascript; charset=utf-8"),
    "/node.js": ("node.js", "text/javascript; charset=utf-8"),
    "/dom.js": ("dom.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}

_READY_FLOOR_SECONDS = 10.0
_READY_INTERVALS = 10
_GZIP_LEVEL = 5
_GZIP_FROM_BYTES = 1024

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What matters of a GET or HEAD.

    Attributes:
        path: Without the query.
        headers: By lower-case name.
        trusted: The client is on this machine's loopback, not behind a proxy.
        query: What follows the `?`, as it was sent.
    """

    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    trusted: bool = False
    query: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; the server adds length, date and the security headers."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT
    headers: Mapping[str, str] = field(default_factory=dict)


def text(status: HTTPStatus, message: str) -> Response:
    """Return a short answer in plain text."""
    return Response(status, f"{message}\n".encode())


Route = Callable[[Request], Response]


class Router:
    """Answers requests from what the board has now."""

    def __init__(
        self,
        board: Board,
        interval_seconds: float,
        hangs: Hangs | None = None,
        more: Mapping[str, Route] | None = None,
    ) -> None:
        """Read the page's files, so that no request opens one.

        Args:
            board: Where the snapshots are.
            interval_seconds: From one snapshot to the next.
            hangs: What is kept of hangs, None for nothing.
            more: What further paths answer.
        """
        self._board = board
        self._hangs = Hangs() if hangs is None else hangs
        self._interval = interval_seconds
        self._routes: dict[str, Route] = {
            "/metrics": self._metrics,
            "/-/healthy": self._healthy,
            "/-/ready": self._ready,
            "/api/v1/snapshot": self._snapshot,
            "/api/v1/findings": self._findings,
            "/api/v1/hangs": self._kept_hangs,
            **(more or {}),
        }
        package = resources.files("dlmon.agent") / "web"
        self._assets = {
            path: Response(HTTPStatus.OK, (package / name).read_bytes(), content_type)
            for path, (name, content_type) in _ASSETS.items()
        }

    def respond(self, request: Request) -> Response:
        """Answer a GET; a HEAD is the same without the body."""
        asset = self._assets.get(request.path)
        if asset is not None:
            return asset
        route = self._routes.get(request.path)
        if route is None:
            known = ", ".join(["/", *self._routes])
            return text(HTTPStatus.NOT_FOUND, f"not found; there are {known}")
        return _compressed(route(request), request)

    def _metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none, such as `version=latest`
            encode, content_type = choose_encoder("")
        if not content_type.isprintable():  # it repeats what the client sent, a line break too
            encode, content_type = choose_encoder("")
        return Response(HTTPStatus.OK, encode(collect(self._board.status)), content_type)

    def _healthy(self, _request: Request) -> Response:
        return text(HTTPStatus.OK, "healthy")

    def _ready(self, _request: Request) -> Response:
        status = self._board.status
        because = f"; the last attempt failed: {status.last_error}" if status.last_error else ""
        if status.latest is None:
            return text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: no snapshot yet{because}")
        allowed = max(_READY_FLOOR_SECONDS, _READY_INTERVALS * self._interval)
        age = status.latest.age_seconds()
        if age > allowed:
            return text(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"not ready: the snapshot is {age:.0f} s old, {allowed:g} s are allowed{because}",
            )
        return text(HTTPStatus.OK, "ready")

    def _snapshot(self, request: Request) -> Response:
        latest = self._board.status.latest
        if latest is None:
            body = json.dumps({"error": "no snapshot yet"}).encode()
            return Response(HTTPStatus.SERVICE_UNAVAILABLE, body, JSON)
        body = snapshot_json(latest, self._interval, trusted=request.trusted)
        return Response(HTTPStatus.OK, body, JSON)

    def _findings(self, _request: Request) -> Response:
        latest = self._board.status.latest
        if latest is None:
            body = json.dumps({"error": "no snapshot yet"}).encode()
            return Response(HTTPStatus.SERVICE_UNAVAILABLE, body, JSON)
        return Response(HTTPStatus.OK, findings_json(latest.snapshot), JSON)

    def _kept_hangs(self, request: Request) -> Response:
        body = hangs_json(self._hangs.newest(), trusted=request.trusted)
        return Response(HTTPStatus.OK, body, JSON)


def _compressed(response: Response, request: Request) -> Response:
    """Compress a large answer for a client that takes gzip."""
    headers = {**response.headers, "Vary": "Accept, Accept-Encoding"}
    body = response.body
    if len(body) >= _GZIP_FROM_BYTES and _takes_gzip(request.headers.get("accept-encoding", "")):
        body = gzip.compress(body, _GZIP_LEVEL)
        headers["Content-Encoding"] = "gzip"
    return Response(response.status, body, response.content_type, headers)


def _takes_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.lower().split(","):
        coding, _, quality = offer.partition(";")
        if coding.strip() == "gzip":
            return quality.replace(" ", "").rstrip("0") not in ("q=", "q=0.")
    return False
