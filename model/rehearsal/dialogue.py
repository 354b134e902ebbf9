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

from model.rehearsal import lines
from model.rehearsal.chat import Chat, ChatFailed
from model.rehearsal.chat_reply import chat_reply
from model.rehearsal.course import Course
from model.rehearsal.heard_text import read_digits, read_name
from model.rehearsal.intents import Turn, understand
from model.rehearsal.matcher import Matcher, words
from model.rehearsal.pieces import End, Piece, Sentence, Wanted, always
from model.rehearsal.script import ScriptPlace
from model.rehearsal.slots import Slots, is_secret, just_asked, read_answer
from model.rehearsal.small_talk import SmallTalk
from model.rehearsal.speech_text import digit_by_digit, sentences, speakable
from model.wire import Answer, Question, SessionRequest

log = logging.getLogger(__name__)


class Dialogue:
    """One call's conversation.

    Use one method at a time. Each iterator may be dropped before its end, when the caller interrupts;
    tell `spoken` then what was heard. A reply without a sentence means: say nothing, go on listening.
    """

    def __init__(self, request: SessionRequest, matcher: Matcher, chat: Chat | None = None) -> None:
        self._request = request
        self._script = request.script
        self._chat = chat
        self._small_talk = SmallTalk(request.script, request.prompt)
        self._course = Course(ScriptPlace(request.script, matcher), Slots(request.script.questions))
        self._before = self._course
        """What the course was before the last reply."""
        self._wanted: Wanted = always

    def greeting(self) -> Iterator[Sentence | End]:
        """What is said first. Afterwards has the matcher prepared."""
        self._before = self._course.copy()
        yield from self._deliver([self._request.greeting or lines.GREETING])
        self._course.place.prepare()

    def reply(self, heard: str, wanted: Wanted = always) -> Iterator[Sentence | End]:
        """The reply to a turn as recognised; empty text means that there was speech but no words.

        It may end early, and says nothing more, when `wanted` no longer holds.
        """
        self._before = self._course.copy()
        self._wanted = wanted
        turn = understand(heard)
        self._course.silences = 0
        self._course.memory.caller(turn.text)
        yield from self._deliver(self._react(turn))

    def still_there(self) -> Iterator[Sentence | End]:
        """After a long silence of the caller: asks, asks again, then says goodbye."""
        self._before = self._course.copy()
        self._course.aside = True
        if self._course.holding:
            self._course.holding = False
            yield from self._deliver([lines.TAKE_TIME_STILL])
            return
        self._course.silences += 1
        if self._course.silences > len(lines.STILL_THERE):
            yield from self._deliver([lines.NOBODY_THERE, End("goodbye")])
        else:
            yield from self._deliver([lines.STILL_THERE[self._course.silences - 1]])

    def spoken(self, text: str, complete: bool) -> None:
        """How much of the last reply was heard, as said; `complete` if it was not cut off.

        One of which nothing was heard is taken back: the next turn then begins with what it replied to.
        """
        if not text and not complete:
            self._course = self._before
        self._course.memory.spoken(text, complete)

    # The order of things

    def _react(self, turn: Turn) -> Iterator[Piece] | Sequence[Piece]:
        if urgent := self._course.place.urgent(turn):
            self._course.memory.offer = ""
            return self._state(urgent)
        if not turn.tokens:
            return self._not_understood()
        self._course.from_script, scripted_before = False, self._course.from_script
        offer, self._course.memory.offer = self._course.memory.offer, ""
        if scripted_before and self._course.place.yes_or_no(turn, self._course.memory.asked):
            offer = ""
        unheard, self._course.memory.unheard = self._course.memory.unheard, []
        self._course.unclear = 0
        for step in (self._about_the_call, self._about_the_offer, self._about_a_number, self._about_the_question):
            pieces = step(turn, offer, unheard)
            if pieces is not None:
                return pieces
        return self._about_anything(turn, offer, unheard)

    def _not_understood(self) -> list[Piece]:
        self._course.unclear += 1
        self._course.aside = True
        return [*self._small_talk.not_understood(self._course.unclear)]

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
            self._course.memory.offer = offer
            return unheard or self._course.memory.said or [lines.WHAT_ELSE]
        if unheard and turn.intents & {"hum", "acknowledge", "resume"} and not turn.bare:
            self._course.memory.offer = offer
            return unheard
        if turn.intents & {"hold", "resume"}:
            self._course.memory.offer = offer
            self._course.aside = True
            self._course.holding = "hold" in turn.intents and "stop" not in turn.tokens
            return [lines.TAKE_TIME if self._course.holding else lines.GO_AHEAD]
        return None

    def _about_the_offer(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """Yes or no to "would you like to speak to a person", or to "anything else?"."""
        if not offer:
            return None
        if "hum" in turn.intents and not ("mm-hm" in turn.intents and offer == "person"):
            self._course.memory.offer = offer
            return []
        if offer == "person":
            if turn.polarity > 0 or "mm-hm" in turn.intents or ("please" in turn.tokens and len(turn.tokens) < 3):
                return self._connect(turn)
            if turn.bare and turn.polarity < 0:
                return [*([just_asked(self._course.asking)] if self._course.asking else [lines.NO_PERSON])]
        elif turn.bare and turn.polarity > 0 and not self._course.asking:
            return [lines.GO_AHEAD]
        return None

    def _about_the_question(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """The answer to what the agent asked for, or what kept the caller from giving it."""
        for name, value in self._course.slots.volunteered(turn).items():
            if self._course.asking is None or self._course.asking.name != name:
                self._course.slots.fill(self._course.slots.forget(name), value)
        question = self._course.asking
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
            self._course.pending += self._asked_beside(turn, question)
            return self._take(question, value)
        if meant:
            return self._put_off(meant, question)
        return self._insist(turn, question, unheard)

    def _asked_beside(self, turn: Turn, question: Question) -> list[Answer]:
        """What the caller asks in the same breath as answering: "May fifth. Where can I park?"."""
        asked = " ".join(part for part in turn.parts if part.endswith("?"))
        if not asked or question.kind == "words" or len(turn.parts) < 2:
            return []
        return [answer for answer in self._meant(understand(asked)) if answer not in self._course.pending]

    def _about_a_number(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Sequence[Piece] | None:
        """A number that was just read back is corrected or continued."""
        name, self._course.read_back = self._course.read_back, ""
        if not name:
            return None
        digits = read_digits(turn.text)
        only_digits = digits and not re.search(r"[a-z]{6,}", " ".join(turn.tokens).replace(digits, ""))
        question = (
            self._course.slots.forget(name) if (turn.polarity < 0 and digits) or "wrong" in turn.intents else None
        )
        if question and digits:
            return self._take(question, digits)
        if question:
            self._course.asking = question
            return [lines.SORRY, just_asked(question)]
        if self._course.asking is None and only_digits and turn.polarity == 0 and len(turn.tokens) <= len(digits) + 1:
            before = self._course.slots[name]
            return self._take(self._course.slots.forget(name), before + digits)
        return None

    def _about_anything(self, turn: Turn, offer: lines.Offer, unheard: list[str]) -> Iterator[Piece] | Sequence[Piece]:
        meant = [] if lines.is_introduction(turn.text) else self._meant(turn)
        if meant and meant[0] is self._course.place.last and unheard and len(meant) == 1:
            return [lines.AS_I_SAID, *unheard]
        if self._chat and "hum" not in turn.intents and not (meant and meant[0].urgent):
            return self._converse(self._chat, meant, turn)
        return self._scripted(turn, meant, offer)

    def _scripted(self, turn: Turn, meant: list[Answer], offer: lines.Offer) -> Sequence[Piece]:
        if meant:
            self._course.unknown = 0
            return self._give(meant)
        if name := lines.is_introduction(turn.text) and read_name(turn.text, asked=True):
            return [lines.THANK_YOU_NAME.format(name=name.split()[0]), lines.HOW_HELP]
        if small_talk := self._small_talk.reply(turn, offer, served=self._course.served > 0):
            return small_talk
        if reply := self._course.place.any_reply():
            return self._give([reply])
        if number := self._small_talk.stray_number(turn):
            return number
        self._course.unknown += 1
        return self._small_talk.not_known(again=self._course.unknown > 1)

    def _meant(self, turn: Turn) -> list[Answer]:
        return self._course.place.meant(turn, self._course.memory.asked)

    # Giving answers

    def _give(self, answers: Sequence[Answer]) -> list[Piece]:
        """Say the answers, or first ask for what they need."""
        self._course.pending += [answer for answer in answers if answer not in self._course.pending]
        return self._proceed([])

    def _proceed(self, said: list[Piece]) -> list[Piece]:
        """Go on with what waits: ask for the next thing it needs, or say it."""
        self._course.asking = None
        while self._course.pending:
            answer = self._course.pending[0]
            if missing := self._course.slots.missing(answer.needs):
                self._course.asking = missing[0]
                return [*said, missing[0].ask or just_asked(missing[0])]
            self._course.pending.pop(0)
            said += self._state(answer)
            if isinstance(said[-1], End):
                self._course.pending.clear()
        return [*said, *self._anything_else(said)]

    def _state(self, answer: Answer) -> list[Piece]:
        """An answer's words, and what it does. Needs nothing."""
        self._course.place.last = answer
        self._course.served += 1
        self._course.from_script = True
        said: list[Piece] = [self._course.slots.fill_in(answer.say)]
        if answer.then == "hangup":
            return [*said, End("goodbye")]
        if answer.then == "transfer":
            target = answer.target or self._script.person
            return [*said, End("transfer", target)] if target else [*said, self._script.closed]
        if answer.urgent:
            self._course.pending.clear()
            self._course.asking = None
        return said

    def _anything_else(self, said: Sequence[Piece]) -> list[Piece]:
        """The question that invites more, after a short answer that leaves nothing open."""
        text = " ".join(piece for piece in said if isinstance(piece, str))
        if not said or isinstance(said[-1], End) or text.endswith("?") or self._course.place.awaits_reply():
            return []
        if self._course.memory.offered_more or len(words(text)) > lines.LONG:
            return []
        return [lines.ANYTHING_ELSE]

    def _take(self, question: Question, value: str) -> list[Piece]:
        """Note an answer, read a number back, and go on."""
        self._course.slots.fill(question, value)
        self._course.unknown = 0
        waiting = self._course.pending[0] if self._course.pending else None
        is_last = waiting is not None and not self._course.slots.missing(waiting.needs)
        says_it = is_last and waiting is not None and f"{{{question.name}}}" in waiting.say
        said: list[Piece] = []
        if question.kind == "digits":
            self._course.read_back = question.name
            if is_secret(question.name + " " + question.ask):
                said = [lines.THANK_YOU]
            elif not says_it:
                said = [lines.READ_BACK.format(number=digit_by_digit(value))]
        elif not says_it and not (waiting and is_last and lines.opens_politely(waiting.say)):
            said = [lines.THANK_YOU_NAME.format(name=value.split()[0]) if question.kind == "name" else lines.THANK_YOU]
        if waiting is None:
            self._course.asking = None
            return [*said, lines.WHAT_NEXT]
        return self._proceed(said)

    def _put_off(self, meant: Sequence[Answer], question: Question) -> list[Piece]:
        """The caller asks something instead of answering: say what can be said, then ask again."""
        said: list[Piece] = []
        for answer in meant:
            if self._course.slots.missing(answer.needs):
                if answer not in self._course.pending:
                    self._course.pending.append(answer)
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
            self._course.asking = None
            self._course.pending.clear()
            return [lines.CANNOT_WITHOUT, *self._small_talk.offer_person()]
        if (turn.bare and turn.polarity > 0) or "acknowledge" in turn.intents:
            return [lines.GO_AHEAD]
        if small := self._small_talk.reply(turn, "", served=self._course.served > 0, asking=True):
            return [*small, ask]
        if unheard:
            return [ask]
        self._course.unknown += 1
        if self._course.unknown >= 2 and self._script.person:
            self._course.unknown = 0
            return [lines.NOT_GOT_AGAIN, *self._small_talk.offer_person()]
        return [lines.NOT_GOT, ask]

    # Without the script

    def _connect(self, turn: Turn) -> list[Piece]:
        """Transfer, to whom the script says for these words, else to its person."""
        wanted = self._course.place.transfer(turn) if "person" in turn.intents else None
        if wanted and not self._course.slots.missing(wanted.needs):
            return self._state(wanted)
        if self._script.person:
            return [self._script.transferring, End("transfer", self._script.person)]
        return [self._script.closed, lines.WHAT_ELSE]

    def _is_closing(self, turn: Turn, offer: lines.Offer) -> bool:
        """Whether the caller wants nothing more, though without a goodbye."""
        if "closing" in turn.intents:
            return self._course.asking is None or self._course.asking.kind != "words" or turn.polarity < 0
        return offer == "more" and turn.bare and turn.polarity < 0

    def _goodbye(self, turn: Turn) -> list[Piece]:
        """Say goodbye, after answering what was asked in the same breath, if that needs nothing more."""
        said: list[Piece] = []
        asked = " ".join(part for part in turn.parts if part.endswith("?"))
        if asked and self._chat is None:
            answers = [a for a in self._meant(understand(asked)) if not self._course.slots.missing(a.needs)]
            said = [piece for answer in answers for piece in self._state(answer)]
            if said and isinstance(said[-1], End):
                return said
        return [*said, self._script.goodbye, End("goodbye")]

    def _converse(self, chat: Chat, meant: list[Answer], turn: Turn) -> Iterator[Piece]:
        """The chat endpoint's reply; the script's if it fails."""
        said = False
        try:
            for piece in chat_reply(chat, self._request, self._course.memory.history, self._wanted):
                said = True
                yield piece
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
            self._course.memory.agent([part.text for part in ready if isinstance(part, Sentence)], self._course.aside)
            self._course.aside = False
            yield from ready
            return
        self._course.memory.agent_begins()
        for piece in pieces:
            if isinstance(piece, End):
                yield piece
                continue
            for sentence in map(speakable, sentences(piece)):
                self._course.memory.agent([sentence])
                yield Sentence(sentence)
