"""What a caller said, read back into figures, names and dates.

Owns how recognised speech is understood as the answer to a question ("it's four one one one",
"4111-1111", "My name is David Cohen"). Knows no dialogue; speaking figures is `speech_text`.
"""

from __future__ import annotations

import re

from model.rehearsal.speech_text import DIGITS, MONTHS, TEENS, TENS, speakable

_VALUES = {word: str(value) for value, word in enumerate(DIGITS + TEENS)}
_TENS = {word: str(value * 10) for value, word in enumerate(TENS) if word}
_ALIASES = {"o": "0", "oh": "0", "nought": "0", "nil": "0"}
_SOUND_ALIKE = {"for": "4", "to": "2", "too": "2", "ate": "8", "won": "1", "tree": "3", "fife": "5", "niner": "9"}
_REPEATS = {"double": 2, "triple": 3, "treble": 3}
_BETWEEN = {"and", "then", "dash", "hyphen", "uh", "um", "er", "space", "point", "comma"}


def digit_runs(text: str) -> list[str]:
    """The numbers in what was heard, each a string of digits, in order.

    "four one one one, 1111" is one run, since callers group the digits of one number; a word that is
    neither a figure nor a filler ends a run. "double five" is 55, "forty-one eleven" 4111.
    """
    tokens = re.findall(r"[a-z']+|\d+|[.?!](?=\s|$)", text.lower().replace("\u2019", "'"))
    runs: list[str] = []
    run = ""
    index = 0
    while index < len(tokens):
        digits, used = _figure(tokens, index, bool(run))
        if used:
            run += digits
            index += used
            continue
        if tokens[index] not in _BETWEEN and tokens[index] not in ".?!" and run:
            runs.append(run)
            run = ""
        index += 1
    return [*runs, run] if run else runs


def _figure(tokens: list[str], index: int, inside: bool) -> tuple[str, int]:
    """The digits that start at a token and how many tokens they take; ("", 0) if none do."""
    token = tokens[index]
    after = tokens[index + 1] if index + 1 < len(tokens) else ""
    if token.isdigit():
        return token, 1
    if token in _REPEATS:
        digit, used = _figure(tokens, index + 1, True) if after else ("", 0)
        return (digit * _REPEATS[token], 1 + used) if len(digit) == 1 else ("", 0)
    if token in _TENS:
        ones = _VALUES.get(after, "")
        return (_TENS[token][0] + ones, 2) if len(ones) == 1 and ones != "0" else (_TENS[token], 1)
    if token in _VALUES:
        if after in ("hundred", "thousand"):
            return _VALUES[token] + ("00" if after == "hundred" else "000"), 2
        return _VALUES[token], 1
    if token in _ALIASES and (inside or after in _VALUES or after.isdigit()):
        return _ALIASES[token], 1
    before = tokens[index - 1] if index else ""
    leads = inside or before in ("is", "it's", "number")
    if token in _SOUND_ALIKE and leads and (after in _VALUES or after.isdigit() or (inside and not after)):
        return _SOUND_ALIKE[token], 1
    return "", 0


def read_digits(text: str) -> str:
    """The number a caller gives when asked for one: the longest run, or "" if there is none.

    A single figure counts only if little else was said: "I have one question" gives no number.
    """
    run = max(digit_runs(text), key=len, default="")
    spoken = len(re.findall(r"\w+", text))
    return run if len(run) >= 3 or (run and spoken <= len(run) + 2) else ""


_LEAD_IN = re.compile(
    r"^(?:(?:hi|hello|hey|good (?:morning|afternoon|evening)|sure|yes|yeah|yep|okay|ok|so|well|um|uh|uhm|oh|of course"
    r"|certainly|absolutely|thanks|thank you|please|right|alright|all right|actually|sorry|no|let me see|let's see"
    r"|i think|it would be|it will be|that would be|that will be|that's|that is|it's|it is|its|it was|it'll be|i'd like"
    r"|i would like|i want|i need|i'd prefer|i prefer|i take|i'm taking|i am taking|let's do|let's say|maybe|probably"
    r"|how about|what about|just|for|about|on)\b[\s,.!:;-]*)+",
    re.I,
)
_TAIL = re.compile(
    r"[\s,.!?;-]*\b(?:please|thanks|thank you|works(?: (?:best|well|fine|great))?(?: for me)?|would work(?: for me)?"
    r"|is (?:fine|good|great|perfect|best)(?: for me)?|would be (?:fine|good|great|perfect|best|nice)(?: for me)?"
    r"|sounds good|if (?:that's|that is) (?:possible|okay|ok|all right))[\s.!?]*$",
    re.I,
)


def read_words(text: str) -> str:
    """What was said without the words around it: "It is lisinopril, please." -> lisinopril."""
    bare = _LEAD_IN.sub("", text.strip())
    while (shorter := _TAIL.sub("", bare)) != bare:
        bare = shorter
    bare = bare.strip(" ,.!?;:-") or text.strip(" ,.!?;:-")
    first = bare.split(" ", 1)[0]
    return bare if first.isupper() or first in _PROPER or bare[1:2].isupper() else bare[:1].lower() + bare[1:]


_WEEKDAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_PROPER = frozenset([*_WEEKDAYS.split("|"), *MONTHS, "I", "Doctor", "Dr", "Dr."])

_NO_NAME_WORDS = (
    "a an the i me my mine you your it is was were are not no yes yeah yep nope okay ok sure hello hi hey what why who "
    "how when where which can could would will do does did need want have has had please thanks thank calling card "
    "account trying just going here there this that and or but so well um uh right fine good great sorry to of in on "
    "at for with about from looking asking wondering having interested afraid speaking name person human agent someone "
    "somebody help question problem ready done already still really don't can't didn't never bye goodbye approve "
    "transaction declined refill appointment doctor nurse stop wait hold listen again repeat today tomorrow give take "
    "let make tell check call send use try know think it's i'm that's all some one two three four five bank money "
    "dollars because he she they we us our his her their mm-hm mhm hmm huh sir ma'am madam new patient customer"
)
_NOT_NAMES = frozenset(_NO_NAME_WORDS.split())
_PARTICLES = frozenset(("van", "von", "der", "den", "de", "da", "del", "della", "di", "la", "le", "bin", "al", "ter"))
_SELF = re.compile(
    r"\b(?:my (?:full )?name(?: is|'s)|(?:the |full )?name(?: is|'s)|you can call me|call me)\s*[,:]?\s*(?P<name>.+)",
    re.I,
)
_SELF_WEAK = re.compile(r"\b(?:this is|i am|i'm|it is|it's)\s+(?P<name>.+)", re.I)
_SPEAKING = re.compile(r"^(?P<name>[A-Z][\w'-]+(?: [A-Z][\w'-]+){0,2}) (?:speaking|here)\b")
_PARTS = re.compile(
    r"\b(?:first name(?: is|'s)?|given name is)\s+(?P<first>[\w'-]+).*?"
    r"\b(?:last name|surname|family name)(?: is|'s)?\s+(?P<last>[\w'-]+)",
    re.I,
)
_PARTS_TURNED = re.compile(
    r"\b(?:last name|surname|family name)(?: is|'s)?\s+(?P<last>[\w'-]+).*?\b(?:first name|given name)(?: is|'s)?\s+"
    r"(?P<first>[\w'-]+)",
    re.I,
)
_INSIDE = re.compile(r"(?:,|\bfor|\bis|'s|\bmy \w+) ([A-Z][\w'-]+ [A-Z][\w'-]+)")
_SPELLED = re.compile(r"\b(?:[A-Za-z][-. ,]+){2,}[A-Za-z]\b\.?")


def read_name(text: str, asked: bool) -> str:
    """The caller's name, capitalised, or "".

    Unless `asked`, only what says that it is a name counts: "my name is ...", or "this is" before two
    capitalised words. When asked, a short reply without words that no name has is a name too.
    """
    text = text.strip().replace("\u2019", "'")
    for parts in (_PARTS, _PARTS_TURNED):
        if match := parts.search(text):
            return _capitalised([match["first"], match["last"]])
    if (match := _SELF.search(text)) and (name := _leading_name(match["name"])):
        return name
    if match := _SPEAKING.search(text):
        return match["name"]
    if match := _SELF_WEAK.search(text):
        name = _leading_name(match["name"])
        if name and (asked or (" " in name and _is_capitalised(match["name"], name))):
            return name
    return _bare_name(text) if asked else ""


def _bare_name(text: str) -> str:
    bare = _LEAD_IN.sub("", text)
    if "?" in bare:
        return ""
    name = _leading_name(bare)
    if not name and (inside := _INSIDE.search(bare)):
        return _leading_name(inside[1])
    rest = re.findall(r"[\w']+", bare.lower())[len(name.split()) :]
    spelled_or_polite = all(
        len(word) == 1 or word in ("please", "thanks", "thank", "you", "that's", "with", "as") for word in rest
    )
    return name if name and (spelled_or_polite or _is_capitalised(bare, name)) else ""


def _is_capitalised(text: str, name: str) -> bool:
    return " " in name and all(part in text for part in name.split())


def _leading_name(text: str) -> str:
    """The up to four words at the start that can be a name; letter by letter spelling is joined."""
    if spelled := _SPELLED.match(text):
        return _capitalised(["".join(re.findall(r"[A-Za-z]", spelled[0]))])
    found: list[str] = []
    for token in re.split(r"\s+", re.split(r"[.!?;:](?:\s|$)|,", text)[0].strip()):
        word = re.sub(r"[^\w'-]", "", token)
        if len(found) == 5 or not word or word.lower() in _NOT_NAMES or re.search(r"\d|ing$", word.lower()):
            break
        found.append(word)
    if any(word[0].isupper() for word in found):
        end = next((i for i, word in enumerate(found) if word[0].islower() and word not in _PARTICLES), len(found))
        found = found[:end]
    return _capitalised(found) if found and not (len(found) == 1 and len(found[0]) < 2) else ""


def _capitalised(parts: list[str]) -> str:
    return " ".join(
        part if part in _PARTICLES or not (part.islower() or part.isupper()) else part.capitalize() for part in parts
    )


_NUMBER_WORD = "|".join(DIGITS[1:] + TEENS + TENS[2:])
_ONE = "|".join(DIGITS[1:])
_TWO = rf"(?:{'|'.join(TEENS)}|(?:{'|'.join(TENS[2:])})(?:[- ](?:{_ONE}))?|oh[- ](?:{_ONE}))"
_ORDINAL_WORD = (
    r"first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|thirteenth|fourteenth|fifteenth"
    r"|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|(?:twenty|thirty)[- ](?:first|second|third|fourth|fifth"
    r"|sixth|seventh|eighth|ninth)|thirtieth"
)
_DAY = rf"(?:\d{{1,2}}(?:st|nd|rd|th)?|{_ORDINAL_WORD}|(?:twenty|thirty)[- ](?:{_NUMBER_WORD})|{_NUMBER_WORD})"
_YEAR = rf"(?:(?:19|20)\d\d|(?:nineteen|twenty|two thousand)(?:[ -](?:and |oh[ -])?(?:{_NUMBER_WORD}))*)"
_MONTHS = "|".join(MONTHS)
_DATE = re.compile(
    rf"\b(?:(?:{_MONTHS}) (?:(?:19|20)\d\d|nineteen {_TWO}|twenty (?:twenty|thirty)[- ](?:{_ONE})|twenty {_TWO})\b"
    rf"|(?:the )?{_DAY} of (?:{_MONTHS})(?:,? {_YEAR})?|(?:{_MONTHS}) (?:the )?{_DAY}\b(?:,? {_YEAR})?"
    rf"|\d{{1,2}}[/-]\d{{1,2}}[/-]\d{{2,4}}|\d{{4}}-\d\d-\d\d"
    rf"|(?:(?:next|this|on|the coming) )?(?:{_WEEKDAYS})(?: (?:next|this) week| (?:the )?(?:{_ORDINAL_WORD}|\d+th))?"
    rf"|(?:the )?day after tomorrow|today|tomorrow|tonight|(?:early |late |the end of )?(?:next|this) (?:week|month)"
    rf"|in (?:\d+|a|{_NUMBER_WORD}) (?:day|week|month)s?(?: time)?|the (?:{_ORDINAL_WORD}|\d{{1,2}}(?:st|nd|rd|th)))\b",
    re.I,
)
_TIME = re.compile(
    rf"\b(?:(?:half past|quarter past|quarter to) (?:{_NUMBER_WORD}|\d+)|noon|midday"
    rf"|(?:any time )?(?:in the )?(?:early |late )?(?:morning|afternoon|evening)\b"
    rf"|\d{{1,2}}:\d\d(?:\s?[ap]\.?m\b\.?)?|(?:\d{{1,2}}|{_NUMBER_WORD})(?: (?:thirty|fifteen|forty[- ]five|oh five))?"
    rf"(?:\s?[ap]\.?\s?m\b\.?| o'clock)"
    rf"|(?:\d{{1,2}}|{_NUMBER_WORD})(?: (?:thirty|fifteen|forty[- ]five))?"
    rf"(?= in the| works| would| is (?:fine|good)|[.,!?]*$))"
    rf"(?:,? in the (?:morning|afternoon|evening))?",
    re.I,
)


_PART_OF_DAY = re.compile(r" (?:morning|afternoon|evening)\b(?: at (?:\d{1,2}(?::\d\d)?|[a-z]+))?", re.I)


def read_date(text: str, name: str = "", asked: bool = True) -> str:
    """The date or time in what was heard, as it would be said back, or "".

    "Ten in the morning works for me." -> ten in the morning; "3/5/1980" -> March fifth, nineteen eighty.
    What the question is called narrows it: a `birth` date needs a day of a month, a `time` a time of day.
    """
    date, time = _DATE.search(text), _TIME.search(text)
    if part := date and _PART_OF_DAY.match(text, date.end()):
        date, time = re.compile(r".*", re.S).match(text[date.start() : part.end()]), None
    if date and time and time.start() < date.end() and date.start() < time.end():
        time = _TIME.search(text, date.end())
    if re.search(r"birth|dob", name):
        return speakable(date[0]) if date and re.search(rf"{_MONTHS}|\d[/-]\d", date[0], re.I) else ""
    if re.search(r"time|hour", name) and not re.search(r"date|day", name):
        found = [m for m in (date if asked and time else None, time) if m]
    elif re.search(r"date|day|when", name) or not asked:
        found = [m for m in (date, time if date else None) if m]
    else:
        found = [m for m in (date, time) if m]
    if asked and not found:
        found = [m for m in (date, time) if m]
    return " at ".join(_said(match[0]) for match in found).replace(" at in ", " in ")


def _said(phrase: str) -> str:
    said = speakable(re.sub(r"^(?:on|at) ", "", phrase.strip(" ,"), flags=re.I)).rstrip(".")
    return said if said.startswith(tuple(_PROPER)) else said[:1].lower() + said[1:]
