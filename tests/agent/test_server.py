"""The server over real sockets: what it answers, and what no client can do to it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import logging
import re
import socket
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from dlmon.agent import server as server_module
from dlmon.agent.admission import Detail
from dlmon.agent.routes import Request, Response, Router
from dlmon.agent.server import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Server, listen
from dlmon.agent.state import Board
from dlmon.errors import UsageError
from tests.agent.samples import make_snapshot

TIMEOUT = 60.0


@pytest.fixture
def board() -> Board:
    board = Board(Detail.FULL, 20000)
    board.publish(make_snapshot())
    return board


@pytest.fixture
def server(board: Board) -> Iterator[Server]:
    server = listen("127.0.0.1:0", Router(board, 1.0).respond)
    server.start()
    yield server
    server.close()


def port(server: Server) -> int:
    return int(server.server_address[1])


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port(server)), timeout=TIMEOUT)


def raw(server: Server, request: bytes) -> bytes:
    """Send bytes and return all that comes back until the server hangs up."""
    with connect(server) as connection:
        connection.sendall(request)
        return receive_all(connection)


def receive_all(connection: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def ask(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=TIMEOUT)
    with contextlib.closing(connection):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        return response, response.read()


# --- what it answers ---


@pytest.mark.parametrize(
    ("path", "content_type", "part"),
    [
        ("/", "text/html; charset=utf-8", b"<title>dlmon</title>"),
        ("/page.js", "text/javascript; charset=utf-8", b"import"),
        ("/view.js", "text/javascript; charset=utf-8", b"export"),
        ("/findings.js", "text/javascript; charset=utf-8", b"export"),
        ("/node.js", "text/javascript; charset=utf-8", b"export"),
        ("/dom.js", "text/javascript; charset=utf-8", b"export"),
        ("/page.css", "text/css; charset=utf-8", b":root"),
        ("/favicon.svg", "image/svg+xml", b"<svg"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b"dlmon_rank_up{"),
        ("/metrics?x=1", "text/plain; version=0.0.4; charset=utf-8", b"dlmon_rank_up{"),
        ("/-/healthy", "text/plain; charset=utf-8", b"healthy\n"),
        ("/-/ready", "text/plain; charset=utf-8", b"ready\n"),
        ("/api/v1/snapshot", "application/json", b'"ranks":['),
    ],
)
def test_every_endpoint_answers(server: Server, path: str, content_type: str, part: bytes) -> None:
    response, body = ask(server, path)
    assert response.status == 200
    assert response.headers["Content-Type"] == content_type
    assert part in body
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Connection"] == "close"
    assert re.fullmatch(r"dlmon/[\w.]+", response.headers["Server"])
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    assert "Access-Control-Allow-Origin" not in response.headers


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    for path in (
        "/",
        "/page.js",
        "/view.js",
        "/findings.js",
        "/node.js",
        "/dom.js",
        "/page.css",
        "/favicon.svg",
    ):
        _, body = ask(server, path)
        urls = set(re.findall(rb"(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s\"']*", body))
        assert urls <= {b"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_head_is_get_without_the_body(server: Server) -> None:
    for path in ("/", "/-/healthy", "/nowhere"):
        get, body = ask(server, path)
        head, nothing = ask(server, path, "HEAD")
        assert nothing == b""
        assert head.status == get.status
        assert head.headers["Content-Length"] == get.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_other_methods_are_not_allowed(server: Server, method: str) -> None:
    response, body = ask(server, "/metrics", method)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert body == b"method not allowed; use GET or HEAD\n"


def test_a_large_body_that_nobody_wants_does_not_destroy_the_answer(server: Server) -> None:
    size = 200_000
    head = f"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    assert raw(server, head.encode() + b"x" * size).startswith(b"HTTP/1.1 405 ")


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/web/index.html",
        "/index.html",
        "//etc/passwd",
        "/metrics/",
        "/page.js/../../server.py",
    ],
)
def test_there_is_nothing_else(server: Server, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"there are /, /metrics, /-/healthy, /-/ready, /api/v1/snapshot" in answer


def test_a_request_in_absolute_form_is_understood(server: Server) -> None:
    request = b"GET http://proxy.example/-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"
    assert raw(server, request).endswith(b"healthy\n")


def test_openmetrics_is_served_to_who_asks(server: Server) -> None:
    response, body = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["Content-Type"].startswith("application/openmetrics-text;")
    parsed = list(parse_openmetrics(body.decode()))  # type: ignore[no-untyped-call]
    assert "dlmon_rank_up" in {family.name for family in parsed}


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "text/html",
        "text/plain;version=latest",
        "application/openmetrics-text;version=x.y",
        "application/openmetrics-text;version=2.x\r\n X-Injected: yes",
        "é",
    ],
)
def test_a_strange_accept_header_gets_metrics_all_the_same(server: Server, accept: str) -> None:
    request = f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
    head, _, body = raw(server, request.encode("latin-1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Injected" not in head
    assert list(parse_text(body.decode()))


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [("gzip", True), ("deflate, gzip;q=0.8", True), ("gzip;q=0", False), ("identity", False)],
)
def test_metrics_are_compressed_for_who_takes_it(
    server: Server, accept_encoding: str, compressed: bool
) -> None:
    response, body = ask(server, "/metrics", Accept_Encoding=accept_encoding)
    assert (response.headers["Content-Encoding"] == "gzip") == compressed
    text = gzip.decompress(body) if compressed else body
    assert b"dlmon_rank_up{" in text
    assert "Accept-Encoding" in response.headers["Vary"]


def test_paths_are_kept_from_who_comes_through_a_proxy(server: Server) -> None:
    _, body = ask(server, "/api/v1/snapshot")
    assert json.loads(body)["refused"][0]["path"] == "/dev/shm/x.seg"
    for header in ("X_Forwarded_For", "Forwarded", "Via"):
        _, body = ask(server, "/api/v1/snapshot", **{header: "1.2.3.4"})
        assert b"x.seg" not in body


# --- ready ---


def test_without_a_snapshot_it_is_healthy_and_not_ready() -> None:
    router = Router(Board(Detail.FULL, 100), 1.0)
    assert router.respond(Request("/-/healthy")).status == 200
    ready = router.respond(Request("/-/ready"))
    assert (ready.status, ready.body) == (503, b"not ready: no snapshot yet\n")
    snapshot = router.respond(Request("/api/v1/snapshot"))
    assert snapshot.status == 503
    assert json.loads(snapshot.body) == {"error": "no snapshot yet"}
    assert router.respond(Request("/metrics")).status == 200


@pytest.mark.parametrize(
    ("interval", "age", "status"),
    [(1.0, 9.0, 200), (1.0, 11.0, 503), (60.0, 590.0, 200), (60.0, 610.0, 503), (0.1, 9.0, 200)],
)
def test_it_is_ready_while_the_snapshot_is_fresh(
    board: Board, monkeypatch: pytest.MonkeyPatch, interval: float, age: float, status: int
) -> None:
    latest = board.status.latest
    assert latest is not None
    board.fail("ValueError: boom")
    monkeypatch.setattr("dlmon.agent.state.time.monotonic", lambda: latest.taken + age)
    response = Router(board, interval).respond(Request("/-/ready"))
    assert response.status == status
    if status == 503:
        assert f"{age:.0f} s old".encode() in response.body
        assert b"ValueError: boom" in response.body


# --- what no client can do ---


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS where none is
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / FTP/1.0\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"\x00" * 100 + b"\r\n\r\n",
    ],
)
def test_garbage_is_answered_with_an_error_or_nothing(
    server: Server, request_bytes: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(server) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        answer = receive_all(connection)
    assert answer == b"" or re.match(rb"HTTP/1\.1 (400|405|505) ", answer)
    assert ask(server, "/-/healthy")[0].status == 200
    assert caplog.records == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"x" * MAX_REQUEST_BYTES,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (MAX_REQUEST_BYTES // 6),
        b"GET / HTTP/1.1\r\nA: " + b"b" * MAX_REQUEST_BYTES,
    ],
)
def test_a_request_has_a_limited_size(server: Server, request_bytes: bytes) -> None:
    assert re.match(rb"HTTP/1\.1 4(14|31) ", raw(server, request_bytes))


def test_a_request_has_a_limited_time(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.1)
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost:")
        assert receive_all(connection) == b""  # hung up
    assert caplog.records == []


def test_who_sends_byte_after_byte_gets_no_more_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "READ_SECONDS", 0.2)
    with connect(server) as connection:
        connection.settimeout(0.02)
        with pytest.raises(ConnectionError):  # noqa: PT012  # the loop is what raises
            for _ in range(3000):
                connection.sendall(b"x")
                try:
                    if connection.recv(1) == b"":
                        raise ConnectionResetError
                except TimeoutError:
                    continue


def test_more_connections_than_allowed_do_not_keep_others_out(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 20):
            held = stack.enter_context(connect(server))
            held.sendall(b"GET / HTTP/1.1\r\n")
        assert ask(server, "/-/healthy")[0].status == 200
    assert caplog.records == []


def test_who_leaves_before_the_answer_costs_nothing_and_leaves_no_trace(
    server: Server, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    reset = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")  # struct linger: at once
    for _ in range(20):
        connection = connect(server)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.close()
    assert ask(server, "/-/healthy")[0].status == 200
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_who_does_not_read_the_answer_holds_up_nobody() -> None:
    huge = Response(http.HTTPStatus.OK, b"x" * (64 << 20))
    server = listen("127.0.0.1:0", lambda _: huge)
    server.start()
    try:
        with connect(server) as lazy:
            lazy.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert lazy.recv(1) == b"H"
            response, _ = ask(server, "/", "HEAD")
            assert response.status == 200
    finally:
        server.close()  # although one is still connected


def test_an_error_while_answering_is_logged_in_one_record_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(request: Request) -> Response:
        raise ValueError("boom")

    server = listen("127.0.0.1:0", fail)
    server.start()
    try:
        response, body = ask(server, "/x")
    finally:
        server.close()
    assert response.status == 500
    assert b"boom" not in body
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "/x failed"


# --- where it listens ---


def test_an_address_in_use_is_said_with_what_to_do(server: Server) -> None:
    address = f"127.0.0.1:{port(server)}"
    with pytest.raises(UsageError) as caught:
        listen(address, lambda _: pytest.fail("never asked"))
    message = str(caught.value)
    assert message.startswith(f"cannot listen on {address}: Address already in use; ")
    assert "--web.listen-address" in message


@pytest.mark.parametrize("address", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_that_is_not_ours_is_said(address: str) -> None:
    with pytest.raises(UsageError, match=f"cannot listen on {address}: .*of this machine"):
        listen(address, lambda _: pytest.fail("never asked"))


def test_an_empty_host_is_every_address(board: Board) -> None:
    server = listen(":0", Router(board, 1.0).respond)
    server.start()
    try:
        assert ask(server, "/-/healthy")[0].status == 200  # over IPv4
    finally:
        server.close()


def test_ipv6_is_served_and_trusted_on_loopback(board: Board) -> None:
    try:
        server = listen("[::1]:0", Router(board, 1.0).respond)
    except UsageError as error:
        pytest.skip(f"no IPv6 here: {error}")
    server.start()
    try:
        assert server.address.startswith("[::1]:")
        connection = http.client.HTTPConnection("::1", port(server), timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request("GET", "/api/v1/snapshot")
            assert b"x.seg" in connection.getresponse().read()
    finally:
        server.close()


def test_close_can_be_called_twice_and_without_start(board: Board) -> None:
    server = listen("127.0.0.1:0", Router(board, 1.0).respond)
    server.close()
    server.close()
