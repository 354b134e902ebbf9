"""Access tokens by OAuth 2.0 client credentials (RFC 6749 section 4.4), for endpoints that want one.

Owns one token at a time: it is asked for once, however many deliveries wait for it, and kept until it
is about to run out or the endpoint refuses it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import orjson

EARLY = 30.0
"""Seconds before its end from which a token is not used any more."""
NO_EXPIRY = 300.0
"""Seconds a token is used that does not say how long it holds (`expires_in` is only recommended)."""
LARGEST_REPLY = 64 * 1024


class TokenRefused(Exception):
    """No access token; the message says why and holds neither secret nor token."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom we are to the token endpoint."""

    token_url: str
    client_id: str
    client_secret: str
    scope: str = ""
    audience: str = ""
    in_body: bool = False
    """Client id and secret as form fields, for servers that do not take HTTP Basic."""


class TokenSource:
    """The current token of one endpoint. `clock`: seconds, only ever forwards."""

    def __init__(self, credentials: Credentials, client: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._client = client
        self._clock = clock
        self._token = ""
        self._good_until = 0.0
        self._asking = asyncio.Lock()

    async def token(self, refused: str = "") -> str:
        """An access token, another than the one the endpoint just `refused`.

        Raises TokenRefused, or httpx.HTTPError when the token endpoint cannot be reached.
        """
        async with self._asking:
            if not self._token or self._token == refused or self._clock() >= self._good_until:
                self._token, seconds = await self._ask()
                self._good_until = self._clock() + max(seconds - EARLY, seconds / 2)
            return self._token

    async def _ask(self) -> tuple[str, float]:
        given = self._credentials
        form = {"grant_type": "client_credentials", "scope": given.scope, "audience": given.audience}
        auth: httpx.Auth | None = httpx.BasicAuth(given.client_id, given.client_secret)
        if given.in_body:
            form |= {"client_id": given.client_id, "client_secret": given.client_secret}
            auth = None
        request = self._client.stream(
            "POST",
            given.token_url,
            data={name: value for name, value in form.items() if value},
            headers={"accept": "application/json"},
            auth=auth,
            follow_redirects=False,
        )
        async with request as response:
            body = await read_at_most(response, LARGEST_REPLY)
        if response.status_code != 200:
            raise TokenRefused(f"the token endpoint answered {response.status_code}")
        return _read_token(body)


def _read_token(body: bytes | None) -> tuple[str, float]:
    """Token and seconds from a token endpoint's answer (RFC 6749 section 5.1). Raises TokenRefused."""
    try:
        answer = orjson.loads(body or b"")
    except orjson.JSONDecodeError:
        raise TokenRefused("the token endpoint's answer is not JSON, or too long") from None
    token = answer.get("access_token") if isinstance(answer, dict) else None
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise TokenRefused("the token endpoint's answer holds no access_token")
    seconds = answer.get("expires_in")
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit():
        seconds = float(seconds[:9])
    usable = isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < 10**9
    return token, float(seconds) if usable else NO_EXPIRY


async def read_at_most(response: httpx.Response, most: int) -> bytes | None:
    """The body of a streamed response, not decompressed; None, and no more is read, if it is longer than `most`."""
    declared = response.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:12]) > most:
        return None
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > most:
            return None
    return body
