"""A desk that runs calls by script, behind the real server: what the route and leg tests talk to."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from starlette.types import ASGIApp
from websockets.asyncio.client import ClientConnection

from gateway.leg import Outcome
from gateway.records.tokens import SharedTokens
from gateway.settings import Settings
from gateway.twilio.leg import TwilioLeg
from gateway.twilio.peer import CarrierStream
from gateway.twilio.routes import router
from gateway.twilio.socket import CarrierSocket

TIMEOUT = 5.0


@dataclass
class Routed:
    persona: str = "bank"
    open: bool = True
    fallback: str = ""


async def listen(leg: TwilioLeg) -> None:
    """A call that only hears the caller out."""
    await leg.listen(lambda frame: None)
    await leg.hangup("caller_hangup")


@dataclass
class Desk:
    """Implements CallDesk; `run` is the call."""

    settings: Settings
    run: Callable[[TwilioLeg], Awaitable[None]] = listen
    route_to: Routed = field(default_factory=Routed)
    is_ready: bool = True
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    legs: list[TwilioLeg] = field(default_factory=list)
    personas: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: SharedTokens = field(default_factory=SharedTokens)

    def ready(self) -> bool:
        return self.is_ready

    def turned_away(self, why: str) -> None:
        self.turned.append(why)

    def route(self, number: str) -> Routed:
        self.numbers.append(number)
        return self.route_to

    async def answer(self, leg: object, persona: str) -> None:
        assert isinstance(leg, TwilioLeg)
        self.legs.append(leg)
        self.personas.append(persona)
        try:
            await self.run(leg)
        finally:
            self.finished.set()

    async def outcome(self, carrier_call_id: str) -> Outcome | None:
        return self.outcomes.get(carrier_call_id)


class OnlyGiven(Settings):
    """Settings from a test's own values, whatever the environment and its files say."""

    model_config = SettingsConfigDict(toml_file=None, env_file=None)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def settings(**values: object) -> Settings:
    return OnlyGiven(**values)  # type: ignore[arg-type]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Run an app behind uvicorn as the gateway does; gives the port."""
    config = uvicorn.Config(app, "127.0.0.1", 0, ws=CarrierSocket, proxy_headers=False, log_config=None, lifespan="on")
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        await asyncio.wait_for(server.shutdown(), TIMEOUT)


def app_for(desk: Desk) -> FastAPI:
    app = FastAPI()
    app.include_router(router(desk))
    return app


def carrier(call_sid: str = "CA1", sid: str = "MZ1") -> CarrierStream:
    return CarrierStream(sid, call_sid, "AC1")


FORM = {"CallSid": "CA1", "From": "+15550001", "To": "+15550002", "CallStatus": "ringing", "AccountSid": "AC1"}


@asynccontextmanager
async def gateway(desk: Desk) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    async with serving(app_for(desk)) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client, f"127.0.0.1:{port}"


async def post(client: httpx.AsyncClient, path: str, form: Mapping[str, str] = FORM, **headers: str) -> httpx.Response:
    return await client.post(path, data=dict(form), headers={k.replace("_", "-"): v for k, v in headers.items()})


def verbs(response: httpx.Response) -> list[tuple[str, str | None]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/xml")
    return [(verb.tag, verb.text) for verb in ET.fromstring(response.content)]


def stream_of(response: httpx.Response) -> tuple[str, str, dict[str, str]]:
    """(action, stream URL, parameters)"""
    connect_verb = ET.fromstring(response.content).find("Connect")
    assert connect_verb is not None
    stream = connect_verb.find("Stream")
    assert stream is not None
    parameters = {p.attrib["name"]: p.attrib["value"] for p in stream}
    return connect_verb.attrib["action"], stream.attrib["url"], parameters


async def closed(socket: ClientConnection) -> tuple[int | None, str | None]:
    async with asyncio.timeout(TIMEOUT):
        await socket.wait_closed()
    return socket.close_code, socket.close_reason
