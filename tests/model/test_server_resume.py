"""Sessions that come from another worker, and those that a worker lets go."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.frames import CloseCode

from model import server as server_module
from model import wire
from model.echo import EchoEngine, EchoSession
from model.session import SessionEnded
from model.wire import AgentFrame, CallerFrame, History, SessionRequest
from model.worker_engine import WorkerEngine
from tests.model.worker_connections import SOUND, MuteEngine, closed, connected, opened, serving, told

pytestmark = pytest.mark.anyio


class RememberingEngine(EchoEngine):
    """Takes every history; what it was given is kept, and its sessions echo."""

    def __init__(self) -> None:
        self.taken: list[tuple[SessionRequest, History]] = []

    async def resume(self, request: SessionRequest, history: History) -> EchoSession:
        self.taken.append((request, history))
        return EchoSession()


RESUME = wire.Resume(cut=100, frames=3, caller_frames=2, missed=2, heard=90, queued=("Goodbye now.",))
PAST = History(bytes(range(102)), SOUND * 2)


async def resumed(connection: ClientConnection, history: str | bytes) -> wire.FromWorker:
    await connection.send(wire.encode_open(SessionRequest("c1", prompt="a bank", resume=RESUME)))
    await connection.send(history)
    return await told(connection)


async def test_a_session_of_another_worker_goes_on_with_its_next_frame() -> None:
    engine = RememberingEngine()
    async with serving(engine) as server, connected(server) as connection:
        ready = await resumed(connection, wire.encode_history(RESUME, PAST))
        assert isinstance(ready, wire.Ready)
        assert engine.taken == [(SessionRequest("c1", prompt="a bank", resume=RESUME), PAST)]
        await connection.send(wire.encode_frame(CallerFrame(105, SOUND)))
        assert await told(connection) == AgentFrame(105, SOUND)
        await connection.send(wire.encode_frame(CallerFrame(105, SOUND)))
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert "caller frame 105 came where 106 was due" in error.message
        assert (server.slots.counts.sessions, server.slots.counts.resumed) == (1, 1)


@pytest.mark.parametrize(
    ("engine", "history", "words"),
    [
        (EchoEngine(), wire.encode_history(RESUME, PAST), "cannot go on with another worker's session"),
        (RememberingEngine(), wire.encode_history(RESUME, History()), "a history of these lengths"),
        (RememberingEngine(), wire.encode_frame(CallerFrame(0, SOUND)), "not by binary kind 1"),
        (RememberingEngine(), wire.encode(wire.Say("hello")), "followed by its history"),
    ],
)
async def test_a_history_that_cannot_be_taken_is_refused(
    engine: WorkerEngine, history: str | bytes, words: str
) -> None:
    async with serving(engine) as server, connected(server) as connection:
        error = await resumed(connection, history)
        assert isinstance(error, wire.Error)
        assert error.code == "invalid"
        assert words in error.message
        assert await closed(connection) == 1008
        assert server.slots.active == 0


class BusyEngine(RememberingEngine):
    """Has a slot, but no time."""

    async def open(self, request: SessionRequest) -> EchoSession:
        raise SessionEnded(wire.Error("full", "frames run late"), CloseCode.TRY_AGAIN_LATER)

    async def resume(self, request: SessionRequest, history: History) -> EchoSession:
        return await self.open(request)


async def test_whom_the_engine_refuses_is_counted_as_refused_and_as_nothing_else() -> None:
    async with serving(BusyEngine()) as server:
        async with connected(server) as connection:
            assert await opened(connection) == wire.Error("full", "frames run late")
            assert await closed(connection) == 1013
        async with connected(server) as connection:
            assert await resumed(connection, wire.encode_history(RESUME, PAST)) == wire.Error("full", "frames run late")
            assert await closed(connection) == 1013
        counts = server.slots.counts
        assert (counts.refused, counts.sessions, counts.failed, counts.resumed) == (2, 0, 0, 0)
        assert server.slots.active == 0


async def test_a_history_that_does_not_come_frees_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "OPEN_TIMEOUT", 0.1)
    async with serving(RememberingEngine()) as server, connected(server) as connection:
        await connection.send(wire.encode_open(SessionRequest("c1", resume=RESUME)))
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert "no history came" in error.message
        assert await closed(connection) == 1008
        assert server.slots.active == 0


async def test_a_worker_that_drains_answers_what_it_was_given_and_lets_every_session_go() -> None:
    async with serving(capacity=3) as server, httpx.AsyncClient() as http:
        readiness = f"http://127.0.0.1:{server.port}/readyz"
        async with connected(server) as idle, connected(server) as speaking:
            for connection in (idle, speaking):
                await opened(connection)
            await speaking.send(wire.encode_frame(CallerFrame(0, SOUND)))
            assert await told(speaking) == AgentFrame(0, SOUND)
            assert (await http.get(readiness)).status_code == 200
            await server.drain(5)
            for connection in (idle, speaking):
                error = await told(connection)
                assert isinstance(error, wire.Error)
                assert error.code == "draining"
                assert await closed(connection) == 1001
        response = await http.get(readiness)
        assert (response.status_code, response.json()["free"]) == (503, 0)
        async with connected(server) as late:
            error = await opened(late)
            assert isinstance(error, wire.Error)
            assert error.code == "draining"


class OpeningEngine(EchoEngine):
    """Takes for ever to open a session."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def open(self, request: SessionRequest) -> EchoSession:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("it was waited for")


async def test_a_worker_that_drains_lets_those_go_that_are_still_being_opened() -> None:
    """Another worker may open them at once."""
    engine = OpeningEngine()
    async with serving(engine, capacity=1) as server, connected(server) as connection:
        await connection.send(wire.encode_open(SessionRequest("c1")))
        await engine.asked.wait()
        await server.drain(5)
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert error.code == "draining"
        assert await closed(connection) == 1001
        assert server.slots.active == 0
        assert server.slots.counts.failed == 0


async def test_a_draining_worker_waits_for_no_answer_that_does_not_come() -> None:
    async with serving(MuteEngine()) as server, connected(server) as connection:
        await opened(connection)
        await connection.send(wire.encode_frame(CallerFrame(0, SOUND)))
        await server.drain(5)
        error = await told(connection)
        assert isinstance(error, wire.Error)
        assert error.code == "draining"
