"""What `callplex webhooks` does: try an endpoint, see what was sent, send it again, enable an endpoint.

Acts on the database beside a running gateway, which notices within seconds. Prints nothing.
"""

from __future__ import annotations

import asyncio
import getpass
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import httpx

from gateway.records.database import Database, DatabaseInvalid, DatabaseUnavailable, configured_url
from gateway.settings import Settings
from gateway.webhooks import events, queue
from gateway.webhooks.delivery import Sender
from gateway.webhooks.endpoints import Endpoint, Endpoints, EndpointStore, WebhookInvalid, shown_url

_T = TypeVar("_T")


class CommandRefused(Exception):
    """A command cannot be done; the message says why in one sentence."""


def send_test(settings: Settings, name: str, kind: str) -> dict[str, Any]:
    """Send a made-up event now, `callplex.test` if `kind` is empty. Raises CommandRefused."""
    endpoints = _endpoints(settings).by_name
    if name not in endpoints:
        known = ", ".join(endpoints) or "none; set CALLPLEX_WEBHOOK_URL or write webhooks.yaml"
        raise CommandRefused(f"there is no endpoint {name}; known: {known}")
    if kind and kind not in events.KINDS:
        raise CommandRefused(f"there is no event {kind}; known: {', '.join(events.KINDS)}")
    endpoint = endpoints[name]
    if not kind and (endpoint.kind != "webhook" or endpoint.template is not None):
        raise CommandRefused(f"{name} takes no test events; name one that it takes, for example --event call.ended")
    return asyncio.run(_send(endpoint, kind or events.TEST))


def listed(settings: Settings, state: str, endpoint: str, call: str, limit: int) -> dict[str, Any]:
    """The endpoints, and deliveries, the newest first. Raises CommandRefused."""
    if state and state not in queue.STATES:
        raise CommandRefused(f"there is no state {state}; known: {', '.join(queue.STATES)}")
    return _run(_listed(settings, _endpoints(settings), state, endpoint, call, limit))


def redeliver(settings: Settings, ids: Sequence[str], endpoint: str, call: str) -> int:
    """Send again what is named, or the dead letters of an endpoint, a call, or all. Raises CommandRefused."""
    return _run(_redeliver(settings, ids, endpoint, call))


def enable(settings: Settings, endpoint: str) -> bool:
    """Deliver to it again; False if it was not disabled. Raises CommandRefused."""
    return _run(_enable(settings, endpoint))


def _endpoints(settings: Settings) -> Endpoints:
    try:
        return EndpointStore(settings).current
    except WebhookInvalid as error:
        raise CommandRefused(str(error)) from None


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return asyncio.run(work)
    except (DatabaseInvalid, DatabaseUnavailable) as error:
        raise CommandRefused(str(error)) from None


async def _send(endpoint: Endpoint, kind: str) -> dict[str, Any]:
    webhook_id, began = f"msg_{uuid.uuid4().hex}", time.perf_counter()
    sender = Sender(endpoint, httpx.create_ssl_context(trust_env=False))
    try:
        answer = await sender.attempt(webhook_id, events.sample(kind, time.time()).body())
    finally:
        await sender.close()
    return {
        "endpoint": endpoint.name,
        "webhook_id": webhook_id,
        "taken": answer.taken,
        "status": answer.status,
        "reason": answer.reason,
        "ms": round(1000 * (time.perf_counter() - began)),
    }


async def _listed(
    settings: Settings, endpoints: Endpoints, state: str, endpoint: str, call: str, limit: int
) -> dict[str, Any]:
    async with Database.open(configured_url(settings)) as database, database.read() as connection:
        disabled, counts = await queue.disabled(connection), await queue.counts(connection)
        found = await queue.find(connection, state=state, endpoint=endpoint, call_id=call, limit=limit)
    shown = []
    for one in endpoints.by_name.values():
        url, reason = disabled.get(one.name, ("", ""))
        numbers = {state: counts.get((one.name, state), 0) for state in queue.STATES}
        shown.append(
            {
                "name": one.name,
                "url": shown_url(one.url),
                "events": sorted(one.events),
                "disabled": reason if url == one.url else "",
                **numbers,
            }
        )
    return {"endpoints": shown, "deliveries": [_delivery(row) for row in found]}


def _delivery(row: Mapping[str, Any]) -> dict[str, Any]:
    moments = {name: events.timestamp(row[name]) if row[name] else "" for name in ("created_at", "due", "settled_at")}
    rest = ("id", "endpoint", "event", "call_id", "state", "attempts", "status", "reason")
    return {**{name: row[name] for name in rest}, **moments}


async def _redeliver(settings: Settings, ids: Sequence[str], endpoint: str, call: str) -> int:
    async with Database.open(configured_url(settings)) as database, database.begin() as connection:
        number = await queue.redeliver(connection, time.time(), ids=ids, endpoint=endpoint, call_id=call)
        await queue.audit_redelivery(connection, f"cli:{getpass.getuser()}", time.time(), number, ids, endpoint, call)
        return number


async def _enable(settings: Settings, endpoint: str) -> bool:
    async with Database.open(configured_url(settings)) as database, database.begin() as connection:
        return await queue.enable(connection, endpoint)
