"""Telnyx's webhooks and stream over real HTTP and WebSocket connections, with a scripted call."""

from __future__ import annotations

import asyncio
import time
import xml.etree.ElementTree as ET
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.leg import Outcome
from gateway.telnyx.routes import router
from gateway.twilio.leg import TwilioLeg
from tests.gateway.telnyx.test_protocol import frame, media, start
from tests.gateway.twilio.serving import TIMEOUT, Desk, Routed, serving, settings

pytestmark = pytest.mark.anyio

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = b64encode(PRIVATE.public_key().public_bytes_raw()).decode()
CALL = start()["start"]["call_control_id"]
FORM = {"CallSid": CALL, "From": "+15550001", "To": "+15550002", "CallStatus": "in-progress"}


@asynccontextmanager
async def gateway(desk: Desk) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    app = FastAPI()
    app.include_router(router(desk))
    async with serving(app) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client, f"127.0.0.1:{port}"


async def post(client: httpx.AsyncClient, path: str, form: dict[str, str] = FORM, late: int = 0) -> httpx.Response:
    body = urlencode(form).encode()
    stamp = str(int(time.time()) - late)
    signature = b64encode(PRIVATE.sign(stamp.encode() + b"|" + body)).decode()
    headers = {
        "telnyx-signature-ed25519": signature,
        "telnyx-timestamp": stamp,
        "content-type": "application/x-www-form-urlencoded",
    }
    return await client.post(path, content=body, headers=headers)


def verbs(response: httpx.Response) -> list[tuple[str, str | None]]:
    assert response.status_code == 200, response.text
    return [(verb.tag, verb.text) for verb in ET.fromstring(response.content)]


async def test_a_call_from_voice_request_to_what_comes_next() -> None:
    heard: list[bytes] = []

    async def call(leg: TwilioLeg) -> None:
        async def echo() -> None:
            await leg.listen(heard.append)

        listening = asyncio.create_task(echo())
        await leg.play(bytes(1_280))
        await leg.flush()
        await listening

    desk = Desk(settings(telnyx_public_key=KEY), run=call)
    async with gateway(desk) as (client, host):
        answer = ET.fromstring((await post(client, "/telnyx/voice")).content)
        stream = answer.find("Connect/Stream")
        assert stream is not None
        assert stream.attrib["url"] == f"ws://{host}/telnyx/stream"
        assert stream.attrib["bidirectionalMode"] == "rtp"
        assert answer.findtext("Redirect") == f"http://{host}/telnyx/after"
        token = {p.attrib["name"]: p.attrib["value"] for p in stream}["token"]
        async with asyncio.timeout(TIMEOUT), connect(stream.attrib["url"]) as socket:
            opening = start(custom_parameters={"token": token, "account": "7"})
            for message in ({"event": "connected", "version": "1.0.0"}, opening):
                await socket.send(orjson.dumps(message).decode())
            assert orjson.loads(await socket.recv())["event"] == "media"
            assert orjson.loads(await socket.recv()) == {"event": "clear"}
            for number in (1, 3, 2):
                await socket.send(orjson.dumps(media(number, frame(number))).decode())
            await socket.send('{"event":"stop"}')
            await socket.wait_closed()
        [leg] = desk.legs
        assert (leg.info.carrier, leg.info.carrier_call_id, leg.info.from_number) == ("telnyx", CALL, "+15550001")
        assert leg.info.parameters == {"account": "7"}
        assert [len(one) for one in heard] == 3 * [320]
        desk.outcomes[CALL] = Outcome("transfer", "+15559999")
        assert verbs(await post(client, "/telnyx/after")) == [("Dial", "+15559999"), ("Hangup", None)]
        desk.outcomes[CALL] = Outcome("agent_goodbye")
        assert verbs(await post(client, "/telnyx/after")) == [("Hangup", None)]
        desk.outcomes[CALL] = Outcome("caller_hangup", fallback="+15558888")
        assert verbs(await post(client, "/telnyx/after"))[0] == ("Dial", "+15558888")


async def test_nobody_free_is_sent_to_the_fallback() -> None:
    desk = Desk(settings(telnyx_public_key=KEY), is_ready=False, route_to=Routed(fallback="+15557777"))
    async with gateway(desk) as (client, _):
        assert verbs(await post(client, "/telnyx/voice"))[0] == ("Dial", "+15557777")
        desk.route_to = Routed(open=False)
        assert verbs(await post(client, "/telnyx/voice"))[0][0] == "Say"
        assert desk.turned == ["busy", "closed"]
        desk.route_to = Routed()
        assert verbs(await post(client, "/telnyx/after"))[0][0] == "Say"


async def test_only_telnyx_is_served_and_only_now() -> None:
    desk = Desk(settings(telnyx_public_key=KEY))
    async with gateway(desk) as (client, _):
        assert (await client.post("/telnyx/voice", data=FORM)).status_code == 403
        late = await post(client, "/telnyx/voice", late=1_000)
        assert late.status_code == 403
        assert "from our clock" in late.text
        assert (await post(client, "/telnyx/voice", {"From": "x"})).status_code == 400
        assert (await post(client, "/telnyx/voice", FORM | {"x": "y" * 70_000})).status_code == 413


async def test_without_a_key_nobody_is_served() -> None:
    async with gateway(Desk(settings())) as (client, host):
        refused = await post(client, "/telnyx/voice")
        assert refused.status_code == 403
        assert "CALLPLEX_TELNYX_PUBLIC_KEY" in refused.text
        with pytest.raises(InvalidStatus):
            async with connect(f"ws://{host}/telnyx/stream"):
                pass


async def test_a_stream_without_its_token_is_closed() -> None:
    desk = Desk(settings(telnyx_public_key=KEY))
    async with gateway(desk) as (_, host), connect(f"ws://{host}/telnyx/stream") as socket:
        for message in ({"event": "connected"}, start()):
            await socket.send(orjson.dumps(message).decode())
        async with asyncio.timeout(TIMEOUT):
            await socket.wait_closed()
        assert (socket.close_code, socket.close_reason) == (1008, "the call token is unknown, used or expired")
        assert not desk.legs


def test_a_key_that_is_none_is_told_at_the_start() -> None:
    with pytest.raises(ValueError, match="base64 of 32 bytes"):
        settings(telnyx_public_key="nonsense")
