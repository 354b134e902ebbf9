"""Connecting a caller to somebody else: a REFER, and a second call bridged by us where that comes to nothing.

Owns one handover from the agent's last word to the end of both calls, or to where the agent has the caller back. Whom
a caller may be connected to is decided before: targets are the persona's own, never anything a peer said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gateway.sip.bridge import Bridge, sound
from gateway.sip.events import Event, Transferred
from gateway.sip.leg import SipLeg
from gateway.sip.tones import BUSY
from gateway.sip.uri import Uri

log = logging.getLogger(__name__)

BUSY_SECONDS = 4.0
"""How long a caller whom nobody can be found for hears the busy tone before we hang up."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Somebody a caller may be connected to."""

    number: str
    uri: Uri
    trunk: str | None
    """The trunk that calls there go through."""


class Handover:
    """One caller's."""

    def __init__(
        self,
        leg: SipLeg,
        destinations: Sequence[Destination],
        bridge: Bridge,
        take_back: Callable[[SipLeg, str], bool],
    ) -> None:
        """`destinations`: the first one is wanted, the others stand in for it. `take_back`, told why none of them was
        reached, says whether the agent has the caller again."""
        self._leg = leg
        self._destinations = destinations
        self._bridge = bridge
        self._take_back = take_back
        self._result: asyncio.Future[Transferred] = asyncio.get_running_loop().create_future()

    def heard(self, event: Event) -> None:
        """An event of the caller's call, after the line has heard it."""
        if isinstance(event, Transferred) and event.final and not self._result.done():
            self._result.set_result(event)

    async def run(self) -> None:
        """Until the caller is with somebody else, with the agent, or gone."""
        line = self._leg.line
        taken_back = False
        try:
            why = "" if await self._refer(self._destinations[0]) else await self._call()
            if why and not line.over.is_set():
                taken_back = self._take_back(self._leg, why)
                if not taken_back:
                    await self._say_busy()
        finally:
            if not taken_back:
                line.hangup()

    async def _refer(self, wanted: Destination) -> bool:
        """Whether nothing is left to do: the peer connected the caller, or the caller is gone.

        Whether it refused, failed to reach the target or never said, the caller is still with us.
        """
        endpoint, call = self._leg.line.endpoint, self._leg.call
        if not endpoint.core.refer(call, wanted.uri, endpoint.now()):
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

    async def _call(self) -> str:
        """Call one after the other ourselves; empty when somebody had the caller, else why nobody did."""
        reasons: list[str] = []
        for one in self._destinations:
            why = await self._bridge.connect(one.uri, one.trunk, self._leg.info.from_number)
            if not why:
                return ""
            log.warning("call %s: %s was not reached: %s", self._leg.info.call_id, one.uri, why)
            reasons.append(f"{one.number}: {why}")
        return "; ".join(reasons)

    async def _say_busy(self) -> None:
        line = self._leg.line
        tone = asyncio.create_task(sound(line, BUSY, lambda: True))
        try:
            await asyncio.wait((tone,), timeout=BUSY_SECONDS)
        finally:
            tone.cancel()
