"""Tokens of the admin API. Stored by digest: a token is shown once, when it is made.

While there is none, whoever reaches the admin listener, which is on loopback, may read. From the first
one on, every request must bring one that is not revoked.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError

from gateway.records.database import Database, insert
from gateway.records.tables import api_tokens

PREFIX = "callplex_"
LOCAL = "local"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. @-]{0,63}")


class TokenInvalid(Exception):
    """A token cannot be made, found or used; the message says why."""


async def create(database: Database, name: str) -> str:
    """A new token for `name`. Raises TokenInvalid if the name is taken or cannot be one."""
    if not _NAME.fullmatch(name) or name == LOCAL:
        raise TokenInvalid(f"{name[:70]!r} cannot name a token: use letters, digits and '_.@-', 64 at most")
    token = PREFIX + secrets.token_urlsafe(32)
    try:
        async with database.begin() as connection:
            # A revoked name may be used again; who did what under it stays in the audit log.
            old = api_tokens.c.revoked_at.is_not(None)
            await connection.execute(delete(api_tokens).where(api_tokens.c.name == name, old))
            row = {"digest": _digest(token), "name": name, "created_at": time.time()}
            await connection.execute(insert(connection, api_tokens).values(row))
    except IntegrityError:
        raise TokenInvalid(f"there is a token named {name} already; revoke it first, or choose another name") from None
    return token


async def listed(database: Database) -> list[dict[str, Any]]:
    """All tokens, without their secrets, the oldest first."""
    columns = (api_tokens.c.name, api_tokens.c.created_at, api_tokens.c.revoked_at)
    async with database.read() as connection:
        rows = await connection.execute(select(*columns).order_by(api_tokens.c.created_at))
        return [dict(row) for row in rows.mappings()]


async def revoke(database: Database, name: str) -> None:
    """The token of that name opens nothing from now on. Raises TokenInvalid if there is none."""
    async with database.begin() as connection:
        live = update(api_tokens).where(api_tokens.c.name == name, api_tokens.c.revoked_at.is_(None))
        if not (await connection.execute(live.values(revoked_at=time.time()))).rowcount:
            raise TokenInvalid(f"there is no token named {name}")


async def holder(database: Database, token: str | None) -> str:
    """Whose token it is; `local` if none was ever made and none is shown. Raises TokenInvalid."""
    async with database.read() as connection:
        if not token:
            if await connection.scalar(select(func.count()).select_from(api_tokens)):
                raise TokenInvalid("send an API token: `Authorization: Bearer callplex_...`")
            return LOCAL
        live = (api_tokens.c.digest == _digest(token), api_tokens.c.revoked_at.is_(None))
        name: str | None = await connection.scalar(select(api_tokens.c.name).where(*live))
    if name is None:
        raise TokenInvalid("the API token is unknown or revoked")
    return name


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
