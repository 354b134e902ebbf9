"""Clients of Moshi's protocol on a real worker: many at once, and each one's faults its own."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from model import wire
from model.echo import EchoEngine, EchoSession
from model.moshi.door import MOST_LOGGED, MoshiDoor
from model.moshi.sound import Mouth
from model.server import WorkerServer
from model.wire import AgentText, Done, Output, SessionRequest
from model.worker_engine import WorkerEngine
from tests.model.moshi.client import RATE, MoshiClient, pitch, talking, tone, url

pytestmark = pytest.mark.anyio

PAGE = "https://talk.example.com"


@asynccontextmanager
async def serving(
    engine: WorkerEngine | None = None, door: MoshiDoor | None = None, **options: Any
) -> AsyncIterator[WorkerServer]:
    doors = [door or MoshiDoor([PAGE])]
    server = WorkerServer(engine or EchoEngine(), "127.0.0.1:0", doors=doors, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class AskedEngine(EchoEngine):
    """Remembers what it was asked for; each session says its prompt first."""

    def __init__(self) -> None:
        self.asked: list[SessionRequest] = []

    async def open(self, request: SessionRequest) -> EchoSession:
        self.asked.append(request)
        session = EchoSession()
        for word in request.prompt.split():
            session.say(f" {word}")
        return session


async def converse(client: MoshiClient, hertz: float) -> float:
    """Two seconds of a tone, and the pitch of what comes back."""
    assert await client.receive() == 0
    assert client.handshake == b"\x00"
    await client.send(tone(2, hertz))
    return pitch((await client.hear(2 * RATE - 1_920))[RATE // 4 :])


async def free_again(server: WorkerServer) -> None:
    """A client is taken again; each refusal takes the server a turn."""
    async with asyncio.timeout(10):
        while True:
            async with talking(server) as client:
                if await client.receive() == 0:
                    return


async def test_four_clients_at_once_hear_their_own_echo_and_their_own_agents_words() -> None:
    engine = AskedEngine()
    async with serving(engine, capacity=4) as server, AsyncExitStack() as stack:
        prompts = [f"You are number {number}." for number in range(4)]
        clients = [await stack.enter_async_context(talking(server, text_prompt=prompt)) for prompt in prompts]
        tones = (300, 500, 700, 900)
        heard = await asyncio.gather(*(converse(*pair) for pair in zip(clients, tones, strict=True)))
        assert heard == pytest.approx(list(tones), abs=2)
        assert ["".join(client.said).strip() for client in clients] == prompts
        assert server.slots.active == 4
        async with talking(server) as fifth:
            assert await fifth.ended() == 1013
            assert fifth.errors == ["all 4 slots of this worker are taken"]


async def test_each_session_has_the_settings_that_it_asked_for() -> None:
    engine = AskedEngine()
    async with serving(engine) as server:
        for parameters in ({"seed": 7, "audio_topk": 3}, {"voice_prompt": "NATM1.pt"}):
            async with talking(server, **parameters) as client:
                await client.receive()
    first, second = engine.asked
    assert (first.sampling.seed, first.sampling.top_k, first.voice) == (7, 3, "NATF2")
    assert (second.sampling.top_k, second.voice) == (wire.Sampling().top_k, "NATM1")


class SlowEngine(EchoEngine):
    """Opens sessions when it is told to."""

    def __init__(self) -> None:
        self.asked, self.let_in = asyncio.Event(), asyncio.Event()

    async def open(self, request: SessionRequest) -> EchoSession:
        self.asked.set()
        await self.let_in.wait()
        return await super().open(request)


async def test_what_is_sent_before_the_handshake_is_heard_from_its_first_frame() -> None:
    engine = SlowEngine()
    async with serving(engine) as server, talking(server) as client:
        await engine.asked.wait()
        told = asyncio.create_task(client.receive())
        await client.send(np.concatenate((tone(0.08, 400), tone(0.92, 1_600))))
        assert not told.done()
        engine.let_in.set()
        assert await told == 0
        heard = await client.hear(RATE - 1_920)
        assert pitch(heard[:1_920]) == pytest.approx(400, abs=25)
        assert pitch(heard[RATE // 4 :]) == pytest.approx(1_600, abs=2)


async def test_a_stream_may_be_cut_anywhere_between_messages() -> None:
    async with serving() as server, talking(server) as client:
        await client.receive()
        await client.send(tone(1, 600), cut=33)
        assert pitch((await client.hear(RATE - 1_920))[RATE // 4 :]) == pytest.approx(600, abs=2)


async def test_unknown_kinds_and_all_that_the_original_ignores_are_discarded() -> None:
    async with serving() as server, talking(server) as client:
        await client.receive()
        for message in (
            b"",
            "hello",
            b"\x03\x00",
            b"\x03\x01",
            b'\x04{"a": 1}',
            b"\x06",
            b"\x00",
            b"\x02hi",
            b"\x63???",
        ):
            await client.connection.send(message)
        await client.send(tone(0.4, 600))
        assert len(await client.hear(3 * 1_920)) >= 3 * 1_920


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x01" + b"this is no Ogg page" * 40, "not an Ogg Opus stream"),
        (b"\x01" + bytes(70_000), "a message may hold 65536 bytes of sound"),
    ],
)
async def test_a_broken_stream_ends_its_session_and_no_other(message: bytes, words: str) -> None:
    async with serving() as server, talking(server) as good, talking(server) as bad:
        await bad.receive()
        await bad.connection.send(message)
        assert await bad.ended() == 1008
        assert words in bad.errors[0]
        assert await converse(good, 440) == pytest.approx(440, abs=2)
        assert server.slots.active == 1


async def test_a_client_that_talks_much_faster_than_time_is_told_so() -> None:
    async with serving() as server, talking(server) as client:
        await client.receive()
        data = b"".join(client.encode(tone(0.08, 440)) for _ in range(150))
        await client.send_stream(data, cut=60_000)
        assert await client.ended() == 1008
        assert "faster than it can be answered" in client.errors[0]


async def test_a_client_without_sound_does_not_keep_its_slot() -> None:
    """Whether it sends nothing at all or only what is no sound."""
    async with serving(door=MoshiDoor(soundless=0.5)) as server, talking(server) as mute, talking(server) as ping:
        for client in (mute, ping):
            await client.receive()
        await ping.connection.send(b"\x06")
        for client in (mute, ping):
            assert await client.ended() == 1008
            assert "no sound came for" in client.errors[0]
        assert server.slots.active == 0


async def test_no_more_clients_are_taken_than_leave_the_process_time_for_gateways() -> None:
    async with serving(door=MoshiDoor(most=2)) as server, talking(server) as one, talking(server) as other:
        for client in (one, other):
            await client.receive()
        async with talking(server) as third:
            assert await third.ended() == 1013
            assert third.errors == ["this worker holds 2 sessions of this protocol, and no more at a time"]
        assert (server.slots.active, server.slots.counts.refused) == (2, 1)
        await one.connection.close()
        await free_again(server)


async def test_whoever_waits_for_the_event_loop_comes_between_two_clients_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns, encoded = 0, list[int]()
    say = Mouth.say

    def watched(mouth: Mouth, pcm: bytes) -> bytes:
        encoded.append(turns)
        return say(mouth, pcm)

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(Mouth, "say", watched)
    async with serving(capacity=8) as server, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(talking(server)) for _ in range(8)]
        for client in clients:
            await client.receive()
        sound = [client.encode(tone(0.4, 440)) for client in clients]
        turn()
        for client, data in zip(clients, sound, strict=True):
            await client.send_stream(data)
        for client in clients:
            assert len(await client.hear(3 * 1_920)) >= 3 * 1_920
    assert len(encoded) >= 8 * 3
    assert len(set(encoded)) == len(encoded)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"voice_prompt": "../../../etc/passwd"}, "the name of a voice"),
        ({"seed": "tomorrow"}, "seed must be a whole number"),
        ({"audio_topk": "0"}, "audio_topk must be a whole number from 1 to 2048"),
    ],
)
async def test_what_cannot_be_served_is_said_and_takes_no_slot(
    parameters: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """To the log, too: the web client shows nobody what it is told."""
    caplog.set_level("INFO", "model.moshi")
    async with serving() as server, talking(server, **parameters) as client:
        assert await client.ended() == 1008
        assert words in client.errors[0]
        assert server.slots.counts.sessions == 0
    (logged,) = caplog.messages
    assert re.fullmatch(r"call moshi-[0-9a-f]{16} is ended: .*", logged)
    assert client.errors[0] in logged


class PartingSession(EchoSession):
    async def outputs(self) -> AsyncIterator[Output]:
        yield AgentText(0, " Goodbye.")
        yield Done(0, "goodbye")


class PartingEngine(EchoEngine):
    """Says goodbye at once."""

    async def open(self, request: SessionRequest) -> EchoSession:
        return PartingSession()


async def test_the_agents_goodbye_ends_the_session_well() -> None:
    async with serving(PartingEngine()) as server, talking(server) as client:
        assert await client.receive() == 0
        assert await client.ended() == 1000
        assert client.said == [" Goodbye."]


async def test_a_worker_that_is_stopped_says_so() -> None:
    async with serving() as server, talking(server) as client:
        await client.receive()
        await server.drain(5)
        assert await client.ended() == 1001
        assert client.errors == ["the worker is being stopped"]


async def status(server: WorkerServer, target: str, **options: Any) -> int:
    try:
        async with connect(target, **options) as connection:
            assert await connection.recv() == b"\x00"
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


async def test_the_token_is_asked_for_and_may_stand_where_a_browser_can_put_it() -> None:
    async with serving(token="secret") as server:
        ask = functools.partial(status, server)
        assert await ask(url(server)) == 401
        assert await ask(url(server, worker_auth_id="wrong")) == 401
        assert await ask(url(server, worker_auth_id="")) == 401
        assert await ask(url(server, worker_auth_id="secret")) == 101
        assert await ask(url(server, token="secret")) == 101
        assert await ask(url(server), additional_headers={"Authorization": "Bearer secret"}) == 101


async def test_web_pages_come_in_only_from_where_the_operator_says() -> None:
    async with serving() as server:
        ask = functools.partial(status, server, url(server))
        assert await ask(origin=Origin("https://evil.example")) == 403
        assert await ask(origin=Origin("http://talk.example.com")) == 403
        assert await ask(origin=Origin("null")) == 403
        assert await ask(origin=Origin(PAGE)) == 101
        ours = f"ws://127.0.0.1:{server.port}{wire.PATH}"
        offered = [Subprotocol(wire.SUBPROTOCOL)]
        assert await ask_ours(ours, offered, PAGE) == 403


async def test_each_web_page_that_may_not_come_in_is_logged_once_and_not_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A browser tells its user no more than that the connection failed."""
    caplog.set_level("INFO", "model.moshi")
    async with serving() as server:
        ask = functools.partial(status, server, url(server))
        pages = [f"http://page-{number}.example" for number in range(MOST_LOGGED + 2)]
        for page in [pages[0], *pages]:
            assert await ask(origin=Origin(page)) == 403
    first, *others = caplog.messages
    assert first == (
        "a web page of 'http://page-0.example' asked for a session and was refused; if it is yours, name its origin in"
        " CALLPLEX_MOSHI_ORIGINS"
    )
    assert len(others) == MOST_LOGGED - 1


async def ask_ours(target: str, offered: list[Subprotocol], page: str) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(target, subprotocols=offered, origin=Origin(page)):
            pass
    return refusal.value.response.status_code


async def test_without_the_door_there_is_nothing_at_its_path() -> None:
    server = WorkerServer(EchoEngine(), "127.0.0.1:0")
    await server.start()
    try:
        assert await status(server, url(server)) == 404
    finally:
        await server.stop()


async def test_silence_is_heard_as_silence() -> None:
    async with serving() as server, talking(server) as client:
        await client.receive()
        await client.send(np.zeros(RATE, np.float32))
        assert np.abs(await client.hear(RATE - 1_920)).max() < 1e-3
