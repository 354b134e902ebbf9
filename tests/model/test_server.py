"""The worker's server over real sockets: who may connect, what a session may do, and what breaks only itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from model import server as server_module
from model import wire
from model.echo import EchoEngine, EchoSession
from model.session import MAX_BEHIND
from model.wire import AgentFrame, CallerFrame, Output, SessionRequest
from tests.model.worker_connections import SOUND, MuteEngine, closed, connected, free_again, opened, serving, told

pytestmark = pytest.mark.anyio


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
        (wire.SUBPROTOCOLS[1:], ADDED),
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


async def test_health_readiness_and_metrics_over_plain_http() -> None:
    async with serving(capacity=1, token="secret") as server, httpx.AsyncClient() as http:
        base = f"http://127.0.0.1:{server.port}"
        bearer = {"Authorization": "Bearer secret"}
        assert (await http.get(f"{base}/healthz")).status_code == 200
        ready = await http.get(f"{base}/readyz")
        spoken = list(wire.SUBPROTOCOLS)
        assert ready.json() == {"engine": "echo", "capacity": 1, "free": 1, "subprotocols": spoken}
        assert ready.status_code == 200
        idle = (await http.get(f"{base}/metrics", headers=bearer)).text.splitlines()
        assert "callplex_worker_free 1" in idle
        async with connected(server, additional_headers=bearer) as connection:
            await opened(connection)
            full = await http.get(f"{base}/readyz", headers=bearer)
            assert (full.status_code, full.json()["free"]) == (503, 0)
            metrics = await http.get(f"{base}/metrics", headers=bearer)
            assert "callplex_worker_active_sessions 1\n" in metrics.text
            assert "callplex_worker_free 0\n" in metrics.text
        assert (await http.get(f"{base}/readyz", headers={"Authorization": "Bearer no"})).status_code == 401
        assert (await http.get(f"{base}/metrics")).status_code == 401
        assert (await http.get(f"{base}/elsewhere", headers=bearer)).status_code == 404


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
