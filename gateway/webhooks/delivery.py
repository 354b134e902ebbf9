"""One attempt at one endpoint: the request, its signature, and what the answer means.

Owns an endpoint's HTTP client and the wording of everything that can go wrong. Whatever a peer does,
`attempt` returns within the endpoint's time: a slow, broken or hostile answer is a failed attempt and
never an exception. Redirects are not followed, and of an answer no more than a little is read.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from gateway.webhooks.endpoints import Endpoint
from gateway.webhooks.guard import GuardedTransport
from gateway.webhooks.oauth import TokenRefused, TokenSource, read_at_most
from gateway.webhooks.retry import retry_after_seconds
from gateway.webhooks.signature import signed_headers
from gateway.webhooks.template import TemplateInvalid

READ_AT_MOST = 16 * 1024
"""Bytes of an answer that are read, so that its connection can be used again; a longer one is cut off."""
GONE = 410
UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an attempt."""

    status: int
    """The HTTP status; 0: no answer."""
    reason: str
    """One sentence, without addresses or secrets."""
    retry_after: float = 0.0
    """Seconds the endpoint asks to be left alone."""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class Sender:
    """Posts to one endpoint, with connections of its own. `clock`: seconds since 1970."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, clock: Callable[[], float] = time.time) -> None:
        self.endpoint = endpoint
        self._clock = clock
        self._client = guarded_client(endpoint, context)
        self._tokens = TokenSource(endpoint.oauth, self._client, time.monotonic) if endpoint.oauth else None

    async def close(self) -> None:
        await self._client.aclose()

    async def attempt(self, webhook_id: str, body: str) -> Answer:
        """Post a stored event once. Never raises for what the endpoint does, but LookupError, TypeError or
        AttributeError for an event that is not what we store."""
        seconds = self.endpoint.timeout
        try:
            async with asyncio.timeout(seconds):
                if self.endpoint.kind == "hubspot":
                    from gateway.webhooks.hubspot.connector import log_call

                    return await log_call(self, webhook_id, body)
                return await self._post(webhook_id, body)
        except (TimeoutError, httpx.TimeoutException):
            return Answer(0, f"it did not answer within {seconds:g} s")
        except TokenRefused as error:
            return Answer(0, str(error))
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError, OverflowError) as error:
            return Answer(0, why(error))

    async def _post(self, webhook_id: str, body: str) -> Answer:
        template = self.endpoint.template
        try:
            content = (body if template is None else template.render(body, webhook_id)).encode()
        except TemplateInvalid as error:
            return Answer(0, f"its template, line {error.line}: {error}")
        now = self._clock()
        headers = {
            **self.endpoint.headers,
            "content-type": self.endpoint.content_type,
            **signed_headers(self.endpoint.keys, webhook_id, now, content),
        }
        token = await self._tokens.token() if self._tokens else ""
        answer = await self._once(content, headers, token)
        if answer.status == UNAUTHORIZED and self._tokens is not None:
            answer = await self._once(content, headers, await self._tokens.token(refused=token))
        return answer

    async def _once(self, content: bytes, headers: dict[str, str], token: str) -> Answer:
        if token:
            headers = {**headers, "authorization": f"Bearer {token}"}
        async with self._client.stream("POST", self.endpoint.url, content=content, headers=headers) as response:
            await read_at_most(response, READ_AT_MOST)
            return self.answered(response)

    def answered(self, response: httpx.Response) -> Answer:
        """What an answer's status line and headers say."""
        reason = f"it answered {response.status_code}"
        if response.is_redirect:
            reason += "; redirects are not followed, name the final address"
        wait = retry_after_seconds(response.headers.get("retry-after", ""), self._clock())
        return Answer(response.status_code, reason, wait)

    async def call(self, method: str, path: str, body: bytes | None, most: int) -> tuple[Answer, bytes]:
        """One request of several that a connector makes, and up to `most` bytes of its answer."""
        headers = {**self.endpoint.headers, "content-type": "application/json", "accept": "application/json"}
        url = self.endpoint.url.rstrip("/") + path
        async with self._client.stream(method, url, content=body, headers=headers) as response:
            return self.answered(response), await read_at_most(response, most) or b""


def guarded_client(endpoint: Endpoint, context: ssl.SSLContext, keep_alive: float = 30.0) -> httpx.AsyncClient:
    """An HTTP client that reaches nothing but public addresses and those that the endpoint allows.

    `keep_alive`: seconds that a connection is kept without a request.
    """
    limits = httpx.Limits(max_connections=endpoint.concurrency, keepalive_expiry=keep_alive)
    inner = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
    return httpx.AsyncClient(
        transport=GuardedTransport(inner, endpoint.allowed),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"user-agent": "Callplex", "accept-encoding": "identity"},
        timeout=endpoint.timeout,
        trust_env=False,
        follow_redirects=False,
    )


def why(error: Exception) -> str:
    """What a failed request means, in a sentence without its address."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its TLS certificate is not accepted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS fails: {(cause.reason or 'unknown error').lower().replace('_', ' ')}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError):
        return f"it cannot be reached: {error or 'no connection'}"
    if isinstance(error, httpx.HTTPError | OSError):
        return f"the connection broke ({type(error).__name__})"
    return f"its answer cannot be read ({type(error).__name__})"
