"""One call's media without its sockets: datagrams in, the caller's sound out; our sound in, datagrams out. Pure.

Ties the parts together: latch, encryption, reception, jitter buffer, keypad digits, reports. Time and
chance come in as arguments. Nothing a peer sends raises: what cannot be used is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.rtp.codec import COMFORT_NOISE, DECODERS
from gateway.rtp.dtmf import DtmfReceiver
from gateway.rtp.jitter import JitterBuffer
from gateway.rtp.latch import Addr, Latch
from gateway.rtp.packet import RtpError, RtpPacket, is_rtcp, parse_rtp
from gateway.rtp.plan import Identity, MediaPlan, MediaReport
from gateway.rtp.reception import Reception
from gateway.rtp.reporting import Reporter
from gateway.rtp.sending import Sender
from gateway.rtp.srtp import SrtpContext

MAX_PAYLOAD = 1_600
"""Bytes of G.711 in one packet: 200 ms."""


@dataclass(slots=True)
class StreamCounters:
    """Datagrams that were not sound."""

    strangers: int = 0
    """From an address that is not the peer's."""
    malformed: int = 0
    unauthentic: int = 0
    """SRTP that the peer's key does not fit, or that came twice."""
    unknown: int = 0
    """Of a payload type nobody agreed on."""
    sources: int = 0
    """Synchronisation sources the peer has had."""


def unheard(what: object) -> None:
    """Nobody listens: not yet, or not any more."""


class MediaStream:
    """One call's, from the SDP answer on."""

    def __init__(self, identity: Identity, plan: MediaPlan, now: float) -> None:
        self.counters = StreamCounters()
        self.jitter = JitterBuffer()
        self.sender = Sender(identity, plan)
        self.reporter = Reporter(identity, now)
        self.reception: Reception | None = None
        self.on_frame: Callable[[bytes], object] = unheard
        """Given the caller's sound, 320 bytes of int16 each tick; must be quick and never raises."""
        self.on_digit: Callable[[str], None] = unheard
        """Given each key the caller presses, once."""
        self.last_heard = now
        """When the peer's last usable packet came."""
        self.source: Addr | None = None
        """Where the peer's packets come from, once it is known; ours go there."""
        self._agree(plan)
        self._latch = Latch(plan.remote, now, plan.symmetric)
        self._crypto = SrtpContext(plan.keys) if plan.keys else None
        self._dtmf = DtmfReceiver()
        self._ssrc = -1
        self._rival: RtpPacket | None = None

    @property
    def plan(self) -> MediaPlan:
        return self._plan

    @property
    def remote(self) -> Addr | None:
        """Where our packets go."""
        return self.source or self._plan.remote

    def change(self, plan: MediaPlan, now: float) -> None:
        """A re-INVITE was agreed. The peer may move again only if its address in the SDP has changed."""
        if plan.remote != self._plan.remote:
            self._latch = Latch(plan.remote, now, plan.symmetric)
            self.source = None
            self.reporter.moved()
        if plan.keys is None:
            self._crypto = None
        elif self._crypto is None:
            self._crypto = SrtpContext(plan.keys)
        else:
            self._crypto.rekey(plan.keys)
        self._agree(plan)
        self.sender.change(plan)

    def _agree(self, plan: MediaPlan) -> None:
        self._plan = plan
        # The peer may use the number it gave the codec, or ours if that is another (RFC 3264, section 5.1).
        self._decoders = {plan.codec.payload_type: plan.codec.decode, **DECODERS}
        self._digit_types = (plan.dtmf_type, plan.dtmf_in)

    def receive_rtp(self, data: bytes, source: Addr, now: float) -> bool:
        """A datagram came to the RTP port from `source`; true if it was sound, and the next in sequence."""
        if source != self.source and self.source is not None:
            self.counters.strangers += 1
            return False
        if is_rtcp(data):
            self.receive_rtcp(data, source, now)
            return False
        try:
            packet = parse_rtp(data if self._crypto is None else self._crypto.unprotect(data))
        except RtpError:
            self._refuse()
            return False
        if self.source is None:
            self._introduce(packet, source, now)
        elif packet.ssrc == self._ssrc or self._changed(packet, now):
            return self._take(packet, now)
        return False

    def _refuse(self) -> None:
        if self._crypto is None:
            self.counters.malformed += 1
        else:
            self.counters.unauthentic += 1

    def _introduce(self, packet: RtpPacket, source: Addr, now: float) -> None:
        """Nobody has been listened to yet."""
        taken = self._latch.consider(packet, source, now)
        if taken is None:
            return
        if not taken:
            self.counters.strangers += 1
            return
        self.source = source
        for one in taken:
            if one.ssrc != self._ssrc:
                self._begin(one)
            self._take(one, now)

    def _changed(self, packet: RtpPacket, now: float) -> bool:
        """The peer's address has another source: believed at its second packet in sequence."""
        rival, self._rival = self._rival, packet
        if rival is None or rival.ssrc != packet.ssrc or (rival.sequence + 1) & 0xFFFF != packet.sequence:
            return False
        self._begin(rival)
        self._take(rival, now)
        return True

    def _begin(self, packet: RtpPacket) -> None:
        self.counters.sources += 1
        self._ssrc = packet.ssrc
        self._rival = None
        self.reception = Reception(packet.sequence)
        self.reporter.new_source()
        self._dtmf = DtmfReceiver()
        self.jitter.restart()

    def _take(self, packet: RtpPacket, now: float) -> bool:
        reception = self.reception
        assert reception is not None
        if not reception.receive(packet.sequence) or not self._plan.receives:
            return False
        decode = self._decoders.get(packet.payload_type)
        if decode is None:
            self._take_other(packet, now)
            return False
        payload, timestamp = packet.payload, packet.timestamp
        if not 0 < len(payload) <= MAX_PAYLOAD:
            self.counters.malformed += 1
            return False
        self.last_heard = now
        reception.time(timestamp, now)
        self.jitter.push(timestamp, decode(payload), now)
        return reception.in_order

    def _take_other(self, packet: RtpPacket, now: float) -> None:
        """Anything but sound."""
        if packet.payload_type in self._digit_types:
            self.last_heard = now
            digit = self._dtmf.receive(packet.timestamp, packet.marker, packet.payload)
            if digit is not None:
                self.on_digit(digit)
        elif packet.payload_type == COMFORT_NOISE:
            self.last_heard = now
        else:
            self.counters.unknown += 1

    def receive_rtcp(self, data: bytes, source: Addr, now: float) -> None:
        """A datagram came to the RTCP port, or a report to the RTP port."""
        remote = self._plan.remote_rtcp or self.remote
        if remote is None or source[0] not in (remote[0], self.source and self.source[0]):
            self.counters.strangers += 1
            return
        try:
            data = data if self._crypto is None else self._crypto.unprotect_rtcp(data)
            self.reporter.receive(data, source, now)
        except RtpError:
            self._refuse()

    def tick(self, now: float) -> list[bytes]:
        """20 ms have passed, `now` nominally: hands on what is heard, gives what is to be sent."""
        self.hear(now)
        return self.say()

    def hear(self, now: float) -> None:
        """The tick's first half, the peer's sound; the two may come in either order."""
        pcm = self.jitter.pop(now)
        if pcm is not None:
            self.on_frame(pcm)

    def say(self) -> list[bytes]:
        """The tick's other half: our packets."""
        packets = self.sender.tick()
        if self._crypto is not None:
            return [self._crypto.protect(packet) for packet in packets]
        return packets

    def skip(self, ticks: int) -> None:
        """Ticks were left out: our timestamps still tell the time, and what was to be said then was not."""
        self.sender.skip(ticks)
        self.sender.talk.skip(ticks)

    def report(self, now: float, wall: float, chance: float, goodbye: bool = False) -> bytes:
        """The RTCP packet that is due; `wall` is Unix time, `chance` in [0, 1) scatters the next."""
        sent = self.sender.sent_since_report()
        data = self.reporter.build(self._ssrc, self.reception, sent, now, wall, chance, goodbye)
        return data if self._crypto is None else self._crypto.protect_rtcp(data)

    @property
    def remote_rtcp(self) -> Addr | None:
        """Where our reports go: where the peer's come from, else where the SDP says, else above its sound."""
        if self.reporter.source is not None:
            return self.reporter.source
        if self._plan.rtcp_mux:
            return self.remote
        if self._plan.remote_rtcp is not None and self.source in (None, self._plan.remote):
            return self._plan.remote_rtcp
        remote = self.remote
        return None if remote is None or remote[1] == 65_535 else (remote[0], remote[1] + 1)

    def summary(self) -> MediaReport:
        """The call's figures so far, both sides'."""
        jitter, reception, counters = self.jitter.counters, self.reception, self.counters
        return MediaReport(
            received=reception.received if reception else 0,
            lost=max(0, reception.lost) if reception else 0,
            late=jitter.late,
            duplicate=jitter.duplicate + (reception.duplicates if reception else 0),
            concealed_seconds=jitter.concealed / 8_000,
            jitter_ms=reception.jitter / 8 if reception else 0.0,
            delay_ms=1_000 * self.jitter.delay,
            sent=self.sender.packets,
            strangers=counters.strangers,
            malformed=counters.malformed + counters.unauthentic + counters.unknown,
            peer_lost=self.reporter.peer_lost,
            peer_jitter_ms=self.reporter.peer_jitter / 8,
            round_trip_ms=self.reporter.round_trip_ms,
        )
