"""A client of Moshi's protocol, written from its description: Ogg Opus both ways over a real WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

import numpy as np
import sphn
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from model.server import WorkerServer

RATE = 24_000
CLIENT_FRAME = 960
"""The original's client records 20 ms frames, two to a page; sphn writes 40 ms at once."""

Samples = NDArray[np.float32]


@dataclass
class MoshiClient:
    connection: ClientConnection
    handshake: bytes = b""
    said: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    heard: list[Samples] = field(default_factory=list)
    _writer: sphn.OpusStreamWriter = field(default_factory=lambda: sphn.OpusStreamWriter(RATE))
    _reader: sphn.OpusStreamReader = field(default_factory=lambda: sphn.OpusStreamReader(RATE))

    async def send(self, samples: Samples, cut: int = 100_000) -> None:
        """Sound, encoded; `cut` bytes of the stream in each message."""
        for start in range(0, len(samples) - CLIENT_FRAME + 1, CLIENT_FRAME):
            await self.send_stream(self.encode(samples[start : start + CLIENT_FRAME]), cut)

    def encode(self, samples: Samples) -> bytes:
        return bytes(self._writer.append_pcm(samples))

    async def send_stream(self, data: bytes, cut: int = 100_000) -> None:
        for start in range(0, len(data), cut):
            await self.connection.send(b"\x01" + data[start : start + cut])

    async def receive(self) -> int:
        """One message; returns its kind."""
        message = await self.connection.recv()
        assert isinstance(message, bytes)
        kind, payload = message[0], message[1:]
        if kind == 0:
            self.handshake = message
        elif kind == 1:
            samples = self._reader.append_bytes(payload)
            if samples is not None:
                self.heard.append(samples)
        elif kind == 2:
            self.said.append(payload.decode())
        elif kind == 5:
            self.errors.append(payload.decode())
        return kind

    async def hear(self, samples: int) -> Samples:
        """Wait until so much sound has come, and return all there is."""
        while sum(map(len, self.heard)) < samples:
            await self.receive()
        return np.concatenate(self.heard)

    async def ended(self) -> int | None:
        """Wait for the end; returns the close code."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                await self.receive()
        return self.connection.close_code


def url(server: WorkerServer, **parameters: object) -> str:
    query = urlencode(
        {"text_prompt": "You enjoy having a good conversation.", "voice_prompt": "NATF2.pt", **parameters}
    )
    return f"ws://127.0.0.1:{server.port}/api/chat?{query}"


@asynccontextmanager
async def talking(server: WorkerServer, **parameters: object) -> AsyncIterator[MoshiClient]:
    """A client that has not yet been told that the agent listens."""
    async with asyncio.timeout(30), connect(url(server, **parameters), compression=None, max_size=None) as connection:
        yield MoshiClient(connection)


def tone(seconds: float, hertz: float) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def pitch(samples: Samples) -> float:
    """The strongest frequency, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * RATE / len(samples))
