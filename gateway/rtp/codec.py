"""The two codecs of the telephone network under their RTP names and numbers (RFC 3551, section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.audio import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw

COMFORT_NOISE = 13
"""Payload type of RFC 3389: the peer says that it is silent."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One byte a sample, 8,000 a second."""

    name: str
    payload_type: int
    decode: Callable[[bytes], bytes]
    """Payload to int16."""
    encode: Callable[[bytes], bytes]
    """int16 to payload."""
    silence: bytes
    """The byte that is nothing."""


PCMU = Codec("PCMU", 0, decode_ulaw, encode_ulaw, b"\xff")
PCMA = Codec("PCMA", 8, decode_alaw, encode_alaw, b"\xd5")
CODECS = {codec.name: codec for codec in (PCMU, PCMA)}
DECODERS = {codec.payload_type: codec.decode for codec in CODECS.values()}
"""A peer may change between the two at any packet; both numbers are fixed."""
