"""The short way beside uvicorn's own: the same bytes, cut anywhere, mean the same to the application."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame, Opcode

from gateway.twilio.socket import READ_AHEAD, CarrierSocket

REQUEST = (
    b"GET /s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
MAX_SIZE = 3_000


class Line(asyncio.Transport):
    """A transport that keeps what is written, and whether it is read."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closed = False
        self.reading = True

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Application:
    """Takes a stream, keeps its messages, answers as the test says, until it is closed."""

    def __init__(self, answers: Sequence[dict[str, Any]]) -> None:
        self.answers = answers
        self.messages: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        for answer in self.answers:
            await send(answer)
        while not self.messages or self.messages[-1]["type"] != "websocket.disconnect":
            self.messages.append(await receive())


async def converse(
    kind: type[WebSocketsSansIOProtocol],
    chunks: Sequence[bytes],
    answers: Sequence[dict[str, Any]] = (),
    max_size: int = MAX_SIZE,
) -> tuple[list[dict[str, Any]], bytes, bool]:
    """What the application got, what went out after the handshake, and whether we closed."""
    application = Application(answers)
    config = uvicorn.Config(
        application, ws_max_size=max_size, ws_per_message_deflate=False, ws_ping_interval=None, log_config=None
    )
    config.load()
    line = Line()
    state = ServerState()
    socket = kind(config, state, {})
    socket.connection_made(line)
    socket.data_received(REQUEST)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert socket.handshake_complete
    for chunk in chunks:
        if not line.closed:
            socket.data_received(chunk)
        await asyncio.sleep(0)
    ours = line.closed
    socket.connection_lost(ConnectionResetError())
    await asyncio.gather(*state.tasks)
    handshake, _, written = line.written.partition(b"\r\n\r\n")
    assert handshake.startswith(b"HTTP/1.1 101 ")
    return application.messages, written, ours


def wire(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


def cut(data: bytes, at: Sequence[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


texts = st.builds(lambda text, times: (text * times).encode(), st.text(max_size=30), st.sampled_from([1, 1, 5, 20]))
frames = st.one_of(
    texts.map(lambda data: wire(Opcode.TEXT, data)),
    texts.map(lambda data: wire(Opcode.TEXT, data)),
    st.binary(max_size=200).map(lambda data: wire(Opcode.BINARY, data)),
    st.binary(max_size=125).map(lambda data: wire(Opcode.PING, data)),
    st.binary(max_size=125).map(lambda data: wire(Opcode.PONG, data)),
    st.lists(st.binary(max_size=150), min_size=2, max_size=4).map(
        lambda parts: (
            wire(Opcode.BINARY, parts[0], fin=False)
            + b"".join(wire(Opcode.CONT, part, fin=False) + wire(Opcode.PING, b"") for part in parts[1:-1])
            + wire(Opcode.CONT, parts[-1])
        )
    ),
)
oddities = st.one_of(
    st.binary(max_size=7),
    st.sampled_from(
        [
            wire(Opcode.CLOSE, b"\x03\xe8bye") + wire(Opcode.TEXT, b"too late"),
            wire(Opcode.CONT, b"never begun"),
            wire(Opcode.TEXT, b"begun", fin=False) + wire(Opcode.TEXT, b"again"),
            wire(Opcode.TEXT, b"a" * (MAX_SIZE + 1)),
            b"\x81\x05hello",
            b"\xc1\x81\0\0\0\0a",
            b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            b"",
        ]
    ),
)


@settings(deadline=None)
@given(st.lists(frames, max_size=8), oddities, st.lists(st.integers(0, 1 << 20), max_size=12))
def test_however_the_bytes_are_cut_the_application_gets_what_uvicorn_gives(
    good: list[bytes], odd: bytes, places: list[int]
) -> None:
    data = b"".join(good) + odd
    # Frame by frame, since uvicorn loses what came in one piece with a faulty frame.
    expected = asyncio.run(converse(WebSocketsSansIOProtocol, [*good, odd]))
    assert asyncio.run(converse(CarrierSocket, cut(data, places))) == expected
    assert asyncio.run(converse(CarrierSocket, [data])) == expected


def test_a_message_larger_than_the_short_way_takes_is_uvicorns() -> None:
    data = wire(Opcode.TEXT, b"a" * 65_600) + wire(Opcode.TEXT, b"b")
    messages, _, closed = asyncio.run(converse(CarrierSocket, [data[:50_000], data[50_000:]], max_size=70_000))
    assert [len(message["text"]) for message in messages[:-1]] == [65_600, 1]
    assert not closed


def test_byte_by_byte() -> None:
    data = b"".join(wire(Opcode.TEXT, ("é" * size).encode()) for size in (0, 1, 62, 63, 64, 200))
    data += wire(Opcode.CLOSE, b"\x03\xe8")
    chunks = [data[i : i + 1] for i in range(len(data))]
    messages, written, closed = asyncio.run(converse(CarrierSocket, chunks))
    assert [len(message["text"]) for message in messages[:-1]] == [0, 1, 62, 63, 64, 200]
    assert messages[-1]["code"] == 1000
    assert written == b"\x88\x02\x03\xe8"
    assert closed


def test_text_that_is_not_utf8_closes_with_1007() -> None:
    messages, written, closed = asyncio.run(converse(CarrierSocket, [wire(Opcode.TEXT, b"\xff" * 200)]))
    assert messages == [{"type": "websocket.disconnect", "code": 1007, "reason": "text messages must be UTF-8"}]
    assert written.startswith(b"\x88\x1d\x03\xef")
    assert closed


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 950, 65_535, 65_536])
def test_what_we_send_is_framed_as_uvicorn_frames_it(size: int) -> None:
    answers: list[dict[str, Any]] = [
        {"type": "websocket.send", "text": "a" * size},
        {"type": "websocket.send", "bytes": b"a" * size},
        {"type": "websocket.close", "code": 1000},
    ]
    expected = asyncio.run(converse(WebSocketsSansIOProtocol, [], answers))
    assert asyncio.run(converse(CarrierSocket, [], answers)) == expected


def test_bytes_sent_before_the_handshake_is_answered_are_not_lost() -> None:
    async def eager() -> list[dict[str, Any]]:
        application = Application(())
        config = uvicorn.Config(application, ws_ping_interval=None, log_config=None)
        config.load()
        state = ServerState()
        socket = CarrierSocket(config, state, {})
        socket.connection_made(Line())
        first, second = wire(Opcode.TEXT, b"one"), wire(Opcode.TEXT, b"two")
        socket.data_received(REQUEST)
        socket.data_received(first + second[:3])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        socket.data_received(second[3:])
        socket.connection_lost(ConnectionResetError())
        await asyncio.gather(*state.tasks)
        return application.messages

    assert [message.get("text") for message in asyncio.run(eager())] == ["one", "two", None]


def test_an_application_that_does_not_keep_up_stops_the_reading() -> None:
    async def flooded() -> tuple[bool, bool, int]:
        application = Application(())
        config = uvicorn.Config(application, ws_ping_interval=None, log_config=None)
        config.load()
        line, state = Line(), ServerState()
        socket = CarrierSocket(config, state, {})
        socket.connection_made(line)
        socket.data_received(REQUEST)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        socket.data_received(wire(Opcode.TEXT, b"x") * READ_AHEAD)
        within = line.reading
        socket.data_received(wire(Opcode.TEXT, b"x"))
        beyond = line.reading
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.reading
        socket.connection_lost(ConnectionResetError())
        await asyncio.gather(*state.tasks)
        return within, beyond, len(application.messages)

    assert asyncio.run(flooded()) == (True, False, READ_AHEAD + 2)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_stream_cut_at_random_is_whole(seed: int) -> None:
    rng = random.Random(seed)
    words = [f"{i}:" + "x" * rng.randrange(400) for i in range(500)]
    data = b"".join(wire(Opcode.TEXT, word.encode()) for word in words)
    chunks = cut(data, [rng.randrange(len(data)) for _ in range(300)])
    messages, _, _ = asyncio.run(converse(CarrierSocket, chunks))
    assert [message["text"] for message in messages[:-1]] == words
