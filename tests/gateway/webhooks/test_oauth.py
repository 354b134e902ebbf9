"""Access tokens: fetched once, kept, renewed when they run out or are refused."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from gateway.webhooks.oauth import Credentials, TokenRefused, TokenSource
from tests.gateway.webhooks.receiver import Receiver, Reply, Request

pytestmark = pytest.mark.anyio


class TokenServer:
    """RFC 6749's token endpoint: numbered tokens."""

    def __init__(self, **more: Any) -> None:
        self.given = 0
        self.more = {"token_type": "Bearer", "expires_in": 600, **more}
        self.receiver = Receiver(answer=self.answer)

    def answer(self, request: Request) -> Reply:
        self.given += 1
        return 200, {}, json.dumps({"access_token": f"token-{self.given}", **self.more}).encode()


@asynccontextmanager
async def source(receiver: Receiver, clock: Any = lambda: 0.0, **more: Any) -> AsyncIterator[TokenSource]:
    async with receiver.listening(), httpx.AsyncClient(trust_env=False) as client:
        yield TokenSource(Credentials(receiver.url, "id", "s3cret", **more), client, clock)


async def test_a_token_is_asked_for_once_however_many_wait_for_it() -> None:
    server = TokenServer()
    async with source(server.receiver, scope="crm.write") as tokens:
        assert set(await asyncio.gather(*(tokens.token() for _ in range(9)))) == {"token-1"}
    (request,) = server.receiver.got
    assert request.body == b"grant_type=client_credentials&scope=crm.write"
    assert request.headers["authorization"] == "Basic " + base64.b64encode(b"id:s3cret").decode()


async def test_credentials_may_go_in_the_body() -> None:
    server = TokenServer()
    async with source(server.receiver, in_body=True, audience="crm") as tokens:
        await tokens.token()
    (request,) = server.receiver.got
    assert request.body == b"grant_type=client_credentials&audience=crm&client_id=id&client_secret=s3cret"
    assert "authorization" not in request.headers


async def test_it_is_renewed_before_it_runs_out_and_when_it_is_refused() -> None:
    now, server = 0.0, TokenServer()
    async with source(server.receiver, lambda: now) as tokens:
        assert await tokens.token() == "token-1"
        now = 569.0
        assert await tokens.token() == "token-1"
        now = 570.0
        assert await tokens.token() == "token-2"
        assert await asyncio.gather(*(tokens.token(refused="token-2") for _ in range(5))) == ["token-3"] * 5
        assert await tokens.token(refused="token-1") == "token-3"


@pytest.mark.parametrize(("expires", "holds"), [(None, 270.0), ("600", 570.0), (-1, 270.0), (True, 270.0), (10, 5.0)])
async def test_how_long_it_holds(expires: object, holds: float) -> None:
    now, server = 0.0, TokenServer(expires_in=expires)
    async with source(server.receiver, lambda: now) as tokens:
        await tokens.token()
        now = holds - 0.1
        assert await tokens.token() == "token-1"
        now = holds
        assert await tokens.token() == "token-2"


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"{}", "the token endpoint answered 401"),
        (302, b"", "the token endpoint answered 302"),
        (200, b"<html>", "is not JSON"),
        (200, b"[]", "holds no access_token"),
        (200, b'{"access_token": 5}', "holds no access_token"),
        (200, b'{"access_token": "a\\nb"}', "holds no access_token"),
        (200, b" " * 100_000, "too long"),
    ],
)
async def test_an_answer_without_a_token(status: int, body: bytes, says: str) -> None:
    async with source(Receiver(answer=lambda _: (status, {"location": "http://10.0.0.1/"}, body))) as tokens:
        with pytest.raises(TokenRefused, match=says) as refused:
            await tokens.token()
    assert "s3cret" not in str(refused.value)
