"""Between Prometheus and an agent: passes pages on unchanged, and keeps what each was made of."""

from __future__ import annotations

import bisect
import contextlib
import json
import re
import threading
import time
import urllib.request
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.agents import Agent

TRIES = 10
"""To get a page and the snapshot that it shows, of which there is a new one every second."""

EARLY_MS = 20
"""A scrape's time is when it should have begun, if it began within 2 ms of that."""


@dataclass(frozen=True, eq=False)
class Look:
    """What an agent said to one scrape.

    Attributes:
        arrived: When Prometheus asked, Unix time in ms.
        done: When it had its answer.
        snapshot: What the page shows, as `/api/v1/snapshot` has it.
        page: The series of the page that have no label, by name.
    """

    arrived: int
    done: int
    snapshot: dict[str, Any]
    page: dict[str, float]


def now_ms() -> int:
    return round(time.time() * 1000)


class Relay:
    """A server in front of an agent's `/metrics`."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.looks: list[Look] = []
        relay = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                relay.answer(self)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.target = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        """Pass the page on, once it and a snapshot are known to be one and the same."""
        arrived = now_ms()
        for _ in range(TRIES):
            request = urllib.request.Request(
                self.agent.url + "/metrics", headers={"Accept": asked.headers["Accept"]}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                page, kind = answer.read(), answer.headers["Content-Type"]
            bare = re.findall(rb"^(\w+) (\S+)$", page, re.MULTILINE)
            series = {name.decode(): float(value) for name, value in bare}
            snapshot = json.loads(self.agent.get("/api/v1/snapshot")[1])
            if snapshot["duration_seconds"] == series["dlmon_agent_snapshot_duration_seconds"]:
                break
        else:
            asked.send_error(503)
            return
        asked.send_response(200)
        asked.send_header("Content-Type", kind)
        asked.send_header("Content-Length", str(len(page)))
        asked.end_headers()
        self.looks.append(Look(arrived, now_ms(), snapshot, series))  # before it can be asked about
        with contextlib.suppress(ConnectionError):  # it may have given up
            asked.wfile.write(page)

    def at(self, scraped: int) -> Look:
        """What was said to the scrape that has this time, Unix time in ms."""
        looks = sorted(self.looks, key=lambda look: look.arrived)
        place = bisect.bisect_left(looks, scraped - EARLY_MS, key=lambda look: look.arrived)
        return looks[place]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
