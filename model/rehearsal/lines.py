"""What the agent says outside its persona's script, and how such lines are recognised when said.

Owns wording only. Every line is true of any persona: none promises or reports an action.
"""

from __future__ import annotations

import re
from typing import Literal

from model.rehearsal.intents import Intent, Turn, polarity
from model.rehearsal.matcher import words
from model.rehearsal.speech_text import sentences
from model.wire import Answer

Offer = Literal["", "person", "more"]

LONG = 40
"""Words of an answer from which on it is not followed by another question."""

GREETING = "Hello. How can I help you?"
HOW_HELP = "How can I help you?"
HELLO = "Hello."
WELL = "I'm doing well, thank you."
WELCOME = "You're welcome."
I_HEAR = "Yes, I'm here."
ALL_RIGHT = "All right."
GO_AHEAD = "Please go ahead."
WHAT_ELSE = "What else can I help you with?"
WHAT_NEXT = "What can I help you with?"
ANYTHING_ELSE = "Is there anything else I can help you with?"
NO_PERSON = "All right. What else can I help you with?"
OFFER_PERSON = "Would you like to speak to a person?"
UNCLEAR = ("I'm sorry, I didn't catch that. Could you say it again?", "I'm sorry, could you say that once more?")
STILL_UNCLEAR = "I'm sorry, I still can't make that out."
NOT_GOT = "I'm sorry, I didn't get that."
NOT_GOT_AGAIN = "I'm sorry, I still didn't get that."
UNKNOWN_AGAIN = "I'm afraid I don't know that either."
SORRY = "I'm sorry."
SORRY_TROUBLE = "I'm sorry about the trouble."
THANK_YOU = "Thank you."
THANK_YOU_NAME = "Thank you, {name}."
READ_BACK = "Thank you. I have {number}."
HEARD_NUMBER = "I heard {number}, but I don't know what to do with that number."
KEEP_SECRET = "Please keep that code to yourself. I don't need it."
FIRST = "I'll come to that. First I need one thing."
WHY_ASKED = "I need it to find the right answer for you."
CANNOT_WITHOUT = "All right. Without it I can't help with that."
AS_I_SAID = "As I was saying."
TAKE_TIME = "Of course, take your time."
TAKE_TIME_STILL = "Take your time, I'm still here."
STILL_THERE = ("Are you still there?", "I can't hear you. If you are there, please say something.")
NOBODY_THERE = "I can't hear anyone, so I will end the call now. Goodbye."
LOST_THREAD = "I'm sorry, I lost my thread."

_OFFERS_MORE = re.compile(r"\b(?:anything|something|what) else\b", re.I)
_OFFERS_PERSON = re.compile(
    r"\b(?:would you like|do you want|shall i|should i|may i|can i|want me)\b.*"
    r"\b(?:speak|talk|transfer|connect|put you through|person|human)\b",
    re.I,
)
_OPENING = re.compile(
    r"^(?:(?:hi|hello|hey|good (?:morning|afternoon|evening)|um+|uh+|er|oh|well|so|okay|ok|and|yeah|yes|no|great"
    r"|right|thanks"
    r"|thank you|sorry|please|all right|alright|actually|there|wait|excuse me)\b[\s,.!;:-]*)+",
    re.I,
)
_SELF_INTRODUCTION = re.compile(
    r"^(?i:my name is|this is|i'm|i am) [A-Z][\w'-]+(?: [A-Z][\w'-]+)*\b[\s,.!;:-]*(?:and )?"
)
_ROLE = re.compile(r"\b[Yy]ou work for (?P<organisation>[^.]+?) which is an? [^.]+? and your name is (?P<name>[^.]+)\.")
_NAMED = re.compile(r"\b[Yy]our name is (?P<name>[A-Z][\w'-]+(?: [A-Z][\w'-]+)*)")
_MARK = re.compile(r"\s*\[(transfer|goodbye)\]\s*", re.I)


def offer_in(sentence: str) -> Offer:
    """What a yes to this sentence would accept."""
    if not sentence.rstrip().endswith("?"):
        return ""
    last = sentences(sentence)[-1]
    return "person" if _OFFERS_PERSON.search(last) else "more" if _OFFERS_MORE.search(last) else ""


def person_offer(unknown: str) -> str:
    """The sentence that offers a person, in the script's words if it has some."""
    last = (sentences(unknown) or [""])[-1]
    return last if offer_in(last) == "person" else OFFER_PERSON


def without_offer(text: str) -> str:
    """Text without sentences that offer a person: there is none."""
    return " ".join(sentence for sentence in sentences(text) if offer_in(sentence) != "person")


def without_opening(text: str) -> str:
    """What was said after "Hi, good morning, my name is Ann"; all of it if nothing is left."""
    bare = _SELF_INTRODUCTION.sub("", _OPENING.sub("", text))
    return bare if words(bare) else text


def is_introduction(text: str) -> bool:
    """Whether a turn says only who is calling."""
    return not words(_SELF_INTRODUCTION.sub("", _OPENING.sub("", text))) and bool(words(_OPENING.sub("", text)))


def small_talk(turn: Turn, prompt: str) -> str:
    """The reply to a greeting, a thank-you and the like; "" if the turn is none."""
    replies: tuple[tuple[Intent, str], ...] = (
        ("robot", robot(prompt)),
        ("who", who(prompt)),
        ("hear_me", I_HEAR),
        ("wellbeing", WELL),
        ("hello", HELLO),
        ("thanks", WELCOME),
        ("never_mind", ALL_RIGHT),
    )
    return next((line for intent, line in replies if intent in turn.intents), "")


def side(answer: Answer) -> int:
    """Whether an answer's examples are a yes (1), a no (-1) or neither."""
    sides = [polarity(tuple(words(phrase))) for phrase in answer.when]
    return (sum(sides) > 0) - (sum(sides) < 0)


def opens_politely(say: str) -> bool:
    """Whether an answer starts so that a thank-you before it would be one too many."""
    return bool(re.match(r"(?:thank|thanks|great|perfect|all right|okay|of course)\b", say, re.I))


def who(prompt: str) -> str:
    """Who is speaking, as far as the persona's prompt says it in the usual form."""
    if match := _ROLE.search(prompt):
        return f"This is {match['name']}, an automated assistant at {match['organisation']}."
    if match := _NAMED.search(prompt):
        return f"This is {match['name']}, an automated assistant."
    return "I'm an automated assistant."


def robot(prompt: str) -> str:
    """The honest answer to whether this is a person."""
    match = _ROLE.search(prompt)
    return "I'm not a person. I'm an automated assistant" + (f" at {match['organisation']}." if match else ".")


def marked(sentence: str) -> tuple[str, str]:
    """A chat reply's sentence and the mark in it, if any: "One moment. [transfer]" -> One moment., transfer."""
    match = _MARK.search(sentence)
    return (_MARK.sub(" ", sentence).strip(), match[1].lower()) if match else (sentence, "")


def chat_instructions(prompt: str, can_transfer: bool) -> str:
    """The system message: the persona's prompt and what holds for any telephone call."""
    rules = (
        "You are on the telephone. Reply with one to three short spoken sentences, no lists, no markup, no emoji. "
        "Say plainly when you do not know something. You can only talk: never say that you did, approved, booked, "
        "changed or sent anything. Read numbers back digit by digit. When the caller says goodbye, say goodbye and "
        "end with [goodbye]."
    )
    person = (
        " If you cannot help, ask whether the caller would like to speak to a person; if they want that, say that "
        "you are connecting them and end with [transfer]."
    )
    return "\n\n".join(part for part in (prompt, rules + (person if can_transfer else "")) if part)
