"""The words that redaction knows: digits and what sounds like them, fillers, units, dates, and mentions. Pure data.

A line of words is a set of them; patterns are RE2's.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _values(text: str, first: int) -> dict[str, str]:
    return {word: str(value) for value, word in enumerate(text.split(), first)}


ONES = {
    **_values("zero one two three four five six seven eight nine", 0),
    **dict.fromkeys(("nought", "naught"), "0"),
    "niner": "9",
    "fife": "5",
}
TEENS = _values("ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 10)
TENS = {**_values("twenty thirty forty fifty sixty seventy eighty ninety", 2), "fourty": "4"}
MANY = {
    **_values("zeros ones twos threes fours fives sixes sevens eights nines", 0),
    **dict.fromkeys(("zeroes", "ohs"), "0"),
}
REPEATS = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4}
SCALES = {"hundred": 2, "thousand": 3}
ZERO_LETTERS = frozenset(("o", "oh"))
"""Digits already beside a single digit."""
SOUND_ALIKE = {
    **dict.fromkeys(("o", "oh", "owe", "nil"), "0"),
    "won": "1",
    **dict.fromkeys(("to", "too"), "2"),
    **dict.fromkeys(("free", "tree"), "3"),
    **dict.fromkeys(("for", "fore"), "4"),
    **dict.fromkeys(("sex", "sics"), "6"),
    **dict.fromkeys(("ate", "ait"), "8"),
    "nein": "9",
}
"""Words that are digits only between digits."""

MISHEARD = frozenset(
    (
        *SOUND_ALIKE,
        *_words("wan juan tu too tree fee ford fore fort door hive fife sick seeks sics sixty's heaven even hate aid"),
        *_words("eighth nigh mine nines tin zeros oz"),
    )
)
"""Words that recognition writes for digits: digits where they stand between figures of a card or beside them."""
BEFORE_PRONOUN = frozenset(
    _words("no this that the which any every each some other another good new only old right wrong same first last")
)
AFTER_PRONOUN = frozenset(_words("moment second minute sec more of thing time question last or is that which way day"))
"""Around a "one" that is no figure."""

FILLERS = frozenset(
    _words(
        "a ah an and again actually alright all right then dash hyphen space point comma stroke slash uh um er erm eh "
        "hm hmm mm mhm huh okay ok yes yeah yep so next now is it it's that's sorry well like please followed by i i'm "
        "mean the digits digit number numbers group block rest wait hang on hold let me see sure there we go thank you "
        "thanks no oops sec part"
    )
)
"""Words that callers put between the digits of one number."""

UNITS = frozenset(
    _words(
        "dollar dollars buck bucks cent cents percent pound pounds euro euros mg milligram milligrams ml am pm minute "
        "o'clock minutes hour hours day days week weeks month months year years times people pills tablets refills "
        "digit digits miles degrees grams kilos business working"
    )
)
"""After a figure: it counts something."""
CURRENCY = "$£€"

MONTHS = frozenset(_words("january february march april may june july august september october november december"))
LOOSE_IN_DATES = frozenset(("the", "of", "in", "on", "and", ",", ".", "-", "/"))
DATE_WORDS = frozenset(
    (
        *ONES,
        *TEENS,
        *TENS,
        *SCALES,
        *_words(
            "oh first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth "
            "fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth th st nd rd"
        ),
    )
)

CONNECTORS = frozenset((*_words("dot underscore dash hyphen plus period point"), *"._-+"))
"""Between the parts of an e-mail address."""
BEFORE_ADDRESS = frozenset(_words("is it's its as address email mail to me at my"))
"""Words that are not part of an address, but come before it."""

_DOT = r"\s*(?:\.|\bdot\b|\bpoint\b|\bperiod\b)\s*"
_SUFFIXES = "com|org|net|edu|gov|info|biz|io|co|uk|us|ca|au|nz|ie|eu|de|fi|fr|me|ai|app|dev|tv"
_PROVIDERS = "gmail|g mail|yahoo|hotmail|outlook|icloud|protonmail|aol"
DOMAIN = rf"(?:@|\bat(?: sign)?\b|\[at\])\s*(?:[\w-]+(?:{_DOT}[\w-]+)*{_DOT}(?:{_SUFFIXES})\b|(?:{_PROVIDERS})\b)"
"""An e-mail address from its at sign on."""
UNFINISHED_ADDRESS = r"\b[\w-]+(?:\s*(?:\bdot\b|\bunderscore\b|_)\s*[\w-]+)+|\b[\w-]+\s+(?:at|@)\s*$"

_THE = r"(?:the|your|my|that|this)"
MENTIONS = {
    "cvv": "|".join(
        (
            r"security (?:code|number|digits)|\bcvv|\bcvc|\bcvn\b|\bcsc\b|\bc v [vc]\b|signature strip",
            r"card code|verification (?:code|number|value)|(?:three|four|3|4)[- ]digits? (?:code|number|on)",
            rf"(?:codes?|numbers?|digits|ones?) (?:is |are )?(?:on|from|at) the back|back of {_THE} card",
        )
    ),
    "last_four": r"\blast (?:four|4|for)\b|\bend(?:ing|s) (?:in|with|on)\b|\bending\b|final (?:four|4)",
    "ssn": r"\bsocial\b|\bssn\b|\bs s n\b",
    "birth_date": r"\bbirth ?da(?:te|y)|date of birth|\bd\.?o\.?b\b|\bborn\b|\bbirth\b",
    "phone": "|".join(
        (
            r"\b(?:tele)?phone\b|\bcell\b|\bmobile\b|call (?:me|you|us)? ?back|callback|\bnumber to\b",
            r"(?:call|reach|text|contact) (?:me|you|us)|(?:my|your|contact|best|home|work) number",
        )
    ),
    "card": "|".join(
        (
            rf"card ?(?:number|#|details|digits)|numbers? (?:on|of|for|from) {_THE} (?:\w+ )?card",
            r"(?:credit|debit|visa|bank|new|other|master) ?card|my card is|card please",
            r"(?:on|with|by|from|charge) (?:my|a|the|your) card",
            r"card(?:'s| is) (?:a )?(?:\d|one|two|three|four|five|six)|(?:sixteen|16|fifteen|15)[- ]?digit",
            r"long number|\bvisa\b|\bamex\b|american express|on the front|numbers? on it|number across",
        )
    ),
    "email": r"\be-? ?mail\b",
}
"""What is said where such data is spoken of."""
