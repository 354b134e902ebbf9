"""A second call, placed for a caller who is on the line, and the two put together.

Owns the callee's call from its INVITE to its end. While it rings the caller hears so: a ringing tone of ours until the
callee's side sends sound, which then is what the caller hears. Knows nothing of why the callee is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.audio import LINE_FRAME_SAMPLES, LINE_RATE
from gateway.rtp.ports import PortsExhausted
from gateway.sip.errors import SipError
from gateway.sip.events import Ended
from gateway.sip.fields import NameAddr
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.tones import RINGING, Tone, tone_frame
from gateway.sip.uri import Addr, Uri, address_of, bracketed

log = logging.getLogger(__name__)

UNREACHABLE = "it cannot be reached"
RING_SECONDS = 40.0
"""How long somebody may let it ring: eight bursts of the tone. A mailbox mostly answers sooner."""
FRAME = LINE_FRAME_SAMPLES / LINE_RATE


class Bridge:
    """One caller's call to somebody else."""

    def __init__(self, caller: SipLine, room: MediaRoom, attend: Callable[[SipLine], None]) -> None:
        """`attend` is told of the callee's line, whose events it passes on from then on."""
        self._caller = caller
        self._room = room
        self._attend = attend
        self._callee_sounds = False

    async def connect(self, target: Uri, trunk: str | None, number: str) -> str:
        """Call `target`, as `number` unless a trunk says who calls; returns when it is over.

        Empty: they were connected, or the caller has gone. Else why they were not, in a few words.
        """
        try:
            way = self._way(target, trunk)
            # Only a peer whose address is known is told one of ours that it can reach.
            await self._caller.endpoint.resolve(way)
            if self._caller.over.is_set():
                return ""
            callee = self._dial(target, way, trunk, number)
        except (PortsExhausted, SipError) as error:
            return str(error)
        except OSError as error:
            log.warning("%s cannot be looked up: %s", way.host, str(error) or "no answer in time")
            return UNREACHABLE
        self._join(callee)
        try:
            if why := await self._answered(callee):
                return why
            await first((self._caller.over, callee.over))
            return ""
        finally:
            callee.hangup()

    def _dial(self, target: Uri, way: Addr, trunk: str | None, number: str) -> SipLine:
        endpoint = self._caller.endpoint
        callee = SipLine(endpoint, self._room, way)
        own = NameAddr(Uri("sip", number, host=bracketed(endpoint.told(way)[0])))
        try:
            callee.call = endpoint.core.invite(
                target, callee.offer(), endpoint.now(), from_=None if trunk else own, trunk=trunk
            )
        except SipError:
            callee.close()
            raise
        self._attend(callee)
        endpoint.pump()
        return callee

    def _way(self, target: Uri, trunk: str | None) -> Addr:
        """How the target is reached, which decides whether keys may be sent, and what it is told of us."""
        known = self._caller.endpoint.core.trunk(trunk) if trunk else None
        return known.addr if known else address_of(target)

    def _join(self, callee: SipLine) -> None:
        caller = self._caller
        self._callee_sounds = False
        caller.rtp.listen(callee.rtp.send)
        callee.rtp.listen(self._hear)
        # Whoever is called may have a menu of its own.
        caller.on_digit, callee.on_digit = callee.press, caller.press

    def _hear(self, frame: bytes) -> None:
        if not self._callee_sounds:
            self._callee_sounds = True
            self._caller.rtp.flush()
        self._caller.rtp.send(frame)

    async def _answered(self, callee: SipLine) -> str:
        """Until the callee picks up or the caller leaves; else why it will not."""
        caller = self._caller
        ringing = asyncio.create_task(sound(caller, RINGING, lambda: not self._callee_sounds))
        try:
            await first((caller.over, callee.over, callee.up), RING_SECONDS)
        finally:
            ringing.cancel()
        if caller.over.is_set() or callee.up.is_set():
            if not self._callee_sounds:
                caller.rtp.flush()
            return ""
        caller.rtp.flush()
        ended = callee.ended
        if ended is None or ended.reason is Ended.NO_ANSWER:
            return "nobody answered"
        return f"{ended.code} {ended.text}".strip() if ended.code else UNREACHABLE


async def sound(line: SipLine, tone: Tone, wanted: Callable[[], bool]) -> None:
    """Play a tone as long as it is wanted."""
    now = asyncio.get_running_loop().time
    index, began = 0, now()
    while wanted() and not line.over.is_set():
        line.rtp.send(tone_frame(tone, index))
        index += 1
        await asyncio.sleep(began + index * FRAME - now())


async def first(events: tuple[asyncio.Event, ...], timeout: float | None = None) -> None:
    """Until one of them is set, `timeout` seconds at most."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
