"""The endpoint's real sockets: who is answered, who is not, streams cut anywhere, and refusing to start."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.sip.binding import SipUnavailable
from gateway.sip.call import SipCall
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.events import Credentials, Established, Event, IncomingCall, Probed
from gateway.sip.message import parse_message
from gateway.sip.settings import ListenAddress, SipSettings
from gateway.sip.uri import parse_uri
from tests.gateway.gateway_process import running_gateway
from tests.gateway.sip.endpoints import endpoint, options, peer
from tests.gateway.sip.pair import ANSWER, SDP
from tests.gateway.sip.script import ask

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """The gateway runs on uvloop, tests elsewhere on asyncio's own loop: their transports and timers differ."""
    return "asyncio", {"use_uvloop": bool(request.param)}


async def test_options_over_udp_and_tcp() -> None:
    async with endpoint() as opened, peer(opened) as caller:
        caller.send(options())
        assert (await caller.receive()).startswith("SIP/2.0 200 OK")
        reader, writer = await asyncio.open_connection(*opened.addresses["tcp"])
        asked = b"\r\n\r\n" + options("2", "TCP") + options("3", "TCP")
        for place in range(0, len(asked), 7):
            writer.write(asked[place : place + 7])
            await writer.drain()
        assert await reader.readexactly(2) == b"\r\n"
        for branch in ("2", "3"):
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()
            assert head.startswith("SIP/2.0 200 OK")
            assert f"branch=z9hG4bK{branch}" in head
        writer.close()


async def test_a_scanner_hears_nothing_and_an_honest_peer_after_it_does() -> None:
    async with endpoint() as opened, peer(opened) as caller:
        caller.send(options("1", more="User-Agent: friendly-scanner\r\n"))
        caller.send(options("2"))
        assert "branch=z9hG4bK2" in await caller.receive()
        assert opened.drops.dropped == 1


async def test_a_field_beyond_our_limit_is_no_reason_to_leave_a_caller_without_an_answer() -> None:
    async with endpoint() as opened, peer(opened) as caller:
        caller.send(options(more="X-Long: " + "x" * 9000 + "\r\n"))
        assert (await caller.receive()).startswith("SIP/2.0 513 Message Too Large")


async def test_without_a_password_nobody_gets_in_where_passwords_are_asked_for() -> None:
    async with endpoint(users={"bob": "secret"}) as opened, peer(opened) as caller:
        caller.send(options("1", method="INVITE", more="Contact: <sip:caller@127.0.0.1:9>\r\n"))
        answer = await caller.receive()
        assert answer.startswith("SIP/2.0 401")
        assert "SHA-256" in answer
        assert "MD5" in answer


async def test_a_peer_that_floods_is_cut_off_with_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        async with endpoint(requests_per_second=10) as opened, peer(opened) as caller:
            for number in range(300):
                caller.send(options(str(number)))
                if number % 50 == 0:
                    await asyncio.sleep(0)
            async with asyncio.timeout(5):
                while not opened.drops.dropped:  # noqa: ASYNC110 - nobody tells when the network has delivered
                    await asyncio.sleep(0.01)
    lines = [record.message for record in caplog.records if "too many messages" in record.message]
    assert len(lines) == 1


async def test_a_connection_that_floods_is_read_slowly_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Over UDP a message is sent again; over TCP nobody would."""
    with caplog.at_level(logging.INFO):
        async with endpoint(requests_per_second=50) as opened:
            reader, writer = await asyncio.open_connection(*opened.addresses["tcp"])
            try:
                writer.write(b"".join(options(str(number), "TCP") for number in range(120)))
                for number in range(120):
                    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
                    assert f"branch=z9hG4bK{number};" in head
                # Held up, then read again.
                writer.write(options("last", "TCP"))
                assert "branch=z9hG4bKlast;" in (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
            finally:
                writer.close()
                await writer.wait_closed()
            assert opened.drops.dropped == 0
    assert [record.message for record in caplog.records if "read more slowly" in record.message]


async def test_every_address_of_a_name_is_known() -> None:
    async with endpoint() as opened:
        assert await opened.resolve_all("127.0.0.1") == {"127.0.0.1"}
        assert await opened.resolve_all("localhost") == {"127.0.0.1"}


async def test_over_ipv6() -> None:
    async with endpoint(listen="[::1]:0") as opened:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as caller:
            caller.setblocking(False)
            caller.connect(opened.addresses["udp"])
            caller.send(options())
            async with asyncio.timeout(5):
                answer = (await asyncio.get_running_loop().sock_recv(caller, 65_536)).decode()
            assert answer.startswith("SIP/2.0 200 OK")
            assert f"received=::1;rport={caller.getsockname()[1]}" in answer


@pytest.mark.parametrize(("listen", "host"), [("[::]", "127.0.0.1"), ("127.0.0.1", "[2001:db8::1]")])
async def test_what_we_ask_inside_a_call_reaches_the_peer_whichever_kind_of_address_it_names(
    listen: str, host: str
) -> None:
    """On a socket of IPv6 its address over IPv4 is a mapped one; over IPv4 there is no way to an IPv6 address."""
    settings = {"listen": f"udp:{listen}:0", "allow": "127.0.0.1", "public_address": "127.0.0.1"}
    async with endpoint(**settings) as opened, peer(opened) as caller:
        up: asyncio.Queue[SipCall] = asyncio.Queue()

        def take(event: Event) -> None:
            if isinstance(event, IncomingCall):
                assert event.addr.host == "127.0.0.1"
                opened.core.answer(event.call, ANSWER, opened.now())
            elif isinstance(event, Established):
                up.put_nowait(event.call)

        opened.on_event = take
        contact = f"Contact: <sip:ann@{host}:{caller.port}>"
        caller.send(ask("INVITE", contact, via="SIP/2.0/UDP 127.0.0.1:9;rport", body=SDP))
        while not (answer := await caller.receive()).startswith("SIP/2.0 200 OK"):
            pass
        caller.send(ask("ACK", to_tag=parse_message(answer.encode()).to.tag, branch="z9hG4bKack"))
        async with asyncio.timeout(5):
            opened.core.hangup(await up.get(), opened.now())
        opened.pump()
        while not (request := await caller.receive()).startswith("BYE"):
            assert request.startswith("SIP/2.0 200 OK"), "the answer may be repeated"


async def test_a_peer_whose_kind_of_address_is_not_spoken_cannot_be_reached() -> None:
    async with endpoint(listen="udp:127.0.0.1:0") as opened:
        told: asyncio.Queue[Event] = asyncio.Queue()
        opened.on_event = told.put_nowait
        opened.core.probe(parse_uri("sip:[2001:db8::1]"), opened.now())
        opened.pump()
        async with asyncio.timeout(5):
            assert await told.get() == Probed("sip:[2001:db8::1]", 503)


async def test_a_timer_that_is_overdue_already_is_run_and_the_next_one_set() -> None:
    async with endpoint() as opened, peer(opened) as caller:
        opened.core.get_timer = lambda: opened.now() - 1.0  # type: ignore[method-assign]
        opened.pump()
        del opened.core.get_timer
        caller.send(options())
        assert (await caller.receive()).startswith("SIP/2.0 200 OK")


async def test_a_stream_that_cannot_be_read_is_closed() -> None:
    async with endpoint() as opened:
        reader, writer = await asyncio.open_connection(*opened.addresses["tcp"])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_a_connection_of_nobody_we_know_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sip.stream.FIRST_MESSAGE", 0.2)
    async with endpoint(listen="tcp:127.0.0.1:0", users={"bob": "secret"}) as opened:
        reader, writer = await asyncio.open_connection(*opened.addresses["tcp"])
        writer.write(options("1", "TCP"))
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"SIP/2.0 401")
        writer.close()


def patience(opened: SipEndpoint) -> list[float]:
    """Seconds until each connection is given up if nothing more comes."""
    limits = [stream._limit for stream in opened._streams.values()]
    return [round(limit.when() - opened.now()) for limit in limits if limit is not None]


async def test_the_connections_of_trusted_peers_and_of_callers_stay() -> None:
    async with endpoint(listen="tcp:127.0.0.1:0") as opened:
        reader, writer = await asyncio.open_connection(*opened.addresses["tcp"])
        writer.write(options("1", "TCP"))
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        assert patience(opened)[0] > 3_000
        writer.close()
    async with (
        endpoint(listen="tcp:127.0.0.1:0", users={"bob": "secret"}) as opened,
        endpoint(listen="tcp:127.0.0.1:0") as caller,
    ):
        port = opened.addresses["tcp"][1]
        target = parse_uri(f"sip:agent@127.0.0.1:{port};transport=tcp")
        came: asyncio.Queue[Event] = asyncio.Queue()
        opened.on_event = came.put_nowait
        caller.core.invite(target, SDP, caller.now(), credentials=Credentials("bob", "secret"))
        caller.pump()
        async with asyncio.timeout(20):
            assert isinstance(await came.get(), IncomingCall)
        assert patience(opened)[0] > 3_000


async def first_message(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, came: asyncio.Queue[bytes]) -> None:
    came.put_nowait(await reader.read(4))
    writer.close()


@asynccontextmanager
async def listener(host: str) -> AsyncIterator[tuple[int, asyncio.Queue[bytes]]]:
    """A port, and the first bytes of each connection that it accepted."""
    came: asyncio.Queue[bytes] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: first_message(reader, writer, came), host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], came


async def test_an_address_written_out_at_length_is_connected_to_once() -> None:
    async with endpoint(listen="tcp:[::1]:0") as opened, listener("::1") as (port, came):
        opened.core.probe(parse_uri(f"sip:[0:0:0:0:0:0:0:1]:{port};transport=tcp"), opened.now())
        opened.pump()
        async with asyncio.timeout(20):
            assert await came.get() == b"OPTI"
        assert came.empty()


@pytest.mark.parametrize("host", ["127.0.0.1", "a" * 70 + ".example"], ids=["no room", "no name"])
async def test_what_cannot_be_connected_to_is_told_at_once(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sip.endpoint.MAX_STREAMS", 0)
    async with endpoint(listen="tcp:127.0.0.1:0") as opened, listener("127.0.0.1") as (port, _):
        told: asyncio.Queue[Event] = asyncio.Queue()
        opened.on_event = told.put_nowait
        target = f"sip:{host}:{port};transport=tcp"
        opened.core.probe(parse_uri(target), opened.now())
        opened.pump()
        async with asyncio.timeout(20):
            assert await told.get() == Probed(target, 503)
        assert not opened._waiting


async def test_a_port_in_use_is_said() -> None:
    async with endpoint() as opened:
        host, port = opened.addresses["udp"]
        with pytest.raises(SipUnavailable, match=f"udp:{host}:{port}.*CALLPLEX_SIP_LISTEN"):
            async with endpoint(listen=f"udp:{host}:{port}"):
                pass


async def test_where_the_system_chooses_a_port_that_tcp_has_taken_it_chooses_again() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        taken = other.getsockname()[1]
        one = SipEndpoint(SipSettings.model_validate({"listen": "127.0.0.1:0"}))
        bind, chosen = one._bind, [taken]

        async def unlucky(address: ListenAddress) -> tuple[str, int]:
            return await bind(address._replace(port=chosen.pop()) if chosen else address)

        one._bind = unlucky  # type: ignore[method-assign]
        await one.open()
        assert chosen == []
        assert one.addresses["udp"] == one.addresses["tcp"] != ("127.0.0.1", taken)
        await one.close()


def test_a_gateway_with_an_open_door_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match="where anybody can call; name the peers"),
        running_gateway(tmp_path, CALLPLEX_EMBEDDED_ECHO="1", CALLPLEX_SIP_LISTEN="0.0.0.0:0"),
    ):
        pass
