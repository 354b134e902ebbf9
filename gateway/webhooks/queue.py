"""The table `deliveries` as a queue: what is stored, who may deliver what next, and what became of it.

Owns the queries. A delivery is claimed for a while by one worker; a claim that has run out is a dead
worker's, and whoever looks next takes it over. Of one call and endpoint only the first that is waiting
may be claimed, so that a call's events arrive in their order; other calls do not wait for it. Time is
an argument, in seconds since 1970. All of it runs in the caller's transactions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import insert
from gateway.records.tables import audit, deliveries, endpoint_states
from gateway.webhooks.events import Event
from gateway.webhooks.retry import GIVE_UP_AFTER

WAITING, DELIVERED, DEAD = "waiting", "delivered", "dead"
STATES = (WAITING, DELIVERED, DEAD)

NO_BODY = "{}"
"""The body of a delivery whose call was erased: it is never sent."""

FAULTS = (sa.exc.SQLAlchemyError, TypeError, ValueError)
"""What comes of a row that is damaged, or of tables that are not what we think; a database that is away is neither."""

_AT_ONCE = 500
"""Rows of one statement; both databases limit its parameters."""
_CLAIMED = deliveries.c.claimed_until > sa.literal_column("0")
"""As the index of claims has it, word for word: no parameter, or it would not be used."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A delivery that is ours to make."""

    id: str
    call_id: str
    event: str
    body: str
    attempts: int
    """Made before this one."""
    give_up_at: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a claimed delivery."""

    claim: Claim
    state: str
    status: int
    reason: str
    due: float
    """When it is tried again, if it still waits."""


async def add(
    connection: AsyncConnection, wanted: Sequence[tuple[Event, str]], now: float, disabled: Mapping[str, str]
) -> int:
    """Store events for endpoints, each pair once however often it is added; returns how many are new.

    `disabled`: endpoints that get nothing now, with the reason; what is for them is kept as dead letters.
    """
    places = await _places(connection, {event.call_id for event, _ in wanted})
    rows = []
    for event, endpoint in wanted:
        place, due = places.get((event.call_id, endpoint), (-1, now))
        places[event.call_id, endpoint] = (place + 1, due)
        rows.append(
            {
                "id": event.webhook_id(endpoint),
                "endpoint": endpoint,
                "event": event.kind,
                "call_id": event.call_id,
                "place": place + 1,
                "created_at": now,
                "body": event.body(),
                "state": DEAD if endpoint in disabled else WAITING,
                "due": max(now, due),
                "give_up_at": now + GIVE_UP_AFTER,
                "reason": disabled.get(endpoint, ""),
                "settled_at": now if endpoint in disabled else None,
            }
        )
    added = 0
    for start in range(0, len(rows), _AT_ONCE // 10):
        statement = insert(connection, deliveries).values(rows[start : start + _AT_ONCE // 10])
        done = await connection.execute(statement.on_conflict_do_nothing().returning(deliveries.c.id))
        added += len(done.all())
    return added


async def _places(connection: AsyncConnection, calls: Iterable[str]) -> dict[tuple[str, str], tuple[int, float]]:
    """The last place of each call at each endpoint, and when the first of those that wait there is due.

    What follows a delivery that waits for its next attempt waits as long, or it would be looked at in vain.
    """
    found: dict[tuple[str, str], tuple[int, float]] = {}
    one, ids = deliveries.c, sorted(calls)
    due = sa.func.max(sa.case((one.state == WAITING, one.due), else_=0.0))
    for start in range(0, len(ids), _AT_ONCE):
        where = one.call_id.in_(ids[start : start + _AT_ONCE])
        query = sa.select(one.call_id, one.endpoint, sa.func.max(one.place), due).where(where)
        for call_id, endpoint, place, until in await connection.execute(query.group_by(one.call_id, one.endpoint)):
            found[call_id, endpoint] = (place, until)
    return found


async def claim(
    connection: AsyncConnection,
    endpoint: str,
    worker: str,
    now: float,
    until: float,
    most: int,
    cap: int,
    only: str = "",
) -> list[Claim]:
    """Claim up to `most` deliveries that are due, while no more than `cap` of the endpoint are claimed by anybody.

    `only`: the id of the one that may be claimed.

    SKIP LOCKED lets replicas claim beside each other without waiting; SQLite, with one writer at a time,
    needs no such thing. Two replicas that claim in the same instant may exceed the cap for once.
    """
    one = deliveries.c
    free = cap - await held(connection, endpoint, now)
    if free <= 0:
        return []
    ready = _ready(endpoint, now)
    chosen = (
        (ready.where(one.id == only) if only else ready)
        .order_by(one.due, one.place)
        .limit(min(free, most))
        .with_for_update(skip_locked=True, of=deliveries)
        .cte("chosen")
    )
    statement = (
        sa.update(deliveries)
        .where(one.id.in_(sa.select(chosen.c.id)))
        .values(claimed_by=worker, claimed_until=until)
        .returning(one.id, one.call_id, one.event, one.body, one.attempts, one.give_up_at)
    )
    return [Claim(*row) for row in await connection.execute(statement)]


async def ready(connection: AsyncConnection, endpoint: str, now: float, most: int) -> list[str]:
    """The ids of up to `most` deliveries that may be claimed. Reads nothing else of them."""
    one = deliveries.c
    return list(await connection.scalars(_ready(endpoint, now).order_by(one.due, one.place).limit(most)))


async def held(connection: AsyncConnection, endpoint: str, now: float) -> int:
    """How many deliveries to an endpoint are under way, at whichever worker."""
    one = deliveries.c
    mine = (one.endpoint == endpoint, one.state == WAITING, _CLAIMED, one.claimed_until > now)
    return await connection.scalar(sa.select(sa.func.count()).where(*mine)) or 0


def _ready(endpoint: str, now: float) -> sa.Select[str]:
    """Deliveries that may be claimed: due, not claimed, and the first of their call that waits here."""
    one, earlier = deliveries.c, deliveries.alias("earlier")
    before = sa.exists().where(
        earlier.c.call_id == one.call_id,
        earlier.c.endpoint == one.endpoint,
        earlier.c.state == WAITING,
        earlier.c.place < one.place,
    )
    mine = (one.state == WAITING, one.endpoint == endpoint, one.due <= now, one.claimed_until <= now)
    return sa.select(one.id).where(*mine, ~before)


async def next_due(connection: AsyncConnection, endpoint: str) -> float | None:
    """When the next delivery to an endpoint, or the end of somebody's claim, is due; None: nothing waits.

    Neither question is answered by a look at all that waits.
    """
    one = deliveries.c
    mine = (one.state == WAITING, one.endpoint == endpoint)
    free = sa.select(one.due).where(*mine, one.claimed_until == 0).order_by(one.due).limit(1)
    free_at = sa.case((one.claimed_until > one.due, one.claimed_until), else_=one.due)
    claimed = sa.select(sa.func.min(free_at)).where(*mine, _CLAIMED)
    found = [await connection.scalar(free), await connection.scalar(claimed)]
    return min((due for due in found if due is not None), default=None)


async def settle(connection: AsyncConnection, worker: str, outcomes: Iterable[Outcome], now: float) -> None:
    """Store what came of claimed deliveries. A claim that was lost to another worker meanwhile stays the other's.

    One that was taken is delivered, whoever holds it now.
    """
    one = deliveries.c
    for outcome in outcomes:
        mine = one.id == outcome.claim.id
        if outcome.state != DELIVERED:
            mine &= one.claimed_by == worker
        values: dict[str, Any] = {
            "state": outcome.state,
            "attempts": outcome.claim.attempts + 1,
            "due": outcome.due,
            "claimed_by": "",
            "claimed_until": 0.0,
            "status": outcome.status,
            "reason": outcome.reason,
            "settled_at": None if outcome.state == WAITING else now,
        }
        await connection.execute(sa.update(deliveries).where(mine, one.state == WAITING).values(values))
        if outcome.state == WAITING:
            await _hold_back(connection, outcome)


async def _hold_back(connection: AsyncConnection, outcome: Outcome) -> None:
    """Let what follows in the call wait as long as what it follows."""
    one, claim = deliveries.c, outcome.claim
    endpoint = sa.select(one.endpoint).where(one.id == claim.id).scalar_subquery()
    behind = (one.call_id == claim.call_id, one.endpoint == endpoint, one.state == WAITING, one.due < outcome.due)
    await connection.execute(sa.update(deliveries).where(*behind).values(due=outcome.due))


async def release(connection: AsyncConnection, worker: str) -> None:
    """Give up all claims of a worker that stops, so that another need not wait for their end."""
    mine = (deliveries.c.claimed_by == worker, deliveries.c.state == WAITING, _CLAIMED)
    await connection.execute(sa.update(deliveries).where(*mine).values(claimed_by="", claimed_until=0.0))


async def bury(connection: AsyncConnection, endpoint: str, reason: str, now: float) -> int:
    """Make dead letters of all that waits for an endpoint; returns how many."""
    waiting = (deliveries.c.endpoint == endpoint, deliveries.c.state == WAITING)
    values = {"state": DEAD, "reason": reason, "settled_at": now, "claimed_by": "", "claimed_until": 0.0}
    return (await connection.execute(sa.update(deliveries).where(*waiting).values(values))).rowcount


async def give_up(connection: AsyncConnection, delivery: str, reason: str, now: float) -> None:
    """Make a dead letter of one that waits, without reading it."""
    one = deliveries.c
    values = {"state": DEAD, "reason": reason, "settled_at": now, "claimed_by": "", "claimed_until": 0.0}
    await connection.execute(sa.update(deliveries).where(one.id == delivery, one.state == WAITING).values(values))


async def bury_overdue(connection: AsyncConnection, endpoints: Iterable[str], now: float) -> int:
    """Make dead letters of what nobody delivers any more: too old, and for an endpoint that is not configured."""
    one = deliveries.c
    overdue = (one.state == WAITING, one.give_up_at < now, one.endpoint.not_in(list(endpoints)))
    values = {"state": DEAD, "reason": "no such endpoint is configured any more", "settled_at": now}
    return (await connection.execute(sa.update(deliveries).where(*overdue).values(values))).rowcount


async def disable(connection: AsyncConnection, endpoint: str, url: str, reason: str, now: float) -> None:
    """Note that an endpoint gets nothing until somebody enables it."""
    row = {"name": endpoint, "url": url, "disabled_at": now, "reason": reason}
    statement = insert(connection, endpoint_states).values(row)
    await connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=row))


async def disabled(connection: AsyncConnection) -> dict[str, tuple[str, str]]:
    """The endpoints that get nothing: name -> (URL, reason)."""
    one = endpoint_states.c
    return {
        name: (url, reason) for name, url, reason in await connection.execute(sa.select(one.name, one.url, one.reason))
    }


async def enable(connection: AsyncConnection, endpoint: str) -> bool:
    """Forget that an endpoint is disabled; False if it was not."""
    done = await connection.execute(sa.delete(endpoint_states).where(endpoint_states.c.name == endpoint))
    return bool(done.rowcount)


async def redeliver(
    connection: AsyncConnection,
    now: float,
    *,
    ids: Sequence[str] = (),
    endpoint: str = "",
    call_id: str = "",
    state: str = DEAD,
) -> int:
    """Send again, at once and under the same ids, what matches; returns how many.

    By id whatever its state; else those of an endpoint or a call, or all, that are in `state`. What an erased call
    had to tell is gone, and not sent.
    """
    one = deliveries.c
    where = [one.id.in_(ids) if ids else one.state == state, one.body != NO_BODY]
    if endpoint:
        where.append(one.endpoint == endpoint)
    if call_id:
        where.append(one.call_id == call_id)
    values = {
        "state": WAITING,
        "attempts": 0,
        "due": now,
        "give_up_at": now + GIVE_UP_AFTER,
        "claimed_by": "",
        "claimed_until": 0.0,
        "settled_at": None,
    }
    # What is just being delivered is left to whoever holds it.
    done = await connection.execute(sa.update(deliveries).where(*where, one.claimed_until <= now).values(values))
    return done.rowcount


async def audit_redelivery(
    connection: AsyncConnection,
    who: str,
    now: float,
    number: int,
    ids: Sequence[str] = (),
    endpoint: str = "",
    call_id: str = "",
) -> None:
    """Note in the audit log who had what sent again."""
    detail = {"number": number, "ids": list(ids)[:100], "endpoint": endpoint}
    row = {"at": now, "who": who[:128], "action": "redeliver", "call_id": call_id[:128], "detail": detail}
    await connection.execute(sa.insert(audit).values(row))


async def find(
    connection: AsyncConnection,
    *,
    state: str = "",
    endpoint: str = "",
    call_id: str = "",
    before: tuple[float, str] | None = None,
    limit: int = 50,
) -> list[Mapping[str, Any]]:
    """Deliveries, the newest first, without their bodies; `before`: the (created_at, id) of a page's last."""
    one = deliveries.c
    query = sa.select(*(column for column in one if column.name != "body"))
    for column, value in ((one.state, state), (one.endpoint, endpoint), (one.call_id, call_id)):
        if value:
            query = query.where(column == value)
    if before is not None:
        query = query.where(sa.tuple_(one.created_at, one.id) < sa.tuple_(*before))
    rows = await connection.execute(query.order_by(one.created_at.desc(), one.id.desc()).limit(limit))
    return [dict(row) for row in rows.mappings()]


async def counts(connection: AsyncConnection) -> dict[tuple[str, str], int]:
    """How many deliveries there are: (endpoint, state) -> number."""
    one = deliveries.c
    query = sa.select(one.endpoint, one.state, sa.func.count()).group_by(one.endpoint, one.state)
    return {(endpoint, state): number for endpoint, state, number in await connection.execute(query)}


async def oldest_waiting(connection: AsyncConnection) -> dict[str, float]:
    """When the oldest delivery that waits for each endpoint was stored."""
    one = deliveries.c
    query = sa.select(one.endpoint, sa.func.min(one.created_at)).where(one.state == WAITING).group_by(one.endpoint)
    return {str(endpoint): float(at) for endpoint, at in await connection.execute(query)}


async def forget(connection: AsyncConnection, calls: Sequence[str]) -> int:
    """Delete all that is kept of calls whose caller is erased; returns how many."""
    return (await connection.execute(sa.delete(deliveries).where(deliveries.c.call_id.in_(calls)))).rowcount


async def prune(connection: AsyncConnection, before: float) -> int:
    """Delete what was delivered or given up before a moment; returns how many."""
    settled = (deliveries.c.state != WAITING, deliveries.c.settled_at < before)
    return (await connection.execute(sa.delete(deliveries).where(*settled))).rowcount
