"""The dialogue with a chat endpoint in the script's place, and without it when it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.rehearsal.chat import Chat, ChatFailed, Message
from model.rehearsal.dialogue import Dialogue
from model.rehearsal.matcher import LexicalMatcher
from model.rehearsal.pieces import Wanted, always
from model.wire import SessionRequest
from tests.model.rehearsal.conversation import GOODBYE, TO_PERSON, Call

from .confusion import BANK


class ScriptedChat(Chat):
    """Says what it is given; the real one has its own tests."""

    def __init__(self, *sentences: str | ChatFailed) -> None:
        self._sentences = sentences
        self.asked: list[Message] = []

    def stream(self, messages: Sequence[Message], wanted: Wanted = always) -> Iterator[str]:
        self.asked = list(messages)
        for sentence in self._sentences:
            if isinstance(sentence, ChatFailed):
                raise sentence
            yield sentence


def with_chat(*sentences: str | ChatFailed) -> tuple[Call, ScriptedChat]:
    chat = ScriptedChat(*sentences)
    request = SessionRequest("call", prompt="You enjoy banking.", greeting="Hello.", script=BANK)
    return Call(Dialogue(request, LexicalMatcher(), chat)), chat


def test_a_chat_endpoint_speaks_instead_of_the_script() -> None:
    call, chat = with_chat("We close at 5 PM.", "Anything else?")
    assert call.say("What are your opening hours?") == "We close at five PM. Anything else?"
    assert [message.role for message in chat.asked] == ["system", "assistant", "user"]
    assert "You enjoy banking." in chat.asked[0].content
    call.interrupted(after="We close")
    call.say("Say that differently please")
    assert chat.asked[-2].content == "We close ... (the caller interrupted here)"
    assert call.say("No, that is all. Thank you.") == GOODBYE


def test_a_chat_reply_that_nobody_heard_is_not_in_what_the_endpoint_is_told() -> None:
    call, chat = with_chat("We close at 5 PM.")
    call.say("What are your opening hours?")
    call.interrupted(after="")
    call.say("What are your opening hours? On Saturday I mean")
    assert [message.role for message in chat.asked] == ["system", "assistant", "user"]


def test_a_chat_endpoint_may_transfer_and_end() -> None:
    assert with_chat("One moment. [transfer]")[0].say("It is complicated") == "One moment. <transfer representative>"
    assert with_chat("Take care. [goodbye]", "More.")[0].say("I think we are done") == "Take care. <goodbye>"
    assert with_chat("[transfer]")[0].say("It is complicated") == TO_PERSON


def test_yes_to_a_person_offered_by_chat_is_a_transfer() -> None:
    assert (
        with_chat("I can't see that. Shall I connect you to a colleague?")[0].say("It is broken", "Yes please")
        == TO_PERSON
    )


def test_without_the_chat_endpoint_the_script_answers() -> None:
    call, _ = with_chat(ChatFailed("down"))
    assert call.say("What are your opening hours?").startswith("We are open from nine AM")
    assert call.say("Tell me a joke") == "I'm sorry, I don't know that. Would you like to speak to a person?"
    assert call.say("Yes.") == TO_PERSON


def test_a_chat_endpoint_that_stops_in_the_middle() -> None:
    call, _ = with_chat("We close at 5 PM.", ChatFailed("down"))
    assert (
        call.say("And your hours?")
        == "We close at five PM. I'm sorry, I lost my thread. Would you like to speak to a person?"
    )
