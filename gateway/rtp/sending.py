"""Our side's RTP packets: sound, silence or keypad digits each tick, numbered and timed. Pure.

Something is sent at every tick the plan allows, silence when there is nothing to say: it keeps NAT
bindings open and the peer's jitter buffer in time. Knows no addresses and no encryption.
"""

from __future__ import annotations

from gateway.rtp.codec import CODECS
from gateway.rtp.dtmf import DtmfSender
from gateway.rtp.packet import SEQUENCE_MASK, TIMESTAMP_MASK, RtpPacket, build_rtp, pack_rtp
from gateway.rtp.plan import Identity, MediaPlan
from gateway.rtp.rtcp import SenderInfo
from gateway.rtp.talk import TalkQueue

FRAME = 160
_SILENCE = {codec.name: codec.silence * FRAME for codec in CODECS.values()}


class Sender:
    """One call's."""

    def __init__(self, identity: Identity, plan: MediaPlan) -> None:
        self.talk = TalkQueue()
        self.digits = DtmfSender()
        self.packets = 0
        self.octets = 0
        self._ssrc = identity.ssrc
        self._sequence = identity.sequence & SEQUENCE_MASK
        self._timestamp = identity.timestamp & TIMESTAMP_MASK
        self._reported = 0
        self._pending = b""
        """Payload that is not yet a whole packet; `_timestamp` is its first sample's."""
        self.change(plan)

    def change(self, plan: MediaPlan) -> None:
        """From now on, another plan."""
        self._plan = plan
        self._encode = plan.codec.encode
        self._payload_type = plan.codec.payload_type
        self._silence = _SILENCE[plan.codec.name]
        self._drop_pending()
        self._plain = plan.sends and plan.ptime == 20
        self._marker = True

    def tick(self) -> list[bytes]:
        """The packets of these 20 ms: one, or as the packet time has it."""
        spoken = self.talk.pop()
        if self.digits.active:
            if spoken is not None:
                self.talk.not_sent()
            return self._event()
        if self._plain and not self._marker:
            payload = self._silence if spoken is None else self._encode(spoken)
            data = pack_rtp(self._payload_type, self._sequence, self._timestamp, self._ssrc, payload)
            self._sequence = (self._sequence + 1) & SEQUENCE_MASK
            self._timestamp = (self._timestamp + FRAME) & TIMESTAMP_MASK
            self.packets += 1
            self.octets += FRAME
            return [data]
        if not self._plan.sends:
            if spoken is not None:
                self.talk.not_sent()
            self.skip(1)
            return []
        return self._packetise(self._silence if spoken is None else self._encode(spoken))

    def _packetise(self, payload: bytes) -> list[bytes]:
        """Any packet time. The first packet, and the first after silence, has the marker (RFC 3551, section 4.1)."""
        self._pending += payload
        size = 8 * self._plan.ptime
        made = []
        while len(self._pending) >= size:
            part, self._pending = self._pending[:size], self._pending[size:]
            made.append(self._build(self._payload_type, self._marker, self._timestamp, part))
            self._marker = False
            self._timestamp = (self._timestamp + size) & TIMESTAMP_MASK
        return made

    def _event(self) -> list[bytes]:
        """This tick belongs to a digit; sound waits for no one and is not sent."""
        self._drop_pending()
        event = self.digits.pop()
        began = self._timestamp
        if event is None or self._plan.dtmf_type is None or not self._plan.sends:
            return self._packetise(self._silence) if self._plan.sends else self._nothing()
        self.skip(1)
        self._marker = True
        began = (began - event.elapsed) & TIMESTAMP_MASK
        return [self._build(self._plan.dtmf_type, event.marker, began, event.payload)]

    def _nothing(self) -> list[bytes]:
        self.skip(1)
        return []

    def _build(self, payload_type: int, marker: bool, timestamp: int, payload: bytes) -> bytes:
        data = build_rtp(RtpPacket(payload_type, marker, self._sequence, timestamp, self._ssrc, payload))
        self._sequence = (self._sequence + 1) & SEQUENCE_MASK
        self.packets += 1
        self.octets += len(payload)
        return data

    def _drop_pending(self) -> None:
        self._timestamp = (self._timestamp + len(self._pending)) & TIMESTAMP_MASK
        self._pending = b""

    def skip(self, ticks: int) -> None:
        """Time passes without packets: the timestamps go on."""
        self._drop_pending()
        self._timestamp = (self._timestamp + FRAME * ticks) & TIMESTAMP_MASK

    def sent_since_report(self) -> SenderInfo | None:
        """Figures for a sender report, its NTP time left at 0; None if nothing was sent since the last."""
        if self.packets == self._reported:
            return None
        self._reported = self.packets
        return SenderInfo(0, self._timestamp, self.packets, self.octets)
