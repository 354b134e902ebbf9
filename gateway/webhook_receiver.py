"""A small webhook endpoint on loopback that believes only what is signed: the demo's CRM.

Owns one HTTP server in a thread of its own; hands verified events to the event loop that opened it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BODY = 4 << 20


class WebhookReceiver:
    """Collects verified events; `url` is where to post them."""

    def __init__(self, secret: str) -> None:
        self.url = ""
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.refused = 0
        """Posts whose signature was wrong or missing."""
        self._verifier = Webhook(secret)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen on a free loopback port while inside; call it on a running event loop."""
        loop = asyncio.get_running_loop()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_POST(self) -> None:
                length = self.headers.get("Content-Length", "")
                if not length.isdigit() or int(length) > MAX_BODY:
                    self._answer(413)
                    return
                event = receiver.verify(self.rfile.read(int(length)), dict(self.headers.items()))
                if event is not None:
                    loop.call_soon_threadsafe(receiver.events.put_nowait, event)
                self._answer(400 if event is None else 204)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def verify(self, body: bytes, headers: dict[str, str]) -> dict[str, Any] | None:
        """The event, or None when its Standard Webhooks signature does not hold."""
        try:
            self._verifier.verify(body, {name.lower(): value for name, value in headers.items()})
            event = json.loads(body)
        except (WebhookVerificationError, ValueError):
            event = None
        if not isinstance(event, dict):
            self.refused += 1
            return None
        return event
