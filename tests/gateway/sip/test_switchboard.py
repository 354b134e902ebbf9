"""Calls through a real switchboard and real sockets: handing a caller on, keys across, a public address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from gateway.leg import CallLeg
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.events import Event, IncomingCall, InfoDigits, MessageDropped, Probed, RegistrationChanged, Terminated
from gateway.sip.leg import SipLeg
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.message import Request, Response, parse_message
from gateway.sip.settings import SipSettings
from gateway.sip.switchboard import Switchboard
from gateway.sip.uri import parse_uri
from tests.gateway.sip.script import ask

pytestmark = pytest.mark.anyio

PERSON = "+12065550123"
DEPUTY = "+12065550124"
TONE = np.rint(8_000 * np.sin(2 * np.pi * np.arange(3_200) / 8)).astype(np.int16).tobytes()
"""0.4 s of 1,000 Hz."""
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
        self._transfers = transfers
        self._stubborn = stubborn
        self._fallback = fallback

    def refusal(self) -> Literal["", "busy", "unavailable"]:
        return ""

    def route(self, number: str) -> Route:
        self.dialled.append(number)
        return Route(fallback=self._fallback)

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
        self.line = SipLine(endpoint, MediaRoom(endpoint.settings), "udp")
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

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        self._contact = f"Contact: <sip:ann@127.0.0.1:{self.port}>"
        self._tag = ""
        self._cseq = 1

    def close(self) -> None:
        self._socket.close()

    def say(self, method: str, *fields: str, **changes: str | bytes) -> None:
        cseq = self._cseq
        self._cseq += method != "ACK"
        if method == "ACK":
            cseq -= 1
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
        sdp = b"v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n"
        self.say("INVITE", *fields, uri=uri, body=sdp)
        answer = await self.hear(lambda message: isinstance(message, Response) and message.code == 200)
        self._tag = answer.to.tag
        self.say("ACK")

    async def take_refer(self) -> str:
        """Accept it; gives whom it names."""
        refer = await self.hear(lambda message: isinstance(message, Request) and message.method == "REFER")
        head = [f"{name}: {refer.headers.first(name)}" for name in ("Via", "From", "To", "Call-ID", "CSeq")]
        self._socket.send("\r\n".join(["SIP/2.0 202 Accepted", *head, "Content-Length: 0", "", ""]).encode())
        return refer.headers.first("Refer-To")

    def notify(self, line: str) -> None:
        fields = ("Event: refer", "Subscription-State: terminated;reason=noresource")
        self.say("NOTIFY", *fields, body=f"SIP/2.0 {line}\r\n".encode(), kind="message/sipfrag")


@asynccontextmanager
async def peer(port: int) -> AsyncIterator[Peer]:
    one = Peer(port)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("telephone_event", [True, False], ids=["telephone-event", "info"])
async def test_keys_cross_a_bridged_transfer(telephone_event: bool) -> None:
    """The caller's telephone refuses the REFER; its keys reach the person called, who may have none but INFO."""
    async with (
        asyncio.timeout(20),
        phone(telephone_event) as person,
        gateway(transfers=True, dial=dial(person)) as (_, port),
        phone() as caller,
    ):
        await caller.dial(port)
        await person.line.up.wait()
        assert person.called == [PERSON]
        caller.line.press("5")
        assert await person.keys.get() == "5"
        person.line.press("#")
        assert await caller.keys.get() == "#"
        assert (person.by_info, caller.by_info) == (0 if telephone_event else 1, 0)
        caller.line.hangup()
        await person.line.over.wait()


@pytest.mark.parametrize("word", ["503 Service Unavailable", "486 Busy Here", ""], ids=["failed", "busy", "never told"])
async def test_a_peer_that_takes_a_transfer_and_does_not_bring_it_about(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sip.transfer.FIRST_WORD_SECONDS", 0.2)
    async with (
        phone() as person,
        gateway(transfers=True, dial=dial(person)) as (_, port),
        peer(port) as caller,
        asyncio.timeout(20),
    ):
        await caller.call()
        await caller.take_refer()
        if word:
            caller.notify(word)
        await person.line.up.wait()
        assert person.called == [PERSON]
        caller.say("BYE")
        await person.line.over.wait()


async def test_a_transfer_that_the_peer_brought_about_is_not_placed_again() -> None:
    async with phone() as person, gateway(transfers=True, dial=dial(person)) as (_, port), peer(port) as caller:
        await caller.call()
        await caller.take_refer()
        caller.notify("200 OK")
        await caller.hear(lambda message: isinstance(message, Request) and message.method == "BYE")
        assert person.called == []


async def test_a_caller_hears_it_ring_and_then_whoever_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The person asked for does not answer, and the fallback at the same telephone does."""
    monkeypatch.setattr("gateway.sip.bridge.RING_SECONDS", 1.0)
    async with (
        asyncio.timeout(20),
        phone(manner="rings") as person,
        gateway(transfers=True, fallback=DEPUTY, dial=dial(person)) as (desk, port),
        phone() as caller,
    ):
        await caller.dial(port)
        await hears(caller, 440, 480)
        await person.line.up.wait()
        assert person.called == [PERSON, DEPUTY]
        await hears(caller, 1_000, say=person.line)
        await hears(person, 1_000, say=caller.line)
        caller.line.hangup()
        await person.line.over.wait()
        assert desk.legs.qsize() == 1


async def test_sound_from_there_before_the_answer_takes_the_place_of_our_ringing() -> None:
    async with (
        asyncio.timeout(20),
        phone(manner="sounds") as person,
        gateway(transfers=True, dial=dial(person)) as (_, port),
        phone() as caller,
    ):
        await caller.dial(port)
        await hears(caller, 1_000, say=person.line)
        assert not person.line.up.is_set()


async def test_a_caller_whom_nobody_was_reached_for_is_the_agents_again() -> None:
    async with (
        asyncio.timeout(20),
        phone(manner="is busy") as person,
        gateway(transfers=True, dial=dial(person)) as (desk, port),
        phone() as caller,
    ):
        await caller.dial(port)
        before, after = await desk.legs.get(), await desk.legs.get()
        assert after.info.unreached == f"{PERSON}: 486 Busy Here"
        assert after.info.call_id != before.info.call_id
        assert after.info.carrier_call_id == before.info.carrier_call_id
        heard = asyncio.Event()
        listening = asyncio.create_task(after.listen(lambda frame: heard.set() if any(frame) else None))
        await hears(caller, 1_000, say=after.line)
        caller.line.rtp.send(TONE)
        await heard.wait()
        await after.hangup("agent_goodbye")
        await caller.line.over.wait()
        await listening


async def test_a_caller_does_not_go_to_and_fro_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sip.handover.BUSY_SECONDS", 1.0)
    async with (
        asyncio.timeout(20),
        phone(manner="is busy") as person,
        gateway(transfers=True, stubborn=True, dial=dial(person)) as (desk, port),
        phone() as caller,
    ):
        await caller.dial(port)
        await hears(caller, 480, 620)
        await caller.line.over.wait()
        assert (desk.legs.qsize(), len(person.called)) == (4, 4)


async def test_a_caller_from_a_trunk_is_connected_through_it_with_its_password() -> None:
    """No `dial`: the number is asked for where the call came from, on the trunk's own port."""
    async with asyncio.timeout(20), phone(users={"gate": "secret"}) as person:
        registrar = f"sip:127.0.0.1:{person.endpoint.addresses['udp'][1]}"
        trunk = {"name": "pbx", "registrar": registrar, "user": "gate", "password": "secret", "register": False}
        async with gateway(transfers=True, trunks=[trunk]) as (_, port), phone() as caller:
            await caller.dial(port)
            await person.line.up.wait()
            assert person.called == [PERSON]
            caller.line.hangup()
            await person.line.over.wait()


async def test_without_dial_a_number_is_sought_at_the_peer_on_the_port_of_its_contact() -> None:
    async with gateway(transfers=True) as (_, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call()
        assert await caller.take_refer() == f"<sip:{PERSON}@127.0.0.1:{caller.port}>"
        caller.say("BYE")


async def test_a_number_with_an_address_of_its_own_is_not_asked_for_at_the_trunk() -> None:
    async with asyncio.timeout(20), phone() as person, phone() as elsewhere:
        trunk = {"name": "carrier", "registrar": dial(elsewhere).replace("{number}@", ""), "register": False}
        async with gateway(transfers=True, trunks=[trunk], dial=dial(person)) as (_, port), phone() as caller:
            await caller.dial(port)
            await person.line.up.wait()
            assert (person.called, elsewhere.called) == ([PERSON], [])


@pytest.mark.parametrize(
    ("number_from", "fields", "number"),
    [
        ("request-uri", (), "+12065550110"),
        ("to", (), "agent"),
        ("X-Dialled", ('X-Dialled: "Main line" <sip:+15035550111@carrier.example;user=phone>',), "+15035550111"),
        ("x-dialled", ("X-Dialled: +1 (503) 5550111",), "+15035550111"),
        ("X-Dialled", (), "+12065550110"),
    ],
)
async def test_the_number_dialled_is_read_where_the_trunk_puts_it(
    number_from: str, fields: tuple[str, ...], number: str
) -> None:
    more = (*fields, "X-Account-Id: 42")
    async with gateway(number_from=number_from) as (desk, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call(*more, uri="sip:+12065550110;phone-context=x@127.0.0.1")
        leg = await desk.legs.get()
        assert (leg.info.to_number, desk.dialled) == (number, [number])
        assert leg.info.parameters["account_id"] == "42"


async def test_one_peer_may_not_take_every_line() -> None:
    async with gateway(max_calls_per_peer=1) as (desk, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call()
        async with peer(port) as another:
            another.say("INVITE", call_id="c2", branch="z9hG4bKother", body=b"v=0\r\n")
            answer = await another.hear(lambda message: isinstance(message, Response) and message.code >= 200)
            assert (answer.start_line, answer.headers.first("Retry-After")) == ("SIP/2.0 486 Busy Here", "10")
        leg = await desk.legs.get()
        caller.say("BYE")
        await leg.line.over.wait()


async def test_behind_nat_peers_are_told_the_public_address_and_come_there() -> None:
    """All of 127/8 is this machine: 127.0.0.2 stands for the address that the NAT has outside."""
    settings: dict[str, Any] = {"listen": "udp:0.0.0.0:0", "allow": "127.0.0.0/8", "public_address": "127.0.0.2"}
    async with asyncio.timeout(20), gateway(**settings) as (desk, port), phone() as caller:
        await caller.dial(port)
        leg = await desk.legs.get()
        heard = asyncio.Event()
        leg.line.rtp.listen(lambda frame: heard.set() if any(frame) else None)
        call = caller.line.call
        assert call is not None
        assert call.dialog is not None
        assert (call.dialog.target.host, call.dialog.target.port) == ("127.0.0.2", port)
        stream = caller.line.rtp.stream
        assert stream is not None
        assert stream.plan.remote == ("127.0.0.2", leg.line.rtp.local_port)
        while not heard.is_set():
            caller.line.rtp.send(b"\x10\x20" * 160)
            await asyncio.sleep(0.02)
        caller.line.hangup()
        await leg.line.over.wait()
        await caller.line.over.wait()
        assert isinstance(caller.line.ended, Terminated)
