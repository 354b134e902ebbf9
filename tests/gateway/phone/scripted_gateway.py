"""A small real gateway for the phone's tests: HTTP and WebSocket over loopback, each answer set by the test.

It checks signatures with Twilio's own validator, so that phone and gateway cannot agree on a mistake.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]

TOKEN = "0123456789abcdef0123456789abcdef"
Talk = Callable[["Line"], Awaitable[None]]


@dataclass
class Line:
    """The gateway's end of one stream."""

    socket: WebSocket
    sid: str = ""
    start: dict[str, Any] = field(default_factory=dict)
    received: list[dict[str, Any]] = field(default_factory=list)

    async def next(self, event: str | None = None) -> dict[str, Any]:
        """The next message, or the next of that kind. Raises WebSocketDisconnect when the phone is gone."""
        while True:
            message: dict[str, Any] = json.loads(await self.socket.receive_text())
            self.received.append(message)
            if event in (None, message["event"]):
                return message

    async def send(self, event: str, **body: object) -> None:
        await self.socket.send_text(json.dumps({"event": event, "streamSid": self.sid, **body}))


class ScriptedGateway:
    """Answers /twilio/voice and whatever else with the documents given, and talks on /twilio/stream."""

    def __init__(self, talk: Talk | None = None) -> None:
        self.port = 0
        self.documents: dict[str, str | Response] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.lines: list[Line] = []
        self.refused = 0
        self.public = ""
        """Where the gateway believes to be reached, `https://host`; empty: where it is asked."""
        self._talk = talk
        self._validator = RequestValidator(TOKEN)
        self._app = Starlette(
            routes=[
                Route("/{path:path}", self._answer, methods=["GET", "POST"]),
                WebSocketRoute("/twilio/stream", self._stream),
            ]
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def stream_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/twilio/stream"

    def connect(self, action: str = 'action="/twilio/after"') -> str:
        """TwiML that opens the stream."""
        parameter = '<Parameter name="token" value="a &amp; b"/>'
        return f'<Response><Connect {action}><Stream url="{self.stream_url}">{parameter}</Stream></Connect></Response>'

    def _asked(self, url: URL) -> str:
        if not self.public:
            return str(url)
        public = self.public.replace("http", "ws", 1) if url.scheme == "ws" else self.public
        return public + str(url).removeprefix(f"{url.scheme}://{url.netloc}")

    async def _answer(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        given = request.headers.get("x-twilio-signature", "")
        if not self._validator.validate(self._asked(request.url), form, given):
            self.refused += 1
            return PlainTextResponse("bad signature", 403)
        path = request.url.path
        self.requests.append((path, form or dict(request.query_params)))
        document = self.documents.get(path)
        if document is None:
            return Response(status_code=204 if path == "/twilio/status" else 404)
        return document if isinstance(document, Response) else Response(document, media_type="application/xml")

    async def _stream(self, socket: WebSocket) -> None:
        given = socket.headers.get("x-twilio-signature", "")
        if not self._validator.validate(self._asked(socket.url), {}, given):
            self.refused += 1
            await socket.send_denial_response(PlainTextResponse("bad signature", 403))
            return
        await socket.accept()
        line = Line(socket)
        self.lines.append(line)
        try:
            await line.next("connected")
            start = await line.next("start")
            line.sid, line.start = start["streamSid"], start["start"]
            if self._talk is not None:
                await self._talk(line)
        except WebSocketDisconnect:
            return

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[ScriptedGateway]:
        server = _Server(uvicorn.Config(self._app, port=0, ws="websockets-sansio", log_level="error", lifespan="off"))
        task = asyncio.create_task(server.serve())
        async with asyncio.timeout(10):
            await server.listening.wait()
        self.port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
