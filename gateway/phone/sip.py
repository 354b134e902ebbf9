"""The terminal phone over SIP: `callplex call --sip sip:agent@host`. One call out, with the phone's own clock.

Owns the order of things between INVITE and report. Signalling and sound are `gateway.sip`'s, the caller's words
`caller`'s, the figures `metrics`'.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway.phone.call import CallFailed, CallReport, EndedBy, Happening, record
from gateway.phone.caller import Voice
from gateway.phone.metrics import caller_turns, measure
from gateway.phone.playout import FRAME_BYTES, FRAME_SECONDS, SILENCE
from gateway.rtp.ports import PortsExhausted
from gateway.sip.binding import SipUnavailable
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import Credentials, Event, IncomingCall, MessageDropped, Probed, Progress, RegistrationChanged
from gateway.sip.fields import NameAddr
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.settings import SipSettings
from gateway.sip.uri import Addr, Uri, address_of, bracketed, parse_uri

ANSWER_SECONDS = 60.0
"""How long it may ring."""
GOODBYE_SECONDS = 3.0
MAX_WAITING = 10
"""Frames of the agent's that may wait here: beyond, the oldest go."""


@dataclass(frozen=True, slots=True)
class SipAccount:
    """Who is called, and as whom."""

    target: str
    """`sip:agent@host:port`, with `;transport=tcp` or `tls` where it is not UDP."""
    credentials: Credentials | None = None
    tls_ca: Path | None = None
    encrypted: bool = False


def account_from(target: str, settings: SipSettings) -> SipAccount:
    """The phone is the operator's: it calls with the first of the passwords that the gateway asks callers for."""
    user = next(iter(settings.users.items()), None)
    credentials = Credentials(user[0], user[1].get_secret_value()) if user is not None else None
    # A certificate that signs itself is its own authority.
    return SipAccount(target, credentials, settings.tls_ca or settings.tls_cert, settings.srtp == "required")


@dataclass(slots=True)
class SipCallOptions:
    target: str
    """Who is called: `sip:agent@host:port`, with `;transport=tcp` or `tls` where it is not UDP."""
    caller: Voice
    from_number: str = "+13055550142"
    credentials: Credentials | None = None
    tls_ca: Path | None = None
    encrypted: bool = False
    """Offer SRTP."""
    out: Path | None = None
    hangup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it to put the phone down."""


async def place_sip_call(options: SipCallOptions, on_event: Callable[[Happening], None] | None = None) -> CallReport:
    """Place one call and hold it to its end. Raises CallFailed when no conversation came about."""
    try:
        target = parse_uri(options.target)
        addr = address_of(target)
    except SipError as error:
        raise CallFailed(f"{options.target!r} cannot be called: {error}; write it like sip:agent@127.0.0.1.") from None
    try:
        endpoint = SipEndpoint(await _own_settings(addr, options))
        await endpoint.open()
    except (SipUnavailable, OSError) as error:
        raise CallFailed(f"{addr.host} cannot be called from here: {error}.") from None
    try:
        return await _SipPhone(options, endpoint, target, on_event or (lambda happening: None)).run()
    finally:
        await endpoint.close()


async def _own_settings(addr: Addr, options: SipCallOptions) -> SipSettings:
    """A telephone's own endpoint: the address that leads to the peer, which alone may call back."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(addr.host, addr.port, type=socket.SOCK_DGRAM)
    peer = found[0][4]
    with socket.socket(found[0][0], socket.SOCK_DGRAM) as probe:
        probe.connect(peer)
        host = str(probe.getsockname()[0])
    return SipSettings.model_validate(
        {
            "listen": f"{bracketed(host)}:0",
            "allow": str(ipaddress.ip_address(str(peer[0]))),
            "tls_ca": options.tls_ca,
            "srtp": "required" if options.encrypted else "offered",
        }
    )


class _SipPhone:
    def __init__(
        self, options: SipCallOptions, endpoint: SipEndpoint, target: Uri, on_event: Callable[[Happening], None]
    ) -> None:
        self._options = options
        self._endpoint = endpoint
        self._target = target
        self._on_event = on_event
        self._begun = endpoint.now()
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._caller = bytearray()
        self._agent = bytearray()
        self._received = 0
        self._told = 0
        try:
            self._line = SipLine(endpoint, MediaRoom(endpoint.settings), address_of(target))
        except PortsExhausted as error:
            raise CallFailed(f"{error}.") from None

    async def run(self) -> CallReport:
        self._endpoint.on_event = self._take
        await self._dial()
        up_after = self._endpoint.now() - self._begun
        self._tell("stream", str(self._target))
        self._line.rtp.listen(self._hear)
        ended_by, detail = await self._talk()
        self._tell("stream_end", detail or f"ended by the {ended_by}")
        return self._report(ended_by, detail, up_after)

    async def _dial(self) -> None:
        """Until somebody answers. Raises CallFailed."""
        options, line = self._options, self._line
        host, _ = self._endpoint.told(address_of(self._target))
        caller = NameAddr(Uri("sip", options.from_number, host=bracketed(host)))
        self._tell("request", f"INVITE {self._target}")
        try:
            line.call = self._endpoint.core.invite(
                self._target, line.offer(), self._endpoint.now(), from_=caller, credentials=options.credentials
            )
        except SipError as error:
            raise CallFailed(f"{self._target} cannot be called: {error}.") from None
        self._endpoint.pump()
        if not await self._first(line.up, line.over, options.hangup, seconds=ANSWER_SECONDS) or not line.up.is_set():
            code = line.ended.code if line.ended is not None else 0
            if line.ended is None:
                line.hangup()
                await self._first(line.over, seconds=GOODBYE_SECONDS)
            raise CallFailed(_refusal(str(self._target), code))

    async def _talk(self) -> tuple[EndedBy, str]:
        """One tick every 20 ms until one side ends it."""
        begun, ticks, line = self._endpoint.now(), 0, self._line
        while not line.over.is_set():
            if self._options.caller.hung_up or self._options.hangup.is_set():
                line.hangup()
                await self._first(line.over, seconds=GOODBYE_SECONDS)
                return "caller", ""
            ticks += 1
            await asyncio.sleep(begun + ticks * FRAME_SECONDS - self._endpoint.now())
            self._tick()
        if line.fault:
            return "lost", f"The call broke off: {line.fault}."
        return "gateway", ""

    def _tick(self) -> None:
        heard = self._waiting.popleft() if self._waiting else SILENCE
        voice = self._options.caller
        said = voice.step(heard)
        for turn in voice.turns[self._told :]:
            if turn.start > len(self._caller) / FRAME_BYTES * FRAME_SECONDS:
                break
            self._told += 1
            self._tell("caller", turn.text)
        self._agent += heard
        self._caller += said
        self._line.rtp.send(said)

    def _hear(self, frame: bytes) -> None:
        self._received += 1
        self._waiting.append(frame)

    def _take(self, event: Event) -> None:
        if isinstance(event, IncomingCall):
            self._endpoint.core.reject(event.call, 486, self._endpoint.now())
        elif not isinstance(event, (RegistrationChanged, Probed, MessageDropped)) and event.call is self._line.call:
            if isinstance(event, Progress):
                self._tell("verb", f"{event.code}")
            self._line.heard(event)

    async def _first(self, *events: asyncio.Event, seconds: float) -> bool:
        """Wait for one of several; False when none came in time."""
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return bool(done)

    def _tell(self, kind: str, text: str = "") -> None:
        self._on_event(Happening(self._endpoint.now() - self._begun, kind, text))  # type: ignore[arg-type]

    def _report(self, ended_by: EndedBy, detail: str, up_after: float) -> CallReport:
        options, call = self._options, self._line.call
        caller, agent = bytes(self._caller), bytes(self._agent)
        report = CallReport(call.call_id if call is not None else "", str(self._target), ended_by, detail)
        report.metrics = metrics = measure(caller, agent, options.caller.turns, up_after)
        report.turns = caller_turns(caller, options.caller.turns)
        report.duration = round(len(agent) / FRAME_BYTES * FRAME_SECONDS, 2)
        media = self._line.report
        if media is not None:
            metrics.frames_sent, metrics.frames_received, metrics.frames_lost = media.sent, media.received, media.lost
        if options.out is not None:
            report.agent_wav, report.call_wav = record(options.out, caller, agent)
        return report


def _refusal(target: str, code: int) -> str:
    if code in (401, 403, 407):
        return f"{target} wants a password (SIP {code}): give one in [sip.users] of callplex.toml."
    if code == 486 or code == 503:
        return f"{target} cannot take the call now (SIP {code}); try again shortly."
    if code == 408 or code == 0:
        return f"Nobody answers at {target}; is SIP on there, and this machine in its CALLPLEX_SIP_ALLOW?"
    return f"{target} refused the call (SIP {code}); its log says why."
