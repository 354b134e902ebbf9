"""The worker's server over real sockets: who may connect, what a session may do, and what breaks only itself."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from model import server as server_module
from model import wire
from model.echo import EchoEngine, EchoSession
from model.server import ListenRefused, WorkerServer
from model.session import MAX_BEHIND
from model.wire import AgentFrame, CallerFrame, CallerText, Output, SessionRequest
from tests.model.worker_connections import SOUND, MuteEngine, closed, connected, free_again, opened, serving, told

pytestmark = pytest.mark.anyio

TLS = Path(__file__).parent / "tls"


async def flood(connection: ClientConnection) -> None:
    for index in range(20_000):
        await connection.send(wire.encode_frame(CallerFrame(index, SOUND)))


class ScriptedSession(EchoSession):
    """Says what it is given to say, then ends or breaks; remembers that it was closed."""

    def __init__(self, says: list[Output], breaks: bool) -> None:
        super().__init__()
        self.says, self.breaks, self.was_closed = says, breaks, False

    async def outputs(self) -> AsyncIterator[Output]:
        for output in self.says:
            yield output
        if self.breaks:
            raise ZeroDivisionError("a fault of the engine")

    async def close(self) -> None:
        self.was_closed = True


class ScriptedEngine(EchoEngine):
    def __init__(self, says: list[Output], breaks: bool = False) -> None:
        self.says, self.breaks = says, breaks
        self.sessions: list[ScriptedSession] = []

    async def open(self, request: SessionRequest) -> EchoSession:
        if request.call_id == "echo":
            return EchoSession()
        self.sessions.append(ScriptedSession(self.says, self.breaks))
        return self.sessions[-1]


async def test_every_caller_frame_is_answered_by_the_agent_frame_of_the_same_index() -> None:
    async with serving(name="w1") as server, connected(server) as connection:
        assert await opened(connection) == wire.Ready("echo", "w1")
        for index in range(30):
            await connection.send(wire.encode_frame(CallerFrame(index, SOUND)))
        assert [await told(connection) for _ in range(30)] == [AgentFrame(i, SOUND) for i in range(30)]
        assert server.slots.counts.frames == 30


async def test_what_the_agent_shall_say_reaches_the_session() -> None:
    async with serving() as server, connected(server) as connection:
        await opened(connection)
        await connection.send(wire.encode(wire.Play("disclosure")))
        await connection.send(wire.encode(wire.Say(" hello")))
        assert await told(connection) == wire.AgentText(0, " hello")


async def test_a_session_beyond_capacity_is_refused_at_once_and_the_slot_comes_back() -> None:
    async with serving(capacity=1) as server:
        async with connected(server) as first:
            await opened(first)
            async with connected(server) as second:
                refusal = await opened(second)
                assert refusal == wire.Error("full", "the only slot of this worker is taken")
                assert await closed(second) == 1013
            await first.send(wire.encode(wire.Close()))
            assert await closed(first) == 1000
        async with connected(server) as third:
            assert isinstance(await opened(third), wire.Ready)
        assert (server.slots.counts.sessions, server.slots.counts.refused) == (2, 1)


async def test_a_gateway_that_vanishes_frees_its_slot() -> None:
    async with serving(capacity=1) as server:
        async with connected(server) as connection:
            await opened(connection)
            connection.transport.abort()
        await free_again(server)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "not JSON"),
        (b"\x01\x00\x00\x00\x00", "open request"),
        (json.dumps({"type": "open", "call_id": "c", "voice": 3}), "open.voice must be str"),
        (json.dumps({"type": "open", "call_id": "c", "colour": "red"}), "no field 'colour'"),
    ],
)
async def test_a_bad_open_request_is_told_which_field(message: str | bytes, words: str) -> None:
    async with serving() as server, connected(server) as connection:
        await connection.send(message)
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert error.code == "invalid"
        assert words in error.message
        assert await closed(connection) == 1008
        assert server.slots.active == 0


async def test_a_gateway_that_asks_for_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "OPEN_TIMEOUT", 0.05)
    async with serving() as server, connected(server) as connection:
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert "no open request" in error.message


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([wire.encode_frame(CallerFrame(1, SOUND))], "caller frame 1 came where 0 was due"),
        ([wire.encode_frame(CallerFrame(0, SOUND))] * 2, "caller frame 0 came where 1 was due"),
        ([wire.encode_frame(CallerFrame(0, SOUND))[:-1]], "3840 bytes"),
        ([b""], "at least 5 bytes"),
        (["{}"], "unknown message type"),
        ([wire.encode_open(SessionRequest("again"))], "unknown message type 'open'"),
    ],
)
async def test_a_broken_message_ends_only_its_own_session(messages: list[str | bytes], words: str) -> None:
    async with serving() as server, connected(server) as other, connected(server) as connection:
        await opened(other)
        await opened(connection)
        for message in messages:
            await connection.send(message)
        while isinstance(error := await told(connection), AgentFrame):
            pass
        assert isinstance(error, wire.Error)
        assert error.code == "invalid"
        assert words in error.message
        assert await closed(connection) == 1008
        await other.send(wire.encode_frame(CallerFrame(0, SOUND)))
        assert await told(other) == AgentFrame(0, SOUND)


async def test_a_peer_that_keeps_sending_is_closed_as_soon_as_it_is_refused() -> None:
    """What it sent fills the server's queue; its answer to the close comes behind all that."""
    async with serving() as server, connected(server) as connection:
        await opened(connection)
        await connection.send(b"")
        for index in range(100):
            await connection.send(wire.encode_frame(CallerFrame(index, SOUND)))
        async with asyncio.timeout(1):
            error = await told(connection)
            assert isinstance(error, wire.Error)
            assert await closed(connection) == 1008


async def test_an_oversized_message_ends_the_session() -> None:
    async with serving(capacity=1) as server:
        async with connected(server) as connection:
            await opened(connection)
            await connection.send(bytes(wire.MAX_MESSAGE + 1))
            assert await closed(connection) == 1009
        await free_again(server)


async def test_a_fault_of_the_engine_ends_one_session_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    engine = ScriptedEngine([wire.Flush(0)], breaks=True)
    async with serving(engine) as server, connected(server) as other, connected(server) as connection:
        await other.send(wire.encode_open(SessionRequest("echo")))
        await told(other)
        await opened(connection)
        assert await told(connection) == wire.Flush(0)
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert error.code == "failed"
        assert await closed(connection) == 1011
        assert engine.sessions[0].was_closed
        assert "ZeroDivisionError" in caplog.text
        await other.send(wire.encode_frame(CallerFrame(0, SOUND)))
        assert await told(other) == AgentFrame(0, SOUND)
        assert (server.slots.active, server.slots.counts.failed) == (1, 1)


async def test_an_engine_that_cannot_open_a_session_says_so() -> None:
    class Broken(EchoEngine):
        async def open(self, request: SessionRequest) -> EchoSession:
            raise OSError("weights are gone")

    async with serving(Broken()) as server, connected(server) as connection:
        error = await opened(connection)
        assert isinstance(error, wire.Error)
        assert error.code == "failed"
        assert server.slots.active == 0


async def test_a_session_that_said_everything_is_closed_well() -> None:
    engine = ScriptedEngine([AgentFrame(0, SOUND), wire.Done(0, "goodbye")])
    async with serving(engine) as server, connected(server) as connection:
        await opened(connection)
        assert await told(connection) == AgentFrame(0, SOUND)
        assert await told(connection) == wire.Done(0, "goodbye")
        assert await closed(connection) == 1000
        assert engine.sessions[0].was_closed


ADDED: tuple[wire.Output, ...] = (wire.Late(0), wire.GaveWay(0, "and how can I help?"))
"""What was added to the first protocol, in order."""


@pytest.mark.parametrize(
    ("offered", "knows"),
    [
        (wire.SUBPROTOCOLS, ADDED),
        (("callplex.v1.1", "callplex.v1"), ADDED[:1]),
        (("callplex.v1",), ()),
        pytest.param(("callplex.v9", *wire.SUBPROTOCOLS), (), id="a later one"),
    ],
)
async def test_a_gateway_is_told_only_what_its_subprotocol_knows(
    offered: tuple[str, ...], knows: tuple[wire.Output, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "SUBPROTOCOLS", ("callplex.v9", *wire.SUBPROTOCOLS))
    engine = ScriptedEngine([AgentFrame(0, SOUND), *ADDED, wire.Done(0, "goodbye")])
    async with serving(engine) as server, connected(server, subprotocols=list(map(Subprotocol, offered))) as connection:
        assert connection.subprotocol == offered[0]
        await opened(connection)
        assert await told(connection) == AgentFrame(0, SOUND)
        for message in (*knows, wire.Done(0, "goodbye")):
            assert await told(connection) == message


class LastingSession(EchoSession):
    """Has something left to say when it is closed, and says it when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.finishes, self.closed = 0, asyncio.Event()

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            yield output
            if isinstance(output, wire.Done):
                return

    def finish(self) -> AsyncIterator[CallerText]:
        self.finishes += 1
        return self._last_words()

    async def _last_words(self) -> AsyncIterator[CallerText]:
        assert self.closed.is_set()
        await self.told.wait()
        yield LAST_WORDS

    async def close(self) -> None:
        await super().close()
        self.closed.set()


class LastingEngine(EchoEngine):
    def __init__(self, *says: Output) -> None:
        self.says = says
        self.session = LastingSession()

    async def open(self, request: SessionRequest) -> EchoSession:
        self.session = LastingSession()
        self.session._pending.extend(self.says)
        return self.session


LAST_WORDS = CallerText(0, 12, "Thanks, bye.")
WAITING = [Subprotocol(one) for one in wire.SUBPROTOCOLS]


@pytest.mark.parametrize("by_the_agent", [False, True])
async def test_the_slot_is_free_before_a_callers_last_words_are_told(by_the_agent: bool) -> None:
    engine = LastingEngine(*[wire.Done(0, "goodbye")] * by_the_agent)
    async with serving(engine, capacity=1) as server, connected(server, subprotocols=WAITING) as connection:
        await opened(connection)
        if by_the_agent:
            assert await told(connection) == wire.Done(0, "goodbye")
        else:
            await connection.send(wire.encode(wire.Close()))
        assert await told(connection) == wire.Closed()
        ending = engine.session
        assert ending.closed.is_set()
        async with connected(server, subprotocols=WAITING) as other:
            assert isinstance(await opened(other), wire.Ready)
            ending.told.set()
            assert await told(connection) == LAST_WORDS
            assert await closed(connection) == 1000


async def test_a_gateway_that_does_not_know_of_last_words_is_closed_at_once() -> None:
    engine = LastingEngine()
    offered = [Subprotocol(wire.WITH_LATE), Subprotocol(wire.SUBPROTOCOL)]
    async with serving(engine) as server, connected(server, subprotocols=offered) as connection:
        await opened(connection)
        await connection.send(wire.encode(wire.Close()))
        assert await closed(connection) == 1000
        assert engine.session.closed.is_set()
        assert engine.session.finishes == 0


async def test_a_session_that_goes_on_elsewhere_has_no_last_words() -> None:
    engine = LastingEngine()
    async with serving(engine) as server:
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            connection.transport.abort()
            await engine.session.closed.wait()
            assert engine.session.finishes == 0
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            await server.drain(5)
            assert isinstance(await told(connection), wire.Error)
            assert await closed(connection) == 1001
            assert engine.session.finishes == 0


async def test_a_worker_that_is_stopped_waits_for_last_words() -> None:
    engine = LastingEngine()
    async with serving(engine) as server, connected(server, subprotocols=WAITING) as connection:
        await opened(connection)
        await connection.send(wire.encode(wire.Close()))
        assert await told(connection) == wire.Closed()
        draining = asyncio.create_task(server.drain(20))
        await asyncio.sleep(0)
        assert server.slots.active == 0
        assert not draining.done()
        engine.session.told.set()
        assert await told(connection) == LAST_WORDS
        await draining
        assert await closed(connection) == 1000


async def test_a_gateway_that_leaves_before_the_last_words_harms_nobody() -> None:
    engine = LastingEngine()
    async with serving(engine) as server:
        async with connected(server, subprotocols=WAITING) as connection:
            await opened(connection)
            await connection.send(wire.encode(wire.Close()))
            assert await told(connection) == wire.Closed()
            connection.transport.abort()
        engine.session.told.set()
        await server.drain(5)
        assert not server.slots._present


async def test_frames_that_are_never_answered_do_not_pile_up() -> None:
    async with serving(MuteEngine()) as server, connected(server) as connection:
        await opened(connection)
        for index in range(MAX_BEHIND + 1):
            await connection.send(wire.encode_frame(CallerFrame(index, SOUND)))
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert "wait for an answer" in error.message


async def test_a_gateway_that_does_not_read_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(capacity=1) as server:
        async with connected(server, max_queue=1) as connection:
            await opened(connection)
            with pytest.raises(ConnectionClosed):
                await flood(connection)
        await free_again(server)
        assert "stopped reading" in caplog.text


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
async def test_a_wrong_token_is_refused(headers: dict[str, str]) -> None:
    async with serving(token="secret") as server:
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(server, additional_headers=headers):
                pass
        assert refusal.value.response.status_code == 401


async def test_the_right_token_is_accepted() -> None:
    bearer = {"Authorization": "Bearer secret"}
    async with serving(token="secret") as server, connected(server, additional_headers=bearer) as connection:
        assert isinstance(await opened(connection), wire.Ready)


async def test_a_web_page_on_this_machine_cannot_open_a_session() -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(server, origin=Origin("https://evil.example")):
                pass
        assert refusal.value.response.status_code == 403


async def test_health_readiness_and_metrics_over_plain_http() -> None:
    async with serving(capacity=1, token="secret") as server, httpx.AsyncClient() as http:
        base = f"http://127.0.0.1:{server.port}"
        bearer = {"Authorization": "Bearer secret"}
        assert (await http.get(f"{base}/healthz")).status_code == 200
        ready = await http.get(f"{base}/readyz")
        spoken = list(wire.SUBPROTOCOLS)
        assert ready.json() == {"engine": "echo", "capacity": 1, "free": 1, "subprotocols": spoken}
        assert ready.status_code == 200
        async with connected(server, additional_headers=bearer) as connection:
            await opened(connection)
            full = await http.get(f"{base}/readyz", headers=bearer)
            assert (full.status_code, full.json()["free"]) == (503, 0)
            metrics = await http.get(f"{base}/metrics", headers=bearer)
            assert "callplex_worker_active_sessions 1\n" in metrics.text
        assert (await http.get(f"{base}/readyz", headers={"Authorization": "Bearer no"})).status_code == 401
        assert (await http.get(f"{base}/metrics")).status_code == 401
        assert (await http.get(f"{base}/elsewhere", headers=bearer)).status_code == 404


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "worker.example:8090"])
@pytest.mark.parametrize("token", ["", "secret"])
def test_off_loopback_a_token_and_tls_are_required(listen: str, token: str) -> None:
    with pytest.raises(ListenRefused, match="needs a token and TLS"):
        WorkerServer(EchoEngine(), listen, token=token)


def certified() -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    return tls


async def test_off_loopback_with_a_token_and_tls() -> None:
    tls = certified()
    trust = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    async with serving(listen="0.0.0.0:0", token="secret", tls=tls) as server:
        url = f"wss://127.0.0.1:{server.port}{wire.PATH}"
        headers = {"Authorization": "Bearer secret"}
        async with connect(
            url, subprotocols=[Subprotocol(wire.SUBPROTOCOL)], ssl=trust, additional_headers=headers
        ) as connection:
            assert isinstance(await opened(connection), wire.Ready)


@pytest.mark.parametrize("listen", ["8090", "127.0.0.1:", "127.0.0.1:99999", ":1"])
def test_an_address_that_is_none(listen: str) -> None:
    with pytest.raises(ListenRefused, match="is not host:port"):
        WorkerServer(EchoEngine(), listen)


async def test_a_port_in_use_is_said_in_a_sentence() -> None:
    async with serving() as server:
        with pytest.raises(ListenRefused, match="choose another port"):
            await WorkerServer(EchoEngine(), f"127.0.0.1:{server.port}").start()


async def test_stopping_ends_open_sessions() -> None:
    engine = EchoEngine()
    async with serving(engine) as server, connected(server) as connection:
        await opened(connection)
        await server.stop()
        assert await closed(connection) == 1001
        assert server.slots.active == 0


async def test_stopping_waits_neither_for_a_peer_that_never_speaks_nor_for_one_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "STOP_TIMEOUT", 0.05)
    async with serving() as server:
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        async with connected(server, max_queue=1) as deaf:
            await opened(deaf)
            for index in range(20):  # its answers fill the peer's queue, which nobody reads
                await deaf.send(wire.encode_frame(CallerFrame(index, SOUND)))
            async with asyncio.timeout(1.5):
                await server.stop()
        silent.close()


async def test_stopping_does_not_wait_for_a_peer_that_begins_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_TIMEOUT", 0.05)
    async with serving(tls=certified()) as server:
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(1.5):
            await server.stop()
        silent.close()
