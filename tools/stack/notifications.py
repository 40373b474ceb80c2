"""Who receives Alertmanager's notifications: a webhook that hands each alert to a function."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Alert = dict[str, Any]
"""As Alertmanager's webhook has it: `status`, `labels`, `annotations`, `startsAt`, ..."""


class Receiver:
    """An HTTP server on a free port of 127.0.0.1 that takes Alertmanager's webhook calls.

    Args:
        receive: Called with each alert of each notification, one call at a time.

    Attributes:
        url: For `webhook_configs`.
    """

    def __init__(self, receive: Callable[[Alert], None]) -> None:
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with lock:
                    for alert in json.loads(body)["alerts"]:
                        receive(alert)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:  # the alerts are what counts
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="notifications")
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        """Stop, and wait until it has."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def told(alert: Alert) -> str:
    """Say in a few lines what an alert says, for a terminal."""
    labels, notes = alert["labels"], alert["annotations"]
    how = "resolved" if alert["status"] == "resolved" else labels.get("severity", "firing")
    lines = [f"[{how}] {labels['alertname']}: {notes.get('summary', '')}"]
    if alert["status"] == "firing":
        lines += [notes[key] for key in ("description", "runbook_url") if key in notes]
    return "\n    ".join(lines)
