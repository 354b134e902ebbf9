"""The records over HTTP, on the operators' listener: lists, one call, exports, deliveries, erasure.

Every view is in the audit log before it is answered; one that cannot be written there is refused.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, closing
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Depends, HTTPException, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.api.access import access_to, database_of
from gateway.recording.reading import Recording
from gateway.records import audit
from gateway.records.archive import Archive
from gateway.records.calls import (
    LARGEST_PLACE,
    PAGE,
    PAGE_MOST,
    CallFilter,
    QueryInvalid,
    cursor_to,
    find,
    place_at,
    row_of,
)
from gateway.records.database import DatabaseUnavailable
from gateway.records.exports import as_text, as_vtt
from gateway.records.sound import FilesElsewhere, SoundUnavailable
from gateway.records.views import moment, record, stamp, summary
from gateway.webhooks import queue

MISDIRECTED = 421
"""This gateway cannot answer for it, another can (RFC 9110, section 15.5.20)."""

Limit = Annotated[int, Query(ge=1, le=PAGE_MOST)]
Text = Annotated[str, Query(max_length=200)]
Place = Annotated[int | None, Query(ge=0, lt=10**LARGEST_PLACE)]


def calls_router(archive: Archive) -> APIRouter:
    """`/api/calls`, `/api/calls/{id}`, `/api/calls/{id}/recording`, `/api/deliveries`, `/api/audit`."""
    router = APIRouter()
    # Annotations of routes are evaluated where they stand, so that they see this.
    Who = Annotated[str, Depends(access_to(archive))]  # noqa: N806

    @router.get("/api/calls")
    async def calls(
        who: Who,
        number: Text = "",
        persona: Text = "",
        end_reason: Text = "",
        state: Literal["", "live", "ended"] = "",
        since: Text = "",
        until: Text = "",
        text: Text = "",
        after: Text = "",
        limit: Limit = PAGE,
    ) -> Any:
        """Calls, newest first; `next` is the `after` of the next page. `text`: words said in calls that are over."""
        async with _transaction(archive) as connection:
            wanted = CallFilter(number, persona, end_reason, state, moment(since), moment(until), text)
            page = await find(connection, wanted, after, limit)
            await audit.note(connection, who, audit.LIST, calls=len(page.calls))
        return {"calls": [summary(row) for row in page.calls], "next": page.next}

    @router.get("/api/calls/{call_id}")
    async def call(
        who: Who,
        call_id: str,
        format: Literal["", "json", "text", "vtt"] = "",  # noqa: A002
    ) -> Response:
        """One call with what was said, what happened and who was told; `format`: as a file to keep."""
        async with _transaction(archive) as connection:
            found = await record(connection, call_id)
            if found is None:
                raise HTTPException(404, f"there is no call {call_id[:60]}")
            action = {"action": audit.EXPORT, "format": format} if format else {"action": audit.VIEW}
            await audit.note(connection, who, call_id=call_id, **action)
        return _rendered(found, format)

    @router.get("/api/calls/{call_id}/recording")
    async def recording(who: Who, call_id: str) -> Response:
        """The call's sound as WAV, the caller left, the agent right."""
        async with _transaction(archive) as connection:
            row = await row_of(connection, call_id)
            if row is None or not row["recording"]:
                raise HTTPException(404, f"there is no recording of a call {call_id[:60]}")
            await audit.note(connection, who, audit.PLAY, call_id=call_id)
        try:
            sound = await archive.sound.open(row["recording"], row["files_on"])
        except SoundUnavailable as error:
            raise _refused(error) from None
        name = {"content-disposition": f'inline; filename="{call_id}.wav"'}
        return StreamingResponse(_played(sound), media_type="audio/wav", headers=name)

    @router.delete("/api/calls/{call_id}")
    async def erase(who: Who, call_id: str) -> dict[str, Any]:
        """Delete what was said and what names the caller; the bare record stays."""
        try:
            erased = await archive.eraser(database_of(archive)).erase(call_id, who)
        except (DatabaseUnavailable, OSError, SoundUnavailable) as error:
            raise _refused(error) from None
        if erased is None:
            raise HTTPException(404, f"there is no call {call_id[:60]} that is over")
        return {"call_id": call_id, "erased": erased.detail}

    @router.get("/api/deliveries")
    async def told(
        who: Who,
        state: Literal["", "waiting", "delivered", "dead"] = "",
        endpoint: Text = "",
        call_id: Text = "",
        before: Text = "",
        limit: Limit = PAGE,
    ) -> Any:
        """Deliveries, newest first; `next` is the `before` of the next page."""
        async with _transaction(archive) as connection:
            place = place_at(before) if before else None
            found = await queue.find(
                connection, state=state, endpoint=endpoint, call_id=call_id, before=place, limit=limit
            )
            await audit.note(connection, who, audit.LIST, deliveries=len(found))
        following = cursor_to(found[-1]["created_at"], found[-1]["id"]) if len(found) == limit else ""
        return {"deliveries": list(map(_delivery, found)), "next": following}

    @router.get("/api/audit")
    async def audited(who: Who, call_id: Text = "", before: Place = None, limit: Limit = PAGE) -> Any:
        """Who looked at what, and who deleted what, newest first; `next` is the `before` of the next page."""
        async with _transaction(archive) as connection:
            found = await audit.entries(connection, call_id, before, limit)
        entries = [{**one, "at": stamp(one["at"])} for one in found]
        return {"entries": entries, "next": found[-1]["id"] if len(found) == limit else None}

    return router


def _refused(error: Exception) -> HTTPException:
    return HTTPException(MISDIRECTED if isinstance(error, FilesElsewhere) else 503, str(error))


def _played(sound: Recording) -> Iterator[bytes]:
    with closing(sound):
        yield from sound.wav()


@asynccontextmanager
async def _transaction(archive: Archive) -> AsyncIterator[AsyncConnection]:
    """A view and its entry in the audit log, together; what is wrong becomes a status and a sentence."""
    try:
        async with database_of(archive).begin() as connection:
            yield connection
    except QueryInvalid as error:
        raise HTTPException(400, str(error)) from None
    except DatabaseUnavailable as error:
        raise HTTPException(503, str(error)) from None


def _rendered(found: dict[str, Any], form: str) -> Response:
    if form in ("", "json"):
        response, ending = Response(orjson.dumps(found), media_type="application/json"), "json"
    elif form == "vtt":
        response, ending = PlainTextResponse(as_vtt(found), media_type="text/vtt"), "vtt"
    else:
        response, ending = PlainTextResponse(as_text(found)), "txt"
    if form:
        response.headers["content-disposition"] = f'attachment; filename="{found["call_id"]}.{ending}"'
    return response


def _delivery(row: Mapping[str, Any]) -> dict[str, Any]:
    """A delivery without its body, which holds what was said."""
    names = ("id", "endpoint", "event", "call_id", "state", "attempts", "status", "reason")
    moments = ("created_at", "due", "settled_at")
    return {**{name: row[name] for name in names}, **{name: stamp(row[name]) for name in moments}}
