"""A switchboard in this process, telephones that call it over real sockets, and a peer that speaks by script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gateway.leg import CallLeg
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.events import Event, IncomingCall, InfoDigits, MessageDropped, Probed, RegistrationChanged
from gateway.sip.leg import SipLeg
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.message import Request, Response, parse_message
from gateway.sip.settings import SipSettings
from gateway.sip.switchboard import Switchboard
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.script import ask

PERSON = "+12065550123"
DEPUTY = "+12065550124"
TONE = np.rint(8_000 * np.sin(2 * np.pi * np.arange(3_200) / 8)).astype(np.int16).tobytes()
"""0.4 s of 1,000 Hz."""
PEER_SDP = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"
NO_KEYS = b"x-nothing/8000"


@dataclass
class Route:
    persona: str = "echo"
    open: bool = True
    fallback: str = ""


class Desk:
    """Answers every call, and hands it on at once if it is told to; one that comes back only if it is `stubborn`."""

    def __init__(self, transfers: bool, stubborn: bool = False, fallback: str = "") -> None:
        self.legs: asyncio.Queue[SipLeg] = asyncio.Queue()
        self.dialled: list[str] = []
        self.turned: list[str] = []
        self.open = True
        self._transfers = transfers
        self._stubborn = stubborn
        self._fallback = fallback

    def refusal(self) -> Literal["", "busy", "unavailable"]:
        return ""

    def turned_away(self, why: str) -> None:
        self.turned.append(why)

    def route(self, number: str) -> Route:
        self.dialled.append(number)
        return Route(open=self.open, fallback=self._fallback)

    async def answer(self, leg: CallLeg, persona: str) -> None:
        assert isinstance(leg, SipLeg)
        leg.answer()
        await leg.line.up.wait()
        self.legs.put_nowait(leg)
        if self._transfers and (self._stubborn or not leg.info.unreached):
            await leg.transfer(PERSON)
            await leg.hangup("transfer")
            return
        await leg.line.over.wait()


Manner = Literal["answers", "is busy", "rings", "sounds"]
"""What becomes of a call to PERSON, others are answered; `sounds`: before the answer, which does not come."""


class Phone:
    """Takes or places one call, and writes down the keys that it hears and its sound."""

    def __init__(self, endpoint: SipEndpoint, telephone_event: bool, manner: Manner) -> None:
        self.endpoint = endpoint
        self.line = SipLine(endpoint, MediaRoom(endpoint.settings), Addr("127.0.0.1", 5060))
        self.line.on_digit = self._press
        self.keys: asyncio.Queue[str] = asyncio.Queue()
        self.by_info = 0
        self.called: list[str] = []
        self.heard = bytearray()
        self.line.rtp.listen(self.heard.extend)
        self._telephone_event = telephone_event
        self._manner = manner
        endpoint.on_event = self._take

    def _press(self, digit: str) -> None:
        self.keys.put_nowait(digit)

    def _take(self, event: Event) -> None:
        if isinstance(event, IncomingCall):
            offer = event.offer or b""
            self.called.append(event.uri.user)
            manner = self._manner if event.uri.user == PERSON else "answers"
            if manner == "is busy":
                self.endpoint.core.reject(event.call, 486, self.endpoint.now())
                return
            if manner == "rings":
                self.endpoint.core.ringing(event.call, self.endpoint.now())
                return
            self.line.call = event.call
            sdp = self.line.answer(offer if self._telephone_event else offer.replace(b"telephone-event/8000", NO_KEYS))
            if manner == "answers":
                self.endpoint.core.answer(event.call, sdp, self.endpoint.now())
            else:
                self.endpoint.core.ringing(event.call, self.endpoint.now(), 183, sdp)
        elif not isinstance(event, (RegistrationChanged, Probed, MessageDropped)) and event.call is self.line.call:
            self.by_info += isinstance(event, InfoDigits)
            self.line.heard(event)

    async def dial(self, port: int) -> None:
        target = parse_uri(f"sip:agent@127.0.0.1:{port}")
        self.line.call = self.endpoint.core.invite(target, self.line.offer(), self.endpoint.now())
        self.endpoint.pump()
        await self.line.up.wait()


@asynccontextmanager
async def phone(telephone_event: bool = True, manner: Manner = "answers", **values: object) -> AsyncIterator[Phone]:
    settings = {"listen": "udp:127.0.0.1:0", "rtp_ports": "20000-29999", **values}
    endpoint = SipEndpoint(SipSettings.model_validate(settings))
    await endpoint.open()
    one = Phone(endpoint, telephone_event, manner)
    try:
        yield one
    finally:
        one.line.hangup()
        await endpoint.close()


@asynccontextmanager
async def gateway(
    *, transfers: bool = False, stubborn: bool = False, fallback: str = "", **values: object
) -> AsyncIterator[tuple[Desk, int]]:
    """A switchboard, and the port of its UDP."""
    desk = Desk(transfers, stubborn, fallback)
    switchboard = Switchboard(SipSettings.model_validate({"listen": "udp:127.0.0.1:0", **values}), desk)
    await switchboard.bind()
    switchboard.take_calls()
    async with asyncio.timeout(10):
        while len(switchboard._joined) < len(switchboard._settings.trunks):  # noqa: ASYNC110 - nobody else is told
            await asyncio.sleep(0.01)
    try:
        yield desk, switchboard.endpoint.addresses["udp"][1]
    finally:
        await switchboard.close()


async def hears(one: Phone, *hertz: int, say: SipLine | None = None) -> None:
    """Until 0.4 s of the sound that comes to a telephone have their loudest frequency at one of `hertz`.

    `say`: a line that sends 1,000 Hz meanwhile.
    """
    one.heard.clear()
    while True:
        if say is not None and not say.rtp.unheard:
            say.rtp.send(TONE)
        sound = np.trim_zeros(np.frombuffer(bytes(one.heard), np.int16), "f")[:3_200].astype(np.float64)
        if len(sound) == 3_200:
            loudest = np.argmax(np.abs(np.fft.rfft(sound))) * 2.5
            if any(abs(loudest - wanted) <= 10 for wanted in hertz):
                return
            one.heard.clear()
        await asyncio.sleep(0.02)


def dial(person: Phone) -> str:
    return f"sip:{{number}}@127.0.0.1:{person.endpoint.addresses['udp'][1]}"


class Peer:
    """A caller written out by hand, which can take a REFER."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        # Two peers of one test have calls of their own.
        self._call_id = f"c{self.port}"
        self._contact = f"Contact: <sip:ann@{host}:{self.port}>"
        self._tag = ""
        self._cseq = 1

    def close(self) -> None:
        self._socket.close()

    def take_over(self, other: Peer) -> None:
        """Another's call goes on from here."""
        self._call_id, self._tag, self._cseq = other._call_id, other._tag, other._cseq

    def say(self, method: str, *fields: str, **changes: str | bytes) -> None:
        cseq = self._cseq
        self._cseq += method != "ACK"
        if method == "ACK":
            cseq -= 1
        changes = {"call_id": self._call_id, "via": f"SIP/2.0/UDP 192.0.2.99:{self.port};rport", **changes}
        message = ask(method, *fields, self._contact, cseq=cseq, to_tag=self._tag, **changes)  # type: ignore[arg-type]
        self._socket.send(message)

    async def hear(self, wanted: Callable[[Request | Response], bool]) -> Request | Response:
        async with asyncio.timeout(10):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self._socket, 65_536)
                message = parse_message(data)
                if wanted(message):
                    return message

    async def call(self, *fields: str, uri: str = "sip:agent@127.0.0.1") -> None:
        self.say("INVITE", *fields, uri=uri, body=PEER_SDP)
        answer = await self.hear(lambda message: isinstance(message, Response) and message.code == 200)
        self._tag = answer.to.tag
        self.say("ACK")

    async def take_refer(self) -> str:
        """Accept it; gives whom it names."""
        refer = await self.hear(lambda message: isinstance(message, Request) and message.method == "REFER")
        self.answer(refer, "202 Accepted")
        return refer.headers.first("Refer-To")

    def answer(self, request: Request | Response, line: str, *fields: str, body: bytes = b"") -> None:
        head = [f"{name}: {request.headers.first(name)}" for name in ("Via", "From", "To", "Call-ID", "CSeq")]
        if body:
            head.append("Content-Type: application/sdp")
        lines = [f"SIP/2.0 {line}", *head, self._contact, *fields, f"Content-Length: {len(body)}", "", ""]
        self._socket.send("\r\n".join(lines).encode() + body)

    def notify(self, line: str) -> None:
        fields = ("Event: refer", "Subscription-State: terminated;reason=noresource")
        self.say("NOTIFY", *fields, body=f"SIP/2.0 {line}\r\n".encode(), kind="message/sipfrag")


@asynccontextmanager
async def peer(port: int, host: str = "127.0.0.1") -> AsyncIterator[Peer]:
    one = Peer(port, host)
    try:
        yield one
    finally:
        one.close()
