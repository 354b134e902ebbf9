"""An outbox that delivers to a receiver of the tests, and what its table holds."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.records.database import Database
from gateway.webhooks import events
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.outbox import Outbox
from tests.gateway.webhooks.receiver import Receiver, outbox, rows, running, settings


def ended(call_id: str, **more: Any) -> Event:
    return Event(events.ENDED, call_id, "bank", time.time(), {"call_id": call_id, "persona": "bank", **more})


def store(folder: Path, receiver: Receiver) -> EndpointStore:
    """One endpoint, `default`, at the receiver."""
    return EndpointStore(settings(folder, webhook_url=receiver.url))


async def attempts(database: Database) -> list[int]:
    return [row["attempts"] for row in await rows(database)]


@asynccontextmanager
async def delivering(folder: Path, database: Database, receiver: Receiver, **options: Any) -> AsyncIterator[Outbox]:
    async with receiver.listening(), running(outbox(database, store(folder, receiver), **options)) as box:
        yield box
