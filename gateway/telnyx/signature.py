"""telnyx-signature-ed25519: checking that a webhook is Telnyx's. Pure: the time comes in as an argument.

Telnyx, "Webhook signatures": base64 of an Ed25519 signature (RFC 8032) by the account's key over the
header telnyx-timestamp, a vertical bar, and the body as it came, byte for byte.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error as Base64Error

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_HEADER = "telnyx-signature-ed25519"
TIMESTAMP_HEADER = "telnyx-timestamp"
TOLERANCE = 300
"""Seconds a webhook may be old, or ahead of our clock."""


def read_public_key(text: str) -> Ed25519PublicKey:
    """The account's public key as Telnyx's portal shows it, base64. Raises ValueError with a sentence."""
    try:
        return Ed25519PublicKey.from_public_bytes(b64decode(text, validate=True))
    except (Base64Error, ValueError):
        raise ValueError("the Telnyx public key must be base64 of 32 bytes, as the portal shows it") from None


def verify(key: Ed25519PublicKey, timestamp: str, body: bytes, signature: str, now: float) -> str:
    """Why the webhook is not to be believed; empty when it is Telnyx's and fresh. `now` is Unix time."""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        return f"the request must carry {TIMESTAMP_HEADER} in Unix seconds"
    try:
        given = b64decode(signature, validate=True)
        key.verify(given, timestamp.encode("ascii") + b"|" + body)
    except (Base64Error, ValueError, InvalidSignature):
        return f"{SIGNATURE_HEADER} does not match: check the public key"
    if abs(now - int(timestamp)) > TOLERANCE:
        return f"{TIMESTAMP_HEADER} is {abs(now - int(timestamp)):.0f} s from our clock, more than {TOLERANCE}"
    return ""
