"""Offers and answers: what two sides make of each other's session descriptions (RFC 3264, RFC 4568).

Owns our half: the answer to an offer, an offer of ours, and what an answer to it comes to. One audio stream of G.711
with keypad digits; every other stream of an offer is declined in its place. Keys come in as an argument.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from gateway.sip.crypto import SUITES, Crypto, check_key
from gateway.sip.errors import SipError
from gateway.sip.sdp import Direction, Media, SessionDescription, parse_sdp
from gateway.sip.uri import Addr

Codec = Literal["PCMU", "PCMA"]

NUMBERS: dict[Codec, int] = {"PCMU": 0, "PCMA": 8}
DIGITS = "telephone-event/8000"
DIGITS_NUMBER = 101
MIRRORED: dict[Direction, Direction] = {
    "sendrecv": "sendrecv",
    "sendonly": "recvonly",
    "recvonly": "sendonly",
    "inactive": "inactive",
}
_NOT_SENT: dict[Direction, Direction] = {
    "sendrecv": "recvonly",
    "sendonly": "inactive",
    "recvonly": "recvonly",
    "inactive": "inactive",
}
"""Of a direction of ours what is left where nothing can be sent."""
PLAIN = ("RTP/AVP", "RTP/AVPF")
SECURE = ("RTP/SAVP", "RTP/SAVPF")
PTIMES = (10, 120)
"""Milliseconds of a packet that we send: what the peer asks for, between these."""

_SPACE = re.compile(r"\s")


class Srtp(Enum):
    """What we make of encryption."""

    REFUSED = "refused"
    ALLOWED = "allowed"
    """Taken when offered."""
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What we take and offer."""

    codecs: tuple[Codec, ...] = ("PCMU", "PCMA")
    """In our order of preference; the offerer's order decides an answer."""
    digits: bool = True
    srtp: Srtp = Srtp.ALLOWED
    ptime: int = 20
    """Milliseconds of a packet that we like to get."""
    kinds: frozenset[int] = frozenset({4, 6})
    """Versions of IP over which our sound can be sent."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """What both sides do from now on."""

    codec: Codec
    payload_type: int
    """Of the codec, both ways."""
    ptime: int
    """Milliseconds of a packet that the peer likes to get."""
    digits: int | None
    """Payload type of telephone-event as the peer wants it; None when it does not know it."""
    remote: Addr
    """Where our RTP goes."""
    remote_rtcp: Addr
    direction: Direction
    """Ours: `recvonly` or `inactive` when the peer holds the call."""
    local_crypto: Crypto | None = None
    """What we encrypt with."""
    remote_crypto: Crypto | None = None
    digits_in: int | None = None
    """Payload type of telephone-event as we asked for it; each side sends what the other named."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Our answer and what it means."""

    sdp: bytes
    agreed: Agreed


def answer_offer(
    offer: SessionDescription,
    local: Addr,
    capabilities: Capabilities,
    *,
    session_id: int,
    version: int = 1,
    key: bytes = b"",
) -> Answer:
    """Our answer: the first audio stream we can take, all others declined. Raises SipError (488) when there is none.

    `local` is where we want RTP, as the peer reaches it; `key` 30 fresh bytes, used if the stream is encrypted.
    """
    for place, media in enumerate(offer.media):
        agreed = _agree(media, capabilities, key)
        if agreed is not None:
            lines = _session_lines(local, session_id, version)
            for other, stream in enumerate(offer.media):
                lines += _stream_lines(stream, agreed, local, capabilities) if other == place else [_declined(stream)]
            return Answer(_join(lines), agreed)
    raise SipError("no stream of the offer can be taken", 488)


def _agree(media: Media, capabilities: Capabilities, key: bytes) -> Agreed | None:
    """What an offered stream comes to; None when it cannot be taken."""
    if media.kind != "audio" or not media.port or not _can_be_sent(media.host, capabilities.kinds):
        return None
    ours = None
    if media.profile in SECURE:
        if capabilities.srtp is Srtp.REFUSED or not media.crypto:
            return None
        ours = media.crypto[0]
    elif media.profile not in PLAIN or capabilities.srtp is Srtp.REQUIRED:
        return None
    chosen = _choose(media, capabilities)
    if chosen is None:
        return None
    direction = MIRRORED[media.direction]
    if media.host in ("0.0.0.0", "::"):
        direction = _NOT_SENT[direction]
    digits = media.number_of(DIGITS) if capabilities.digits else None
    return Agreed(
        chosen[0],
        chosen[1],
        min(max(media.ptime or 20, PTIMES[0]), PTIMES[1]) // 10 * 10,
        digits,
        Addr(media.host, media.port),
        Addr(media.host, media.rtcp_port or min(media.port + 1, 65535)),
        direction,
        replace(ours, key=check_key(key)) if ours is not None else None,
        ours,
    )


def _can_be_sent(host: str, kinds: frozenset[int]) -> bool:
    """Whether sound can be sent there: one host's address, no name to be looked up, no group's, and none in a zone.

    A zone names an interface of ours (RFC 4007, section 11), and `ipaddress` takes any text for one. To the address of
    nowhere nothing is sent, so it may be of either kind.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    spoken = address.version in kinds or address.is_unspecified
    return "%" not in host and not address.is_multicast and spoken


def _choose(media: Media, capabilities: Capabilities) -> tuple[Codec, int] | None:
    """The offerer's first format that we know (RFC 3264, section 6.1)."""
    for number in media.formats:
        name = media.name_of(number).removesuffix("/8000")
        for codec in capabilities.codecs:
            if name == codec:
                return codec, int(number)
    return None


def make_offer(
    local: Addr,
    capabilities: Capabilities,
    *,
    session_id: int,
    version: int = 1,
    key: bytes = b"",
    hold: bool = False,
    before: bytes = b"",
) -> bytes:
    """An offer of ours, encrypted where that is required (RFC 4568: an SAVP stream is not taken unencrypted).

    `before` is our description that stands. Its streams keep their places (RFC 3264, section 8), and what is encrypted
    stays so with the same keys.
    """
    lines = _session_lines(local, session_id, version)
    standing = parse_sdp(before).media if before else ()
    place = _live(standing)
    if place is None:
        return _join([*lines, *_offered(local, capabilities, None, key, hold)])
    for other, stream in enumerate(standing):
        lines += _offered(local, capabilities, stream, key, hold) if other == place else [_declined(stream)]
    return _join(lines)


def _offered(local: Addr, capabilities: Capabilities, standing: Media | None, key: bytes, hold: bool) -> list[str]:
    """The lines of our one stream; `standing` is what it is now."""
    profile = standing.profile if standing else SECURE[0] if capabilities.srtp is Srtp.REQUIRED else PLAIN[0]
    numbers = [NUMBERS[codec] for codec in capabilities.codecs] + ([DIGITS_NUMBER] if capabilities.digits else [])
    lines = [f"m=audio {local.port} {profile} {' '.join(map(str, numbers))}"]
    lines += [f"a=rtpmap:{NUMBERS[codec]} {codec}/8000" for codec in capabilities.codecs]
    if capabilities.digits:
        lines += [f"a=rtpmap:{DIGITS_NUMBER} {DIGITS}", f"a=fmtp:{DIGITS_NUMBER} 0-15"]
    if standing and standing.crypto:
        lines += [f"a=crypto:{one}" for one in standing.crypto]
    elif profile in SECURE:
        lines += [f"a=crypto:{Crypto(place, suite, check_key(key))}" for place, suite in enumerate(SUITES, 1)]
    return [*lines, f"a=ptime:{capabilities.ptime}", "a=sendonly" if hold else "a=sendrecv"]


def _live(streams: Sequence[Media]) -> int | None:
    """The place of the one stream that a description of ours does not decline."""
    return next((place for place, media in enumerate(streams) if media.port), None)


def read_answer(offer: bytes, answer: SessionDescription, capabilities: Capabilities) -> Agreed:
    """What a peer's answer to our `offer` comes to; raises SipError (488) when it is no use."""
    streams = parse_sdp(offer).media
    place = _live(streams)
    if place is None or len(answer.media) <= place:
        raise SipError("the answer has no stream in the place of ours", 488)
    ours, theirs = streams[place], answer.media[place]
    agreed = _agree(theirs, capabilities, ours.crypto[0].key if ours.crypto else b"")
    if agreed is None:
        raise SipError("the answer takes no stream of ours", 488)
    if ours.crypto and agreed.remote_crypto is None:
        raise SipError("the answer takes our stream without its encryption", 488)
    if agreed.digits is not None:
        agreed = replace(agreed, digits_in=ours.number_of(DIGITS))
    if agreed.remote_crypto is not None:
        chosen = [one for one in ours.crypto if one.tag == agreed.remote_crypto.tag]
        if not chosen or chosen[0].suite != agreed.remote_crypto.suite:
            raise SipError("the answer chooses a key that was not offered", 488)
        agreed = replace(agreed, local_crypto=chosen[0])
    if ours.direction == "sendonly" and agreed.direction == "sendrecv":
        agreed = replace(agreed, direction="sendonly")
    return agreed


def _session_lines(local: Addr, session_id: int, version: int) -> list[str]:
    family = "IP6" if ":" in local.host else "IP4"
    origin = f"o=callplex {session_id} {version} IN {family} {local.host}"
    return ["v=0", origin, "s=callplex", f"c=IN {family} {local.host}", "t=0 0"]


def _stream_lines(media: Media, agreed: Agreed, local: Addr, capabilities: Capabilities) -> list[str]:
    numbers = [agreed.payload_type] + ([agreed.digits] if agreed.digits is not None else [])
    lines = [f"m=audio {local.port} {media.profile} {' '.join(map(str, numbers))}"]
    lines.append(f"a=rtpmap:{agreed.payload_type} {agreed.codec}/8000")
    if agreed.digits is not None:
        lines += [f"a=rtpmap:{agreed.digits} {DIGITS}", f"a=fmtp:{agreed.digits} 0-15"]
    if agreed.local_crypto is not None:
        lines.append(f"a=crypto:{agreed.local_crypto}")
    return [*lines, f"a=ptime:{capabilities.ptime}", f"a={agreed.direction}"]


def _declined(media: Media) -> str:
    return f"m={_SPACE.sub('', media.kind)} 0 {media.profile} {media.formats[0]}"


def _join(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode()
