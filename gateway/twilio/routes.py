"""Twilio's webhooks and its media stream: thin, they check, translate and hand the call on.

Owns the order of things between Twilio and one call: voice request -> TwiML with a one-time token ->
stream -> call -> what comes next. Knows no engines; what it needs of the app is `CallDesk`.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Literal, Protocol
from urllib.parse import parse_qsl

from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect

from gateway.leg import CallInfo, CallLeg, Outcome
from gateway.settings import Settings
from gateway.twilio import twiml
from gateway.twilio.flood import FloodGuard
from gateway.twilio.guard import Guard, Refused, as_ws
from gateway.twilio.leg import MAX_REASON, TwilioLeg
from gateway.twilio.protocol import PeerError, Start, StreamProtocol
from gateway.twilio.rest import TwilioRest, rest_from
from gateway.twilio.tokens import Ticket, TokenRefused, Tokens

log = logging.getLogger(__name__)

MAX_FORM = 64 * 1024
MAX_FIELDS = 500
MAX_SID = 64
MAX_TEXT = 128
"""Characters of a number, an address or a status."""
FORM_TIMEOUT = 10.0
"""Seconds a request may take to deliver its form."""
START_TIMEOUT = 10.0
"""Seconds a socket may take from the handshake to its start message."""

SORRY = "We are sorry, nobody can take your call at the moment. Please try again later."
POLICY_VIOLATION = 1008

ENDED = frozenset({"agent_goodbye", "caller_hangup", "no_media", "silence", "time_limit"})
"""End reasons after which the call is simply over; after all others the caller still needs somebody."""


class Routed(Protocol):
    """Who answers a number: a persona when it is open, else whoever the fallback number reaches."""

    @property
    def persona(self) -> str: ...
    @property
    def open(self) -> bool: ...
    @property
    def fallback(self) -> str: ...


class CallDesk(Protocol):
    """What the routes need of the app."""

    @property
    def settings(self) -> Settings: ...

    @property
    def tokens(self) -> Tokens: ...

    def ready(self) -> bool:
        """Whether a call can be taken now."""

    def turned_away(self, why: Literal["busy", "closed"]) -> None:
        """Count a call that is not taken."""

    def route(self, number: str) -> Routed:
        """Who answers the number dialled."""

    async def answer(self, leg: CallLeg, persona: str) -> None:
        """Run the whole call; returns when it is over and its outcome is known."""

    async def outcome(self, carrier_call_id: str) -> Outcome | None:
        """How a call ended; waits briefly for one that is just ending. None: never heard of it."""


class _BadForm(Exception):
    """The request's body cannot be used; the message says why. HTTP status 400 or 413."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Line:
    """The routes' state: the guard and the REST client."""

    def __init__(self, desk: CallDesk) -> None:
        self.desk = desk
        self.guard = Guard(desk.settings)
        self.rest: TwilioRest | None = rest_from(desk.settings)

    async def voice(self, request: Request) -> Response:
        """A call comes in: who answers, and where its sound goes."""
        form, base = await self._form(request)
        call_sid, number = _call_sid(form), _text(form, "To")
        route = self.desk.route(number)
        if not route.open or not self.desk.ready():
            log.warning("call %s is not taken: %s", call_sid, "no free agent" if route.open else "closed")
            self.desk.turned_away("busy" if route.open else "closed")
            return _fallback(route.fallback)
        ticket = Ticket(call_sid, route.persona, _text(form, "From"), number)
        token = await self.desk.tokens.issue(ticket)
        parameters = {"persona": route.persona, "token": token}
        return _twiml(twiml.connect_stream(as_ws(base) + "/twilio/stream", base + "/twilio/after", parameters))

    async def after(self, request: Request) -> Response:
        """The stream is over: what comes next depends on how the call ended."""
        form, _ = await self._form(request)
        call_sid = _call_sid(form)
        outcome = await self.desk.outcome(call_sid)
        if outcome is None:
            log.warning("call %s: its stream ended before a call began", call_sid)
            return _fallback(self._number_fallback(form))
        # The stream broke and the call took it for a hang-up, but its caller is still there.
        stranded = outcome.reason == "caller_hangup" and form.get("CallStatus") == "in-progress"
        if outcome.reason in ENDED and not stranded:
            return _twiml(twiml.hangup())
        if outcome.reason == "transfer" and outcome.target:
            return _twiml(twiml.dial(outcome.target))
        log.warning("call %s: the caller is sent on after %s", call_sid, outcome.reason)
        return _fallback(outcome.fallback or self._number_fallback(form))

    def _number_fallback(self, form: dict[str, str]) -> str:
        return self.desk.route(_text(form, "To")).fallback

    async def status(self, request: Request) -> Response:
        """Twilio tells how its side of the call is doing."""
        form, _ = await self._form(request)
        log.info("call %s: the carrier says %r", _call_sid(form), _text(form, "CallStatus"))
        return Response(status_code=204)

    async def stream(self, websocket: WebSocket) -> None:
        """One call's sound, from handshake to close."""
        try:
            self.guard.admit(websocket)
        except Refused as error:
            log.warning("refused a media stream from %s: %s", websocket.client and websocket.client.host, error)
            await websocket.send_denial_response(_sentence(403, error))
            return
        await websocket.accept()
        protocol = StreamProtocol()
        flood = FloodGuard(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(START_TIMEOUT):
                start = await _read_start(websocket, protocol, flood)
            if start is None:
                return
            ticket = await self.desk.tokens.redeem(start.parameters.get("token", ""), start.call_sid)
        except (PeerError, TokenRefused) as error:
            await _refuse(websocket, str(error))
            return
        except TimeoutError:
            await _refuse(websocket, f"no start message within {START_TIMEOUT:g} s")
            return
        leg = TwilioLeg(_info(start, ticket), websocket, protocol, flood, self.rest)
        try:
            await self.desk.answer(leg, ticket.persona)
        finally:
            await leg.hangup("failed")

    async def _form(self, request: Request) -> tuple[dict[str, str], str]:
        """The checked form and our base URL. Raises Refused or _BadForm."""
        pairs = await _read_form(request)
        return dict(pairs), self.guard.admit(request, pairs)


def router(desk: CallDesk) -> APIRouter:
    """Everything under /twilio. Raises ValueError when `trusted_proxies` is not a list of addresses."""
    line = _Line(desk)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if line.rest is not None:
            await line.rest.close()

    routes = APIRouter(prefix="/twilio", lifespan=lifespan, include_in_schema=False)

    for path, hook in (("/voice", line.voice), ("/after", line.after), ("/status", line.status)):
        routes.add_api_route(path, _answering(hook), methods=["POST"])

    @routes.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        await line.stream(websocket)

    return routes


def _answering(hook: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """A webhook whose refusals become one sentence to whoever asked."""

    async def answer(request: Request) -> Response:
        try:
            return await hook(request)
        except Refused as error:
            log.warning("refused %s from %s: %s", request.url.path, request.client and request.client.host, error)
            return _sentence(403, error)
        except _BadForm as error:
            return _sentence(error.status, error)

    return answer


async def _read_start(websocket: WebSocket, protocol: StreamProtocol, flood: FloodGuard) -> Start | None:
    """Everything up to the start message; None if the socket closes before. Raises PeerError."""
    now = asyncio.get_running_loop().time
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        if text is None:
            raise PeerError("the message is binary; Media Streams are JSON text")
        flood.admit(now())
        event = protocol.receive_text(text)
        if isinstance(event, Start):
            return event


async def _refuse(websocket: WebSocket, why: str) -> None:
    log.warning("a media stream was refused: %s", why)
    with suppress(WebSocketDisconnect):
        await websocket.close(POLICY_VIOLATION, why[:MAX_REASON])


def _info(start: Start, ticket: Ticket) -> CallInfo:
    parameters = {name: value for name, value in start.parameters.items() if name != "token"}
    return CallInfo(
        call_id=uuid.uuid4().hex,
        from_number=ticket.from_number,
        to_number=ticket.to_number,
        carrier="twilio",
        carrier_call_id=start.call_sid,
        parameters=parameters,
    )


async def _read_form(request: Request) -> list[tuple[str, str]]:
    """The form's fields in order. Raises _BadForm."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise _BadForm(400, "the request must be a form: application/x-www-form-urlencoded")
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM:
                    raise _BadForm(413, f"the form is longer than {MAX_FORM} bytes")
    except (TimeoutError, ClientDisconnect):
        raise _BadForm(408, f"the form did not arrive within {FORM_TIMEOUT:g} s") from None
    try:
        return parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise _BadForm(400, f"the form must be UTF-8 with at most {MAX_FIELDS} fields") from None


def _call_sid(form: dict[str, str]) -> str:
    sid = form.get("CallSid", "")
    if not (0 < len(sid) <= MAX_SID and sid.isascii() and sid.isalnum()):
        raise _BadForm(400, "the form must have a CallSid")
    return sid


def _text(form: dict[str, str], name: str) -> str:
    """A field that is routed by, logged and kept: at most MAX_TEXT characters, and no others than can be printed."""
    return "".join(one if one.isprintable() else "?" for one in form.get(name, "")[:MAX_TEXT])


def _fallback(number: str) -> Response:
    return _twiml(twiml.dial(number) if number else twiml.say(SORRY))


def _twiml(document: bytes) -> Response:
    return Response(document, media_type=twiml.CONTENT_TYPE)


def _sentence(status: int, error: Exception) -> PlainTextResponse:
    text = str(error)
    return PlainTextResponse(text[0].upper() + text[1:] + ".\n", status)
