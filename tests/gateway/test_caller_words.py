"""What the caller said is told once, by whoever has the session."""

from __future__ import annotations

import pytest

from gateway.audio import LINE_FRAME_BYTES
from gateway.caller_words import CallerWords
from gateway.history import SessionHistory
from model.wire import CallerText

FIRST, AGAIN, NEXT = CallerText(0, 25, "hello"), CallerText(3, 25, "hello"), CallerText(25, 40, "there")


@pytest.fixture
def history() -> SessionHistory:
    history = SessionHistory()
    for _ in range(30):
        history.caller(bytes(LINE_FRAME_BYTES))
    return history


def test_what_is_known_is_not_told_again(history: SessionHistory) -> None:
    words = CallerWords(history)
    for text in (FIRST, AGAIN, NEXT):
        words.tell(text, again=False)
    assert list(words.due()) == [FIRST, NEXT]
    assert list(words.due()) == []
    assert history.heard == 30, "no more than was sent"


def test_what_another_worker_will_say_is_its_own_to_say(history: SessionHistory) -> None:
    words = CallerWords(history)
    words.tell(FIRST, again=True)
    assert (list(words.due()), history.heard) == ([], 0)
    words.drop()
    words.release()
    assert list(words.due()) == []


def test_what_no_other_worker_will_say_is_told_after_all(history: SessionHistory) -> None:
    words = CallerWords(history)
    words.tell(FIRST, again=True)
    words.release()
    assert history.heard == 25, "the next that opens it need not hear that again"
    assert list(words.due()) == [FIRST]
