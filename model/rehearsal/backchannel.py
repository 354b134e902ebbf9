"""Which words of a caller leave the floor to the agent, and whether a turn sounds finished. Pure text."""

from __future__ import annotations

import re


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


def sounds_finished(text: str) -> bool:
    """Whether a speaker who said this and paused is probably done.

    A trailing comma, dash or dots, a word that wants another, and digits (there may be more) are not.
    """
    text = text.strip()
    words = _words(text)
    if not words or text.endswith(("...", "…", ",", "-")):
        return False
    if text.endswith("?"):
        return True
    return words[-1] not in (_UNFINISHED if text.endswith((".", "!")) else _OPEN_ENDED) and not words[-1].isdigit()
