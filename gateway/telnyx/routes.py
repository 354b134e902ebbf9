"""Telnyx's TeXML webhooks and its media stream: thin, they check, translate and hand the call on.

Owns the order of things between Telnyx and one call: voice request -> TeXML with a one-time token ->
stream -> call -> what comes next. Webhooks must carry Telnyx's signature; a stream, which carries none,
must bring the token that only a signed webhook is given. Without a public key nobody is served.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response, WebSocket
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketDisconnect

from gateway.leg import CallInfo
from gateway.telnyx import signature, texml
from gateway.telnyx.protocol import TelnyxProtocol
from gateway.twilio import twiml
from gateway.twilio.flood import FloodGuard
from gateway.twilio.guard import as_http, as_ws
from gateway.twilio.leg import MAX_REASON, TwilioLeg
from gateway.twilio.protocol import PeerError, Start
from gateway.twilio.routes import ENDED, POLICY_VIOLATION, SORRY, CallDesk
from gateway.twilio.tokens import Ticket, TokenRefused

log = logging.getLogger(__name__)

MAX_FORM = 64 * 1024
MAX_FIELDS = 500
MAX_CALL_ID = 128
FORM_TIMEOUT = 10.0
START_TIMEOUT = 10.0
"""Seconds a socket may take from the handshake to its start message."""


class _Refused(Exception):
    """The request is not served; the message says why in one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Line:
    """The routes' state: the key."""

    def __init__(self, desk: CallDesk) -> None:
        self._desk = desk
        text = desk.settings.telnyx_public_key.strip()
        self._key = signature.read_public_key(text) if text else None

    async def voice(self, request: Request) -> Response:
        """A call comes in: who answers, and where its sound goes."""
        form = await self._form(request)
        call_id, number = _call_id(form), form.get("To", "")
        route = self._desk.route(number)
        if not route.open or not self._desk.ready():
            log.warning("call %s is not taken: %s", call_id, "no free agent" if route.open else "closed")
            self._desk.turned_away("busy" if route.open else "closed")
            return _fallback(route.fallback)
        ticket = Ticket(call_id, route.persona, form.get("From", ""), number)
        token = await self._desk.tokens.issue(ticket)
        base = as_http(self._desk.settings.public_url.strip() or str(request.base_url)).rstrip("/")
        stream, after = as_ws(base) + "/telnyx/stream", base + "/telnyx/after"
        return _texml(texml.connect_stream(stream, after, {"token": token}))

    async def after(self, request: Request) -> Response:
        """The stream is over: what comes next depends on how the call ended."""
        form = await self._form(request)
        call_id = _call_id(form)
        outcome = await self._desk.outcome(call_id)
        if outcome is not None and outcome.reason == "transfer" and outcome.target:
            return _texml(twiml.dial(outcome.target))
        # Telnyx asks only while the caller is there: a hang-up that the call saw was the stream's end.
        over = form.get("CallStatus") == "completed"
        if over or (outcome is not None and outcome.reason in ENDED and outcome.reason != "caller_hangup"):
            return _texml(twiml.hangup())
        log.warning("call %s: the caller is sent on after %s", call_id, outcome.reason if outcome else "no call")
        fallback = outcome.fallback if outcome is not None else ""
        return _fallback(fallback or self._desk.route(form.get("To", "")).fallback)

    async def stream(self, websocket: WebSocket) -> None:
        """One call's sound, from handshake to close."""
        if self._key is None:
            refusal = PlainTextResponse("Calls from Telnyx are not configured here.\n", 403)
            await websocket.send_denial_response(refusal)
            return
        await websocket.accept()
        protocol = TelnyxProtocol()
        flood = FloodGuard(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(START_TIMEOUT):
                start = await _read_start(websocket, protocol, flood)
            if start is None:
                return
            ticket = await self._desk.tokens.redeem(start.parameters.get("token", ""), start.call_sid)
        except (PeerError, TokenRefused) as error:
            await _refuse(websocket, str(error))
            return
        except TimeoutError:
            await _refuse(websocket, f"no start message within {START_TIMEOUT:g} s")
            return
        leg = TwilioLeg(_info(start, ticket), websocket, protocol, flood, None)
        try:
            await self._desk.answer(leg, ticket.persona)
        finally:
            await leg.hangup("failed")

    async def _form(self, request: Request) -> dict[str, str]:
        """The checked form. Raises _Refused."""
        if self._key is None:
            raise _Refused(403, "calls from Telnyx need CALLPLEX_TELNYX_PUBLIC_KEY to be set")
        body = await _read_body(request)
        timestamp = request.headers.get(signature.TIMESTAMP_HEADER, "")
        given = request.headers.get(signature.SIGNATURE_HEADER, "")
        if why := signature.verify(self._key, timestamp, body, given, time.time()):
            raise _Refused(403, why)
        try:
            return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict"))
        except ValueError:
            raise _Refused(400, f"the form must be UTF-8 with at most {MAX_FIELDS} fields") from None


def router(desk: CallDesk) -> APIRouter:
    """Everything under /telnyx. Raises ValueError when the public key is none."""
    line = _Line(desk)
    routes = APIRouter(prefix="/telnyx", include_in_schema=False)
    for path, hook in (("/voice", line.voice), ("/after", line.after)):
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
        except _Refused as error:
            log.warning("refused %s from %s: %s", request.url.path, request.client and request.client.host, error)
            text = str(error)
            return PlainTextResponse(text[0].upper() + text[1:] + ".\n", error.status)

    return answer


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(FORM_TIMEOUT):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_FORM:
                    raise _Refused(413, f"the form is longer than {MAX_FORM} bytes")
    except (TimeoutError, ClientDisconnect):
        raise _Refused(408, f"the form did not arrive within {FORM_TIMEOUT:g} s") from None
    return bytes(body)


async def _read_start(websocket: WebSocket, protocol: TelnyxProtocol, flood: FloodGuard) -> Start | None:
    """Everything up to the start message; None if the socket closes before. Raises PeerError."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text = message.get("text")
        if text is None:
            raise PeerError("the message is binary; media streams are JSON text")
        flood.admit(asyncio.get_running_loop().time())
        event = protocol.receive_text(text)
        if isinstance(event, Start):
            return event


async def _refuse(websocket: WebSocket, why: str) -> None:
    log.warning("a media stream was refused: %s", why)
    with suppress(WebSocketDisconnect):
        await websocket.close(POLICY_VIOLATION, why[:MAX_REASON])


def _info(start: Start, ticket: Ticket) -> CallInfo:
    return CallInfo(
        call_id=uuid.uuid4().hex,
        from_number=ticket.from_number,
        to_number=ticket.to_number,
        carrier="telnyx",
        carrier_call_id=start.call_sid,
        parameters={name: value for name, value in start.parameters.items() if name != "token"},
    )


def _call_id(form: dict[str, str]) -> str:
    """Telnyx's call control id, like `v3:` and base64url."""
    found = form.get("CallSid", "")
    if not 0 < len(found) <= MAX_CALL_ID or not found.isascii() or not found.isprintable():
        raise _Refused(400, "the form must have a CallSid")
    return found


def _fallback(number: str) -> Response:
    return _texml(twiml.dial(number) if number else twiml.say(SORRY))


def _texml(document: bytes) -> Response:
    return Response(document, media_type=twiml.CONTENT_TYPE)
