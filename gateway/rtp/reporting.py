"""RTCP of one call: our reports, the peer's, and the round trip between them. Pure.

Knows no sockets and no encryption; which hosts may report is the stream's affair.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.rtp.latch import Addr
from gateway.rtp.plan import Identity
from gateway.rtp.reception import Reception
from gateway.rtp.rtcp import (
    Report,
    ReportBlock,
    SenderInfo,
    build_report,
    interval,
    middle,
    ntp_time,
    parse_report,
    round_trip,
)

FIRST = 2.5
"""Seconds to the first report: half of the interval (RFC 3550, section 6.2)."""


class Reporter:
    """One call's."""

    def __init__(self, identity: Identity, now: float) -> None:
        self.due = now + FIRST
        """When the next report is to be sent."""
        self.source: Addr | None = None
        """Where the peer's reports come from, once one has come."""
        self.received = 0
        self.peer_lost = 0
        self.peer_jitter = 0
        """In samples."""
        self.round_trip_ms: float | None = None
        self.goodbye = False
        """The peer's source has taken its leave."""
        self._identity = identity
        self._last_ntp = 0
        self._last_at = 0.0
        self._clock_offset: float | None = None

    def moved(self) -> None:
        """The peer has another address."""
        self.source = None

    def new_source(self) -> None:
        """The peer has another synchronisation source: its sender reports begin anew."""
        self._last_ntp = 0
        self.goodbye = False

    def receive(self, data: bytes, source: Addr, now: float) -> None:
        """A compound packet. Raises RtpError if it is none."""
        report = parse_report(data)
        self.received += 1
        if self.source is None:
            self.source = source
        self.goodbye = report.goodbye
        if report.sender is not None:
            self._last_ntp, self._last_at = middle(report.sender.ntp), now
        for block in report.blocks:
            if block.ssrc == self._identity.ssrc:
                self._note(block, now)

    def _note(self, block: ReportBlock, now: float) -> None:
        self.peer_lost = max(0, block.reception.lost)
        self.peer_jitter = block.reception.jitter
        if self._clock_offset is not None:
            seconds = round_trip(block, ntp_time(now + self._clock_offset))
            if seconds is not None:
                self.round_trip_ms = 1_000 * seconds

    def build(
        self,
        heard: int,
        reception: Reception | None,
        sent: SenderInfo | None,
        now: float,
        wall: float,
        chance: float,
        goodbye: bool,
    ) -> bytes:
        """The report that is due, about the source `heard`; the next is due in about five seconds."""
        self.due = now + interval(chance)
        # Round trips are reckoned with the wall clock as it was first seen: it may be set, ours may not.
        if self._clock_offset is None:
            self._clock_offset = wall - now
        sender = replace(sent, ntp=ntp_time(now + self._clock_offset)) if sent is not None else None
        blocks: tuple[ReportBlock, ...] = ()
        if reception is not None:
            since = int((now - self._last_at) * 65_536) & 0xFFFFFFFF if self._last_ntp else 0
            blocks = (ReportBlock(heard, reception.report(), self._last_ntp, since),)
        return build_report(Report(self._identity.ssrc, sender, blocks, goodbye=goodbye), self._identity.cname)
