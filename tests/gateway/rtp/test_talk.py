"""What we say waits for the clock: in order, with a cushion, and never for long."""

from __future__ import annotations

import pytest

from gateway.audio import LONGEST_HOLE
from gateway.rtp.talk import CUSHION, FRAME_BYTES, LIMIT, TalkQueue

LOUD, QUIET = b"\x00\x10" * 160, b"\x01\x00" * 160


def frame(number: int) -> bytes:
    return number.to_bytes(2, "big") + LOUD[2:]


def test_eighty_milliseconds_come_out_as_four_frames_after_a_cushion() -> None:
    talk = TalkQueue()
    assert talk.pop() is None
    talk.push(b"".join(map(frame, range(4))))
    assert [talk.pop() for _ in range(CUSHION)] == CUSHION * [None]
    assert talk.unheard == pytest.approx(0.08)
    assert [talk.pop() for _ in range(5)] == [frame(0), frame(1), frame(2), frame(3), None]


def test_a_frame_late_by_less_than_the_cushion_leaves_no_hole() -> None:
    talk = TalkQueue()
    talk.push(b"".join(map(frame, range(4))))
    heard = [talk.pop() for _ in range(CUSHION + 3)]
    # The next 80 ms should have come with the tick before this one.
    talk.push(b"".join(map(frame, range(4, 8))))
    heard += [talk.pop() for _ in range(5)]
    assert heard[CUSHION:] == [frame(number) for number in range(8)]


def test_silence_in_place_of_late_sound_is_counted_however_long_but_for_what_was_asked_for() -> None:
    talk = TalkQueue()
    talk.pop()
    for silent, missing in ((0, 0), (2, 2 + CUSHION), (60, 62 + 2 * CUSHION)):
        assert [talk.pop() for _ in range(silent)] == silent * [None]
        talk.push(b"".join(map(frame, range(4))))
        assert [talk.pop() for _ in range(CUSHION + 4)].count(None) == CUSHION
        assert talk.missing == missing
    talk.clear()
    talk.pop()
    talk.push(frame(0))
    assert [talk.pop() for _ in range(CUSHION + 1)] == [None, frame(0)]
    assert talk.missing == missing, "silence that was asked for"


def test_a_process_that_stood_still_for_a_minute_counts_one_hole() -> None:
    talk = TalkQueue()
    talk.push(b"".join(map(frame, range(4))))
    assert [talk.pop() for _ in range(CUSHION + 2)][-1] == frame(1)
    talk.skip(3_000)
    assert talk.pop() == frame(2)
    assert talk.missing == LONGEST_HOLE


def test_a_burst_loses_its_quiet_frames_first() -> None:
    talk = TalkQueue()
    talk.push(b"".join(frame(number) if number % 2 else QUIET for number in range(16)))
    heard = [talk.pop() for _ in range(CUSHION + 16)]
    loud = [spoken for spoken in heard if spoken not in (None, QUIET)]
    assert loud == [frame(number) for number in range(1, 16, 2)]
    assert talk.shortened == heard.count(None) - CUSHION > 3
    assert talk.dropped == 0


def test_beyond_the_limit_the_oldest_go() -> None:
    talk = TalkQueue()
    talk.push(2 * QUIET + b"".join(map(frame, range(LIMIT + 5))))
    assert talk.unheard == pytest.approx(0.4)
    assert (talk.dropped, talk.shortened) == (5, 2)
    assert [talk.pop() for _ in range(CUSHION + 1)][-1] == frame(5)


def test_of_what_nobody_hears_is_told_how_long_before_the_end_it_was_handed_over() -> None:
    talk = TalkQueue()
    assert talk.push(2 * QUIET + b"".join(map(frame, range(LIMIT)))) == [], "of pauses nobody misses anything"
    assert talk.push(4 * LOUD) == [LIMIT + 3, LIMIT + 2, LIMIT + 1, LIMIT]
    assert talk.push(LOUD) == [LIMIT]
    for _ in range(CUSHION + 2):
        talk.pop()
    talk.not_sent()
    talk.pop()
    # The second last of the 19 that wait is 18 before the end; two had been taken before it, the second in vain.
    assert talk.push(LOUD) == [LIMIT - 1]
    assert (talk.push(LOUD), talk.unsent, talk.dropped) == ([], 1, 5)


def test_clearing_makes_silence_at_once() -> None:
    talk = TalkQueue()
    talk.push(3 * LOUD)
    talk.clear()
    assert talk.pop() is None
    assert talk.unheard == 0


def test_a_broken_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="whole frames"):
        TalkQueue().push(bytes(FRAME_BYTES + 2))
