"""A reply by a chat endpoint, as one call needs it: what it is told, and what its marks mean.

Owns the instructions and the marks. Knows no script; what is said when the endpoint fails is the dialogue's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.rehearsal import lines
from model.rehearsal.chat import Chat, Message
from model.rehearsal.pieces import End, Piece, Wanted
from model.wire import SessionRequest


def chat_reply(chat: Chat, request: SessionRequest, history: Sequence[Message], wanted: Wanted) -> Iterator[Piece]:
    """The reply to the last message of `history`, sentence by sentence. Raises ChatFailed, maybe after some of it."""
    person = request.script.person
    system = Message("system", lines.chat_instructions(request.prompt, bool(person)))
    said = False
    for sentence in chat.stream([system, *history], wanted):
        text, mark = lines.marked(sentence)
        if text:
            said = True
            yield text
        if mark == "transfer" and person:
            if not said:
                yield request.script.transferring
            yield End("transfer", person)
            return
        if mark == "goodbye":
            yield End("goodbye")
            return
