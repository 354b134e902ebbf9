"""Connecting a caller to somebody else: a REFER, and a second call bridged by us where that comes to nothing.

Owns one handover from the agent's last word to the end of both calls. Whom a caller may be connected to is decided
before: targets are the persona's own, never anything a peer said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.rtp.ports import PortsExhausted
from gateway.sip.errors import SipError
from gateway.sip.events import Event, Transferred
from gateway.sip.fields import NameAddr
from gateway.sip.leg import SipLeg
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.uri import Transport, Uri, address_of

log = logging.getLogger(__name__)


class Handover:
    """One caller's."""

    def __init__(
        self,
        leg: SipLeg,
        target: Uri,
        room: MediaRoom,
        attend: Callable[[SipLine], None],
        trunk: str | None,
    ) -> None:
        self._leg = leg
        self._target = target
        self._room = room
        self._attend = attend
        self._trunk = trunk
        self._result: asyncio.Future[Transferred] = asyncio.get_running_loop().create_future()

    def heard(self, event: Event) -> None:
        """An event of the caller's call, after the line has heard it."""
        if isinstance(event, Transferred) and event.final and not self._result.done():
            self._result.set_result(event)

    async def run(self) -> None:
        """Until the caller is with somebody else, or gone."""
        try:
            if not await self._refer():
                await self._bridge()
        finally:
            self._leg.line.hangup()

    async def _refer(self) -> bool:
        """Whether nothing is left to do: the peer connected the caller, or the caller is gone.

        Whether it refused, failed to reach the target or never said, the caller is still with us.
        """
        endpoint, call = self._leg.line.endpoint, self._leg.call
        if not endpoint.core.refer(call, self._target, endpoint.now()):
            return False
        endpoint.pump()
        gone = asyncio.create_task(self._leg.line.over.wait())
        try:
            await asyncio.wait((gone, self._result), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if self._result.done() and self._result.result().code < 300:
            log.info("call %s: transferred by the peer", self._leg.info.call_id)
            return True
        if self._leg.line.over.is_set():
            return True
        result = self._result.result()
        log.info("call %s: the peer does not transfer it (%d %s)", self._leg.info.call_id, result.code, result.reason)
        return False

    def _way(self) -> Transport:
        """How the target is reached, which decides whether keys may be sent."""
        trunk = self._leg.line.endpoint.core.trunk(self._trunk) if self._trunk else None
        return (trunk.addr if trunk else address_of(self._target)).transport

    async def _bridge(self) -> None:
        """Call the target ourselves and put the two calls together."""
        caller, endpoint = self._leg.line, self._leg.line.endpoint
        try:
            callee = SipLine(endpoint, self._room, self._way())
        except PortsExhausted as error:
            log.warning("call %s: %s", self._leg.info.call_id, error)
            return
        own = Uri("sip", self._leg.info.from_number, host=endpoint.public["udp"][0])
        try:
            callee.call = endpoint.core.invite(
                self._target,
                callee.offer(),
                endpoint.now(),
                from_=None if self._trunk else NameAddr(own),
                trunk=self._trunk,
            )
        except SipError as error:
            log.warning("call %s: %s cannot be called: %s", self._leg.info.call_id, self._target, error)
            callee.rtp.close()
            return
        self._attend(callee)
        endpoint.pump()
        caller.rtp.listen(callee.rtp.send)
        callee.rtp.listen(caller.rtp.send)
        # Whoever is called may have a menu of its own.
        caller.on_digit, callee.on_digit = callee.press, caller.press
        try:
            await self._either_ends(caller, callee)
        finally:
            callee.hangup()

    async def _either_ends(self, caller: SipLine, callee: SipLine) -> None:
        waits = [asyncio.create_task(line.over.wait()) for line in (caller, callee)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not callee.up.is_set() and callee.ended is not None:
            log.warning("call %s: %s did not answer: %d", self._leg.info.call_id, self._target, callee.ended.code)
