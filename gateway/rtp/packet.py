"""RTP packets: bytes to fields and back (RFC 3550, section 5.1). Pure.

Knows no codec, no order and no clock: what a packet's numbers mean is `reception`'s and `jitter`'s affair.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

HEADER_BYTES = 12
SEQUENCE_MASK = 0xFFFF
TIMESTAMP_MASK = 0xFFFFFFFF

_PLAIN = 0x80
"""First byte of nearly every packet: version 2, no padding, no extension, no contributing sources."""
_HEADER = Struct("!BBHII")
_VERSION, _PADDING, _EXTENSION, _SOURCES, _MARKER = 0xC0, 0x20, 0x10, 0x0F, 0x80


class RtpError(Exception):
    """The peer sent what RTP, RTCP or SRTP do not allow; the message says what. It costs one packet, no call."""


class RtpPacket(NamedTuple):
    payload_type: int
    marker: bool
    sequence: int
    timestamp: int
    ssrc: int
    payload: bytes


def parse_rtp(data: bytes) -> RtpPacket:
    """One datagram. Raises RtpError; contributing sources, extension and padding are passed over."""
    if len(data) < HEADER_BYTES:
        raise RtpError(f"an RTP packet has at least {HEADER_BYTES} bytes, this one {len(data)}")
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    payload = data[HEADER_BYTES:] if first == _PLAIN else _payload(data, first)
    return RtpPacket(second & 0x7F, second >= _MARKER, sequence, timestamp, ssrc, payload)


def _payload(data: bytes, first: int) -> bytes:
    if first & _VERSION != _PLAIN:
        raise RtpError(f"the RTP version is {first >> 6}, not 2")
    start, end = HEADER_BYTES + 4 * (first & _SOURCES), len(data)
    if first & _EXTENSION:
        if end < start + 4:
            raise RtpError("the RTP packet ends before its header extension")
        start += 4 + 4 * int.from_bytes(data[start + 2 : start + 4], "big")
    if first & _PADDING:
        padding = data[-1]
        if padding == 0:
            raise RtpError("the RTP packet's padding counts nothing, not even itself")
        end -= padding
    if start > end:
        raise RtpError("the RTP packet ends inside its header")
    return data[start:end]


def build_rtp(packet: RtpPacket) -> bytes:
    """A plain packet: no padding, extension or contributing sources."""
    second = packet.payload_type | (_MARKER if packet.marker else 0)
    return _HEADER.pack(_PLAIN, second, packet.sequence, packet.timestamp, packet.ssrc) + packet.payload


def pack_rtp(payload_type: int, sequence: int, timestamp: int, ssrc: int, payload: bytes) -> bytes:
    """Like `build_rtp`, for the packet that is sent 50 times a second: no marker, no tuple made for it."""
    return _HEADER.pack(_PLAIN, payload_type, sequence, timestamp, ssrc) + payload


def is_rtcp(data: bytes) -> bool:
    """Which of the two a datagram on a shared port is (RFC 5761, section 4): RTCP's types are 192 to 223."""
    return len(data) > 1 and 192 <= data[1] <= 223
