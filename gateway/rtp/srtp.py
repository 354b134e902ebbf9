"""Encrypted sound: packets in and out (RFC 3711, RFC 7714). Pure.

The cryptography is libsrtp's. Keys come in as bytes, so chance stays outside; how SDP carries them is `sip.crypto`'s
affair.
"""

from __future__ import annotations

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
"""The one every peer has."""


@dataclass(frozen=True, slots=True, repr=False)
class SrtpKeys:
    """Both directions' master key and salt; each side's come from its own SDP."""

    suite: str
    local: bytes
    remote: bytes


def key_length(suite: str) -> int:
    """Random bytes a key and its salt need. Raises KeyError for a suite we do not have."""
    return SUITES[suite].key + SUITES[suite].salt


class SrtpContext:
    """One call's two directions. Raises RtpError for packets that are not the peer's, or were there before."""

    def __init__(self, keys: SrtpKeys) -> None:
        self._keys = keys
        self._inbound = _session(keys.suite, keys.remote, Policy.SSRC_ANY_INBOUND)
        self._outbound = _session(keys.suite, keys.local, Policy.SSRC_ANY_OUTBOUND)

    def rekey(self, keys: SrtpKeys) -> None:
        """From now on other keys, in the directions where they differ.

        A key that stays keeps its packet index: begun anew, its rollover counter would fall back to 0, which the
        peer cannot follow and which encrypts other sound with a keystream used before (RFC 3711, section 9.1).
        """
        before, self._keys = self._keys, keys
        if (before.suite, before.remote) != (keys.suite, keys.remote):
            self._inbound = _session(keys.suite, keys.remote, Policy.SSRC_ANY_INBOUND)
        if (before.suite, before.local) != (keys.suite, keys.local):
            self._outbound = _session(keys.suite, keys.local, Policy.SSRC_ANY_OUTBOUND)

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


def _session(suite: str, key: bytes, direction: int) -> Session:
    return Session(Policy(key, direction, srtp_profile=SUITES[suite].profile))


def _check_size(packet: bytes) -> None:
    if len(packet) > LARGEST:
        raise RtpError(f"a protected packet of {len(packet)} bytes is too long")
