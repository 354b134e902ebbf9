"""One call's media without its sockets: datagrams in, the caller's sound out; our sound in, datagrams out. Pure.

Ties the parts together: latch, reception, jitter buffer, keypad digits, encryption, reports. Time and
chance come in as arguments. Nothing a peer sends raises: what cannot be used is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.rtp.codec import COMFORT_NOISE, DECODERS, PCMU, Codec
from gateway.rtp.jitter import JitterBuffer
from gateway.rtp.latch import Addr, Latch
from gateway.rtp.packet import RtpError, RtpPacket, build_rtp, pack_rtp, parse_rtp
from gateway.rtp.reception import Reception
from gateway.rtp.talk import TalkQueue

MAX_PAYLOAD = 1_600
"""Bytes of G.711 in one packet: 200 ms."""
FRAME = 160
NEW_SOURCE = 2
"""Packets in sequence after which the peer's address has another synchronisation source."""


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """What offer and answer agreed about one call's sound."""

    remote: Addr | None
    """Where the SDP says to send, an IP address and a port; None: nowhere before the peer is heard."""
    codec: Codec = PCMU
    ptime: int = 20
    """Milliseconds of sound in a packet of ours, 10 to 60."""
    dtmf_type: int | None = None
    """Payload type of telephone-event; None: not agreed."""
    sends: bool = True
    """Whether we may send (the peer has not put us on hold)."""
    symmetric: bool = True
    """Whether another address than `remote` may be answered to."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Our side's random beginnings (RFC 3550, sections 5.1 and 8)."""

    ssrc: int
    sequence: int
    timestamp: int


@dataclass(slots=True)
class StreamCounters:
    """Packets that were not sound, and our own."""

    strangers: int = 0
    """From an address that is not the peer's."""
    malformed: int = 0
    unknown: int = 0
    """Of a payload type nobody agreed on."""
    sources: int = 0
    """Synchronisation sources the peer has had."""
    sent: int = 0
    octets: int = 0


def _unheard(frame: bytes) -> None:
    """Nobody listens yet."""


class MediaStream:
    """One call's, from the SDP answer on."""

    def __init__(self, identity: Identity, plan: MediaPlan, now: float) -> None:
        self.counters = StreamCounters()
        self.jitter = JitterBuffer()
        self.talk = TalkQueue()
        self.reception: Reception | None = None
        self.on_frame: Callable[[bytes], None] = _unheard
        """Given the caller's sound, 320 bytes of int16 each tick; must be quick and never raises."""
        self.last_heard = now
        """When the peer's last usable packet came."""
        self._plan = plan
        self._latch = Latch(plan.remote, now, plan.symmetric)
        self._source: Addr | None = None
        self._ssrc = -1
        self._rival: RtpPacket | None = None
        self._out_ssrc = identity.ssrc
        self._sequence = identity.sequence & 0xFFFF
        self._timestamp = identity.timestamp & 0xFFFFFFFF
        self._fresh = True
        self._pending = b""
        self._silence = plan.codec.silence * FRAME

    @property
    def plan(self) -> MediaPlan:
        return self._plan

    @property
    def remote(self) -> Addr | None:
        """Where our packets go."""
        return self._source or self._plan.remote

    def change(self, plan: MediaPlan, now: float) -> None:
        """A re-INVITE was agreed. The peer may move again only if its address in the SDP has changed."""
        if plan.remote != self._plan.remote:
            self._latch = Latch(plan.remote, now, plan.symmetric)
            self._source = None
        self._plan = plan
        self._silence = plan.codec.silence * FRAME
        self._pending = b""

    def receive_rtp(self, data: bytes, source: Addr, now: float) -> None:
        """A datagram came from `source`."""
        if self._source is not None and source != self._source:
            self.counters.strangers += 1
            return
        try:
            packet = parse_rtp(data)
        except RtpError:
            self.counters.malformed += 1
            return
        if self._source is None:
            self._introduce(packet, source, now)
        elif packet.ssrc == self._ssrc or self._changed(packet, now):
            self._take(packet, now)

    def _introduce(self, packet: RtpPacket, source: Addr, now: float) -> None:
        """Nobody has been listened to yet."""
        taken = self._latch.consider(packet, source, now)
        if taken is None:
            return
        if not taken:
            self.counters.strangers += 1
            return
        self._source = self._latch.source
        for one in taken:
            if one.ssrc != self._ssrc:
                self._begin(one, now)
            self._take(one, now)

    def _changed(self, packet: RtpPacket, now: float) -> bool:
        """The peer's address has another source: believed at its second packet in sequence."""
        rival, self._rival = self._rival, packet
        if rival is None or rival.ssrc != packet.ssrc or (rival.sequence + 1) & 0xFFFF != packet.sequence:
            return False
        self._begin(rival, now)
        self._take(rival, now)
        return True

    def _begin(self, packet: RtpPacket, now: float) -> None:
        self.counters.sources += 1
        self._ssrc = packet.ssrc
        self._rival = None
        self.reception = Reception(packet.sequence, packet.timestamp, now)
        self.jitter.restart()

    def _take(self, packet: RtpPacket, now: float) -> None:
        assert self.reception is not None
        if not self.reception.receive(packet.sequence, packet.timestamp, now):
            return
        decode = DECODERS.get(packet.payload_type)
        if decode is None:
            if packet.payload_type == COMFORT_NOISE:
                self.last_heard = now
            else:
                self.counters.unknown += 1
        elif 0 < len(packet.payload) <= MAX_PAYLOAD:
            self.last_heard = now
            self.jitter.push(packet.timestamp, decode(packet.payload), now)
        else:
            self.counters.malformed += 1

    def tick(self, now: float) -> list[bytes]:
        """20 ms have passed, `now` nominally: hands on what is heard, gives what is to be sent."""
        pcm = self.jitter.pop(now)
        if pcm is not None:
            self.on_frame(pcm)
        if not self._plan.sends:
            self.skip(1)
            return []
        spoken = self.talk.pop()
        payload = self._silence if spoken is None else self._plan.codec.encode(spoken)
        if self._plan.ptime == 20 and not self._fresh:
            return [self._packet(payload)]
        return self._packetise(payload)

    def _packet(self, payload: bytes) -> bytes:
        data = pack_rtp(self._plan.codec.payload_type, self._sequence, self._timestamp, self._out_ssrc, payload)
        self._count(len(payload))
        return data

    def _count(self, octets: int) -> None:
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._timestamp = (self._timestamp + octets) & 0xFFFFFFFF
        self.counters.sent += 1
        self.counters.octets += octets

    def _packetise(self, payload: bytes) -> list[bytes]:
        """Any packet time; the first packet of all carries the marker (RFC 3551, section 4.1)."""
        self._pending += payload
        size = 8 * self._plan.ptime
        made = []
        while len(self._pending) >= size:
            part, self._pending = self._pending[:size], self._pending[size:]
            if self._fresh:
                self._fresh = False
                first = RtpPacket(
                    self._plan.codec.payload_type, True, self._sequence, self._timestamp, self._out_ssrc, part
                )
                made.append(build_rtp(first))
                self._count(size)
            else:
                made.append(self._packet(part))
        return made

    def skip(self, ticks: int) -> None:
        """Ticks were left out: our timestamps still tell the time."""
        self._timestamp = (self._timestamp + FRAME * ticks) & 0xFFFFFFFF
