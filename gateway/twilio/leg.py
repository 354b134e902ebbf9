"""A Twilio call as a CallLeg: one WebSocket, mu-law both ways, paced. Telnyx's streams use it too.

Owns the socket after the stream's start message. There is no task or queue of its own: a message is
parsed and its sound handed on in the callback that read it, and sound that waits for its time leaves by
a timer: what the line sends may be late, or not come at all. Knows nothing of engines or personas.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.audio import CARRIER_FRAME_BYTES, Pacer, decode_ulaw, encode_ulaw
from gateway.leg import CallInfo
from gateway.telnyx.protocol import TelnyxProtocol
from gateway.twilio.flood import FloodGuard
from gateway.twilio.protocol import Dtmf, Event, Mark, Media, PeerError, Stop, StreamProtocol
from gateway.twilio.rest import TwilioRest
from gateway.twilio.socket import DIRECT, CarrierSocket

log = logging.getLogger(__name__)

ENDED_BY_REST = frozenset({"no_media", "silence", "time_limit", "shutdown"})
"""End reasons after which the stream may be dead, or nobody here to say what comes next."""

SEND_TIMEOUT = 1.0
"""Seconds to wait for a line that does not take what it is sent; it is then at least a minute behind."""

MAX_DIGITS = 100
MAX_BACKLOG = 1 << 16
"""Bytes that may wait, beyond the kernel's own buffer, for a peer that does not read: 5 s of sound."""
MAX_REASON = 120
"""Bytes of a WebSocket close reason: 123 (RFC 6455, section 5.5), less a margin."""


def _unheard(frame: bytes) -> None:
    """Nobody listens, or not any more."""


class TwilioLeg:
    """One stream, from its start message on."""

    on_hold = False
    """Media Streams do not say when a call is held."""

    def __init__(
        self,
        info: CallInfo,
        websocket: WebSocket,
        protocol: StreamProtocol | TelnyxProtocol,
        flood: FloodGuard,
        rest: TwilioRest | None,
    ) -> None:
        self.info = info
        self.counters = protocol.counters
        self.digits: deque[str] = deque(maxlen=MAX_DIGITS)
        """The newest keys the caller pressed."""
        self.on_digit: Callable[[str], None] | None = None
        """Called with each key as it comes."""
        self.transfer_target = ""
        self.flood = flood
        self.pacer = Pacer()
        self._websocket = websocket
        self._socket: CarrierSocket = websocket.scope["extensions"][DIRECT]
        self._protocol = protocol
        self._rest = rest
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._timer: asyncio.TimerHandle | None = None
        """Runs while sound waits for its time."""
        self.down = False
        """Nothing more is heard or sent."""
        self._hung_up = False
        self._over = False
        self._error: PeerError | None = None
        self._fault = ""
        self._heard: Callable[[bytes], None] = _unheard
        self._marks: dict[str, asyncio.Event] = {}
        self._marks_sent = 0
        self._marks_due: deque[tuple[int, str]] = deque()
        """Those to send yet, each with how many frames must have left before."""
        self._flushes = 0

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        """The caller: 160 int16 samples at 8 kHz each. Ends with the stream; raises PeerError."""
        self._heard = heard
        self._socket.deliver(self._hear)
        try:
            while not self._over:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    break
                text = message.get("text")
                if text is None:
                    raise PeerError("the message is binary; Media Streams are JSON text")
                # Text cut into fragments takes uvicorn's way.
                self._hear(text)
            if self._error is not None:
                raise self._error
        except PeerError as error:
            self._fault = str(error)
            raise
        finally:
            self._go_down()

    def _go_down(self) -> None:
        """Nothing more is heard or sent, nor waited for. The call, which holds its leg, is let go."""
        self.down = True
        self._heard = _unheard
        self.on_digit = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._let_go()

    def _let_go(self) -> None:
        """Nobody will hear what is waited for."""
        self._marks_due.clear()
        for waiting in self._marks.values():
            waiting.set()

    def _hear(self, text: str) -> None:
        """One message, straight from the socket: 50 a second."""
        if self._over:
            return
        try:
            within = self.flood.admit(self._now())
            event = self._protocol.receive_text(text)
        except PeerError as error:
            self._end(error)
            return
        if type(event) is Media:
            if within:
                pcm = decode_ulaw(event.payload)
                for start in range(0, len(pcm), CARRIER_FRAME_BYTES):
                    self._heard(pcm[start : start + CARRIER_FRAME_BYTES])
        elif isinstance(event, Stop):
            self._end()
        else:
            self._take(event)

    def _end(self, error: PeerError | None = None) -> None:
        self._error = error
        self._over = True
        self._socket.interrupt()

    def _take(self, event: Event) -> None:
        if isinstance(event, Mark):
            waiting = self._marks.get(event.name)
            if waiting is not None:
                waiting.set()
        elif isinstance(event, Dtmf):
            self.digits.append(event.digit)
            if self.on_digit is not None:
                self.on_digit(event.digit)

    def answer(self) -> None:
        """Twilio has answered before it opens a stream."""

    async def play(self, pcm: bytes) -> Sequence[int]:
        """80 ms of the agent, 640 int16 samples at 8 kHz, in one message as soon as it may leave."""
        if self.down:
            return ()
        left_out = self.pacer.push(pcm, self._now())
        self._pump()
        return left_out

    @property
    def lost(self) -> int:
        """See `CallLeg.lost`."""
        return self.pacer.missing + self.pacer.dropped

    async def flush(self) -> None:
        """Drop what waits here and what Twilio has queued."""
        self._flushes += 1
        self.pacer.clear(self._now())
        self._let_go()
        self._pump()
        self._send(self._protocol.clear())

    async def drain(self, timeout: float) -> bool:
        """Wait until Twilio has played all of it, which its returning mark tells; after a flush that tells nothing."""
        flushes = self._flushes
        self._marks_sent += 1
        name = f"drain-{self._marks_sent}"
        heard = self._marks[name] = asyncio.Event()
        self._marks_due.append((self.pacer.handed, name))
        self._send_marks()
        try:
            async with asyncio.timeout(timeout):
                if not self.down:
                    await heard.wait()
        except TimeoutError:
            log.info("call %s: the line did not play everything within %g s", self.info.call_id, timeout)
            return False
        finally:
            del self._marks[name]
        return not self.down and self._flushes == flushes

    async def transfer(self, target: str) -> None:
        """Remembered only: when the stream ends, Twilio asks what comes next and is told to dial."""
        self.transfer_target = target

    async def hangup(self, reason: str) -> None:
        """Close the stream; Twilio then asks what comes next, unless the call is ended by REST."""
        if self._hung_up:
            return
        self._hung_up = True
        await self._close(reason)
        if self._rest is not None and reason in ENDED_BY_REST:
            await self._rest.end_call(self.info.carrier_call_id)

    async def _close(self, reason: str) -> None:
        self._go_down()
        code, why = (1008, self._fault[:MAX_REASON]) if self._fault else (1000, reason[:MAX_REASON])
        with suppress(TimeoutError):
            # Not asyncio.timeout: in a cancelled task Python before 3.11.4 lets its own cancellation out.
            await asyncio.wait_for(self._send_close(code, why), SEND_TIMEOUT)

    async def _send_close(self, code: int, why: str) -> None:
        # An error that `wait_for` passed on would hold its own task, and so this leg, until it is collected as garbage.
        with suppress(WebSocketDisconnect, RuntimeError):
            await self._websocket.close(code, why)

    def _pump(self) -> None:
        """Send what may leave now, and the rest when its time has come."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (pcm := self.pacer.pop(self._now())) is not None:
            self._send(self._protocol.media(encode_ulaw(pcm)))
            self._send_marks()
        self._send_marks()
        due = self.pacer.next_time(self._now())
        if due is not None and not self.down:
            self._timer = self._loop.call_at(due, self._pump)

    def _send_marks(self) -> None:
        """Right behind the sound that they tell of: what follows may never cease."""
        while self._marks_due and self._marks_due[0][0] <= self.pacer.gone:
            self._send(self._protocol.mark(self._marks_due.popleft()[1]))

    def _send(self, text: str) -> None:
        if self.down:
            return
        if self._socket.backlog > MAX_BACKLOG:
            self._go_down()
            self._end(PeerError("the line does not take what it is sent"))
            return
        self._socket.send_text(text)
