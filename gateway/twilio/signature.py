"""X-Twilio-Signature: computing and checking it. Pure; which URL was asked for is the guard's affair.

Twilio's "Webhooks security" page: base64 of HMAC-SHA1, keyed with the account's auth token, over the
full URL followed by each form parameter's name and value, sorted, nothing between. A WebSocket
handshake has no parameters and its URL starts with wss://.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Iterable
from urllib.parse import urlsplit

HEADER = "X-Twilio-Signature"

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


def sign(auth_token: str, url: str, parameters: Iterable[tuple[str, str]] = ()) -> str:
    """The header's value for a request to exactly `url` with these form parameters.

    A parameter given twice with the same value counts once, as in Twilio's own libraries. Raises
    UnicodeEncodeError if the URL or a parameter holds half a surrogate pair.
    """
    text = url + "".join(name + value for name, value in sorted(set(parameters)))
    return b64encode(hmac.digest(auth_token.encode(), text.encode(), hashlib.sha1)).decode("ascii")


def verify(auth_token: str, url: str, parameters: Iterable[tuple[str, str]], signature: str) -> bool:
    """Whether `signature` is Twilio's for this request.

    Twilio is known to sign with or without the scheme's default port, so both spellings count.
    """
    given = signature.encode("utf-8", "replace")
    pairs = tuple(parameters)
    matched = False
    for spelling in _spellings(url):
        try:
            expected = sign(auth_token, spelling, pairs).encode("ascii")
        except UnicodeEncodeError:
            return False
        matched |= hmac.compare_digest(expected, given)
    return matched


def _spellings(url: str) -> tuple[str, ...]:
    """The URL as it is, without its port, and with the default one where none is given."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        return (url,)
    if port is not None:
        bare = parts.netloc[: parts.netloc.rindex(":")]
        return url, url.replace(parts.netloc, bare, 1)
    default = _DEFAULT_PORTS.get(parts.scheme)
    if default is None:
        return (url,)
    return url, url.replace(parts.netloc, f"{parts.netloc}:{default}", 1)
