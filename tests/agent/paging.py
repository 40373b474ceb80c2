"""The page of an agent whose snapshots a test makes, in a real browser."""

from __future__ import annotations

import threading

from dlmon.agent.admission import Detail
from dlmon.agent.hangs import Hangs
from dlmon.agent.routes import Request, Response, Router
from dlmon.agent.server import Server, listen
from dlmon.agent.state import Board
from dlmon.observe.snapshot import Snapshot
from tests.agent.browser import Browser

HURRY = "const wait = setTimeout; window.setTimeout = (f, ms) => wait(f, ms / 20);"
"""So that a test need not wait a second for the next poll."""


class Page:
    """The page of an agent whose snapshots the test makes."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.board = Board(Detail.FULL, 20000)
        self.hangs = Hangs()
        self._router = Router(self.board, 1.0, self.hangs)
        self._polls = 0
        self._polled = threading.Condition()
        self.server = self._serve("127.0.0.1:0")
        self.address = self.server.address

    def _serve(self, address: str) -> Server:
        server = listen(address, self._respond)
        server.start()
        return server

    def _respond(self, request: Request) -> Response:
        if request.path == "/api/v1/snapshot":
            with self._polled:
                self._polls += 1
                self._polled.notify_all()
        return self._router.respond(request)

    def restart(self) -> None:
        self.server = self._serve(self.address)

    def show(self, *snapshots: Snapshot) -> str:
        """Open the page, let it see one snapshot after the other, and return its text."""
        self.board.publish(snapshots[0])
        self.browser.open(f"http://{self.address}/")
        self.browser.wait_for("document.getElementById('runs').ariaBusy === 'false'")
        for snapshot in snapshots[1:]:
            self.publish(snapshot)
        return self.browser.text()

    def publish(self, snapshot: Snapshot) -> None:
        """Publish a snapshot and wait until the page has shown it."""
        with self._polled:
            self.board.publish(snapshot)
            # The first poll from here on gets it; when the next one comes, it has been shown.
            enough = self._polls + 2
            assert self._polled.wait_for(lambda: self._polls >= enough, timeout=60)
