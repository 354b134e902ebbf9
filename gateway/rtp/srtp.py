"""Encrypted sound: the keys as SDP carries them (RFC 4568), and packets in and out (RFC 3711, RFC 7714). Pure.

The cryptography is libsrtp's. Keys come in as bytes, so chance stays outside. What we cannot do exactly
as offered (a master key identifier, session parameters that turn protection off) is not chosen.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable
from dataclasses import dataclass

from pylibsrtp import Error, Policy, Session

from gateway.rtp.packet import RtpError

LARGEST = 1_350
"""Bytes of a packet libsrtp's binding is given: its buffer has 1,500, its trailers up to 148."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A crypto-suite; key and salt lengths in bytes."""

    profile: int
    key: int
    salt: int


SUITES = {
    "AEAD_AES_256_GCM": Suite(Policy.SRTP_PROFILE_AEAD_AES_256_GCM, 32, 12),
    "AEAD_AES_128_GCM": Suite(Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 16, 12),
    "AES_CM_128_HMAC_SHA1_80": Suite(Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 16, 14),
    "AES_CM_128_HMAC_SHA1_32": Suite(Policy.SRTP_PROFILE_AES128_CM_SHA1_32, 16, 14),
}
DEFAULT_SUITE = "AES_CM_128_HMAC_SHA1_80"
"""The one every peer has; what we offer."""

_CRYPTO = re.compile(
    r"(\d{1,9}) +([A-Z0-9_]+) +inline:([A-Za-z0-9+/]+={0,2})(\|[^ ;|:]+)?(\|[^ ;|]+:\d+)?(.*)", re.ASCII
)


@dataclass(frozen=True, slots=True)
class CryptoAttribute:
    """One `a=crypto` line: a tag, a suite, and the sender's master key followed by its salt."""

    tag: int
    suite: str
    key: bytes

    def __str__(self) -> str:
        """The attribute's value, behind `a=crypto:`."""
        return f"{self.tag} {self.suite} inline:{b64encode(self.key).decode('ascii')}"

    def __repr__(self) -> str:
        """Without the key: this may land in a log."""
        return f"CryptoAttribute(tag={self.tag}, suite={self.suite!r})"


@dataclass(frozen=True, slots=True, repr=False)
class SrtpKeys:
    """Both directions' master key and salt; each side's come from its own SDP."""

    suite: str
    local: bytes
    remote: bytes


def key_length(suite: str) -> int:
    """Random bytes a key and its salt need. Raises KeyError for a suite we do not have."""
    return SUITES[suite].key + SUITES[suite].salt


def parse_crypto(value: str) -> CryptoAttribute:
    """The value of an `a=crypto` line. Raises RtpError when it is malformed or asks for what we do not do."""
    found = _CRYPTO.fullmatch(value.strip())
    if found is None:
        raise RtpError("the crypto attribute is not `tag suite inline:key`")
    tag, suite, text, _lifetime, identifier, rest = found.groups()
    if suite not in SUITES:
        raise RtpError(f"the crypto-suite {suite:.40} is not known")
    if identifier or rest.strip():
        # RFC 4568, section 6.3: an attribute with a parameter that is not understood is not chosen.
        raise RtpError("the crypto attribute asks for a key identifier, several keys or session parameters")
    try:
        key = b64decode(text, validate=True)
    except Base64Error:
        raise RtpError("the crypto attribute's key is not base64") from None
    if len(key) != key_length(suite):
        raise RtpError(f"the key for {suite} must have {key_length(suite)} bytes, not {len(key)}")
    return CryptoAttribute(int(tag), suite, key)


def choose_crypto(values: Iterable[str]) -> CryptoAttribute | None:
    """The first offered attribute that we can do (RFC 4568, section 5.1.2: the offerer's order is its wish)."""
    for value in values:
        try:
            return parse_crypto(value)
        except RtpError:
            continue
    return None


class SrtpContext:
    """One call's two directions. Raises RtpError for packets that are not the peer's, or were there before."""

    def __init__(self, keys: SrtpKeys) -> None:
        profile = SUITES[keys.suite].profile
        self._inbound = Session(Policy(keys.remote, Policy.SSRC_ANY_INBOUND, srtp_profile=profile))
        self._outbound = Session(Policy(keys.local, Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile))

    def protect(self, packet: bytes) -> bytes:
        """RTP to SRTP."""
        return self._outbound.protect(packet)

    def protect_rtcp(self, packet: bytes) -> bytes:
        """RTCP to SRTCP."""
        return self._outbound.protect_rtcp(packet)

    def unprotect(self, packet: bytes) -> bytes:
        """SRTP to RTP."""
        _check_size(packet)
        try:
            return self._inbound.unprotect(packet)
        except Error as error:
            raise RtpError(f"SRTP: {error}") from None

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """SRTCP to RTCP."""
        _check_size(packet)
        try:
            return self._inbound.unprotect_rtcp(packet)
        except Error as error:
            raise RtpError(f"SRTCP: {error}") from None


def _check_size(packet: bytes) -> None:
    if len(packet) > LARGEST:
        raise RtpError(f"a protected packet of {len(packet)} bytes is too long")
