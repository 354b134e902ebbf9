"""`callplex webhooks ...`: try an endpoint, see deliveries, send them again, enable an endpoint.

Owns the words and what is printed; the work is `delivery`'s and `queue`'s. They act on the database
beside a running gateway, which notices within seconds.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import httpx
import typer

from gateway.settings import Settings
from gateway.webhooks import events, queue
from gateway.webhooks.endpoints import Endpoint, Endpoints, EndpointStore, WebhookInvalid, shown_url

_T = TypeVar("_T")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def fail(message: str) -> NoReturn:
    """End with status 1 and one sentence."""
    typer.echo(f"callplex: {message}", err=True)
    raise typer.Exit(1)


def webhooks_app(load: Callable[[], Settings]) -> typer.Typer:
    """The commands; `load` reads the settings, and ends with a sentence if it cannot."""
    app = typer.Typer(no_args_is_help=True, help="Try endpoints, and see and repeat what was sent to them.")

    @app.command("test")
    def test(
        endpoint: Annotated[str, typer.Argument(help="Its name; `default` is that of CALLPLEX_WEBHOOK_URL.")],
        event: Annotated[str, typer.Option(help="A kind such as call.ended; by default callplex.test.")] = "",
        json_output: Json = False,
    ) -> None:
        """Send a made-up event to one endpoint now, and say what it answered."""
        found = _endpoint(_endpoints(load()), endpoint)
        kind = event or events.TEST
        if kind not in (*events.KINDS, events.TEST):
            fail(f"there is no event {kind}; known: {', '.join(events.KINDS)}")
        if not event and (found.kind != "webhook" or found.template is not None):
            fail(f"{endpoint} does not take test events; name one that it does, for example --event call.ended")
        result = asyncio.run(_send(found, kind))
        _print(result, json_output, f"{endpoint}: {result['reason']} ({result['ms']} ms)")
        if not result["taken"]:
            raise typer.Exit(1)

    @app.command("list")
    def listed(
        state: Annotated[str, typer.Option(help="waiting, delivered or dead.")] = "",
        endpoint: Annotated[str, typer.Option(help="Only what goes to this one.")] = "",
        call: Annotated[str, typer.Option(help="Only what tells of this call.")] = "",
        limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
        json_output: Json = False,
    ) -> None:
        """Show the endpoints, and deliveries, the newest first."""
        if state and state not in queue.STATES:
            fail(f"there is no state {state}; known: {', '.join(queue.STATES)}")
        settings = load()
        found = _run(_listed(settings, _endpoints(settings), state, endpoint, call, limit))
        _print(found, json_output, _table(found))

    @app.command("redeliver")
    def redeliver(
        ids: Annotated[list[str] | None, typer.Argument(help="webhook-ids, as `list` shows them.")] = None,
        endpoint: Annotated[str, typer.Option(help="All dead letters of this endpoint.")] = "",
        call: Annotated[str, typer.Option(help="All dead letters of this call.")] = "",
        every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
        json_output: Json = False,
    ) -> None:
        """Send deliveries again, under the same ids: those named, or dead letters."""
        if not (ids or endpoint or call or every):
            fail("say what to send again: webhook-ids, --endpoint, --call or --all")
        number = _run(_redeliver(load(), ids or [], endpoint, call))
        _print({"redelivered": number}, json_output, f"{number} will be sent again at once")
        if ids and not number:
            raise typer.Exit(1)

    @app.command("enable")
    def enable(
        endpoint: Annotated[str, typer.Argument(help="Its name.")],
        json_output: Json = False,
    ) -> None:
        """Deliver again to an endpoint that was disabled because it answered 410."""
        was = _run(_enable(load(), endpoint))
        said = f"{endpoint} is enabled; for its dead letters: callplex webhooks redeliver --endpoint {endpoint}"
        _print({"enabled": endpoint, "was_disabled": was}, json_output, said if was else f"{endpoint} was not disabled")

    return app


def _endpoints(settings: Settings) -> Endpoints:
    try:
        return EndpointStore(settings).current
    except WebhookInvalid as error:
        fail(str(error))


def _endpoint(endpoints: Endpoints, name: str) -> Endpoint:
    if name not in endpoints.by_name:
        known = ", ".join(endpoints.by_name) or "none; set CALLPLEX_WEBHOOK_URL or write webhooks.yaml"
        fail(f"there is no endpoint {name}; known: {known}")
    return endpoints.by_name[name]


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    from gateway.records.database import DatabaseInvalid, DatabaseUnavailable

    try:
        return asyncio.run(work)
    except (DatabaseInvalid, DatabaseUnavailable) as error:
        fail(str(error))


async def _send(endpoint: Endpoint, kind: str) -> dict[str, Any]:
    from gateway.webhooks.delivery import Sender

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
    from gateway.records.database import Database, configured_url

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


async def _redeliver(settings: Settings, ids: list[str], endpoint: str, call: str) -> int:
    from gateway.records.database import Database, configured_url

    async with Database.open(configured_url(settings)) as database, database.begin() as connection:
        number = await queue.redeliver(connection, time.time(), ids=ids, endpoint=endpoint, call_id=call)
        await queue.audit_redelivery(connection, f"cli:{getpass.getuser()}", time.time(), number, ids, endpoint, call)
        return number


async def _enable(settings: Settings, endpoint: str) -> bool:
    from gateway.records.database import Database, configured_url

    async with Database.open(configured_url(settings)) as database, database.begin() as connection:
        return await queue.enable(connection, endpoint)


def _print(value: Mapping[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(value) if as_json else text)


def _table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{one['name']}: {one['url']}, {one['waiting']} waiting, {one['delivered']} delivered, {one['dead']} dead"
        + (f"; {one['disabled']}" if one["disabled"] else "")
        for one in found["endpoints"]
    ]
    for one in found["deliveries"]:
        lines.append(
            f"{one['created_at'][:19]}  {one['id']}  {one['state']:9}  {one['endpoint']:12}  {one['event']:16}"
            f"  {one['call_id']}  {one['attempts']} attempts{'  ' + one['reason'] if one['reason'] else ''}"
        )
    return "\n".join(lines) or "no endpoints and no deliveries"
