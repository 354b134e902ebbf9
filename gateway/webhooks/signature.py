"""The signature of https://www.standardwebhooks.com over an event: pure.

Owns what a secret looks like and the three headers. With several secrets, while one takes over from
another, the header carries one signature for each, parted by spaces, and any of them will do.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"
MAKE_ONE = "make one with: python3 -c \"import base64,os;print('whsec_'+base64.b64encode(os.urandom(32)).decode())\""


class SecretInvalid(Exception):
    """A secret cannot sign; the message says why and never holds the secret."""


def signing_key(secret: str) -> bytes:
    """The key in a secret: `whsec_` and the base64 of 24 to 64 random bytes. Raises SecretInvalid."""
    if not secret.startswith(PREFIX):
        raise SecretInvalid(f"must start with {PREFIX}; {MAKE_ONE}")
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise SecretInvalid(f"is not base64 after {PREFIX}; {MAKE_ONE}") from None
    if not 24 <= len(key) <= 64:
        raise SecretInvalid(f"must hold 24 to 64 bytes, not {len(key)}; {MAKE_ONE}")
    return key


def signed_headers(keys: Sequence[bytes], webhook_id: str, now: float, body: bytes) -> dict[str, str]:
    """The headers that name and sign a body at `now`, seconds since 1970; no signature without a key."""
    stamp = str(int(now))
    headers = {"webhook-id": webhook_id, "webhook-timestamp": stamp}
    if keys:
        message = b".".join((webhook_id.encode(), stamp.encode(), body))
        digests = (hmac.new(key, message, hashlib.sha256).digest() for key in keys)
        headers["webhook-signature"] = " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)
    return headers
