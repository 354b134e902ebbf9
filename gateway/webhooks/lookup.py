"""Asked before the agent answers: who is this caller, and what should the agent know?

Owns one signed question and a short time for its answer. Whatever the endpoint does, the call goes on
within the budget; without an answer the persona's own defaults stand. Only variables that the persona
declares are taken, and what they may hold is for `personas.session_request` to say.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
import uuid
from collections.abc import Callable, Mapping

import httpx
import orjson

from gateway.persona_model import Persona
from gateway.webhooks.delivery import guarded_client, why
from gateway.webhooks.endpoints import EndpointStore, Lookup
from gateway.webhooks.events import VERSION, timestamp
from gateway.webhooks.oauth import read_at_most
from gateway.webhooks.signature import signed_headers

log = logging.getLogger(__name__)

LARGEST_REPLY = 64 * 1024
KEEP_ALIVE = 300.0
"""Seconds a connection is kept for the next caller: a new one can cost more than the budget."""
KIND = "call.lookup"


class CallerLookup:
    """Asks the look-up endpoint of `store`, if there is one. `clock`: seconds since 1970."""

    def __init__(self, store: EndpointStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._asked: Lookup | None = None
        self._client: httpx.AsyncClient | None = None
        self._stale: httpx.AsyncClient | None = None
        """The one before, through which something may still be asked."""
        self._context: ssl.SSLContext | None = None
        self.unanswered = 0
        """Questions that were not answered in time, or not usably."""

    async def variables(self, call_id: str, persona: Persona, from_number: str, to_number: str) -> dict[str, str]:
        """Values of the persona's variables for this caller, those that are known; empty if nothing is.

        Returns within the budget and never raises. A caller whose number is withheld is not looked up,
        nor is one who talks to a persona without variables.
        """
        lookup = self._store.current.lookup
        wanted = [name for name in persona.variables if name != "caller_number"]
        if lookup is None or not wanted or not from_number:
            return {}
        if lookup.endpoint.personas and persona.id not in lookup.endpoint.personas:
            return {}
        question = {"call_id": call_id, "persona": persona.id, "from": from_number, "to": to_number}
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(lookup.budget):
                reply = await self._ask(lookup, {**question, "variables": wanted})
            return _read(reply, wanted)
        except (TimeoutError, httpx.TimeoutException):
            reason = f"no answer within {lookup.budget * 1000:.0f} ms"
        except _Unusable as error:
            reason = str(error)
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, ValueError, OverflowError) as error:
            reason = why(error)
        self.unanswered += 1
        spent = 1000 * (asyncio.get_running_loop().time() - began)
        log.warning("call %s: looking the caller up: %s; the defaults are used (%.0f ms)", call_id, reason, spent)
        return {}

    async def close(self) -> None:
        """Close its connections."""
        for client in (self._stale, self._client):
            if client is not None:
                await client.aclose()
        self._stale = self._client = self._asked = None

    async def _ask(self, lookup: Lookup, data: Mapping[str, object]) -> bytes:
        client = await self._client_for(lookup)
        now, endpoint = self._clock(), lookup.endpoint
        body = orjson.dumps({"type": KIND, "version": VERSION, "timestamp": timestamp(now), "data": data})
        headers = {
            **endpoint.headers,
            "content-type": "application/json",
            "accept": "application/json",
            **signed_headers(endpoint.keys, f"msg_{uuid.uuid4().hex}", now, body),
        }
        async with client.stream("POST", endpoint.url, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise _Unusable(f"it answered {response.status_code}")
            reply = await read_at_most(response, LARGEST_REPLY)
        if reply is None:
            raise _Unusable(f"its answer is longer than {LARGEST_REPLY // 1024} KiB")
        return reply

    async def _client_for(self, lookup: Lookup) -> httpx.AsyncClient:
        if self._context is None:
            # Reading the authorities takes 60 ms, in which no call would be served.
            self._context = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        if self._client is None or self._asked is not lookup:
            client = guarded_client(lookup.endpoint, self._context, KEEP_ALIVE)
            older, self._stale, self._client, self._asked = self._stale, self._client, client, lookup
            if older is not None:
                await older.aclose()
            return client
        return self._client


class _Unusable(Exception):
    """An answer that says nothing."""


def _read(reply: bytes, wanted: list[str]) -> dict[str, str]:
    """`{"variables": {"name": "Ann", "balance": 12.5}}` -> texts of those that are wanted."""
    try:
        answer = orjson.loads(reply)
    except orjson.JSONDecodeError:
        raise _Unusable("its answer is not JSON") from None
    given = answer.get("variables") if isinstance(answer, dict) else None
    if not isinstance(given, dict):
        raise _Unusable("its answer holds no `variables`")
    return {name: str(value) for name in wanted if isinstance(value := given.get(name), str | int | float)}
