"""The carrier's end of one Media Stream: a WebSocket client that listens, speaks and keeps time.

Sends connected, start, 20 ms media in real time, marks that come back, and stop; feeds what the
gateway sends to the playout queue. Knows nothing of TwiML or of the HTTP requests around the stream.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from gateway import audio
from gateway.phone.caller import Voice
from gateway.phone.playout import FRAME_SECONDS, Playout, PlayoutCounts
from gateway.twilio.peer import CarrierStream, Cleared, Marked, Played
from gateway.twilio.protocol import PeerError

MAX_MESSAGE = 1 << 20
SEND_TIMEOUT = 5.0
"""Seconds a gateway may leave the line unread before the phone gives up."""

StreamEnd = Literal["gateway", "caller", "protocol_error", "lost"]


@dataclass(frozen=True, slots=True)
class StreamCall:
    """Whose stream it is, for the start message."""

    account_sid: str
    call_sid: str
    parameters: Mapping[str, str]


@dataclass(slots=True)
class StreamResult:
    """What a stream carried, at the caller's end: int16 at 8 kHz, both sides equally long."""

    caller: bytes
    agent: bytes
    ended_by: StreamEnd
    detail: str
    """Why, in a sentence, where it did not end as it should."""
    counts: PlayoutCounts
    frames_sent: int
    unheard: float
    """Seconds still queued at the end."""
    marks: int


class MediaStream:
    """One stream over an open WebSocket, from `connected` to `stop`."""

    def __init__(
        self,
        socket: ClientConnection,
        call: StreamCall,
        voice: Voice,
        hangup: asyncio.Event,
        tell: Callable[[str, str], None],
    ) -> None:
        self._socket = socket
        self._parameters = call.parameters
        self._carrier = CarrierStream("MZ" + secrets.token_hex(16), call.call_sid, call.account_sid)
        self._voice = voice
        self._hangup = hangup
        self._tell = tell
        self._clock = asyncio.get_running_loop().time
        self._begun = self._clock()
        self._playout = Playout(self._begun)
        self._caller = bytearray()
        self._agent = bytearray()
        self._marks = 0
        self._sent = 0
        self._told = 0

    async def run(self) -> StreamResult:
        """Hold the line until one side ends the stream. Cancelling drops the line without a `stop`."""
        ended_by: StreamEnd
        detail = ""
        await self._open()
        self._begun = self._clock()
        self._playout = Playout(self._begun)
        reader = asyncio.create_task(self._listen())
        speaker = asyncio.create_task(self._speak())
        try:
            await asyncio.wait((reader, speaker), return_when=asyncio.FIRST_COMPLETED)
            if self._socket.state is State.OPEN and not reader.done():
                ended_by, detail = await self._put_down(speaker)
            else:
                await asyncio.wait((reader,))
                ended_by, detail = self._how_it_ended(reader)
        finally:
            for task in (reader, speaker):
                task.cancel()
            await asyncio.gather(reader, speaker, return_exceptions=True)
            await self._socket.close()
        return StreamResult(
            bytes(self._caller),
            bytes(self._agent),
            ended_by,
            detail,
            self._playout.counts,
            self._sent,
            self._playout.queued,
            self._marks,
        )

    def _how_it_ended(self, reader: asyncio.Task[None]) -> tuple[StreamEnd, str]:
        error = reader.exception()
        if isinstance(error, PeerError):
            return "protocol_error", f"The gateway broke the Media Streams protocol: {error}."
        if error is not None:
            raise error
        code = self._socket.close_code
        if code in (1000, 1001, 1005):
            return "gateway", ""
        reason = f": {self._socket.close_reason}" if self._socket.close_reason else ""
        return "lost", f"The gateway dropped the stream (WebSocket close code {code}{reason})."

    async def _put_down(self, speaker: asyncio.Task[str]) -> tuple[StreamEnd, str]:
        detail = speaker.result()
        if detail:
            return "lost", detail
        try:
            await self._socket.send(self._carrier.stop())
        except ConnectionClosed:
            return "gateway", ""
        return "caller", ""

    async def _open(self) -> None:
        try:
            await self._socket.send(self._carrier.connected())
            await self._socket.send(self._carrier.start(self._parameters))
        except ConnectionClosed:
            # The reader says how it ended.
            return

    async def _speak(self) -> str:
        """One tick every 20 ms; returns why it stopped, empty when the caller hung up or the line closed."""
        ticks = 0
        while not (self._voice.hung_up or self._hangup.is_set()):
            ticks += 1
            await asyncio.sleep(self._begun + ticks * FRAME_SECONDS - self._clock())
            heard, marks = self._playout.heard(self._clock())
            try:
                async with asyncio.timeout(SEND_TIMEOUT):
                    for frame in heard:
                        await self._tick(frame)
                    for name in marks:
                        await self._return_mark(name)
            except TimeoutError:
                return f"The gateway has not read the line for {SEND_TIMEOUT:.0f} s."
            except ConnectionClosed:
                return ""
        return ""

    async def _tick(self, heard: bytes) -> None:
        said = self._voice.step(heard)
        for turn in self._voice.turns[self._told :]:
            if turn.start > self._sent * FRAME_SECONDS:
                break
            self._told += 1
            self._tell("caller", turn.text)
        self._agent += heard
        self._caller += said
        self._sent += 1
        await self._socket.send(self._carrier.media(audio.encode_ulaw(said)))

    async def _return_mark(self, name: str) -> None:
        self._marks += 1
        self._tell("mark", name)
        await self._socket.send(self._carrier.mark(name))

    async def _listen(self) -> None:
        """Take the gateway's messages until it closes. Raises PeerError."""
        try:
            async for message in self._socket:
                self._take(message)
        except ConnectionClosed:
            return

    def _take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            raise PeerError("the server sent a binary message")
        now = self._clock()
        match self._carrier.receive_text(message):
            case Played(payload):
                self._playout.media(audio.decode_ulaw(payload), now)
            case Marked(name):
                self._playout.mark(name, now)
            case Cleared():
                self._tell("clear", "")
                self._playout.clear(now)
