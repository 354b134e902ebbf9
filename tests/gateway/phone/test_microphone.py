"""The queues between a sound card and the call; the card itself is not needed."""

from __future__ import annotations

from gateway.phone.microphone import Microphone
from gateway.phone.playout import SILENCE


def frame(value: int) -> bytes:
    return bytes([value]) * 320


def exchange(microphone: Microphone, recorded: bytes) -> bytes:
    played = bytearray(320)
    microphone.exchange(memoryview(recorded), memoryview(played), 160, None, None)
    return bytes(played)


def test_both_ways_in_order_with_silence_for_what_is_missing() -> None:
    microphone = Microphone()
    assert exchange(microphone, frame(1)) == SILENCE
    assert microphone.step(frame(9)) == frame(1)
    assert microphone.step(frame(8)) == SILENCE
    assert [exchange(microphone, frame(2)) for _ in range(3)] == [frame(9), frame(8), SILENCE]
    assert not microphone.hung_up


def test_a_slow_side_loses_the_oldest_sound_instead_of_falling_behind() -> None:
    microphone = Microphone()
    for value in range(50):
        exchange(microphone, frame(value))
    assert microphone.step(SILENCE) == frame(40)
