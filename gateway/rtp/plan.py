"""What is agreed about a call's media before they flow, and what is told of them afterwards. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.rtp.codec import PCMU, Codec
from gateway.rtp.latch import Addr
from gateway.rtp.srtp import SrtpKeys

SHORTEST_PTIME, LONGEST_PTIME = 10, 60


@dataclass(frozen=True, slots=True)
class MediaPlan:
    """What offer and answer agreed about one call's sound."""

    remote: Addr | None
    """Where the SDP says to send, an IP address and a port; None: nowhere before the peer is heard."""
    codec: Codec = PCMU
    ptime: int = 20
    """Milliseconds of sound in a packet of ours, 10 to 60; the peer's may have any length."""
    dtmf_type: int | None = None
    """Payload type of telephone-event as we send it; None: not agreed."""
    dtmf_in: int | None = None
    """Another under which the peer may send it: the one we offered, where it answered with a number of its own."""
    keys: SrtpKeys | None = None
    """Encrypted both ways; None: plain."""
    sends: bool = True
    """Whether we may send; false while the peer has us on hold (sendonly means it sends music)."""
    receives: bool = True
    """Whether the peer may send."""
    remote_rtcp: Addr | None = None
    """The SDP's `a=rtcp` (RFC 3605); None: the port above RTP's."""
    rtcp_mux: bool = False
    """RTCP shares RTP's port (RFC 5761)."""
    symmetric: bool = True
    """Whether another address than `remote` may be answered to, if the sound comes from there."""

    def __post_init__(self) -> None:
        if not SHORTEST_PTIME <= self.ptime <= LONGEST_PTIME:
            raise ValueError(f"a packet time of {self.ptime} ms is not within {SHORTEST_PTIME} and {LONGEST_PTIME}")


@dataclass(frozen=True, slots=True)
class Identity:
    """Our side's random beginnings (RFC 3550, sections 5.1 and 8; RFC 7022 for the name)."""

    ssrc: int
    sequence: int
    timestamp: int
    cname: str = ""


@dataclass(frozen=True, slots=True)
class MediaReport:
    """A call's media in figures; packets unless said otherwise."""

    received: int
    lost: int
    """Never came."""
    late: int
    """Came when their place had been filled."""
    duplicate: int
    concealed_seconds: float
    """Sound that was invented in place of what was missing."""
    jitter_ms: float
    delay_ms: float
    """How long the jitter buffer holds the fastest packets now."""
    sent: int
    strangers: int
    """Datagrams from addresses that are not the peer's."""
    malformed: int
    """Datagrams that could not be used."""
    peer_lost: int
    """What the peer's reports say of our packets."""
    peer_jitter_ms: float
    round_trip_ms: float | None
    """None until the peer has answered a report of ours."""
