"""The channel between two processes: every message whole and in order, and the end of a process noticed."""

from __future__ import annotations

import random
import select
import subprocess
import sys

import pytest

from model.ring import PeerGone, RingFull, make_channel

_ECHO = """
import json, select, sys
from model.ring import Ends, PeerGone
channel = Ends(*json.loads(sys.argv[1])).channel()
try:
    while True:
        select.select([channel.ears], [], [])
        channel.hush()
        while (message := channel.get()) is not None:
            channel.put(message[0] + 1, message[1][::-1])
except PeerGone:
    pass
"""


def test_messages_of_any_length_come_whole_and_in_order_around_the_ring() -> None:
    chance = random.Random(1)
    one, ends = make_channel(4096)
    other = ends.channel()
    sent, got = [], []
    for number in range(2000):
        data = bytes([number % 256]) * chance.randrange(0, 300)
        one.put(number, data)
        sent.append((number, data))
        if chance.random() < 0.3:
            while (message := other.get()) is not None:
                got.append(message)
    other.hush()
    while (message := other.get()) is not None:
        got.append(message)
    assert got == sent
    one.close()
    other.close()


def test_a_full_ring_says_so_and_takes_more_when_some_was_taken() -> None:
    one, ends = make_channel(4096)
    other = ends.channel()
    for number in range(3):
        one.put(number, bytes(1000))
    with pytest.raises(RingFull):
        one.put(3, bytes(1000))
    assert other.get() == (0, bytes(1000))
    one.put(3, bytes(1000))
    one.close()
    other.hush()
    with pytest.raises(PeerGone):
        other.hush()
    other.close()


def test_another_process_answers_and_its_death_is_heard_at_once() -> None:
    channel, ends = make_channel(1 << 16)
    numbers = [ends.memory, ends.size, ends.ears, ends.bell]
    process = subprocess.Popen([sys.executable, "-c", _ECHO, str(numbers)], pass_fds=ends.descriptors)
    ends.close()
    channel.put(7, b"abc")
    assert select.select([channel.ears], [], [], 30)[0]
    channel.hush()
    assert channel.get() == (8, b"cba")
    process.kill()
    process.wait(10)
    assert select.select([channel.ears], [], [], 10)[0]
    with pytest.raises(PeerGone):
        channel.hush()
    with pytest.raises(PeerGone):
        channel.put(9, b"nobody")
    channel.close()
