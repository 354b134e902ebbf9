"""A session's history: nothing of it is lost that is needed, and nothing kept that is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.audio import LINE_FRAME_BYTES, Upsampler
from gateway.history import NO_COLUMN, SAY_FRAMES, SessionHistory
from model import wire

RANDOM = np.random.default_rng(5)


def column(index: int) -> bytes:
    return index.to_bytes(4, "little") + bytes(range(30))


def line_frames(count: int) -> list[bytes]:
    return [RANDOM.integers(-9_000, 9_000, 640).astype(np.int16).tobytes() for _ in range(count)]


def talked(frames: int, missed: int = 0) -> SessionHistory:
    history = SessionHistory()
    for index in range(frames + missed):
        history.caller(bytes(LINE_FRAME_BYTES))
        if index < frames:
            history.agent(index, column(index))
    return history


@pytest.mark.parametrize("count", [0, 1, 3, 124, 125, 126, 127, 400])
def test_the_callers_sound_is_the_newest_ten_seconds_to_the_sample_as_the_engine_heard_it(count: int) -> None:
    history, upsample = SessionHistory(), Upsampler()
    heard = b""
    for index, frame in enumerate(line_frames(count)):
        history.caller(frame)
        history.agent(index, column(index))
        heard += upsample(frame)
    frames = history.resume().caller_frames
    assert frames == min(count, 125)
    assert history.content().caller_pcm == heard[len(heard) - wire.FRAME_BYTES * frames :]


def test_frames_that_nobody_answered_are_counted() -> None:
    history = talked(frames=20, missed=3)
    assert history.resume() == wire.Resume(cut=0, frames=20, caller_frames=23, missed=3)
    assert history.content().columns == b"".join(column(index) for index in range(20))


def test_of_more_missed_frames_than_sound_is_kept_for_the_oldest_are_passed_over() -> None:
    assert talked(frames=200, missed=125).resume() == wire.Resume(0, frames=200, caller_frames=125, missed=125)
    history = talked(frames=200, missed=128)
    assert history.resume() == wire.Resume(0, frames=203, caller_frames=125, missed=125)
    assert history.content().columns == b"".join(column(index) for index in range(200)) + NO_COLUMN * 3
    history.agent(203, column(203))
    assert history.answered == 204


def test_a_cut_forgets_what_came_before_it() -> None:
    history = talked(frames=300)
    history.cut(200)
    history.cut(150)
    assert history.resume() == wire.Resume(cut=200, frames=100, caller_frames=125)
    assert history.content().columns == b"".join(column(index) for index in range(200, 300))
    history.cut(10_000)
    assert (history.resume().cut, history.resume().frames) == (300, 0)


def test_a_session_that_is_never_cut_keeps_the_models_window() -> None:
    history = talked(frames=3_500)
    resume = history.resume()
    assert (resume.cut, resume.frames) == (500, wire.MAX_HISTORY_FRAMES)
    assert history.content().columns.startswith(column(500))
    assert history.size <= 270_000


def test_missed_frames_have_no_columns_until_the_new_worker_says_them() -> None:
    history = talked(frames=10, missed=3)
    history.caller(bytes(LINE_FRAME_BYTES))
    history.agent(13, column(13))
    columns = [column(index) for index in range(10)] + [NO_COLUMN] * 3 + [column(13)]
    assert history.content().columns == b"".join(columns)
    history.agent(10, column(10) + column(11) + column(12))
    assert history.content().columns == b"".join(column(index) for index in range(14))
    assert history.resume() == wire.Resume(cut=0, frames=14, caller_frames=14)


def test_columns_of_missed_frames_may_come_first() -> None:
    history = talked(frames=10, missed=3)
    history.agent(10, column(10) + column(11) + column(12))
    assert history.resume().missed == 0
    assert history.content().columns == b"".join(column(index) for index in range(13))


def test_late_columns_that_were_cut_away_meanwhile_change_nothing() -> None:
    history = talked(frames=10, missed=4)
    history.agent(13, column(13))
    history.cut(12)
    history.agent(10, column(10) + column(11) + column(12))
    assert history.content().columns == column(12) + column(13)


@pytest.mark.parametrize(("index", "count"), [(13, 1), (10, 4), (60_000, 1), (2**32 - 1, 1)])
def test_columns_of_frames_that_were_never_sent_are_refused_and_take_no_memory(index: int, count: int) -> None:
    history = talked(frames=10, missed=3)
    size = history.size
    with pytest.raises(ValueError, match=f"frame {index + count - 1} has not been sent, only 13 have"):
        history.agent(index, column(0) * count)
    assert history.size == size


def spoken(text: str, *pieces: str) -> tuple[str, ...]:
    history = SessionHistory()
    history.say(text)
    for piece in pieces:
        history.spoke(piece)
    return history.resume().queued


FAREWELL = "I am sorry, I have to go. Goodbye."


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        ((), FAREWELL),
        ((" I", " am", " sor"), "sorry, I have to go. Goodbye."),
        ((" I", " am", " sor", "ry", ","), "I have to go. Goodbye."),
        ((" We", " open", " at", " nine", ".", " I", " am"), "sorry, I have to go. Goodbye."),
        ((" I am sorry, I have to", " go"), "Goodbye."),
        ((" I", " am", " sorry", " I", " have", " to", " go", ".", " Good", "bye", "."), None),
    ],
)
def test_of_a_text_half_said_the_rest_is_still_to_be_said(pieces: tuple[str, ...], left: str | None) -> None:
    assert spoken(FAREWELL, *pieces) == ((left,) if left else ())


GREETING = "Hello, this call is recorded. How can I help you today?"


@pytest.mark.parametrize(
    ("asked", "pieces", "text", "left"),
    [
        ((GREETING,), (" Hello", ",", " this"), GREETING, ()),
        ((GREETING, FAREWELL), (" Hello",), "How  can I help you today?", (FAREWELL,)),
        ((GREETING, FAREWELL), (" I", " am", " sor"), FAREWELL, ()),
        ((GREETING, FAREWELL), (), "Something else.", (GREETING, FAREWELL)),
        ((), (), FAREWELL, ()),
    ],
)
def test_what_the_agent_gave_up_for_the_caller_is_not_said_elsewhere(
    asked: tuple[str, ...], pieces: tuple[str, ...], text: str, left: tuple[str, ...]
) -> None:
    history = SessionHistory()
    for one in asked:
        history.say(one)
    for piece in pieces:
        history.spoke(piece)
    history.gave_way(text)
    assert history.resume().queued == left


def test_a_word_that_was_cut_off_begins_no_other_text() -> None:
    history = SessionHistory()
    history.say("good morning")
    history.say("good night")
    history.spoke(" good")
    history.gave_way("good morning")
    history.spoke(" Yes")
    assert history.resume().queued == ("good night",)


LINE = "This call is recorded. How can I help you?"


def heard_of_line(frames: int) -> SessionHistory:
    """The agent begins a word every ten frames; so many frames were answered."""
    history = SessionHistory()
    history.say(LINE)
    go_on(history, LINE, frames)
    return history


def go_on(history: SessionHistory, text: str, frames: int) -> None:
    first, words = history.sent, text.split()
    for index in range(first, first + frames):
        history.caller(bytes(LINE_FRAME_BYTES))
        if (index - first) % 10 == 0:
            history.spoke(f" {words[(index - first) // 10]}", index)
        history.agent(index, column(index))


@pytest.mark.parametrize(
    ("frames", "left"),
    [
        (1, LINE),
        (3, LINE),
        (4, "call is recorded. How can I help you?"),  # "This" takes four letters' time, 0.32 s
        (10, "call is recorded. How can I help you?"),
        (31, "recorded. How can I help you?"),
        (37, "recorded. How can I help you?"),
        (38, "How can I help you?"),
        (81, "you?"),
    ],
)
def test_a_word_of_which_only_the_beginning_was_heard_is_said_again(frames: int, left: str) -> None:
    history = heard_of_line(frames)
    history.caller(bytes(LINE_FRAME_BYTES))
    assert history.resume().queued == (left,)
    # Asked again, of a worker that refused, and long after: it is still the same.
    for _ in range(130):
        history.caller(bytes(LINE_FRAME_BYTES))
    assert history.resume().queued == history.resume().queued == (left,)


def test_a_word_that_goes_on_without_a_gap_is_not_said_again() -> None:
    """Every frame was answered, so that the next worker's first sound is the rest of the word."""
    history = heard_of_line(31)
    assert history.resume().queued == ("How can I help you?",)


def test_a_word_that_is_said_again_may_be_lost_again() -> None:
    history = heard_of_line(31)
    for frames, left in [(1, "recorded."), (2, "recorded."), (9, "How")]:
        history.caller(bytes(LINE_FRAME_BYTES))
        (rest,) = history.resume().queued
        assert rest == "recorded. How can I help you?"
        history.goes_on()
        history.agent(history.answered, column(0) * (history.sent - history.answered))
        go_on(history, rest, frames)
        history.caller(bytes(LINE_FRAME_BYTES))
        assert history.resume().queued[0].split()[0] == left


def test_a_word_that_was_heard_is_ticked_off_once_another_worker_goes_on() -> None:
    history = SessionHistory()
    history.say("Call now. Now or never.")
    go_on(history, "Call now.", 19)
    history.caller(bytes(LINE_FRAME_BYTES))
    assert history.resume().queued == ("Now or never.",)
    history.goes_on()
    history.agent(history.answered, column(0))
    go_on(history, "Now or", 1)
    assert history.resume().queued == ("or never.",)


def test_texts_are_said_in_the_order_in_which_they_were_asked_for() -> None:
    history = SessionHistory()
    for text in ("Hello there.", "", "This call is recorded."):
        history.say(text)
    assert history.resume().queued == ("Hello there.", "This call is recorded.")
    for piece in (" Hello", " there", ".", " This"):
        history.spoke(piece)
    assert history.resume().queued == ("call is recorded.",)


def test_a_text_that_was_never_recognised_as_said_is_not_said_minutes_later() -> None:
    history = SessionHistory()
    history.say("Your number is 5.")
    history.spoke(" five")
    for index in range(SAY_FRAMES + 4 * 6 + 1):
        assert history.resume().queued == ("Your number is 5.",)
        history.caller(bytes(LINE_FRAME_BYTES))
        history.agent(index, column(index))
    assert history.resume().queued == ()


def tone(peak: int) -> bytes:
    """80 ms of the agent, of which only the last quarter sounds."""
    return np.concatenate([np.zeros(1440, np.int16), np.tile(np.array([peak, -peak], np.int16), 240)]).tobytes()


def test_how_loud_the_agent_was_is_known_of_the_newest_ten_seconds() -> None:
    history = SessionHistory()
    for index in range(130):
        history.caller(bytes(LINE_FRAME_BYTES))
        history.agent(index, column(index), tone({4: 30_000, 5: 16_384, 129: 328}.get(index, 0)))
    levels = history.resume().agent_levels
    assert len(levels) == history.resume().caller_frames == 125
    assert (levels[0], levels[124]) == (6, 39), "half of full scale is 6.02 dB below it, a hundredth 39.99"
    assert set(levels[1:124]) == {wire.AGENT_SILENT}
    for _ in range(2):  # nobody answers
        history.caller(bytes(LINE_FRAME_BYTES))
    assert history.resume().agent_levels == (*levels[2:], wire.AGENT_SILENT, wire.AGENT_SILENT)
    history.wipe()
    assert history.resume().agent_levels == ()


def test_where_the_agent_was_silent_its_loudness_is_not_said() -> None:
    assert talked(frames=200).resume().agent_levels == ()


def test_clips_are_kept_until_they_were_played() -> None:
    history = SessionHistory()
    history.play("disclosure")
    history.play("consent")
    history.played("disclosure")
    history.played("never asked for")
    assert history.clips == ("consent",)


def test_nothing_is_left_when_the_call_is_over() -> None:
    history = talked(frames=10)
    history.say("Hello.")
    history.play("disclosure")
    ring, columns = history._ring, history._columns
    history.wipe()
    assert history.size == len(ring) == len(columns) == 0
    assert history.clips == ()
    # What is told of a call that is over is not remembered.
    history.caller(bytes(LINE_FRAME_BYTES))
    history.agent(10, column(10))
    history.say("Goodbye.")
    history.spoke(" Good")
    history.play("disclosure")
    assert (history.size, history.clips, history.resume().queued, history._word) == (0, (), (), "")


def test_a_frame_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1280 bytes, this one 1279"):
        SessionHistory().caller(bytes(1279))


STEPS = st.lists(
    st.tuples(st.just("caller"), st.integers(1, 40))
    | st.tuples(st.just("agent"), st.integers(1, 40))
    | st.tuples(st.just("cut"), st.integers(0, 4_000)),
    max_size=60,
)


@given(STEPS)
def test_whatever_happens_a_history_is_one_that_the_wire_takes(steps: list[tuple[str, int]]) -> None:
    history = SessionHistory()
    for step, count in steps:
        if step == "cut":
            history.cut(count)
        for _ in range(0 if step == "cut" else count):
            if step == "caller" and history.sent - history.answered < 125:
                history.caller(bytes(LINE_FRAME_BYTES))
            elif step == "agent" and history.answered < history.sent:
                history.agent(history.answered, column(history.answered))
    resume, content = history.resume(), history.content()
    request = wire.SessionRequest("c", resume=resume)
    assert wire.decode_open(wire.encode_open(request)) == request
    assert wire.decode_history(wire.encode_history(resume, content), resume) == content
    assert resume.next_index == history.sent
