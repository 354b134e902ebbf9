"""Both kinds of address: who is taken where, what each is told of us, and which names can be reached."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest

from gateway.sip.binding import SipUnavailable
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.events import Established, Event, IncomingCall, Probed
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.message import Message, parse_message
from gateway.sip.names import Names
from gateway.sip.sdp import parse_sdp
from gateway.sip.settings import SipSettings
from gateway.sip.uri import Addr, Transport, parse_uri
from tests.gateway.sip.endpoints import endpoint, peer
from tests.gateway.sip.pair import ANSWER, SDP
from tests.gateway.sip.script import ask
from tests.gateway.sip.switchboards import gateway, phone

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parents[2] / "model/tls"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Left to themselves both loops would take IPv6 alone over TCP."""
    return "asyncio", {"use_uvloop": bool(request.param)}


def two_addresses(family: socket.AddressFamily, far: str) -> str:
    return "192.0.2.7" if family == socket.AF_INET else "2001:db8::7"


@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
async def test_on_every_address_ipv4_and_ipv6_are_taken_and_each_is_told_its_own(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.sip.binding._own_address", two_addresses)
    keys = {"tls_cert": TLS / "cert.pem", "tls_key": TLS / "key.pem"} if transport == "tls" else {}
    async with endpoint(listen=f"{transport}:[::]:0", allow="127.0.0.1,::1", **keys) as opened:
        port = opened.addresses[transport][1]

        def take(event: Event) -> None:
            if isinstance(event, IncomingCall):
                opened.core.answer(event.call, ANSWER, opened.now())

        opened.on_event = take
        for host, own in (("127.0.0.1", "192.0.2.7"), ("::1", "[2001:db8::7]")):
            via = f"SIP/2.0/{transport.upper()} {host.replace('::1', '[::1]')}:9;rport"
            invite = ask("INVITE", via=via, call_id=host, body=SDP)
            answer = await exchange(transport, host, port, invite)
            assert answer.contact is not None
            assert (answer.contact.uri.host, answer.contact.uri.port) == (own, port)
            line = SipLine(opened, MediaRoom(opened.settings), Addr(host, 5060, transport))
            assert parse_sdp(line.offer()).media[0].host == own.strip("[]")
            line.close()


async def exchange(transport: Transport, host: str, port: int, data: bytes) -> Message:
    """Send a request; gives its final answer."""
    loop = asyncio.get_running_loop()
    if transport == "udp":
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as caller:
            caller.setblocking(False)
            caller.connect((host, port))
            caller.send(data)
            async with asyncio.timeout(10):
                while not (answer := await loop.sock_recv(caller, 65_536)).startswith(b"SIP/2.0 200"):
                    pass
    else:
        trusted = ssl.create_default_context(cafile=TLS / "cert.pem") if transport == "tls" else None
        reader, writer = await asyncio.open_connection(
            host, port, ssl=trusted, server_hostname="localhost" if trusted else None
        )
        try:
            writer.write(data)
            async with asyncio.timeout(10):
                while not (answer := await reader.readuntil(b"\r\n\r\n")).startswith(b"SIP/2.0 200"):
                    pass
                answer += await reader.readexactly(len(ANSWER))
        finally:
            writer.close()
            await writer.wait_closed()
    return parse_message(answer)


async def test_a_name_that_stands_for_ipv4_only_is_reached_where_both_are_spoken() -> None:
    """127.1 is a name to us, which the system knows as 127.0.0.1."""
    async with endpoint(listen="udp:[::]:0", allow="127.0.0.1") as opened, peer(opened) as trunk:
        assert await opened.resolve_all("127.1") == {"127.0.0.1"}
        opened.core.probe(parse_uri(f"sip:127.1:{trunk.port}"), opened.now())
        opened.pump()
        assert (await trunk.receive()).startswith("OPTIONS")
    async with endpoint(listen="udp:[::1]:0") as opened:
        with pytest.raises(OSError, match=r"only IPv6 is listened on.*listen on \[::\]"):
            await opened.resolve(Addr("127.1", 5060))


def own_over_ipv6_leads_nowhere(family: socket.AddressFamily, far: str) -> str:
    return "127.0.0.1" if family == socket.AF_INET else "2001:db8::7"


async def test_whom_a_caller_is_connected_to_by_name_is_told_an_address_of_its_own_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first call there since the start, and no trunk's."""
    monkeypatch.setattr("gateway.sip.binding._own_address", own_over_ipv6_leads_nowhere)
    async with asyncio.timeout(20), phone(manner="rings") as person:
        invited: asyncio.Queue[IncomingCall] = asyncio.Queue()
        take = person.endpoint.on_event

        def note(event: Event) -> None:
            if isinstance(event, IncomingCall):
                invited.put_nowait(event)
            take(event)

        person.endpoint.on_event = note
        both: dict[str, Any] = {"listen": "udp:[::]:0", "allow": "127.0.0.1"}
        there = f"sip:{{number}}@127.1:{person.endpoint.addresses['udp'][1]}"
        async with gateway(transfers=True, dial=there, **both) as (_, port), phone() as caller:
            await caller.dial(port)
            invite = await invited.get()
            assert invite.from_.uri.host == "127.0.0.1"
            assert parse_sdp(invite.offer or b"").media[0].host == "127.0.0.1"


async def test_inside_a_call_a_peer_whose_contact_is_a_name_goes_on_being_told_an_address_of_its_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refresh of ours says anew where we are; nobody looked that name up before."""
    monkeypatch.setattr("gateway.sip.binding._own_address", own_over_ipv6_leads_nowhere)
    async with endpoint(listen="udp:[::]:0", allow="127.0.0.1") as opened, peer(opened) as caller:
        up: asyncio.Queue[Established] = asyncio.Queue()

        def take(event: Event) -> None:
            if isinstance(event, IncomingCall):
                opened.core.answer(event.call, ANSWER, opened.now())
            elif isinstance(event, Established):
                up.put_nowait(event)

        opened.on_event = take
        contact = f"Contact: <sip:ann@127.1:{caller.port}>"
        caller.send(ask("INVITE", contact, via="SIP/2.0/UDP 127.0.0.1:9;rport", body=SDP))
        while not (answer := await caller.receive()).startswith("SIP/2.0 200 OK"):
            pass
        caller.send(ask("ACK", to_tag=parse_message(answer.encode()).to.tag, branch="z9hG4bKack"))
        async with asyncio.timeout(5):
            assert opened.core.reinvite((await up.get()).call, ANSWER, opened.now())
        opened.pump()
        while not (request := await caller.receive()).startswith("INVITE"):
            assert request.startswith("SIP/2.0 200 OK"), "the answer may be repeated"
        again = parse_message(request.encode()).contact
        assert again is not None
        assert again.uri.host == "127.0.0.1"


async def test_a_registrar_is_told_an_address_of_its_own_kind_though_its_name_was_not_found_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.sip.binding._own_address", own_over_ipv6_leads_nowhere)
    monkeypatch.setattr("gateway.sip.registration.BACKOFF", 0.02)
    look_up, fails = Names._look_up, [True, True]

    async def late(names: Names, host: str) -> list[str]:
        if fails and fails.pop():
            raise OSError(f"{host} is not known yet")
        return await look_up(names, host)

    monkeypatch.setattr(Names, "_look_up", late)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as registrar:
        registrar.setblocking(False)
        registrar.bind(("127.0.0.1", 0))
        trunk = {"name": "pbx", "registrar": f"sip:127.1:{registrar.getsockname()[1]}", "user": "gate"}
        async with asyncio.timeout(20), gateway(listen="udp:[::]:0", allow="127.0.0.1", trunks=[trunk]):
            asked = parse_message(await asyncio.get_running_loop().sock_recv(registrar, 65_536))
            assert asked.contact is not None
            assert (asked.contact.uri.host, asked.via.host) == ("127.0.0.1", "127.0.0.1")


async def test_with_listeners_of_both_kinds_a_name_is_what_its_transport_can_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everywhere = [(socket.AF_INET6, "2001:db8::9"), (socket.AF_INET, "192.0.2.9")]

    async def look_up(host: str, port: None, *, family: int, **hints: int) -> list[tuple[object, ...]]:
        known = everywhere[1:] if host == "old.example.com" else everywhere
        return [
            (kind, hints["type"], 17, "", (address, 0)) for kind, address in known if family in (kind, socket.AF_UNSPEC)
        ]

    async with endpoint(listen="udp:127.0.0.1:0,tcp:[::1]:0") as opened:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
        assert await opened.resolve_all("pbx.example.com") == {"192.0.2.9", "2001:db8::9"}
        assert await opened.resolve(Addr("pbx.example.com", 5060, "udp")) == "192.0.2.9"
        assert await opened.resolve(Addr("pbx.example.com", 5060, "tcp")) == "2001:db8::9"
        assert await opened.resolve(Addr("old.example.com", 5060, "udp")) == "192.0.2.9"
        with pytest.raises(OSError, match="only IPv6 is listened on over TCP"):
            await opened.resolve(Addr("old.example.com", 5060, "tcp"))


async def test_over_ipv6_we_name_ourselves_in_brackets() -> None:
    async with endpoint(listen="udp:[::1]:0") as opened, endpoint(listen="udp:[::1]:0") as other:
        told: asyncio.Queue[Event] = asyncio.Queue()
        opened.on_event = told.put_nowait
        target = f"sip:[::1]:{other.addresses['udp'][1]}"
        opened.core.probe(parse_uri(target), opened.now())
        opened.pump()
        async with asyncio.timeout(10):
            assert await told.get() == Probed(target, 200)


async def test_what_cannot_be_opened_leaves_nothing_bound(tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nonsense")
    bad = {"tls_cert": tmp_path / "bad.pem", "tls_key": TLS / "key.pem"}
    one = SipEndpoint(SipSettings.model_validate({"listen": "udp:127.0.0.1:0,tls:127.0.0.1:0", **bad}))
    with pytest.raises(SipUnavailable, match="cannot be used"):
        await one.open()
    assert one._udp is None


@pytest.mark.parametrize(
    ("listen", "sound"),
    [
        ("192.0.2.1:5060", "192.0.2.1"),
        ("udp:192.0.2.1:5060,tcp:198.51.100.1:5060", "0.0.0.0"),
        ("udp:192.0.2.1:5060,tcp:[2001:db8::1]:5060", "::"),
    ],
)
def test_sound_is_taken_wherever_peers_are_told_to_send_it(listen: str, sound: str) -> None:
    assert SipSettings.model_validate({"listen": listen}).sound_host == sound
