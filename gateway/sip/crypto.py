"""Keys of encrypted sound, as a session description carries them (RFC 4568).

Owns the grammar of a=crypto and which of its offers we can use. Encrypts nothing.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass, field

SUITES = ("AES_CM_128_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_32")
KEY_BYTES = 30
"""Master key and salt of both suites (RFC 4568, section 6.2)."""

_CRYPTO = re.compile(r"([0-9]{1,9})\s+(\S+)\s+inline:([A-Za-z0-9+/=]+)(?:\|[^\s|:;]+)?(.*)\Z")
"""Tag, suite, key; a lifetime (section 6.1) asks nothing of us in a call of any length."""


@dataclass(frozen=True, slots=True)
class Crypto:
    """One a=crypto line (RFC 4568)."""

    tag: int
    suite: str
    key: bytes = field(repr=False)
    """Master key and salt, 30 bytes."""

    def __str__(self) -> str:
        return f"{self.tag} {self.suite} inline:{b64encode(self.key).decode()}"


def read_crypto(value: str) -> Crypto | None:
    """None for what we cannot use: an unknown suite, part of a key, or anything that changes the packets.

    That is a master key identifier, several keys, and every session parameter (section 6.3.7: what is not understood
    makes the line unusable).
    """
    line = _CRYPTO.match(value)
    if line is None or line[2].upper() not in SUITES or line[4].strip():
        return None
    try:
        key = b64decode(line[3] + "=" * (-len(line[3]) % 4), validate=True)
    except Base64Error:
        return None
    return Crypto(int(line[1]), line[2].upper(), key) if len(key) == KEY_BYTES else None


def check_key(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise ValueError(f"an SRTP key has {KEY_BYTES} bytes, not {len(key)}")
    return key
