"""Twilio's REST API as a real server on loopback."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from gateway.twilio import rest as rest_module
from gateway.twilio.rest import TwilioRest, rest_from
from tests.gateway.twilio.serving import TIMEOUT, serving, settings

pytestmark = pytest.mark.anyio

AUTH = "secret-auth-token"


@dataclass
class Asked:
    method: str
    path: str
    authorization: str
    form: list[tuple[str, str]]


@dataclass
class FakeTwilio:
    """An ASGI app that takes down what it is asked."""

    status: int = 200
    requests: list[Asked] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        request = Request(scope, receive)
        form = parse_qsl((await request.body()).decode())
        path = scope["raw_path"].decode()
        self.requests.append(Asked(request.method, path, request.headers["authorization"], form))
        await JSONResponse({"message": "so it is"}, self.status)(scope, receive, send)


async def test_a_call_is_ended_with_the_accounts_credentials() -> None:
    twilio = FakeTwilio()
    async with serving(twilio) as port:
        rest = TwilioRest(f"http://127.0.0.1:{port}/", "AC1", AUTH)
        assert await rest.end_call("CA1")
        assert await rest.end_call("CA/../1")
        await rest.close()
    basic = "Basic " + b64encode(f"AC1:{AUTH}".encode()).decode()
    form = [("Status", "completed")]
    assert twilio.requests == [
        Asked("POST", "/2010-04-01/Accounts/AC1/Calls/CA1.json", basic, form),
        Asked("POST", "/2010-04-01/Accounts/AC1/Calls/CA%2F..%2F1.json", basic, form),
    ]


async def test_a_refusal_is_logged_and_not_raised(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(FakeTwilio(status=404)) as port:
        rest = TwilioRest(f"http://127.0.0.1:{port}", "AC1", AUTH)
        assert not await rest.end_call("CA1")
    assert "call CA1 could not be ended by REST: HTTP 404" in caplog.text
    assert not await rest.end_call("CA2")
    await rest.close()
    assert "call CA2 could not be ended by REST" in caplog.text
    assert AUTH not in caplog.text


async def test_an_answer_that_drips_holds_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rest_module, "TIMEOUT", 0.2)
    gone = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b".")
            await asyncio.sleep(0.02)
        gone.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    async with server:
        rest = TwilioRest(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "AC1", AUTH)
        async with asyncio.timeout(TIMEOUT):
            assert not await rest.end_call("CA1")
            await rest.close()
            await gone.wait()
    assert "no answer within 0.2 s" in caplog.text


def test_a_client_needs_both_credentials() -> None:
    assert rest_from(settings()) is None
    assert rest_from(settings(twilio_auth_token=AUTH)) is None
    assert rest_from(settings(twilio_account_sid="AC1")) is None
    assert rest_from(settings(twilio_auth_token=AUTH, twilio_account_sid="AC1")) is not None
