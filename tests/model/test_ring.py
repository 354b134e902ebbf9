"""The channel between two processes: every message whole and in order, and the end of a process noticed."""

from __future__ import annotations

import mmap
import os
import random
import select
import subprocess
import sys
import threading

import pytest

from model.engine_options import EngineOptions, EngineRefused
from model.personaplex import PersonaplexEngine
from model.ring import PeerGone, Ring, RingFull, make_channel

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
        if chance.random() < 0.1:
            one.hush()  # what was taken is wiped, nothing else
        if chance.random() < 0.3:
            while (message := other.get()) is not None:
                got.append(message)
    other.hush()
    while (message := other.get()) is not None:
        got.append(message)
    assert got == sent
    assert any(one._maps[0][128:])
    one.hush()
    assert not any(one._maps[0][128:]), "nobody needs it any more"
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


def test_a_count_that_is_seen_before_its_bytes_is_no_message_yet() -> None:
    """As on a processor that does not keep stores in order."""
    memory = mmap.mmap(-1, 4096)
    ring = Ring(memory)
    for number in range(40):  # around the ring, so that older messages lie in its place
        ring.put(number, bytes([number]) * 300)
        place = 128 + number * 312 % (4096 - 128)
        at = 128 + (place - 128 + 12) % (4096 - 128)
        late, memory[at] = memory[at], 255
        assert ring.get() is None
        memory[at] = late
        assert ring.get() == (number, bytes([number]) * 300)
    assert ring.get() is None


def test_memory_is_shared_without_a_mount_whose_size_a_container_limits() -> None:
    channel, ends = make_channel(1 << 16)
    if sys.platform == "linux":
        assert os.readlink(f"/proc/self/fd/{ends.memory}").startswith("/memfd:")
    ends.close()
    channel.close()


@pytest.mark.anyio
async def test_without_such_memory_there_is_no_engine_rather_than_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Mac."""
    monkeypatch.delattr(os, "memfd_create")
    engine = PersonaplexEngine(EngineOptions("nowhere", slots=1))
    with pytest.raises(EngineRefused, match="must not lie in a file: run the worker on Linux"):
        await engine.start()
    assert engine.pid is None
    await engine.stop()


def test_a_thread_can_wait_for_the_others_end_beside_messages() -> None:
    one, ends = make_channel(1 << 16)
    other = ends.channel()
    watch = threading.Thread(target=other.wait_until_gone)
    watch.start()
    one.put(1, b"message")
    assert select.select([other.ears], [], [], 10)[0]
    assert watch.is_alive()
    one.close()
    watch.join(10)
    assert not watch.is_alive()
    assert other.get() == (1, b"message")
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
