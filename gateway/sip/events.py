"""What the user agent tells the application, and how it is configured.

Owns the vocabulary only. Every call ends with exactly one Terminated, whatever happened before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from gateway.sip.fields import NameAddr
from gateway.sip.message import Headers
from gateway.sip.timers import Timing
from gateway.sip.uri import Addr, Transport, Uri

if TYPE_CHECKING:
    from gateway.sip.call import SipCall


class Ended(Enum):
    """Why a call is over."""

    HANGUP = "hangup"
    """We ended it, or gave up calling."""
    BYE = "bye"
    """The peer hung up."""
    CANCELED = "canceled"
    """The caller gave up before we answered."""
    REJECTED = "rejected"
    """A final response other than 2xx, theirs or ours."""
    NO_ANSWER = "no_answer"
    """Nothing came back, or nobody picked up."""
    NO_ACK = "no_ack"
    """Our answer was never acknowledged."""
    EXPIRED = "expired"
    """The session was not refreshed (RFC 4028)."""
    LOST = "lost"
    """The peer does not know the call any more, or cannot be reached."""


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """Somebody calls: `ringing`, `answer`, `redirect` or `reject` it."""

    call: SipCall
    uri: Uri
    """The Request-URI: who was dialled."""
    from_: NameAddr
    to: NameAddr
    headers: Headers
    """Without what proved the caller's password."""
    offer: bytes | None
    """SDP; None when the caller waits for our offer."""
    addr: Addr


@dataclass(frozen=True, slots=True)
class Progress:
    """A call of ours proceeds: 180, 183 ..., perhaps with early media."""

    call: SipCall
    code: int
    sdp: bytes | None


@dataclass(frozen=True, slots=True)
class Established:
    """Both ends agree that the call is up."""

    call: SipCall
    sdp: bytes | None
    """The peer's answer; None when its offer was in IncomingCall."""


@dataclass(frozen=True, slots=True)
class Terminated:
    """The call is over."""

    call: SipCall
    reason: Ended
    code: int = 0
    """The final response's, if one ended it."""
    text: str = ""
    """The peer's words: a Reason field or a response's phrase."""


@dataclass(frozen=True, slots=True)
class Reoffer:
    """The peer changes the session: `answer` it with SDP, or `reject` it."""

    call: SipCall
    offer: bytes | None
    """None when it asks for an offer of ours."""


@dataclass(frozen=True, slots=True)
class Reanswer:
    """The peer's answer to our `reinvite`, or, after a Reoffer without offer, to our offer."""

    call: SipCall
    sdp: bytes


@dataclass(frozen=True, slots=True)
class ReofferRefused:
    """Our `reinvite` came to nothing; the session is as before."""

    call: SipCall
    code: int


@dataclass(frozen=True, slots=True)
class Held:
    """The peer does not want to hear us for now."""

    call: SipCall


@dataclass(frozen=True, slots=True)
class Resumed:
    call: SipCall


@dataclass(frozen=True, slots=True)
class InfoDigits:
    """Keys pressed, told by INFO."""

    call: SipCall
    digits: str
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Transferred:
    """How the transfer we asked for goes (RFC 3515)."""

    call: SipCall
    code: int
    """Of the peer's own call to the target, or of its refusal to place one."""
    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class RegistrationChanged:
    """A trunk's state after each REGISTER that was answered, or was not."""

    trunk: str
    registered: bool
    code: int
    reason: str
    retry_after: float
    """Seconds until the next REGISTER."""
    seen_as: Addr | None = None
    """Where the registrar saw us come from, if it says so."""


@dataclass(frozen=True, slots=True)
class Probed:
    """The answer to our OPTIONS; 408 when none came."""

    target: str
    code: int


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """Messages that got no service, told at most once a second for each cause."""

    cause: str
    addr: Addr
    count: int
    """Since the last such event."""


Event = (
    IncomingCall
    | Progress
    | Established
    | Terminated
    | Reoffer
    | Reanswer
    | ReofferRefused
    | Held
    | Resumed
    | InfoDigits
    | Transferred
    | RegistrationChanged
    | Probed
    | MessageDropped
)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What we prove ourselves with."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class AgentConfig:
    """Fixed for the life of a UserAgentCore."""

    addresses: Mapping[Transport, tuple[str, int]]
    """The public host and port of each transport, as peers are to reach us."""
    told: Callable[[Addr], tuple[str, int]] | None = None
    """The same for one peer; None: all are told `addresses`."""
    user: str = "callplex"
    """The user part of our Contact where no other is known."""
    user_agent: str = "Callplex"
    timing: Timing = field(default_factory=Timing)
    session_expires: int = 1800
    """Seconds between refreshes that we propose (RFC 4028); 0: never of our own accord."""
    min_se: int = 90
    ring_seconds: float = 180.0
    """A call of ours that rings for longer is given up."""
    realm: str = "callplex"
    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Who may call with a password: user to password."""
    trusted: Callable[[Addr], bool] = lambda addr: True
    """Peers that need no password. Others are challenged, or not answered when there are no users."""
