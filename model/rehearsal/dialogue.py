"""What the rehearsal engine's agent says: one conversation, from the greeting to the goodbye.

Owns the state of the conversation and the order of things: emergencies first, then what the caller
wants of the call (a person, an end, a repetition), then the answer to what was asked, then the script.
Knows no sound and no clock; it may block while a chat endpoint thinks, so run it off the event loop.

The order in which a turn is looked at is `_react`; read that first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from model.rehearsal import lines
from model.rehearsal.chat import Chat, ChatFailed, Message
from model.rehearsal.heard_text import read_digits, read_name
from model.rehearsal.intents import Turn, understand
from model.rehearsal.matcher import Matcher, words
from model.rehearsal.memory import Memory
from model.rehearsal.script import ScriptPlace
from model.rehearsal.slots import Slots, is_secret, just_asked, read_answer
from model.rehearsal.small_talk import SmallTalk
from model.rehearsal.speech_text import digit_by_digit, sentences, speakable
from model.wire import Answer, DoneReason, Question, SessionRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sentence:
    """Said next; figures are written as words already."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The agent is finished once all sentences before this were said."""

    reason: DoneReason
    target: str = ""
    """Name of the persona's transfer target, when the reason is `transfer`."""


Piece = str | End


class Dialogue:
    """One call's conversation.

    Use one method at a time. Each iterator may be dropped before its end, when the caller interrupts;
    tell `spoken` then what was heard. A reply without a sentence means: say nothing, go on listening.
    """

    def __init__(self, request: SessionRequest, matcher: Matcher, chat: Chat | None = None) -> None:
        self._request = request
        self._script = request.script
        self._chat = chat
        self._place = ScriptPlace(request.script, matcher)
        self._slots = Slots(request.script.questions)
        self._asking: Question | None = None
        self._pending: list[Answer] = []
        """Answers that wait until what they need is known."""
        self._memory = Memory()
        self._small_talk = SmallTalk(request.script, request.prompt)
        self._served = 0
        """Answers given so far."""
        self._from_script = False
        """Whether the last reply was an answer of the script."""
        self._aside = False
        """Whether the reply is only about hearing each other, so that "repeat that" means the one before."""
        self._read_back = ""
        """The question whose number was read back last, which the caller may now correct."""
        self._unclear = self._unknown = self._silences = 0
        self._holding = False

    def greeting(self) -> Iterator[Sentence | End]:
        """What is said first. Afterwards prepares the matcher, which may take a second."""
        yield from self._deliver([self._request.greeting or lines.GREETING])
        self._place.prepare()

    def reply(self, heard: str) -> Iterator[Sentence | End]:
        """The reply to a turn as recognised; empty text means that there was speech but no words."""
        turn = understand(heard)
        self._silences = 0
        self._memory.caller(turn.text)
        yield from self._deliver(self._react(turn))

    def still_there(self) -> Iterator[Sentence | End]:
        """After a long silence of the caller: asks, asks again, then says goodbye."""
        self._aside = True
        if self._holding:
            self._holding = False
            yield from self._deliver([lines.TAKE_TIME_STILL])
            return
        self._silences += 1
        if self._silences > len(lines.STILL_THERE):
            yield from self._deliver([lines.NOBODY_THERE, End("goodbye")])
        else:
            yield from self._deliver([lines.STILL_THERE[self._silences - 1]])

    def spoken(self, text: str, complete: bool) -> None:
        """How much of the last reply was heard, as said; `complete` if it was not cut off."""
        self._memory.spoken(text, complete)

    # The order of things

    def _react(self, turn: Turn) -> Iterator[Piece] | Sequence[Piece]:
        if urgent := self._place.urgent(turn):
            self._memory.offer = ""
            return self._state(urgent)
        if not turn.tokens:
            return self._not_understood()
        self._from_script, scripted_before = False, self._from_script
        offer, self._memory.offer = self._memory.offer, ""
        if scripted_before and self._place.yes_or_no(turn, self._memory.asked):
            offer = ""
        unheard, self._memory.unheard = self._memory.unheard, []
        self._unclear = 0
        for step in (self._about_the_call, self._about_the_offer, self._about_a_number, self._about_the_question):
            pieces = step(turn, offer, unheard)
            if pieces is not None:
                return pieces
        return self._about_anything(turn, offer, unheard)

    def _not_understood(self) -> list[Piece]:
        self._unclear += 1
        self._aside = True
        return [*self._small_talk.not_understood(self._unclear)]

    def _about_the_call(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """A person, the end of the call, a repetition, a pause."""
        if "person" in turn.intents and not (offer == "person" and turn.polarity < 0):
            return self._connect(turn)
        if "goodbye" in turn.intents:
            return self._goodbye(turn)
        if self._is_closing(turn, offer):
            meant = self._meant(turn)
            return self._state(meant[0]) if meant and meant[0].then == "hangup" else self._goodbye(turn)
        if "repeat" in turn.intents:
            self._memory.offer = offer
            return unheard or self._memory.said or [lines.WHAT_ELSE]
        if unheard and turn.intents & {"hum", "acknowledge", "resume"} and not turn.bare:
            self._memory.offer = offer
            return unheard
        if turn.intents & {"hold", "resume"}:
            self._memory.offer = offer
            self._aside = True
            self._holding = "hold" in turn.intents and "stop" not in turn.tokens
            return [lines.TAKE_TIME if self._holding else lines.GO_AHEAD]
        return None

    def _about_the_offer(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """Yes or no to "would you like to speak to a person", or to "anything else?"."""
        if not offer:
            return None
        if "hum" in turn.intents and not ("mm-hm" in turn.intents and offer == "person"):
            self._memory.offer = offer
            return []
        if offer == "person":
            if turn.polarity > 0 or "mm-hm" in turn.intents or ("please" in turn.tokens and len(turn.tokens) < 3):
                return self._connect(turn)
            if turn.bare and turn.polarity < 0:
                return [*([just_asked(self._asking)] if self._asking else [lines.NO_PERSON])]
        elif turn.bare and turn.polarity > 0 and not self._asking:
            return [lines.GO_AHEAD]
        return None

    def _about_the_question(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """The answer to what the agent asked for, or what kept the caller from giving it."""
        for name, value in self._slots.volunteered(turn).items():
            if self._asking is None or self._asking.name != name:
                self._slots.fill(self._slots.forget(name), value)
        question = self._asking
        if question is None:
            return None
        if "why_asked" in turn.intents:
            return [lines.WHY_ASKED, just_asked(question)]
        value = read_answer(question, turn)
        meant = self._meant(turn) if not value or question.kind == "words" else []
        if meant and meant[0].urgent:
            return self._state(meant[0])
        asks_back = bool(meant) and ("?" in turn.text or (turn.parts and not value))
        if value and not asks_back and not self._is_evasive(turn, question):
            self._pending += self._asked_beside(turn, question)
            return self._take(question, value)
        if meant:
            return self._put_off(meant, question)
        return self._insist(turn, question, unheard)

    def _asked_beside(self, turn: Turn, question: Question) -> list[Answer]:
        """What the caller asks in the same breath as answering: "May fifth. Where can I park?"."""
        asked = " ".join(part for part in turn.parts if part.endswith("?"))
        if not asked or question.kind == "words" or len(turn.parts) < 2:
            return []
        return [answer for answer in self._meant(understand(asked)) if answer not in self._pending]

    def _about_a_number(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """A number that was just read back is corrected or continued."""
        name, self._read_back = self._read_back, ""
        if not name:
            return None
        digits = read_digits(turn.text)
        only_digits = digits and not re.search(r"[a-z]{6,}", " ".join(turn.tokens).replace(digits, ""))
        question = self._slots.forget(name) if (turn.polarity < 0 and digits) or "wrong" in turn.intents else None
        if question and digits:
            return self._take(question, digits)
        if question:
            self._asking = question
            return [lines.SORRY, just_asked(question)]
        if self._asking is None and only_digits and turn.polarity == 0 and len(turn.tokens) <= len(digits) + 1:
            before = self._slots[name]
            return self._take(self._slots.forget(name), before + digits)
        return None

    def _about_anything(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Iterator[Piece] | Sequence[Piece]:
        meant = [] if lines.is_introduction(turn.text) else self._meant(turn)
        if meant and meant[0] is self._place.last and unheard and len(meant) == 1:
            return [lines.AS_I_SAID, *unheard]
        if self._chat and "hum" not in turn.intents and not (meant and meant[0].urgent):
            return self._converse(self._chat, meant, turn)
        return self._scripted(turn, meant, offer)

    def _scripted(self, turn: Turn, meant: list[Answer], offer: lines.Offer) -> Sequence[Piece]:
        if meant:
            self._unknown = 0
            return self._give(meant)
        if name := lines.is_introduction(turn.text) and read_name(turn.text, asked=True):
            return [lines.THANK_YOU_NAME.format(name=name.split()[0]), lines.HOW_HELP]
        if small_talk := self._small_talk.reply(turn, offer, served=self._served > 0):
            return small_talk
        if reply := self._place.any_reply():
            return self._give([reply])
        if number := self._small_talk.stray_number(turn):
            return number
        self._unknown += 1
        return self._small_talk.not_known(again=self._unknown > 1)

    def _meant(self, turn: Turn) -> list[Answer]:
        return self._place.meant(turn, self._memory.asked)

    # Giving answers

    def _give(self, answers: Sequence[Answer]) -> list[Piece]:
        """Say the answers, or first ask for what they need."""
        self._pending += [answer for answer in answers if answer not in self._pending]
        return self._proceed([])

    def _proceed(self, said: list[Piece]) -> list[Piece]:
        """Go on with what waits: ask for the next thing it needs, or say it."""
        self._asking = None
        while self._pending:
            answer = self._pending[0]
            if missing := self._slots.missing(answer.needs):
                self._asking = missing[0]
                return [*said, missing[0].ask or just_asked(missing[0])]
            self._pending.pop(0)
            said += self._state(answer)
            if isinstance(said[-1], End):
                self._pending.clear()
        return [*said, *self._anything_else(said)]

    def _state(self, answer: Answer) -> list[Piece]:
        """An answer's words, and what it does. Needs nothing."""
        self._place.last = answer
        self._served += 1
        self._from_script = True
        said: list[Piece] = [self._slots.fill_in(answer.say)]
        if answer.then == "hangup":
            return [*said, End("goodbye")]
        if answer.then == "transfer":
            target = answer.target or self._script.person
            return [*said, End("transfer", target)] if target else [*said, self._script.closed]
        if answer.urgent:
            self._pending.clear()
            self._asking = None
        return said

    def _anything_else(self, said: Sequence[Piece]) -> list[Piece]:
        """The question that invites more, after a short answer that leaves nothing open."""
        text = " ".join(piece for piece in said if isinstance(piece, str))
        if not said or isinstance(said[-1], End) or text.endswith("?") or self._place.awaits_reply():
            return []
        if self._memory.offered_more or len(words(text)) > lines.LONG:
            return []
        return [lines.ANYTHING_ELSE]

    def _take(self, question: Question, value: str) -> list[Piece]:
        """Note an answer, read a number back, and go on."""
        self._slots.fill(question, value)
        self._unknown = 0
        waiting = self._pending[0] if self._pending else None
        is_last = waiting is not None and not self._slots.missing(waiting.needs)
        says_it = is_last and waiting is not None and f"{{{question.name}}}" in waiting.say
        said: list[Piece] = []
        if question.kind == "digits":
            self._read_back = question.name
            if is_secret(question.name + " " + question.ask):
                said = [lines.THANK_YOU]
            elif not says_it:
                said = [lines.READ_BACK.format(number=digit_by_digit(value))]
        elif not says_it and not (waiting and is_last and lines.opens_politely(waiting.say)):
            said = [lines.THANK_YOU_NAME.format(name=value.split()[0]) if question.kind == "name" else lines.THANK_YOU]
        if waiting is None:
            self._asking = None
            return [*said, lines.WHAT_NEXT]
        return self._proceed(said)

    def _put_off(self, meant: Sequence[Answer], question: Question) -> list[Piece]:
        """The caller asks something instead of answering: say what can be said, then ask again."""
        said: list[Piece] = []
        for answer in meant:
            if self._slots.missing(answer.needs):
                if answer not in self._pending:
                    self._pending.append(answer)
                continue
            said += self._state(answer)
        if said and isinstance(said[-1], End):
            return said
        return [*(said or [lines.FIRST]), just_asked(question)]

    def _is_evasive(self, turn: Turn, question: Question) -> bool:
        """Whether a reply, though it has words, gives no answer to the question."""
        if question.kind != "words":
            return False
        return bool(turn.intents & {"cannot_say", "why_asked", "help", "hello", "wellbeing", "hear_me", "robot", "hum"})

    def _insist(self, turn: Turn, question: Question, unheard: Sequence[str]) -> Sequence[Piece]:
        """No answer to the question: find out why, ask again, in the end offer a person."""
        ask = just_asked(question)
        if "hum" in turn.intents:
            return []
        if "cannot_say" in turn.intents or (turn.bare and turn.polarity < 0) or "never_mind" in turn.intents:
            self._asking = None
            self._pending.clear()
            return [lines.CANNOT_WITHOUT, *self._small_talk.offer_person()]
        if (turn.bare and turn.polarity > 0) or "acknowledge" in turn.intents:
            return [lines.GO_AHEAD]
        if small := self._small_talk.reply(turn, "", served=self._served > 0, asking=True):
            return [*small, ask]
        if unheard:
            return [ask]
        self._unknown += 1
        if self._unknown >= 2 and self._script.person:
            self._unknown = 0
            return [lines.NOT_GOT_AGAIN, *self._small_talk.offer_person()]
        return [lines.NOT_GOT, ask]

    # Without the script

    def _connect(self, turn: Turn) -> list[Piece]:
        """Transfer, to whom the script says for these words, else to its person."""
        wanted = self._place.transfer(turn) if "person" in turn.intents else None
        if wanted and not self._slots.missing(wanted.needs):
            return self._state(wanted)
        if self._script.person:
            return [self._script.transferring, End("transfer", self._script.person)]
        return [self._script.closed, lines.WHAT_ELSE]

    def _is_closing(self, turn: Turn, offer: lines.Offer) -> bool:
        """Whether the caller wants nothing more, though without a goodbye."""
        if "closing" in turn.intents:
            return self._asking is None or self._asking.kind != "words" or turn.polarity < 0
        return offer == "more" and turn.bare and turn.polarity < 0

    def _goodbye(self, turn: Turn) -> list[Piece]:
        """Say goodbye, after answering what was asked in the same breath, if that needs nothing more."""
        said: list[Piece] = []
        asked = " ".join(part for part in turn.parts if part.endswith("?"))
        if asked and self._chat is None:
            answers = [a for a in self._meant(understand(asked)) if not self._slots.missing(a.needs)]
            said = [piece for answer in answers for piece in self._state(answer)]
            if said and isinstance(said[-1], End):
                return said
        return [*said, self._script.goodbye, End("goodbye")]

    def _converse(self, chat: Chat, meant: list[Answer], turn: Turn) -> Iterator[Piece]:
        """The chat endpoint's reply; the script's if it fails."""
        messages = [Message("system", lines.chat_instructions(self._request.prompt, bool(self._script.person)))]
        said = 0
        try:
            for sentence in chat.stream([*messages, *self._memory.history]):
                text, mark = lines.marked(sentence)
                if text:
                    said += 1
                    yield text
                if mark == "transfer" and self._script.person:
                    if not said:
                        yield self._script.transferring
                    yield End("transfer", self._script.person)
                    return
                if mark == "goodbye":
                    yield End("goodbye")
                    return
        except ChatFailed as failure:
            log.warning("call %s: %s", self._request.call_id, failure)
            yield from (
                self._scripted(turn, meant, "") if not said else [lines.LOST_THREAD, *self._small_talk.offer_person()]
            )

    # Saying it

    def _deliver(self, pieces: Iterator[Piece] | Sequence[Piece]) -> Iterator[Sentence | End]:
        """Cut into sentences, make them speakable, and keep what was said."""
        if not isinstance(pieces, Iterator):
            cut = [part for piece in pieces for part in ([piece] if isinstance(piece, End) else sentences(piece))]
            ready = [part if isinstance(part, End) else Sentence(speakable(part)) for part in cut]
            # Noted before the first is said: an interrupted caller may drop the iterator at any point.
            self._memory.agent([part.text for part in ready if isinstance(part, Sentence)], self._aside)
            self._aside = False
            yield from ready
            return
        self._memory.agent_begins()
        for piece in pieces:
            if isinstance(piece, End):
                yield piece
                continue
            for sentence in map(speakable, sentences(piece)):
                self._memory.agent([sentence])
                yield Sentence(sentence)
