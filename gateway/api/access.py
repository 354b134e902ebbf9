"""Who may use the admin API: an API token once there is one, and its name in the audit log."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import HTTPException, Request

from gateway.records.api_tokens import TokenInvalid, holder
from gateway.records.archive import Archive
from gateway.records.database import Database, DatabaseUnavailable


def database_of(archive: Archive) -> Database:
    """The open database; 503 while there is none."""
    if archive.database is None:
        raise HTTPException(503, "the records are not open yet")
    return archive.database


def access_to(archive: Archive) -> Callable[[Request], Awaitable[str]]:
    """A dependency: the name behind the request's token. 401 without a good one, 503 without a database."""

    async def who(request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            return await holder(database_of(archive), token.strip() if scheme.lower() == "bearer" else None)
        except TokenInvalid as error:
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None
        except DatabaseUnavailable as error:
            raise HTTPException(503, str(error)) from None

    return who
