"""Which words of a caller leave the floor to the agent, and how a turn sounds to have ended. Pure text."""

from __future__ import annotations

import re
from enum import Enum, auto


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


_LISTENING = _set_of(
    "mm mmm mhm hm hmm mmhm mmhmm uh huh uhhuh aha ah oh yeah yea yep yup yes ya right okay ok alright all sure "
    "i see got it of course good great cool perfect wonderful fine nice wow really exactly understood interesting "
    "thanks thank you very much"
)
_NOT_ALONE = _set_of("i it all of you very much")
"""Listening only next to a word that is listening by itself."""
_FAREWELL = _set_of("bye goodbye byebye good have a nice day take care too")
_FLOOR = _set_of(
    "no not stop wait hold hang moment second sorry excuse pardon hello operator agent person human somebody someone "
    "help what who when where how why which but actually please can could repeat again question bye goodbye never"
)
_LONGEST = 6
_REPLY = 8
"""A complete reply to a question has at most so many words; who says more is telling something."""
_UNFINISHED = _set_of("a an and because but if my or so that's the to uh um your i i'd i'm it's")
"""No sentence ends on these, whatever the recogniser puts after them."""
_OPEN_ENDED = _UNFINISHED | _set_of("at by for from in is its of on that then was were with would")
"""A sentence may end on these, but then the recogniser puts a full stop."""


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower().replace("-", ""))


def is_backchannel(text: str, farewell: bool = False) -> bool:
    """Whether the words only say "I am listening": "mm-hm", "okay, right", "I see".

    With `farewell`, while the agent takes leave, answers to that count too: "thank you, bye".
    """
    words = _words(text)
    allowed = _LISTENING | _FAREWELL if farewell else _LISTENING
    return 0 < len(words) <= _LONGEST and all(w in allowed for w in words) and not all(w in _NOT_ALONE for w in words)


def asks_for_floor(text: str) -> bool:
    """Whether a word is among those that interrupt: "wait", "no", "what"."""
    return any(word in _FLOOR for word in _words(text))


class Ending(Enum):
    """What the end of what was said lets expect."""

    QUESTION = auto()
    """An answer is waited for."""
    SHORT = auto()
    """Complete, as replies are."""
    STATEMENT = auto()
    """A sentence told, after which there may come another."""
    OPEN = auto()
    """In the middle of a sentence, or of a number."""


def ending(text: str) -> Ending:
    """How a speaker who said this and paused has left it.

    Left open are a trailing comma, dash or dots, a word that wants another, and digits: there may be more.
    """
    text = text.strip()
    words = _words(text)
    if not words or text.endswith(("...", "…", ",", "-")):
        return Ending.OPEN
    if text.endswith("?"):
        return Ending.QUESTION
    if words[-1] in (_UNFINISHED if text.endswith((".", "!")) else _OPEN_ENDED) or words[-1].isdigit():
        return Ending.OPEN
    taking_leave = all(word in _LISTENING | _FAREWELL for word in _words(_sentences(text)[-1]))
    return Ending.SHORT if taking_leave or len(words) <= _REPLY else Ending.STATEMENT


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text) if part]
