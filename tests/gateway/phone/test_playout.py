"""The playout queue, with explicit time: what is heard at each 20 ms, marks, clear, gaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.phone.playout import FRAME_BYTES, MAX_QUEUED, SILENCE, Playout


def sound(frames: float, value: int = 1) -> bytes:
    return bytes([value]) * round(frames * FRAME_BYTES)


def test_sound_is_heard_in_real_time_not_at_once() -> None:
    playout = Playout(100.0)
    playout.media(sound(3), 100.0)
    assert playout.heard(100.019) == ([], [])
    assert playout.heard(100.020) == ([sound(1)], [])
    assert playout.heard(100.050) == ([sound(1)], [])
    assert playout.heard(100.100) == ([sound(1), SILENCE, SILENCE], [])


def test_what_comes_late_is_never_heard_in_the_past() -> None:
    playout = Playout(0.0)
    playout.media(sound(1), 0.1)
    assert playout.heard(0.12)[0] == [SILENCE] * 5 + [sound(1)]


def test_a_mark_returns_when_the_sound_before_it_was_heard() -> None:
    playout = Playout(0.0)
    playout.media(sound(2), 0.0)
    playout.mark("a", 0.0)
    playout.media(sound(1), 0.0)
    playout.mark("b", 0.0)
    assert playout.heard(0.02)[1] == []
    assert playout.heard(0.04)[1] == ["a"]
    assert playout.heard(0.06)[1] == ["b"]


def test_a_mark_with_nothing_before_it_returns_at_once() -> None:
    playout = Playout(0.0)
    playout.mark("now", 0.001)
    assert playout.heard(0.001) == ([], ["now"])


def test_clear_silences_and_returns_marks() -> None:
    playout = Playout(0.0)
    playout.media(sound(10), 0.0)
    playout.mark("end", 0.0)
    playout.clear(0.041)
    assert playout.heard(0.08) == ([sound(1), sound(1), SILENCE, SILENCE], ["end"])
    assert playout.counts.cleared == 8
    assert playout.queued == 0


def test_a_short_gap_is_loss_and_a_pause_or_a_clear_is_not() -> None:
    playout = Playout(0.0)
    playout.media(sound(1), 0.3)
    assert (playout.counts.underruns, playout.counts.lost) == (0, 0)
    playout.media(sound(1), 0.36)
    assert (playout.counts.underruns, playout.counts.lost) == (1, 2)
    playout.media(sound(1), 2.0)
    assert (playout.counts.underruns, playout.counts.lost) == (1, 2)
    playout.clear(2.0)
    playout.media(sound(1), 2.1)
    assert (playout.counts.underruns, playout.counts.lost) == (1, 2)


def test_a_flood_is_bounded_and_counted() -> None:
    playout = Playout(0.0)
    minute = sound(50 * 60)
    for _ in range(30):
        playout.media(minute, 0.0)
    assert playout.queued <= MAX_QUEUED + 60
    assert playout.counts.refused == 20 * 50 * 60


@given(st.lists(st.one_of(st.integers(0, 900), st.sampled_from(["mark", "tick"])), max_size=40))
def test_nothing_is_lost_or_reordered(script: list[int | str]) -> None:
    playout = Playout(0.0)
    sent, now, marks, heard, returned = bytearray(), 0.0, 0, bytearray(), list[str]()
    for step in script:
        if isinstance(step, int):
            piece = bytes((len(sent) + offset) % 255 + 1 for offset in range(step))
            sent += piece
            playout.media(piece, now)
        elif step == "mark":
            playout.mark(str(marks), now)
            marks += 1
        else:
            now += 0.033
            frames, names = playout.heard(now)
            assert all(len(frame) == FRAME_BYTES for frame in frames)
            heard += b"".join(frames)
            returned += names
    frames, names = playout.heard(now + playout.queued + 1)
    heard += b"".join(frames)
    assert bytes(heard).replace(b"\0", b"") == bytes(sent)
    assert returned + names == [str(number) for number in range(marks)]
