"""A webhook endpoint to start from: believes only what is signed, and does each event once.

    pip install standardwebhooks
    WEBHOOK_SECRET=whsec_... python deploy/webhooks/consumer.py 127.0.0.1:9000 seen.sqlite3

Events come at least once: after a lost answer the same one comes again under the same `webhook-id`. So
the id and the work commit together, here into one SQLite file; only then the answer is 204. Whatever
goes wrong before is answered with 500, and Callplex comes again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

LARGEST = 8 << 20


def work(database: sqlite3.Connection, event: dict[str, Any]) -> None:
    """What you do with an event: yours goes here, in the same transaction."""
    call = event["data"]
    database.execute("insert into events values (?, ?, ?)", (event["type"], call.get("call_id", ""), json.dumps(event)))


def take(path: str, webhook_id: str, event: dict[str, Any]) -> bool:
    """Do the work of an event unless it was done before; returns whether it was new."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table if not exists seen (webhook_id text primary key)")
        database.execute("create table if not exists events (kind text, call_id text, body text)")
        if not database.execute("insert or ignore into seen values (?)", (webhook_id,)).rowcount:
            return False
        work(database, event)
        return True


def serve(address: str, path: str, secret: str) -> None:
    """Listen until stopped; prints the address, so that port 0 finds a free one."""
    verifier = Webhook(secret)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if not length.isdigit() or int(length) > LARGEST:
                self._answer(413)
                return
            body = self.rfile.read(int(length))
            try:
                event = verifier.verify(body, {name.lower(): value for name, value in self.headers.items()})
            except (WebhookVerificationError, ValueError):
                self._answer(401)
                return
            try:
                take(path, self.headers["webhook-id"], event)
            except sqlite3.Error as error:
                sys.stderr.write(f"not taken, it will come again: {error}\n")
                self._answer(500)
                return
            self._answer(204)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

    host, _, port = address.rpartition(":")
    with HTTPServer((host, int(port)), Handler) as server:
        sys.stdout.write(f"listening on {server.server_address[0]!s}:{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], os.environ["WEBHOOK_SECRET"])
