"""One SIP call with its sound: signalling handle, session descriptions and RTP held together.

Owns what offer and answer agree, for as long as the call lasts: the first exchange, a late offer, holds and other
changes. `leg`, `bridge` and the terminal phone are built on it. Knows no personas and no routing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gateway.rtp.codec import CODECS
from gateway.rtp.plan import MediaPlan, MediaReport
from gateway.rtp.ports import PortRange
from gateway.rtp.session import RtpSession
from gateway.rtp.srtp import SrtpKeys
from gateway.rtp.stream import unheard
from gateway.rtp.ticker import Ticker
from gateway.sip.call import SipCall
from gateway.sip.crypto import KEY_BYTES
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import Ended, Established, Event, InfoDigits, Progress, Reanswer, Reoffer, Terminated
from gateway.sip.offer import Agreed, Capabilities, Srtp, answer_offer, make_offer, read_answer
from gateway.sip.sdp import parse_sdp
from gateway.sip.settings import SipSettings, port_range
from gateway.sip.uri import Addr, Transport

MAX_DIGITS = 100


class MediaRoom:
    """Where calls get their ports and their clock: one for an endpoint."""

    def __init__(self, settings: SipSettings) -> None:
        low, high = port_range(settings.rtp_ports)
        self.ports = PortRange(settings.sound_host, low, high, secrets.randbits(16))
        self.ticker = Ticker()
        address = ipaddress.ip_address(settings.sound_host)
        both = address.version == 6 and address.is_unspecified
        self.kinds = frozenset({4, 6} if both else {address.version})
        """Versions of IP over which sound can be sent."""


class SipLine:
    """One call. Raises PortsExhausted when there is no room for its sound."""

    def __init__(self, endpoint: SipEndpoint, room: MediaRoom, peer: Addr) -> None:
        self.endpoint = endpoint
        self.call: SipCall | None = None
        self.rtp = RtpSession.open(room.ports, room.ticker)
        self.up = asyncio.Event()
        """Both sides agree that the call is up."""
        self.over = asyncio.Event()
        self.ended: Terminated | None = None
        self.fault = ""
        """What the peer did wrong, when that ended the call."""
        self.broken = False
        """Its sound broke, which is our fault: that ended the call."""
        self.on_digit: Callable[[str], None] = unheard
        self._key = os.urandom(KEY_BYTES)
        self._session_id = secrets.randbits(31)
        self._version = 0
        self._local = Addr(endpoint.told(peer)[0], self.rtp.local_port)
        self._capabilities = Capabilities(srtp=_encryption(endpoint.settings, peer.transport), kinds=room.kinds)
        self.rtp.on_digit(self._press)
        self.rtp.on_broken = self._break

    # Offer and answer

    def answer(self, offer: bytes) -> bytes:
        """Our answer, or our offer when the peer made none. Raises SipError for what cannot be taken."""
        if not offer:
            return self.offer()
        self._version += 1
        answer = answer_offer(
            parse_sdp(offer),
            self._local,
            self._acceptable,
            session_id=self._session_id,
            version=self._version,
            key=self._key,
        )
        self._start(answer.agreed)
        return answer.sdp

    @property
    def _acceptable(self) -> Capabilities:
        """What an offer may ask for: no later one, mistaken or forged, takes an encrypted call into the clear."""
        stream = self.rtp.stream
        if stream is None or stream.plan.keys is None:
            return self._capabilities
        return replace(self._capabilities, srtp=Srtp.REQUIRED)

    def offer(self) -> bytes:
        """What we would like; of a call that has one already, without letting go of its encryption."""
        self._version += 1
        return make_offer(
            self._local,
            self._capabilities,
            session_id=self._session_id,
            version=self._version,
            key=self._key,
            before=self.call.local_sdp if self.call is not None else b"",
        )

    def agree(self, answer: bytes) -> None:
        """The peer's answer to what we offered last; a refresh offers again what stands. Raises SipError."""
        assert self.call is not None
        self._start(read_answer(self.call.local_sdp, parse_sdp(answer), self._capabilities))

    def _start(self, agreed: Agreed) -> None:
        self.rtp.start(plan_of(agreed))

    # What happens to the call

    def heard(self, event: Event) -> None:
        """An event of this call."""
        match event:
            case Established(sdp=sdp):
                if sdp is not None:
                    self._take(sdp)
                elif self.rtp.stream is None:
                    self._fail("the peer never said where its sound is to go")
                self.up.set()
            case Progress(sdp=sdp):
                if sdp is not None:
                    with suppress(SipError):
                        # Only a preview: what counts is in the answer, perhaps of another phone that rings.
                        self.agree(sdp)
            case Reoffer(call=call, offer=offer):
                self._change(call, offer or b"")
            case Reanswer(sdp=sdp):
                self._take(sdp)
            case InfoDigits(digits=digits):
                for digit in digits:
                    self._press(digit)
            case Terminated():
                self.ended = event
                self.fault = self.fault or FAULTS.get(event.reason, "")
                self.over.set()
                self.close()
            case _:
                pass

    def _take(self, answer: bytes) -> None:
        try:
            self.agree(answer)
        except SipError as error:
            self._fail(str(error))

    def _change(self, call: SipCall, offer: bytes) -> None:
        try:
            sdp = self.answer(offer)
        except SipError as error:
            self.endpoint.core.reject(call, error.code, self.endpoint.now())
        else:
            self.endpoint.core.answer(call, sdp, self.endpoint.now())
        self.endpoint.pump()

    def _fail(self, fault: str) -> None:
        self.fault = fault
        self.hangup()

    def _break(self) -> None:
        self.broken = True
        self.hangup()
        self.over.set()

    def _press(self, digit: str) -> None:
        self.on_digit(digit)

    # What we do

    def hangup(self) -> None:
        """End the call, whatever state it is in. Safe to call twice."""
        if self.call is not None:
            self.endpoint.core.hangup(self.call, self.endpoint.now())
            self.endpoint.pump()
        self.close()

    def close(self) -> None:
        """Give the ports back: nothing more is heard. Safe to call twice."""
        self.rtp.close()
        # Whoever waits for keys holds this line.
        self.on_digit = unheard

    def press(self, digit: str) -> None:
        """Press a key at the far end: as telephone-event, or by INFO where that was not agreed."""
        stream = self.rtp.stream
        if stream is not None and stream.plan.dtmf_type is not None:
            with suppress(ValueError):
                # More keys than wait for their turn come from no hand.
                self.rtp.send_digits(digit)
        elif self.call is not None:
            self.endpoint.core.info_dtmf(self.call, digit, self.endpoint.now())
            self.endpoint.pump()

    @property
    def report(self) -> MediaReport | None:
        """What became of the sound; None if there never was any."""
        return self.rtp.summary()


FAULTS = {
    Ended.NO_ACK: "our answer was never acknowledged",
    Ended.EXPIRED: "the session was not refreshed in time",
    Ended.LOST: "the peer does not know the call any more, or cannot be reached",
}


def plan_of(agreed: Agreed) -> MediaPlan:
    """What signalling agreed, as RTP wants to know it. For the address of nowhere it waits for the first packet."""
    keys = None
    if agreed.local_crypto is not None and agreed.remote_crypto is not None:
        keys = SrtpKeys(agreed.local_crypto.suite, agreed.local_crypto.key, agreed.remote_crypto.key)
    plan = MediaPlan(
        remote=_somewhere(agreed.remote),
        codec=replace(CODECS[agreed.codec], payload_type=agreed.payload_type),
        ptime=min(agreed.ptime, 60),
        dtmf_type=agreed.digits,
        dtmf_in=agreed.digits_in,
        sends=agreed.direction in ("sendrecv", "sendonly"),
        keys=keys,
    )
    rtcp = _somewhere(agreed.remote_rtcp)
    return plan if rtcp is None else replace(plan, remote_rtcp=rtcp)


def _somewhere(addr: Addr) -> tuple[str, int] | None:
    """Descriptions with a name instead of an address are refused before."""
    return None if ipaddress.ip_address(addr.host).is_unspecified else (addr.host, addr.port)


def _encryption(settings: SipSettings, transport: Transport) -> Srtp:
    """Keys are taken where nobody reads them on their way, or where calls must be encrypted anyhow."""
    if settings.srtp == "required":
        return Srtp.REQUIRED
    return Srtp.ALLOWED if transport == "tls" else Srtp.REFUSED
