"""One-time call tokens: what ties a media stream to the signed request that asked for it.

Issued with the TwiML, redeemed by the stream's start message, tied to the call's sid. Pure: `now`
comes in as an argument, seconds of any steady clock. These tokens live in memory; those that several
gateways share (`records/tokens.py`) are built on them.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol


class TokenRefused(Exception):
    """The stream's token does not open a call; the message says why."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the voice request said about the call, kept for its stream."""

    call_sid: str
    persona: str
    from_number: str = ""
    to_number: str = ""


class Tokens(Protocol):
    """Where the routes get their tokens."""

    async def issue(self, ticket: Ticket) -> str:
        """A new token for the ticket's call."""

    async def redeem(self, token: str, call_sid: str) -> Ticket:
        """Use a token up. Raises TokenRefused if it is unknown, used, too old or another call's."""


class CallTokens:
    """Tokens that are out, oldest first; at most `limit`, each for `lifetime` seconds."""

    def __init__(self, lifetime: float = 60.0, limit: int = 10_000) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._tickets: OrderedDict[bytes, tuple[float, Ticket]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, ticket: Ticket, now: float) -> str:
        """A new token of 43 characters. Beyond the limit the oldest stops working."""
        token = secrets.token_urlsafe(32)
        self.hold(token, ticket, now)
        return token

    def hold(self, token: str, ticket: Ticket, now: float) -> None:
        """Take in a token that was issued elsewhere."""
        self._expire(now)
        while len(self._tickets) >= self._limit:
            self._tickets.popitem(last=False)
        self._tickets[_key(token)] = (now + self._lifetime, ticket)

    def holds(self, token: str, now: float) -> bool:
        """Whether the token is out and not too old."""
        self._expire(now)
        return _key(token) in self._tickets

    def drop(self, token: str) -> None:
        """The token was used elsewhere."""
        self._tickets.pop(_key(token), None)

    def redeem(self, token: str, call_sid: str, now: float) -> Ticket:
        """Use a token up. Raises TokenRefused if it is unknown, used, too old or another call's.

        A token shown by the wrong call stays good for the right one.
        """
        self._expire(now)
        key = _key(token)
        found = self._tickets.get(key)
        if found is None:
            raise TokenRefused("the call token is unknown, used or expired")
        if found[1].call_sid != call_sid:
            raise TokenRefused("the call token belongs to another call")
        del self._tickets[key]
        return found[1]

    def _expire(self, now: float) -> None:
        while self._tickets:
            key, (until, _) = next(iter(self._tickets.items()))
            if until > now:
                return
            del self._tickets[key]


def _key(token: str) -> bytes:
    """Tokens are looked up by digest, so that how long a look-up takes tells nothing about them."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()
