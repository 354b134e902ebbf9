"""Calls through a real switchboard and real sockets: handing a caller on, keys across, a public address."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from gateway.leg import CallLeg
from gateway.sip.bridge import Bridge
from gateway.sip.events import Terminated
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.message import Request, Response
from gateway.sip.names import Names
from gateway.sip.uri import parse_uri
from tests.gateway.sip.switchboards import DEPUTY, PEER_SDP, PERSON, TONE, Desk, dial, gateway, hears, peer, phone

pytestmark = pytest.mark.anyio


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


async def test_a_call_whose_sound_breaks_is_over_at_once_and_by_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(now: float) -> None:
        raise ZeroDivisionError

    async with asyncio.timeout(20), gateway() as (desk, port), phone() as caller:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        await caller.dial(port)
        leg = await desk.legs.get()
        monkeypatch.setattr(leg.line.rtp.stream, "hear", breaks)
        await caller.line.over.wait()
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        with pytest.raises(RuntimeError, match="the sound of this call broke"):
            await leg.listen(lambda frame: None)
        asyncio.get_running_loop().set_exception_handler(None)


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


async def test_whoever_has_a_name_that_cannot_be_looked_up_is_not_reached() -> None:
    there = f"sip:{{number}}@{'a' * 70}.example"
    async with asyncio.timeout(20), gateway(transfers=True, dial=there) as (desk, port), phone() as caller:
        await caller.dial(port)
        await desk.legs.get()
        again = await desk.legs.get()
        assert again.info.unreached == f"{PERSON}: it cannot be reached"


async def test_nobody_is_called_for_a_caller_who_left_while_the_name_was_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()

    async def late(names: Names, host: str) -> list[str]:
        asked.set()
        await answered.wait()
        return ["127.0.0.1"]

    monkeypatch.setattr(Names, "_look_up", late)
    async with asyncio.timeout(20), gateway() as (desk, port), phone() as caller:
        await caller.dial(port)
        line = (await desk.legs.get()).line
        called: list[SipLine] = []
        bridge = Bridge(line, MediaRoom(line.endpoint.settings), called.append)
        connecting = asyncio.create_task(bridge.connect(parse_uri("sip:pbx.example.com"), None, PERSON))
        await asked.wait()
        caller.line.hangup()
        await line.over.wait()
        answered.set()
        assert (await connecting, called) == ("", [])


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


async def test_a_refresh_of_ours_is_answered_like_an_offer_and_the_call_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer has no UPDATE; its answer to the description that stands has another version than its offer had."""
    monkeypatch.setattr("gateway.sip.session_timer.SessionTimer.wait", lambda timer: 0.1)
    refresh = "Session-Expires: 90;refresher=uas"
    async with gateway() as (desk, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call(refresh)
        leg = await desk.legs.get()
        offers = []
        for version in (2, 3):
            invite = await caller.hear(lambda message: isinstance(message, Request) and message.method != "ACK")
            assert isinstance(invite, Request)
            assert invite.method == "INVITE", leg.line.fault
            offers.append(invite.body)
            answer = f"v=0\r\no=- 1 {version} IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            answer += "m=audio 9 RTP/AVP 0\r\na=ptime:20\r\n"
            caller.answer(invite, "200 OK", refresh.replace("uas", "uac"), body=answer.encode())
            await caller.hear(lambda message: isinstance(message, Request) and message.method == "ACK")
        assert offers[0] == offers[1]
        assert (leg.line.over.is_set(), leg.line.fault) == (False, "")
        caller.say("BYE")
        await leg.line.over.wait()


async def test_a_caller_whom_the_desk_let_fall_is_not_left_ringing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(desk: Desk, leg: CallLeg, persona: str) -> None: ...

    monkeypatch.setattr(Desk, "answer", nothing)
    async with gateway() as (_, port), peer(port) as caller, asyncio.timeout(20):
        caller.say("INVITE", body=PEER_SDP)
        answer = await caller.hear(lambda message: isinstance(message, Response) and message.code >= 200)
        assert answer.start_line == "SIP/2.0 503 Service Unavailable"


async def test_one_peer_may_not_take_every_line() -> None:
    async with gateway(max_calls_per_peer=1) as (desk, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call()
        async with peer(port) as another:
            another.say("INVITE", call_id="c2", branch="z9hG4bKother", body=b"v=0\r\n")
            answer = await another.hear(lambda message: isinstance(message, Response) and message.code >= 200)
            assert (answer.start_line, answer.headers.first("Retry-After")) == ("SIP/2.0 486 Busy Here", "10")
        assert desk.turned == ["busy"]
        leg = await desk.legs.get()
        caller.say("BYE")
        await leg.line.over.wait()


def taken_port() -> socket.socket:
    """An even one, where a pair would begin."""
    while True:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        taken.bind(("127.0.0.1", 0))
        if taken.getsockname()[1] % 2 == 0:
            return taken
        taken.close()


async def test_who_finds_no_port_or_nobody_in_is_turned_away_and_counted() -> None:
    with taken_port() as taken:
        low = taken.getsockname()[1]
        async with gateway(rtp_ports=f"{low}-{low + 1}") as (desk, port), asyncio.timeout(20):
            for code in (503, 480):
                async with peer(port) as caller:
                    caller.say("INVITE", body=PEER_SDP)
                    answer = await caller.hear(lambda message: isinstance(message, Response) and message.code >= 200)
                    assert isinstance(answer, Response)
                    assert answer.code == code
                desk.open = False
            assert desk.turned == ["busy", "closed"]


async def test_a_call_that_moves_counts_as_its_first_peers_until_it_ends() -> None:
    async with gateway(max_calls_per_peer=1) as (desk, port), peer(port) as caller, asyncio.timeout(20):
        await caller.call()
        leg = await desk.legs.get()
        async with peer(port, "127.0.0.2") as moved:
            moved.take_over(caller)
            await moved.call()
            moved.say("BYE")
            await leg.line.over.wait()
        async with peer(port) as next_caller:
            await next_caller.call()
            leg = await desk.legs.get()
            next_caller.say("BYE")
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
