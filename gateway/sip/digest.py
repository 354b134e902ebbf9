"""Digest authentication, both ways (RFC 3261, section 22; RFC 7616; algorithms of RFC 8760).

Owns challenges, responses and nonces. A client answers the first challenge it can, counting its uses of a nonce; a
server's nonce carries its own time and signature, so that only the counts already used are kept.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.sip.chance import Chance
from gateway.sip.errors import SipError
from gateway.sip.events import Credentials
from gateway.sip.fields import quote_string, split_list, unquote_string
from gateway.sip.message import Headers, Request, Response

NONCE_SECONDS = 300.0
TICK = 0.001
"""Seconds to which a nonce's time is rounded."""
MAX_NONCES = 4_096
"""Nonces whose counts are remembered; an older one is stale."""


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


HASHES: Mapping[str, Callable[[bytes], str]] = {"sha-256": _sha256, "md5": _md5}
OFFERED = ("SHA-256", "MD5")
"""What a server offers, the strongest first (RFC 8760, section 2.3)."""


def parse_auth(value: str) -> dict[str, str]:
    """`Digest name=value, ...` into lower-case names; raises SipError for another scheme or no grammar."""
    scheme, _, rest = value.strip().partition(" ")
    if scheme.lower() != "digest":
        raise SipError("the authentication scheme is not spoken here", 401)
    fields: dict[str, str] = {}
    for part in split_list(rest):
        name, equals, content = part.partition("=")
        if not part:
            continue
        if not equals:
            raise SipError("a digest field has no value")
        fields[name.strip().lower()] = unquote_string(content.strip())
    return fields


@dataclass(frozen=True, slots=True)
class Proof:
    """What both sides compute a response from."""

    algorithm: str
    user: str
    realm: str
    password: str
    nonce: str
    method: str
    uri: str
    qop: str = ""
    count: str = ""
    cnonce: str = ""
    body: bytes = b""

    def response(self) -> str:
        """RFC 7616, section 3.4.1; without `qop` as RFC 2069 had it."""
        digest = HASHES[self.algorithm.lower().removesuffix("-sess")]
        first = digest(f"{self.user}:{self.realm}:{self.password}".encode())
        if self.algorithm.lower().endswith("-sess"):
            first = digest(f"{first}:{self.nonce}:{self.cnonce}".encode())
        second = f"{self.method}:{self.uri}"
        if self.qop == "auth-int":
            second += f":{digest(self.body)}"
        second = digest(second.encode())
        if not self.qop:
            return digest(f"{first}:{self.nonce}:{second}".encode())
        return digest(f"{first}:{self.nonce}:{self.count}:{self.cnonce}:{self.qop}:{second}".encode())


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate or Proxy-Authenticate that we can answer."""

    answer_field: str
    realm: str
    nonce: str
    algorithm: str
    qop: str
    opaque: str | None
    stale: bool


def read_challenges(response: Response) -> list[Challenge]:
    """Those we can answer, in the peer's order of preference, one for each realm and kind."""
    found: dict[tuple[str, str], Challenge] = {}
    for field, answer in (("WWW-Authenticate", "Authorization"), ("Proxy-Authenticate", "Proxy-Authorization")):
        for value in response.headers.all(field):
            challenge = _read_challenge(value, answer)
            if challenge is not None:
                found.setdefault((answer, challenge.realm), challenge)
    return list(found.values())


def _read_challenge(value: str, answer: str) -> Challenge | None:
    try:
        fields = parse_auth(value)
    except SipError:
        return None
    algorithm = fields.get("algorithm", "MD5")
    offered = [option.strip().lower() for option in fields.get("qop", "").split(",") if option.strip()]
    qop = next((option for option in ("auth", "auth-int") if option in offered), "")
    if algorithm.lower().removesuffix("-sess") not in HASHES or "nonce" not in fields or (offered and not qop):
        return None
    stale = fields.get("stale", "").lower() == "true"
    return Challenge(answer, fields.get("realm", ""), fields["nonce"], algorithm, qop, fields.get("opaque"), stale)


class ClientDigest:
    """Our proof to one peer, for as long as its nonce holds."""

    def __init__(self, credentials: Credentials, chance: Chance) -> None:
        self._credentials = credentials
        self._chance = chance
        self._challenges: dict[tuple[str, str], Challenge] = {}
        self._counts: dict[str, int] = {}

    def challenged(self, response: Response) -> bool:
        """Take note of a 401 or 407; False when answering it again would be no use."""
        fresh = False
        for challenge in read_challenges(response):
            key = (challenge.answer_field, challenge.realm)
            before = self._challenges.get(key)
            if before is None or challenge.stale or self._counts.get(before.nonce, 0) > 1:
                fresh = fresh or before is None or before.nonce != challenge.nonce
                self._challenges[key] = challenge
        if fresh:
            kept = {challenge.nonce for challenge in self._challenges.values()}
            self._counts = {nonce: count for nonce, count in self._counts.items() if nonce in kept}
        return fresh

    def sign(self, request: Request) -> None:
        """Add what the known challenges ask for, in place of what was there."""
        request.headers.remove("Authorization")
        request.headers.remove("Proxy-Authorization")
        for challenge in self._challenges.values():
            request.headers.add(challenge.answer_field, self._answer(challenge, request))

    def _answer(self, challenge: Challenge, request: Request) -> str:
        count = self._counts.get(challenge.nonce, 0) + 1
        self._counts[challenge.nonce] = count
        sess = challenge.algorithm.lower().endswith("-sess")
        proof = Proof(
            challenge.algorithm,
            self._credentials.user,
            challenge.realm,
            self._credentials.password,
            challenge.nonce,
            request.method,
            request.uri,
            challenge.qop,
            f"{count:08x}" if challenge.qop else "",
            self._chance.token() if challenge.qop or sess else "",
            request.body,
        )
        fields = [
            f"username={quote_string(proof.user)}",
            f"realm={quote_string(proof.realm)}",
            f"nonce={quote_string(proof.nonce)}",
            f"uri={quote_string(proof.uri)}",
            f'response="{proof.response()}"',
            f"algorithm={proof.algorithm}",
        ]
        if proof.cnonce:
            fields.append(f'cnonce="{proof.cnonce}"')
        if proof.qop:
            fields += [f"qop={proof.qop}", f"nc={proof.count}"]
        if challenge.opaque is not None:
            fields.append(f"opaque={quote_string(challenge.opaque)}")
        return "Digest " + ", ".join(fields)


class ServerDigest:
    """Whether a request comes from somebody who knows a password."""

    def __init__(self, realm: str, users: Mapping[str, str], chance: Chance) -> None:
        self._realm = realm
        self._users = users
        self._secret = chance.token(32).encode()
        self._chance = chance
        self._used: OrderedDict[str, int] = OrderedDict()
        self._forgotten = -math.inf
        """Nonces made at or before this are stale: their counts may have been dropped."""

    def check(self, request: Request, now: float) -> str:
        """The user it proves to be; raises SipError with 401 and new challenges, or 400 or 403."""
        fields = self._own_fields(request)
        if fields is None:
            raise self._refusal("the request is not signed", now, stale=False)
        nonce = fields.get("nonce", "")
        signed_at = self._signed_at(nonce)
        if signed_at is None:
            raise self._refusal("the nonce is none of ours", now, stale=False)
        password = self._users.get(fields.get("username", ""))
        genuine = self._matches(fields, password if password is not None else self._secret.decode(), request)
        if not genuine or password is None:
            raise self._refusal("user or password are wrong", now, stale=False)
        stale = not -TICK <= now - signed_at <= NONCE_SECONDS or signed_at <= self._forgotten
        if stale or not self._count(nonce, fields.get("nc", "")):
            raise self._refusal("the nonce is used up", now, stale=True)
        return fields["username"]

    def _own_fields(self, request: Request) -> dict[str, str] | None:
        for value in request.headers.all("Authorization"):
            try:
                fields = parse_auth(value)
            except SipError:
                continue
            if fields.get("realm") == self._realm:
                return fields
        return None

    def _matches(self, fields: dict[str, str], password: str, request: Request) -> bool:
        algorithm = fields.get("algorithm", "MD5")
        if algorithm.upper() not in OFFERED or fields.get("qop", "") != "auth":
            return False
        proof = Proof(
            algorithm,
            fields.get("username", ""),
            self._realm,
            password,
            fields.get("nonce", ""),
            request.method,
            fields.get("uri", ""),
            "auth",
            fields.get("nc", ""),
            fields.get("cnonce", ""),
        )
        same_uri = fields.get("uri", "") == request.uri
        return hmac.compare_digest(proof.response().encode(), fields.get("response", "").lower().encode()) and same_uri

    def _nonce(self, now: float) -> str:
        stamp = f"{int(now * 1000):x}-{self._chance.token(4)}"
        return f"{stamp}.{self._sign(stamp)}"

    def _sign(self, stamp: str) -> str:
        return hmac.new(self._secret, stamp.encode(), hashlib.sha256).hexdigest()[:32]

    def _signed_at(self, nonce: str) -> float | None:
        stamp, _, signature = nonce.partition(".")
        if not hmac.compare_digest(self._sign(stamp).encode(), signature.encode()):
            return None
        return int(stamp.partition("-")[0], 16) / 1000

    def _count(self, nonce: str, count: str) -> bool:
        """Whether this use of the nonce is a new one (RFC 7616, section 3.4.5)."""
        try:
            number = int(count[:8], 16)
        except ValueError:
            return False
        if number <= self._used.get(nonce, 0):
            return False
        self._used[nonce] = number
        self._used.move_to_end(nonce)
        if len(self._used) > MAX_NONCES:
            oldest, _ = self._used.popitem(last=False)
            self._forgotten = max(self._forgotten, self._signed_at(oldest) or 0.0)
        return True

    def _refusal(self, message: str, now: float, stale: bool) -> SipError:
        ending = ', stale=true, qop="auth"' if stale else ', qop="auth"'
        nonce = self._nonce(now)
        challenges = tuple(
            ("WWW-Authenticate", f'Digest realm={quote_string(self._realm)}, nonce="{nonce}", algorithm={name}{ending}')
            for name in OFFERED
        )
        return SipError(message, 401, headers=challenges)


def proof_of(request: Request) -> tuple[tuple[str, str], ...]:
    """The fields that prove who sent a request: an ACK to its 2xx carries the same (RFC 3261, section 22.1)."""
    return tuple(
        (name, value) for name in ("Authorization", "Proxy-Authorization") for value in request.headers.all(name)
    )


def without_proof(headers: Headers) -> Headers:
    """A copy that may be logged or handed on."""
    copy = headers.copy()
    copy.remove("Authorization")
    copy.remove("Proxy-Authorization")
    return copy
