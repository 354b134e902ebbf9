"""Telnyx's Ed25519 signatures: made by a key of our own, and RFC 8032's own vector."""

from __future__ import annotations

from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.telnyx.signature import TOLERANCE, read_public_key, verify

PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KEY = read_public_key(b64encode(PRIVATE.public_key().public_bytes_raw()).decode())
BODY = b"CallSid=v3%3Aabc&From=%2B15550001"
NOW = 1_700_000_000.0


def signed(timestamp: str = "1700000000", body: bytes = BODY) -> str:
    return b64encode(PRIVATE.sign(timestamp.encode() + b"|" + body)).decode()


def test_a_signed_webhook_is_believed() -> None:
    assert verify(KEY, "1700000000", BODY, signed(), NOW) == ""
    assert verify(KEY, "1700000000", BODY, signed(), NOW + TOLERANCE) == ""


@pytest.mark.parametrize(
    ("timestamp", "body", "signature", "now", "why"),
    [
        ("1700000000", BODY + b"&To=1", signed(), NOW, "does not match"),
        ("1700000001", BODY, signed(), NOW, "does not match"),
        ("1700000000", BODY, "", NOW, "does not match"),
        ("1700000000", BODY, "not base64!", NOW, "does not match"),
        ("1700000000", BODY, b64encode(bytes(64)).decode(), NOW, "does not match"),
        ("", BODY, signed(""), NOW, "must carry telnyx-timestamp"),
        ("-5", BODY, signed("-5"), NOW, "must carry telnyx-timestamp"),
        ("1700000000", BODY, signed(), NOW + TOLERANCE + 1, "from our clock"),
        ("1700000000", BODY, signed(), NOW - TOLERANCE - 1, "from our clock"),
    ],
)
def test_all_others_are_not(timestamp: str, body: bytes, signature: str, now: float, why: str) -> None:
    assert why in verify(KEY, timestamp, body, signature, now)


def test_a_key_that_is_none() -> None:
    for text in ("secret", b64encode(bytes(31)).decode(), "ä"):
        with pytest.raises(ValueError, match="base64 of 32 bytes"):
            read_public_key(text)
