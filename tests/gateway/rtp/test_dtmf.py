"""telephone-event: each press of a key is one digit, whatever the network does to its packets."""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rtp.dtmf import DIGITS, GAP_TICKS, MAX_WAITING, TONE_TICKS, DtmfReceiver, DtmfSender

Told = tuple[int, bool, bytes]
"""Timestamp, marker, payload."""


def press(digit: str, timestamp: int, ticks: int = 5) -> list[Told]:
    """A key's packets as RFC 4733 has them: one every 20 ms, the end three times."""
    event = DIGITS.index(digit)
    told = [(timestamp, n == 1, bytes((event, 10)) + (160 * n).to_bytes(2, "big")) for n in range(1, ticks)]
    end = (timestamp, False, bytes((event, 0x8A)) + (160 * ticks).to_bytes(2, "big"))
    return told + 3 * [end]


def heard(packets: Iterable[Told]) -> str:
    receiver = DtmfReceiver()
    return "".join(receiver.receive(*packet) or "" for packet in packets)


def number(digits: str, start: int = 1_000) -> list[list[Told]]:
    return [press(digit, (start + 1_600 * index) % 2**32) for index, digit in enumerate(digits)]


def test_every_digit_once() -> None:
    assert heard(chain(*number(DIGITS))) == DIGITS
    assert heard(chain(*number("1111"))) == "1111"


def test_the_digit_is_known_with_its_first_packet() -> None:
    assert DtmfReceiver().receive(*press("7", 0)[0]) == "7"


@pytest.mark.parametrize("kept", range(7))
def test_any_one_packet_of_a_press_is_enough(kept: int) -> None:
    assert heard([packets[kept] for packets in number("55#")]) == "55#"


def test_loss_doubles_and_reordering_within_presses() -> None:
    chance = random.Random(1)
    for _ in range(200):
        packets = []
        for told in number("9090*", chance.randrange(2**32)):
            mine = [packet for packet in told if chance.random() > 0.4] or told[:1]
            mine += chance.choices(mine, k=2)
            chance.shuffle(mine)
            packets += mine
        assert heard(packets) == "9090*"


def test_an_overtaken_end_of_the_last_key_is_not_another_press() -> None:
    first, second = number("12")
    assert heard([*first[:5], *second[:2], *first[5:], *second[2:]]) == "12"


def test_a_long_press_in_segments_is_one_digit() -> None:
    first = [(0, True, bytes((4, 10)) + duration.to_bytes(2, "big")) for duration in (160, 32_000, 0xFFFF)]
    second = [(0xFFFF, False, bytes((4, 10)) + duration.to_bytes(2, "big")) for duration in (160, 320)]
    assert heard(first + second) == "4"


def test_a_sender_that_moves_the_timestamp_with_each_packet() -> None:
    wrong = [(160 * n, n == 0, bytes((4, 10)) + (160 * (n + 1)).to_bytes(2, "big")) for n in range(6)]
    assert heard(wrong) == "4"


def test_flash_tones_and_stubs_are_no_digits() -> None:
    receiver = DtmfReceiver()
    assert receiver.receive(0, True, bytes((16, 10, 0, 160))) is None
    assert receiver.receive(500, True, bytes((200, 10, 0, 160))) is None
    assert receiver.receive(900, True, b"\x01\x0a\x00") is None
    assert receiver.malformed == 1


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans(), st.binary(max_size=6)), max_size=40))
def test_garbage_never_raises(packets: list[Told]) -> None:
    assert len(heard(packets)) <= len(packets)


def test_what_is_sent_is_what_is_heard() -> None:
    sender = DtmfSender()
    sender.push("12#a")
    packets, ticks = [], 0
    while sender.active:
        event = sender.pop()
        if event is not None:
            packets.append((160 * ticks - event.elapsed, event.marker, event.payload))
        ticks += 1
    assert heard(packets) == "12#A"
    assert ticks == 4 * (TONE_TICKS + GAP_TICKS)
    # 100 ms, its end told three times, no packet with a marker but the first.
    assert [payload.hex() for _, _, payload in packets[:7]] == [
        "010a00a0", "010a0140", "010a01e0", "010a0280", "018a0320", "018a0320", "018a0320",
    ]  # fmt: skip
    assert [marker for _, marker, _ in packets[:7]] == [True] + 6 * [False]
    assert len({timestamp for timestamp, _, _ in packets}) == 4


def test_what_cannot_be_sent_is_refused() -> None:
    sender = DtmfSender()
    with pytest.raises(ValueError, match="'x' is not a keypad digit"):
        sender.push("1x")
    assert not sender.active
    with pytest.raises(ValueError, match="wait to be sent"):
        sender.push("1" * (MAX_WAITING + 1))
