"""SIP calls to the desk: who is called, whether there is room, and what happens when the agent is done.

Owns the order of things between an INVITE and one call: number -> route -> room -> leg -> call -> end or handover,
and the trunks. Knows no engines; what it needs of the app is `SipDesk`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Literal, Protocol

from gateway.leg import CallInfo, CallLeg
from gateway.rtp.ports import PortsExhausted
from gateway.sip.bridge import Bridge
from gateway.sip.call import CallState, SipCall
from gateway.sip.chance import Chance
from gateway.sip.dialog import same_host
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import (
    Credentials,
    Event,
    IncomingCall,
    MessageDropped,
    Probed,
    RegistrationChanged,
    Terminated,
)
from gateway.sip.fields import parse_name_addr
from gateway.sip.handover import Destination, Handover
from gateway.sip.leg import BUSY, RETRY_AFTER, UNAVAILABLE, SipLeg
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.registration import Trunk, backoff
from gateway.sip.settings import SipSettings, TrunkSettings
from gateway.sip.uri import Uri, address_of, bare_host, bracketed, parse_uri

log = logging.getLogger(__name__)

LOOK_AGAIN = 300.0
"""Seconds after which a trunk's name is looked up again: its addresses change, and calls come from all of them."""
GOODBYE = 2.0
"""Seconds that BYEs and the taking back of registrations may take when the gateway stops."""
_NUMBER = re.compile(r"[^+0-9A-Za-z_.*#-]")
_PASSED_ON = re.compile(r"x-[a-z0-9-]{1,40}\Z")
MAX_PARAMETER = 500
MAX_PARAMETERS = 20
MAX_RETURNS = 3
"""How often a caller may come back to the agent, each time with a call's limits anew."""


class Routed(Protocol):
    """Who answers a number: a persona when it is open, else whoever the fallback number reaches."""

    @property
    def persona(self) -> str: ...
    @property
    def open(self) -> bool: ...
    @property
    def fallback(self) -> str: ...


class SipDesk(Protocol):
    """What the switchboard needs of the app."""

    def refusal(self) -> Literal["", "busy", "unavailable"]:
        """Why a call cannot be taken now; "" when it can."""

    def turned_away(self, why: Literal["busy", "closed"]) -> None:
        """Count a call that is not taken."""

    def route(self, number: str) -> Routed:
        """Who answers the number dialled."""

    async def answer(self, leg: CallLeg, persona: str) -> None:
        """Run the whole call; returns when it is over."""


class Switchboard:
    """One endpoint's calls."""

    def __init__(self, settings: SipSettings, desk: SipDesk, endpoint: SipEndpoint | None = None) -> None:
        self.endpoint = endpoint or SipEndpoint(settings)
        self.registered: dict[str, RegistrationChanged] = {}
        """The newest state of each trunk that we register with."""
        self._settings = settings
        self._desk = desk
        self._room = MediaRoom(settings)
        self._heard: dict[SipCall, Callable[[Event], None]] = {}
        self._peers: dict[SipCall, str] = {}
        """The host that each call taken came from; a later request inside it may come from another."""
        self._joined: set[str] = set()
        """Trunks that calls can be placed through."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._quiet = asyncio.Event()
        self._taking = False

    async def bind(self) -> None:
        """Open the sockets; calls are refused as yet. Raises SipUnavailable."""
        self.endpoint.on_event = self._take
        await self.endpoint.open()

    def take_calls(self) -> None:
        """From now on calls are answered, and trunks told where we are."""
        self._taking = True
        for trunk in self._settings.trunks:
            self._start(self._join(trunk))

    async def close(self) -> None:
        """End what is left, say goodbye to the trunks, close the sockets. The desk has ended its calls before."""
        self._taking = False
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.endpoint.ready:
            await self._say_goodbye()
        await self.endpoint.close()

    async def _say_goodbye(self) -> None:
        now = self.endpoint.now()
        for name, state in self.registered.items():
            if state.registered:
                self.endpoint.core.unregister(name, now)
        for call in tuple(self._heard):
            self.endpoint.core.hangup(call, now)
        self.endpoint.pump()
        await self._settle()

    async def _settle(self) -> None:
        """Give what was just sent a moment to be acknowledged."""
        try:
            async with asyncio.timeout(GOODBYE):
                while self._heard or any(state.registered for state in self.registered.values()):
                    self._quiet.clear()
                    await self._quiet.wait()
        except TimeoutError:
            log.info("peers did not answer our goodbyes within %g s", GOODBYE)

    # Trunks

    async def _join(self, settings: TrunkSettings) -> None:
        """Register with a trunk, and know its addresses as its name is looked up."""
        trunk = trunk_from(settings)
        await self._know(trunk)
        self.endpoint.core.add_trunk(trunk)
        self._joined.add(settings.name)
        if settings.register_here:
            await self._find(trunk)
            self.endpoint.core.register(trunk, self.endpoint.now())
            self.endpoint.pump()
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            await self._know(trunk)

    async def _find(self, trunk: Trunk) -> None:
        """Until a trunk's name was looked up: before, it might be told an address of ours that it cannot reach."""
        for failures in count():
            try:
                await self.endpoint.resolve(trunk.addr)
                return
            except OSError as error:
                wait, why = backoff(failures, Chance(os.urandom)), str(error) or "no answer in time"
                log.warning("trunk %s: not registered, tried again in %.0f s: %s", trunk.name, wait, why)
            await asyncio.sleep(wait)
            await self._know(trunk)

    async def _know(self, trunk: Trunk) -> None:
        """Trust a trunk's calls from every address that its names stand for now."""
        hosts: set[str] = set()
        for name in {trunk.addr.host, bare_host(trunk.registrar.host)}:
            try:
                hosts |= await self.endpoint.resolve_all(name)
            except OSError as error:
                log.warning("trunk %s: %s cannot be looked up: %s", trunk.name, name, error)
        if hosts:
            self.endpoint.peers.know_trunk(trunk.name, hosts)

    def _registration(self, event: RegistrationChanged) -> None:
        before = self.registered.get(event.trunk)
        self.registered[event.trunk] = event
        self._quiet.set()
        if before is not None and before.registered == event.registered and before.code == event.code:
            return
        if not self._taking:
            log.info("trunk %s: told that we leave: %d %s", event.trunk, event.code, event.reason)
        elif event.registered:
            log.info("trunk %s: registered, again in %.0f s", event.trunk, event.retry_after)
        else:
            log.warning("trunk %s: not registered: %d %s", event.trunk, event.code, event.reason)

    # Events

    def _take(self, event: Event) -> None:
        if isinstance(event, IncomingCall):
            self._incoming(event)
        elif isinstance(event, RegistrationChanged):
            self._registration(event)
        elif not isinstance(event, (MessageDropped, Probed)):
            heard = self._heard.get(event.call)
            if heard is not None:
                heard(event)
            if isinstance(event, Terminated):
                self._forget(event.call)

    def _forget(self, call: SipCall) -> None:
        self._heard.pop(call, None)
        self._peers.pop(call, None)
        self._quiet.set()

    def _incoming(self, event: IncomingCall) -> None:
        """Somebody calls: ring, or say at once why not."""
        core, now = self.endpoint.core, self.endpoint.now()
        number = dialled(event, self._settings.number_from)
        route = self._desk.route(number)
        refusal = self._desk.refusal() if self._taking else "unavailable"
        if list(self._peers.values()).count(event.addr.host) >= self._settings.max_calls_per_peer:
            refusal = "busy"
        if not route.open or refusal:
            log.warning("a call to %s is not taken: %s", number or "us", refusal or "closed")
            self._desk.turned_away("busy" if route.open else "closed")
            if (target := self._reach(route.fallback, event.call)) is not None:
                core.redirect(event.call, [target], now)
            elif refusal:
                core.reject(event.call, BUSY if refusal == "busy" else UNAVAILABLE, now, retry_after=RETRY_AFTER)
            else:
                core.reject(event.call, 480, now)
            return
        try:
            line = SipLine(self.endpoint, self._room, event.addr)
        except PortsExhausted as error:
            log.warning("a call to %s is not taken: %s", number or "us", error)
            self._desk.turned_away("busy")
            core.reject(event.call, UNAVAILABLE, now, retry_after=RETRY_AFTER)
            return
        try:
            sdp = line.answer(event.offer or b"")
        except SipError as error:
            line.close()
            core.reject(event.call, error.code, now)
            return
        self._ring(event, number, route, line, sdp)

    def _ring(self, event: IncomingCall, number: str, route: Routed, line: SipLine, sdp: bytes) -> None:
        info = CallInfo(
            call_id=str(uuid.uuid4()),
            from_number=plain_number(event.from_.uri),
            to_number=number,
            carrier="sip",
            carrier_call_id=event.call.call_id,
            parameters=passed_on(event),
        )
        leg = SipLeg(info, event.call, line, sdp, partial(self._hand_over, persona=route.persona))
        leg.fallback = route.fallback
        self._heard[event.call] = line.heard
        self._peers[event.call] = event.addr.host
        self.endpoint.core.ringing(event.call, self.endpoint.now())
        self._start(self._answer(leg, route.persona))

    async def _answer(self, leg: SipLeg, persona: str) -> None:
        try:
            if self._settings.ring_seconds:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._settings.ring_seconds):
                        await leg.line.over.wait()
            if leg.call.state is not CallState.INCOMING:
                log.info("call %s: given up while it rang", leg.info.call_id)
                return
            await self._desk.answer(leg, persona)
        finally:
            # Whatever became of it, nobody is left ringing or listening to nobody.
            await leg.hangup("failed")

    # Handing on

    def _hand_over(self, leg: SipLeg, number: str, *, persona: str, returned: int = 0) -> bool:
        if not self._taking:
            return False
        target = self._reach(number, leg.call)
        if target is None:
            log.error("call %s: no way to reach %s; set CALLPLEX_SIP_DIAL", leg.info.call_id, number)
            return False
        if leg.call.state is CallState.INCOMING:
            self.endpoint.core.redirect(leg.call, [target], self.endpoint.now())
            self.endpoint.pump()
            leg.line.close()
            return True
        destinations = [Destination(number, target, self._trunk_to(target))]
        stand_in = self._reach(leg.fallback, leg.call)
        if stand_in is not None and stand_in != target:
            destinations.append(Destination(leg.fallback, stand_in, self._trunk_to(stand_in)))
        bridge = Bridge(leg.line, self._room, self._attend)
        # An agent that could not serve the caller before cannot now.
        served = leg.transfer_target == number
        take_back = partial(self._take_back, persona=persona, returned=returned + 1 if served else MAX_RETURNS + 1)
        handover = Handover(leg, destinations, bridge, take_back)
        line_heard = leg.line.heard

        def heard(event: Event) -> None:
            line_heard(event)
            handover.heard(event)

        self._heard[leg.call] = heard
        self._start(handover.run())
        return True

    def _take_back(self, leg: SipLeg, why: str, *, persona: str, returned: int) -> bool:
        """Nobody was reached: the caller is the agent's again, as a conversation of its own on the same line."""
        if returned > MAX_RETURNS or not self._taking or self._desk.refusal():
            return False
        info = replace(leg.info, call_id=str(uuid.uuid4()), unreached=why)
        log.info("call %s: nobody was reached, the agent has the caller back as %s", leg.info.call_id, info.call_id)
        self._heard[leg.call] = leg.line.heard
        again = SipLeg(info, leg.call, leg.line, b"", partial(self._hand_over, persona=persona, returned=returned))
        again.fallback = leg.fallback
        self._start(self._answer_again(again, persona))
        return True

    async def _answer_again(self, leg: SipLeg, persona: str) -> None:
        try:
            await self._desk.answer(leg, persona)
        finally:
            # Whatever became of it: a persona may have been taken away since the call came.
            await leg.hangup("failed")

    def _attend(self, line: SipLine) -> None:
        assert line.call is not None
        self._heard[line.call] = line.heard

    def _reach(self, number: str, call: SipCall) -> Uri | None:
        """The address for a number of the persona's: as `dial` says, else where the call came from."""
        if not number:
            return None
        if self._settings.dial:
            return parse_uri(self._settings.dial.replace("{number}", number))
        name = self.endpoint.peers.trunk_of(call.addr)
        for trunk in self._settings.trunks:
            if trunk.name == name:
                return replace(parse_uri(trunk.registrar), user=number)
        host, port = bracketed(call.addr.host), None
        if call.dialog is not None and same_host(call.dialog.target, Uri("sip", host=host)):
            # Where it says it listens; another host's name would be the peer choosing whom we call.
            port = call.dialog.target.port
        way = (("transport", call.addr.transport),) if call.addr.transport != "udp" else ()
        return Uri("sip", number, host=host, port=port, params=way)

    def _trunk_to(self, target: Uri) -> str | None:
        """The trunk that calls to an address go through, with its password."""
        for one in self._settings.trunks:
            registrar = parse_uri(one.registrar)
            if same_host(registrar, target) and target.port in (None, registrar.port) and one.name in self._joined:
                return one.name
        return None

    def _start(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def trunk_from(settings: TrunkSettings) -> Trunk:
    """A trunk as it was configured."""
    credentials = None
    if settings.password.get_secret_value():
        credentials = Credentials(settings.auth_user or settings.user, settings.password.get_secret_value())
    proxy = address_of(parse_uri(settings.outbound_proxy)) if settings.outbound_proxy else None
    registrar = parse_uri(settings.registrar)
    return Trunk(settings.name, registrar, settings.user, credentials, proxy, settings.expires)


def dialled(event: IncomingCall, number_from: str) -> str:
    """The number or name that was dialled, from where the settings say it stands."""
    if number_from == "request-uri":
        return plain_number(event.uri)
    if number_from == "to":
        return plain_number(event.to.uri)
    value = event.headers.first(number_from)
    if not value:
        return plain_number(event.uri)
    try:
        return plain_number(parse_name_addr(value).uri)
    except SipError:
        return _NUMBER.sub("", value)[:64]


def plain_number(uri: Uri) -> str:
    """The user part as routing knows it: without parameters or anything that is neither number nor name."""
    return _NUMBER.sub("", uri.name.partition(";")[0])[:64]


def passed_on(event: IncomingCall) -> dict[str, str]:
    """X- fields of the INVITE, which trunks and PBXs use to say more about a call: `X-Account-Id` -> account_id."""
    found: dict[str, str] = {}
    for name, value in event.headers:
        if _PASSED_ON.match(name.lower()) and len(found) < MAX_PARAMETERS:
            found.setdefault(name[2:].lower().replace("-", "_"), value[:MAX_PARAMETER])
    return found
