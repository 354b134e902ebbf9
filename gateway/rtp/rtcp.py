"""RTCP: compound packets to and from bytes (RFC 3550, section 6), and when to send them (6.2). Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from gateway.rtp.packet import RtpError
from gateway.rtp.reception import ReceptionReport

INTERVAL = 5.0
"""Seconds between reports, before they are scattered."""
_COMPENSATION = 1.21828
"""e - 3/2: what section 6.3.1 divides by."""
_SENDER_REPORT, _RECEIVER_REPORT, _DESCRIPTION, _GOODBYE = 200, 201, 202, 203
_CNAME = 1
_HEAD = Struct("!BBH")
_SENDER = Struct("!IIIIII")
_SSRC = Struct("!I")
_BLOCK = Struct("!IIIIII")
_VERSION, _COUNT, _PADDING = 0x80, 0x1F, 0x20
_NTP_EPOCH = 2_208_988_800
"""Seconds from 1900 to 1970."""


@dataclass(frozen=True, slots=True)
class SenderInfo:
    """How much a source has sent, and its two clocks at one instant."""

    ntp: int
    """64 bits: seconds since 1900 and their fraction."""
    timestamp: int
    packets: int
    octets: int


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """What a receiver says about one source."""

    ssrc: int
    reception: ReceptionReport
    last_report: int = 0
    """Middle 32 bits of the last sender report's NTP time; 0: none came."""
    delay: int = 0
    """Since then, in 65,536ths of a second."""


@dataclass(frozen=True, slots=True)
class Report:
    """One sender or receiver report, and whether its source took its leave in the same compound packet."""

    ssrc: int
    sender: SenderInfo | None = None
    blocks: tuple[ReportBlock, ...] = ()
    goodbye: bool = field(default=False, kw_only=True)


def interval(chance: float) -> float:
    """Seconds to the next report; `chance` in [0, 1) keeps many sources from falling into step (6.3.1)."""
    return INTERVAL * (0.5 + chance) / _COMPENSATION


def ntp_time(seconds: float) -> int:
    """64-bit NTP time of a Unix time (RFC 3550, section 4)."""
    return int((seconds + _NTP_EPOCH) * (1 << 32)) & 0xFFFFFFFFFFFFFFFF


def middle(ntp: int) -> int:
    """The 32 bits in the middle, in which round trips are reckoned."""
    return ntp >> 16 & 0xFFFFFFFF


def round_trip(block: ReportBlock, ntp: int) -> float | None:
    """Seconds from us to the peer and back, its own delay left out (section 6.4.1); None if it cannot say."""
    if block.last_report == 0:
        return None
    units = (middle(ntp) - block.last_report - block.delay) & 0xFFFFFFFF
    # A clock that was set back in between makes nonsense.
    return units / 65_536 if units < 60 << 16 else None


def build_report(report: Report, cname: str) -> bytes:
    """A compound packet: the report, our name, and a goodbye if it is the last."""
    ssrc = _SSRC.pack(report.ssrc)
    blocks = b"".join(_pack_block(block) for block in report.blocks)
    if report.sender is None:
        data = _packet(_RECEIVER_REPORT, len(report.blocks), ssrc + blocks)
    else:
        sender = report.sender
        ntp = (sender.ntp >> 32, sender.ntp & 0xFFFFFFFF)
        info = _SENDER.pack(
            report.ssrc, *ntp, sender.timestamp, sender.packets & 0xFFFFFFFF, sender.octets & 0xFFFFFFFF
        )
        data = _packet(_SENDER_REPORT, len(report.blocks), info + blocks)
    name = cname.encode()[:255]
    item = ssrc + bytes((_CNAME, len(name))) + name
    # The list ends with at least one null byte and is filled up to whole words (section 6.5).
    data += _packet(_DESCRIPTION, 1, item + bytes(4 - len(item) % 4))
    return data + _packet(_GOODBYE, 1, ssrc) if report.goodbye else data


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return _HEAD.pack(_VERSION | count, kind, len(body) // 4) + body


def _pack_block(block: ReportBlock) -> bytes:
    figures = block.reception
    loss = figures.fraction_lost << 24 | figures.lost & 0xFFFFFF
    return _BLOCK.pack(block.ssrc, loss, figures.highest, figures.jitter, block.last_report, block.delay)


def parse_report(data: bytes) -> Report:
    """A compound packet's report. Raises RtpError unless it is valid as section A.2 has it."""
    report: Report | None = None
    goodbye = False
    at = 0
    while at < len(data):
        kind, count, body = _cut(data, at)
        at += 4 + _length(data, at)
        if report is None:
            report = _parse_first(kind, count, body)
        elif kind == _GOODBYE:
            sources = {_SSRC.unpack_from(body, 4 * index)[0] for index in range(min(count, len(body) // 4))}
            goodbye = goodbye or report.ssrc in sources
    if report is None:
        raise RtpError("the RTCP packet is empty")
    return Report(report.ssrc, report.sender, report.blocks, goodbye=goodbye)


def _length(data: bytes, at: int) -> int:
    return 4 * int.from_bytes(data[at + 2 : at + 4], "big")


def _cut(data: bytes, at: int) -> tuple[int, int, bytes]:
    """Type, count and body of the packet at `at`."""
    if len(data) - at < 4:
        raise RtpError("the RTCP packet ends inside a header")
    first, kind, _ = _HEAD.unpack_from(data, at)
    end = at + 4 + _length(data, at)
    if first & 0xC0 != _VERSION:
        raise RtpError(f"the RTCP version is {first >> 6}, not 2")
    if end > len(data):
        raise RtpError("the RTCP packet ends before its length")
    if first & _PADDING and end != len(data):
        raise RtpError("only the last RTCP packet of a compound may be padded")
    return kind, first & _COUNT, data[at + 4 : end]


def _parse_first(kind: int, count: int, body: bytes) -> Report:
    sender: SenderInfo | None = None
    start = _SSRC.size
    if kind == _SENDER_REPORT:
        start = _SENDER.size
    elif kind != _RECEIVER_REPORT:
        raise RtpError(f"a compound RTCP packet begins with a report, not with type {kind}")
    if len(body) < start + count * _BLOCK.size:
        raise RtpError("the RTCP report ends inside its blocks")
    ssrc: int = _SSRC.unpack_from(body)[0]
    if kind == _SENDER_REPORT:
        _, seconds, fraction, timestamp, packets, octets = _SENDER.unpack_from(body)
        sender = SenderInfo(seconds << 32 | fraction, timestamp, packets, octets)
    blocks = tuple(_parse_block(body, start + index * _BLOCK.size) for index in range(count))
    return Report(ssrc, sender, blocks)


def _parse_block(body: bytes, at: int) -> ReportBlock:
    ssrc, loss, highest, jitter, last_report, delay = _BLOCK.unpack_from(body, at)
    lost = loss & 0xFFFFFF
    if lost & 0x800000:
        lost -= 1 << 24
    return ReportBlock(ssrc, ReceptionReport(loss >> 24, lost, highest, jitter), last_report, delay)
