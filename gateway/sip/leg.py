"""A SIP call as a CallLeg: answered when the agent is there, and handed on when it ends so.

Owns the way from a call's end reason to what the peer is told: BYE, 486 or 503 before the answer, a redirection or a
transfer where somebody else is to take over. Sound is the line's affair. Knows nothing of engines or personas.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from gateway.audio import LINE_FRAME_SAMPLES, LINE_RATE
from gateway.leg import CallInfo, LegError
from gateway.rtp.stream import unheard
from gateway.rtp.ticker import TICK
from gateway.sip.call import CallState, SipCall
from gateway.sip.line import MAX_DIGITS, SipLine

log = logging.getLogger(__name__)

TICKS = round(LINE_FRAME_SAMPLES / LINE_RATE / TICK)
"""20 ms of a frame that is played."""
RETRY_AFTER = 10
"""Seconds after which a caller who found no free agent may try again."""
BUSY, UNAVAILABLE = 486, 503
UNSERVED = frozenset({"busy", "worker_lost", "failed"})
"""End reasons after which the caller still needs somebody."""

HandOver = Callable[["SipLeg", str], bool]
"""Takes over a call that is to be connected to a number; False when there is no way to reach it."""


class SipLeg:
    """An incoming call, from the INVITE on."""

    def __init__(self, info: CallInfo, call: SipCall, line: SipLine, sdp: bytes, hand_over: HandOver) -> None:
        self.info = info
        self.call = call
        self.line = line
        self.digits: deque[str] = deque(maxlen=MAX_DIGITS)
        """The newest keys the caller pressed."""
        self.on_digit: Callable[[str], None] | None = None
        """Called with each key as it comes."""
        self.fallback = ""
        """Number that gets the caller when the agent cannot serve."""
        self.transfer_target = ""
        self._sdp = sdp
        self._hand_over = hand_over
        self._hung_up = False
        self._flushes = 0
        # Nobody speaks until this call's agent does, which leaves no hole in what was said before.
        line.rtp.flush()
        self._lost_before = line.rtp.lost
        """By those whom the caller was connected to."""
        line.call = call
        line.on_digit = self._press

    @property
    def on_hold(self) -> bool:
        """The caller put us on hold: missing sound is expected."""
        return self.call.on_hold

    @property
    def lost(self) -> int:
        """See `CallLeg.lost`."""
        return self.line.rtp.lost - self._lost_before

    def answer(self) -> None:
        """Pick up; a caller who comes back from somebody else is there already."""
        if self.call.state is not CallState.INCOMING:
            return
        endpoint = self.line.endpoint
        endpoint.core.answer(self.call, self._sdp, endpoint.now())
        endpoint.pump()

    async def listen(self, heard: Callable[[bytes], None]) -> None:
        """The caller until hang-up: 160 int16 samples at 8 kHz each. Raises LegError."""
        self.line.rtp.listen(heard)
        await self.line.over.wait()
        if self.line.broken:
            raise RuntimeError("the sound of this call broke, see the error before; please report it")
        if self.line.fault:
            raise LegError(self.line.fault)

    async def play(self, pcm: bytes) -> Sequence[int]:
        """80 ms of the agent; they leave with the clock, 20 ms at a time."""
        return list(dict.fromkeys(before // TICKS for before in self.line.rtp.send(pcm)))

    async def flush(self) -> None:
        """Drop what has not left yet."""
        self._flushes += 1
        self.line.rtp.flush()

    async def drain(self, timeout: float) -> bool:
        """Wait until all of it has left. While the caller holds the call nothing does: its turn comes and is lost."""
        now = asyncio.get_running_loop().time
        until, flushes, rtp = now() + timeout, self._flushes, self.line.rtp
        handed, gone, unsent = rtp.progress
        while gone < handed and not self.line.over.is_set():
            if now() >= until:
                log.info("call %s: the line did not take everything within %g s", self.info.call_id, timeout)
                return False
            await asyncio.sleep(min((handed - gone) * TICK, max(0.0, until - now())))
            gone = rtp.progress[1]
        left = rtp.stream is not None and not self.on_hold and rtp.progress[2] == unsent
        return left and not self.line.over.is_set() and self._flushes == flushes

    async def transfer(self, target: str) -> None:
        """Remembered only: the caller is handed on when the call ends."""
        self.transfer_target = target

    async def hangup(self, reason: str) -> None:
        """Refuse, hand on or end the call, whichever its end reason and its state ask for."""
        if self._hung_up:
            return
        self._hung_up = True
        # The call holds its leg; it is let go here, for the line may go on to somebody else.
        self.line.rtp.listen(unheard)
        self.on_digit = None
        target = self.transfer_target if reason == "transfer" else self.fallback if reason in UNSERVED else ""
        if target and not self.call.ended and self._hand_over(self, target):
            return
        self.end(reason)

    def end(self, reason: str) -> None:
        """No more of this call."""
        if self.call.state is CallState.INCOMING:
            self.refuse(BUSY if reason == "busy" else UNAVAILABLE)
        else:
            self.line.hangup()

    def refuse(self, code: int) -> None:
        """A final answer of 486 or 503."""
        endpoint = self.line.endpoint
        endpoint.core.reject(self.call, code, endpoint.now(), retry_after=RETRY_AFTER)
        endpoint.pump()
        self.line.close()

    def _press(self, digit: str) -> None:
        self.digits.append(digit)
        if self.on_digit is not None:
            self.on_digit(digit)
