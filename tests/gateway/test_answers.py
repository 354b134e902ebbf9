"""What a call hears of its session: words with their frame, each frame once, and what waits for another worker."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from gateway.answers import Answers
from gateway.audio import LINE_FRAME_BYTES
from gateway.history import SessionHistory
from model.wire import FRAME_BYTES, TOKENS_BYTES, AgentFrame, AgentText, CallerText, Columns, Late, Output

PCM, TOKENS = b"\x00\x10" * (FRAME_BYTES // 2), bytes(TOKENS_BYTES)


def session(sent: int = 10) -> tuple[SessionHistory, Answers]:
    history = SessionHistory()
    for _ in range(sent):
        history.caller(bytes(LINE_FRAME_BYTES))
    return history, Answers(history)


def frame(index: int) -> AgentFrame:
    return AgentFrame(index, PCM, TOKENS)


def heard(answers: Answers, outputs: Iterable[Output], opening: bool = False) -> list[Output]:
    return [known for output in outputs for known in answers.take(output, opening)]


def test_a_word_is_said_once_its_frame_is_there() -> None:
    history, answers = session()
    word = AgentText(0, " Hello")
    assert heard(answers, [word]) == []
    assert answers.last_speech == 0
    assert heard(answers, [frame(0)]) == [word, frame(0)]
    assert (answers.next, answers.last_speech, history.answered) == (1, 10, 1)


def test_what_is_said_while_another_worker_opens_the_session_waits_for_who_has_it() -> None:
    history, answers = session()
    said: list[Output] = [AgentText(0, " Hello"), frame(0), frame(1)]
    assert heard(answers, [*said, Late(1)], opening=True) == [Late(1)]
    assert (answers.next, history.answered) == (0, 0)
    assert heard(answers, [frame(2)]) == [*said, frame(2)], "the first keeps it"
    assert heard(answers, [frame(3)], opening=True) == []
    answers.handed_over()
    assert [output.index for output in answers.silence(5) if isinstance(output, AgentFrame)] == [3, 4]
    assert heard(answers, [frame(5)]) == [frame(5)]


def test_the_callers_words_do_not_wait_for_the_agents() -> None:
    _, answers = session()
    text = CallerText(0, 5, "hello")
    assert heard(answers, [frame(0), CallerText(0, 3, "hel", final=False)], opening=True) == [
        CallerText(0, 3, "hel", final=False)
    ]
    assert heard(answers, [text], opening=True) == []
    answers.kept()
    assert list(answers.caller_words()) == [text]


@pytest.mark.parametrize(
    ("wrong", "how"),
    [
        (frame(1), "it answered frame 1 where 0 of 10 was due"),
        (frame(10), "it answered frame 10 where 0 of 10 was due"),
        (Columns(9, 2 * TOKENS), "of its columns, frame 10 has not been sent, only 10 have"),
    ],
    ids=["passed-over", "never-sent", "columns"],
)
def test_a_worker_that_breaks_the_protocol_is_told(wrong: Output, how: str) -> None:
    _, answers = session()
    with pytest.raises(ValueError, match=how):
        heard(answers, [wrong])
