"""What kind of turn a caller took, as far as no script is needed to tell: goodbye, yes, "pardon?" ...

Owns the wording callers use for these. Pure. Knows no script and no state; what a turn means at a
point of the conversation is decided in `dialogue`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from model.rehearsal.matcher import words
from model.rehearsal.speech_text import sentences

Intent = Literal[
    "person", "goodbye", "closing", "repeat", "resume", "hold", "hum", "mm-hm", "acknowledge", "thanks", "hello",
    "wellbeing", "robot", "who", "hear_me", "never_mind", "complaint", "help", "cannot_say", "why_asked", "wrong"
]  # fmt: skip

_PERSON = r"(?:person|human|human being|agent|representative|rep|operator|someone|somebody|anyone|manager|supervisor"
_PERSON += r"|colleague|anybody|live agent|customer service|advisor|staff)"
_FILL = (
    r"(?:(?:um|uh|er|oh|well|so|okay|ok|and|but|hi|hello|hey|sorry|please|no|yes|yeah|wait|stop|thanks|thank you) )*"
)
_POLITE = (
    r"(?: please| thanks| thank you| then| now| sir| ma'am| for now| today| okay| bye| very much| so much| a lot)*"
)

# Patterns see lower-case words without punctuation, contractions written out (`matcher.words`).
_ANYWHERE: tuple[tuple[Intent, str], ...] = (
    (
        "person",
        rf"(?<!not want to )(?<!rather not )\b(?:talk|speak|chat|connect(?: me)?|transfer(?: me)?|put me through"
        rf"|get me"
        rf"|give me|switch me|pass me|reach)\b(?: \w+){{0,2}}? (?:a |an |your |the |some |any )?(?:\w+ )?{_PERSON}\b"
        rf"|\b(?:need|want|get|is there|like) (?:a|an|some) (?:real|live|actual|human) (?:\w+ )?{_PERSON}\b"
        r"|\bnot want to (?:talk|speak) (?:to|with) (?:a |this )?(?:\w+ )?(?:robot|machine|computer|bot|recording)\b"
        r"|\b(?:talk|speak) (?:to|with) (?:a )?(?:real|live|actual) (?:person|human|one)\b|\btransfer me\b"
        r"|\bput me through\b"
        r"|\b(?:need|want) (?:a|an|to see a) (?:human|real person|person|representative|agent)\b"
        rf"|\bis there (?:a |any )?{_PERSON} (?:\w+ ){{0,3}}(?:talk|speak)\b",
    ),
    (
        "repeat",
        r"\b(?:can|could|would|will) you (?:please )?(?:repeat|say (?:that|it|this)(?: \w+)? (?:again|once more))\b"
        r"|\b(?:repeat|say) (?:that|it|this|what you said|the (?:last|first) \w+)(?: \w+){0,2} (?:again|once more"
        r"|one more time)\b"
        r"|\b(?:did not|could not|can not|do not) (?:quite |really )?(?:hear|catch|get|understand) (?:what you said"
        r"|that|it"
        r"|you|what you are saying)(?: \w+)?$|\bwhat did you (?:just )?say\b|\bwhat was that\b|\bspeak (?:up|slower"
        r"|more slowly)\b"
        r"|\bslow down\b",
    ),
    (
        "robot",
        r"\b(?:are you|is this|am i (?:talking|speaking) (?:to|with)|you are) (?:\w+ )?(?:a |an )?(?:\w+ )?(?:robot"
        r"|bot|machine|ai"
        r"|computer|recording|real person|human|human being|artificial intelligence|virtual assistant)\b"
        r"|\bare you real\b",
    ),
    ("hear_me", r"\b(?:can|do) you hear me\b|\bare you (?:still )?there\b|\bis (?:anybody|anyone|someone) there\b"),
    (
        "complaint",
        r"\b(?:this is|you are|that is) (?:so |really |absolutely |completely )?(?:ridiculous|unacceptable|useless"
        r"|stupid|terrible"
        r"|awful|not listening|not helping|no help)\b|\bi am (?:so |very |really )?(?:angry|upset|frustrated"
        r"|fed up)\b",
    ),
)  # fmt: skip
_WHOLE: tuple[tuple[Intent, str], ...] = (
    ("person", rf"(?:a |an |the )?(?:real |live |human )?{_PERSON}"),
    (
        "repeat",
        r"(?:sorry|pardon|pardon me|excuse me|what|huh|come again|i am sorry|say again|again|one more time"
        r"|repeat(?: that| it)?)"
        r"(?: what| sorry| pardon| again)*",
    ),
    ("resume", r"(?:go on|go ahead|continue|carry on|keep going|you were saying|i am listening|as you were saying)"),
    (
        "hold",
        r"(?:(?:wait|(?:hold|hang) on(?: (?:a|one|just a) (?:moment|second|minute|sec))?|one (?:moment|second"
        r"|minute|sec)|just (?:a|one) (?:moment|second|minute|sec)"
        r"|stop"
        r"|(?:can you )?give me (?:a|one) (?:moment|second|minute|sec)|let me (?:check|see|look|find|get|grab"
        r"|think)(?: \w+){0,5}"
        r"|hold the line|a moment) ?)+",
    ),
    (
        "thanks",
        r"(?:that is |that was )?(?:(?:great|perfect|good|okay|wonderful|excellent|helpful|very kind|awesome"
        r"|lovely) )*"
        r"(?:thank you|thanks)(?: for \w+(?: \w+){0,3}| sanni)?(?: that is (?:helpful|great|good|kind|perfect))?"
        r"|i appreciate (?:it|that)",
    ),
    (
        "wellbeing",
        r"how are you(?: doing)?(?: today| this (?:morning|afternoon|evening))?|how is it going|how do you do",
    ),
    ("hello", r"(?:(?:hi|hello|hey|good morning|good afternoon|good evening|greetings)(?: there)? ?)+"),
    (
        "who",
        r"(?:what is your name|who are you|who is this|who is that|who am i (?:talking|speaking) (?:to|with)"
        r"|(?:may|can|could) i (?:have|get|ask) your name)",
    ),
    ("never_mind", r"(?:never mind|forget it|forget about it|it does not matter|cancel that|scratch that)"),
    (
        "help",
        r"(?:(?:can|could|would) you help me(?: with something)?|i need (?:some |your )?help(?: with something)?"
        r"|help me"
        r"|i have (?:a|another|one more|one)(?: quick| other)? (?:question|problem|issue)|(?:can|could"
        r"|may) i ask (?:you )?"
        r"(?:something|a question|you a question)|what can you (?:do|help me with|help with)(?: for me)?)",
    ),
    (
        "cannot_say",
        r"(?:i do not (?:know|have|remember)(?: \w+){0,5}|i am not sure|no idea|i have no idea|i forgot(?: it)?"
        r"|i can not remember"
        r"|i (?:would|will) (?:rather )?not(?: say| tell you| give you)?(?: that| it)?|i do not want to (?:say|tell"
        r"|give)(?: \w+){0,4})",
    ),
    (
        "why_asked",
        r"(?:why|why is that|what for|why do you (?:need|want|ask)(?: \w+){0,5}|what do you need (?:that|it"
        r"|my \w+) for)",
    ),
    (
        "wrong",
        r"(?:that is|that was|it is|this is) (?:not (?:right|correct|it|my \w+)|wrong|incorrect)|wrong(?: number)?"
        r"|not (?:right|correct)|incorrect|you got (?:that|it) wrong",
    ),
    (
        "closing",
        r"(?:that is|that will be|that would be|that was|this is) (?:all|it|everything)(?: (?:i|that i) (?:need"
        r"|needed|wanted))?"
        r"(?: \w+)?|nothing(?: else| more)?|i am (?:all set|done|finished)|no more questions"
        r"|i do not need anything(?: else)?"
        r"|not (?:right now|today|at the moment)",
    ),
)
_ANYWHERE_RE = tuple((intent, re.compile(pattern)) for intent, pattern in _ANYWHERE)
_WHOLE_RE = tuple((intent, re.compile(rf"{_FILL}(?:{pattern}){_POLITE}")) for intent, pattern in _WHOLE)

_BYE = r"(?:good ?bye|bye(?: bye)?|see you(?: later| soon| then)?|talk to you (?:later|soon)|take care|good night"
_BYE += r"|have a (?:good|nice|great|lovely|wonderful)(?: \w+)? (?:day|evening|night|weekend|afternoon|one|time))"
_BYE_AT_END = re.compile(rf"\b{_BYE}(?: \w+){{0,2}}$|^{_BYE}\b|\b{_BYE} {_BYE}")
_BYE_MISHEARD = re.compile(rf"{_FILL}(?:buy|by|bi|bye|by by|buy buy)")

_HUMS = frozenset(("mm", "hm", "mhm", "hmm", "mmm", "mmhm", "uh", "huh", "um", "ah", "oh", "er", "mmhmm", "hmmm"))
_AGREEING = frozenset(("mhm", "mm hm", "mmhm", "mm hmm", "mmhmm", "mhmm", "uh huh", "m hm"))
_ACKNOWLEDGED = "right okay ok yeah yes yep sure great good perfect fine alright all i see got it understood cool nice"
_ACKNOWLEDGED += (
    " wonderful awesome excellent wow really that is makes sense no problem interesting and so you the lovely"
)
_ACKNOWLEDGING = frozenset(_ACKNOWLEDGED.split()) | _HUMS
_YES = frozenset(
    ("yes", "yeah", "yep", "yup", "sure", "correct", "right", "exactly", "absolutely", "definitely", "certainly")
)
_YES_TWO = frozenset((("of", "course"), ("please", "do"), ("go", "ahead"), ("why", "not"), ("no", "problem")))
_NO = frozenset(("no", "nope", "nah", "never", "not"))
_SLOW_START = frozenset(("well", "um", "uh", "oh", "er", "hm", "so", "and", "i", "think", "ah"))
_NOISE = frozenset(("you", "the", "so", "and", "i", "a", "to", "of", "it"))
_INVENTED = re.compile(
    r"(?:thank you|thanks) (?:so much )?for watching|please subscribe.*|subtitles by .*|i will see you.*video"
)
"""What Whisper is known to write where nothing was said."""
_POLITE_WORDS = "ok okay please thank you thanks do did would like that is it was be great good of course i am fine"
_POLITE_WORDS += " really go ahead alright all right the to"
_ANSWER_ONLY = _YES | _NO | _SLOW_START | frozenset(_POLITE_WORDS.split())


@dataclass(frozen=True, slots=True)
class Turn:
    """One caller's turn, looked at from all sides that need no context."""

    text: str
    """As recognised, without sounds in brackets."""
    tokens: tuple[str, ...] = ()
    intents: frozenset[Intent] = frozenset()
    polarity: int = 0
    """1 if it starts as a yes, -1 if as a no or if it denies something, else 0."""
    bare: bool = False
    """Nothing but yes or no and politeness."""
    parts: tuple[str, ...] = field(default=())
    """Its sentences."""

    def __contains__(self, intent: Intent) -> bool:
        return intent in self.intents


def understand(heard: str) -> Turn:
    """Look at what a recogniser wrote. A turn without tokens is one that was not understood."""
    text = re.sub(r"[\[(*][^\])*]*[\])*]|♪[^♪]*♪?", " ", heard)
    text = re.sub(r"\s+", " ", text).strip()
    tokens = tuple(words(text))
    said = " ".join(tokens)
    if not tokens or (len(tokens) == 1 and said in _NOISE) or _INVENTED.fullmatch(said):
        return Turn("")
    intents = {intent for intent, pattern in _ANYWHERE_RE if pattern.search(said)}
    intents |= {intent for intent, pattern in _WHOLE_RE if pattern.fullmatch(said)}
    if _BYE_AT_END.search(said) or _BYE_MISHEARD.fullmatch(said):
        intents.add("goodbye")
    if "robot" in intents:
        intents -= {"person"}
    if all(token in _HUMS for token in tokens) and tokens != ("huh",):
        intents = {"hum", "mm-hm"} if said in _AGREEING else {"hum"}
    elif all(token in _ACKNOWLEDGING for token in tokens) and "?" not in text:
        intents.add("acknowledge")
    bare = polarity(tokens) != 0 and all(token in _ANSWER_ONLY for token in tokens)
    return Turn(text, tokens, frozenset(intents), polarity(tokens), bare, tuple(sentences(text)))


def polarity(tokens: tuple[str, ...]) -> int:
    """1: a yes, -1: a no or a denial, 0: neither. "No problem" is a yes."""
    start = next((i for i, token in enumerate(tokens) if token not in _SLOW_START), 0)
    if tokens[start : start + 2] in _YES_TWO or tokens[:2] in _YES_TWO:
        return 1
    first = tokens[start] if tokens else ""
    if first in _YES and tokens != ("right",):
        return 1
    if first in _NO or (len(tokens) <= 9 and _NO & set(tokens)):
        return -1
    return 0
