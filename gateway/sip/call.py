"""One SIP call as its parts see it: the handle the application holds, and what the signalling keeps in it.

Owns state, no behaviour: `incoming`, `outgoing` and `session` move it. The application reads the public attributes
and passes the handle back; it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from gateway.sip.fields import NameAddr
from gateway.sip.uri import Addr, Uri

if TYPE_CHECKING:
    from gateway.sip.dialog import Dialog
    from gateway.sip.digest import ClientDigest
    from gateway.sip.outgoing import Attempt
    from gateway.sip.session_timer import SessionTimer
    from gateway.sip.timers import Timer
    from gateway.sip.transaction import ClientTransaction, ServerTransaction


class CallState(Enum):
    CALLING = "calling"
    """Ours, not answered yet."""
    INCOMING = "incoming"
    """Theirs, not answered yet."""
    ANSWERED = "answered"
    """Answered by us, not acknowledged yet."""
    ESTABLISHED = "established"
    ENDED = "ended"


@dataclass(slots=True)
class Unacknowledged:
    """A 2xx of ours to an INVITE, repeated until the ACK (RFC 3261, section 13.3.1.4)."""

    data: bytes
    addr: Addr
    cseq: int
    again: Timer
    limit: Timer


@dataclass(eq=False)
class SipCall:
    """The handle. Equal only to itself."""

    call_id: str
    """The Call-ID."""
    outgoing: bool
    state: CallState
    local: NameAddr
    remote: NameAddr
    uri: Uri
    """Who was called: the Request-URI of the first INVITE."""
    addr: Addr
    """Where the peer's messages come from, or ours go to."""
    on_hold: bool = False
    """The peer does not want to hear us."""
    local_sdp: bytes = b""
    """The last session description we gave that stands."""
    remote_sdp: bytes = b""
    """The peer's, while it waits for our answer too."""

    # The signalling's own
    dialog: Dialog | None = field(default=None, repr=False)
    attempt: Attempt | None = field(default=None, repr=False)
    """Our INVITE on its way."""
    waiting: ServerTransaction | None = field(default=None, repr=False)
    """The peer's INVITE or UPDATE that awaits our answer."""
    remote_before: bytes = field(default=b"", repr=False)
    """The peer's description that stands if that is refused."""
    offering: ClientTransaction | None = field(default=None, repr=False)
    """Our re-INVITE or UPDATE in progress."""
    offer_limit: Timer | None = field(default=None, repr=False)
    """When a re-INVITE of ours that proceeds without end is given up."""
    unacknowledged: Unacknowledged | None = field(default=None, repr=False)
    late_offer: bool = field(default=False, repr=False)
    """Our 2xx held the offer: the ACK brings the answer."""
    hang_up_on_ack: bool = field(default=False, repr=False)
    retry: Timer | None = field(default=None, repr=False)
    """A re-INVITE that met another, tried again (section 14.1)."""
    timer: SessionTimer | None = field(default=None, repr=False)
    digest: ClientDigest | None = field(default=None, repr=False)
    proof: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Credentials of our last INVITE that was accepted; its ACK repeats them."""
    peer_allows: frozenset[str] = field(default=frozenset(), repr=False)
    transfer: int | None = field(default=None, repr=False)
    """CSeq of our newest REFER, which its NOTIFYs name; 0 for the first one, whose need not."""
    transfer_unsettled: bool = field(default=False, repr=False)
    """A transfer was given up, and the peer may still tell of it."""
    transfer_told: bool = field(default=False, repr=False)
    """A NOTIFY came."""
    transfer_limit: Timer | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.state is CallState.ENDED
