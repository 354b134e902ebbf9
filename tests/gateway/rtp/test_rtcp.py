"""Reports: bytes as on the wire, round trips, and what is no report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rtp.packet import RtpError
from gateway.rtp.reception import ReceptionReport
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

BLOCK = ReportBlock(7, ReceptionReport(64, -5, 0x1FFFF, 80), 0x12345678, 65_536)
SENDER = SenderInfo(0x0102030405060708, 160, 3, 480)


def test_a_sender_report_as_on_the_wire() -> None:
    data = build_report(Report(0xAABBCCDD, SENDER, (BLOCK,)), "me")
    assert data.hex(" ", 4) == (
        "81c8000c aabbccdd 01020304 05060708 000000a0 00000003 000001e0 "
        "00000007 40fffffb 0001ffff 00000050 12345678 00010000 "
        "81ca0003 aabbccdd 01026d65 00000000"
    )
    assert parse_report(data) == Report(0xAABBCCDD, SENDER, (BLOCK,))


@pytest.mark.parametrize("name", ["", "a", "ab", "abc", "abcd", "x" * 300])
def test_a_receiver_report_with_any_name(name: str) -> None:
    data = build_report(Report(1, None, (BLOCK,)), name)
    assert len(data) % 4 == 0
    assert parse_report(data) == Report(1, None, (BLOCK,))


def test_a_goodbye_is_of_the_reporting_source() -> None:
    assert parse_report(build_report(Report(1, goodbye=True), "me")).goodbye
    other = bytes.fromhex("80c90001 00000001 81cb0001 00000002")
    assert not parse_report(other).goodbye


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("", "empty"),
        ("80c9", "inside a header"),
        ("40c90001 00000001", "version is 1"),
        ("80c90002 00000001", "before its length"),
        ("a0c90001 00000001 81ca0001 00000000", "only the last"),
        ("81ca0001 00000001", "begins with a report"),
        ("81c90001 00000001", "inside its blocks"),
        ("80c80001 00000001", "inside its blocks"),
        ("80c90000", "inside its blocks"),
    ],
)
def test_what_is_no_report(data: str, why: str) -> None:
    with pytest.raises(RtpError, match=why):
        parse_report(bytes.fromhex(data))


@given(st.binary(max_size=120))
def test_garbage_raises_only_the_peers_fault(data: bytes) -> None:
    for candidate in (data, b"\x81\xc9" + data, b"\x80\xc8\x00\x06" + data):
        try:
            parse_report(candidate)
        except RtpError:
            continue


def test_round_trips() -> None:
    sent = ntp_time(1_700_000_000.0)
    block = ReportBlock(1, BLOCK.reception, middle(sent), int(0.5 * 65_536))
    seconds = round_trip(block, ntp_time(1_700_000_000.62))
    assert seconds == pytest.approx(0.12, abs=0.001)
    assert round_trip(ReportBlock(1, BLOCK.reception), sent) is None
    assert round_trip(block, ntp_time(1_699_999_999.0)) is None


def test_reports_are_scattered_around_five_seconds() -> None:
    assert interval(0.0) == pytest.approx(2.052, abs=0.001)
    assert interval(0.999) < 6.2
