"""Written text to words a voice can say: numbers, money, times, dates, codes.

Owns how figures are spoken (American English). Knows no dialogue, and nothing of how the caller's
words are read back into figures, which is `heard_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEENS = (
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
_MONTH = "|".join(f"{month}|{month[:3]}\\.?" for month in MONTHS) + r"|Sept\.?"
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
_ORDINALS["twelve"] = "twelfth"
_SCALES = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_UNITS = {
    "mg": "milligram",
    "mcg": "microgram",
    "g": "gram",
    "kg": "kilogram",
    "ml": "milliliter",
    "km": "kilometer",
    "cm": "centimeter",
    "mm": "millimeter",
    "lb": "pound",
    "lbs": "pound",
    "oz": "ounce",
    "hr": "hour",
    "hrs": "hour",
    "min": "minute",
    "mins": "minute",
}
_ABBREVIATIONS = {
    "Dr": "Doctor",
    "Mr": "Mister",
    "Mrs": "Missus",
    "Prof": "Professor",
    "Ave": "Avenue",
    "Blvd": "Boulevard",
    "Rd": "Road",
    "Ste": "Suite",
    "Apt": "Apartment",
    "vs": "versus",
    "approx": "approximately",
}
_MONEY = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "penny")}
_SINGLY = (
    r"account|card|order|reference|ref|confirmation|number|no\.|code|ending in|ends in|last four digits?|extension"
    r"|ext\.?|flight|invoice|ticket|case|claim|policy|pin|zip|member|prescription|routing|tracking|id|dial|call"
)


def cardinal(number: int) -> str:
    """1250 -> one thousand two hundred fifty. Below a trillion; beyond, digit by digit."""
    if number < 0:
        return "minus " + cardinal(-number)
    if number < 20:
        return (DIGITS + TEENS)[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f"-{DIGITS[ones]}" if ones else "")
    if number >= 10**12:
        return digit_by_digit(str(number))
    scale, name = next((scale, name) for scale, name in _SCALES if number >= scale)
    high, low = divmod(number, scale)
    return f"{cardinal(high)} {name}" + (f" {cardinal(low)}" if low else "")


def round_hundreds(number: int) -> str:
    """As amounts are said: 1200 -> twelve hundred, 3000 -> three thousand."""
    if 1100 <= number < 10_000 and number % 100 == 0 and number % 1000:
        return cardinal(number // 100) + " hundred"
    return cardinal(number)


def ordinal(number: int) -> str:
    """21 -> twenty-first."""
    head, separator, last = cardinal(number).rpartition("-" if number < 100 else " ")
    if number >= 100 and "-" in last:
        return f"{head} {ordinal(number % 100)}"
    regular = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return head + separator + _ORDINALS.get(last, regular)


def year(number: int) -> str:
    """1984 -> nineteen eighty-four, 2005 -> two thousand five."""
    century, rest = divmod(number, 100)
    if 2000 <= number < 2010 or not 1100 <= number < 2100:
        return cardinal(number)
    if rest == 0:
        return cardinal(century) + " hundred"
    return f"{cardinal(century)} {'oh ' + DIGITS[rest] if rest < 10 else cardinal(rest)}"


def digit_by_digit(code: str) -> str:
    """A number or code as it is read out: 4111-1111 -> four one one one, one one one one.

    Groups are those written; long ones without any are cut as cards and telephone numbers are.
    """
    groups = [group for group in re.split(r"[^A-Za-z0-9]+", code) if group]
    if all(len(group) == 1 for group in groups):
        groups = ["".join(groups)]
    if len(groups) == 1 and groups[0].isdigit():
        groups = _groups(groups[0])
    return ", ".join(" ".join(_character(c) for c in group) for group in groups)


def _groups(digits: str) -> list[str]:
    if len(digits) <= 5:
        return [digits]
    if len(digits) in (7, 10, 11):
        sizes = {7: (3, 4), 10: (3, 3, 4), 11: (1, 3, 3, 4)}[len(digits)]
    elif len(digits) in (6, 9):
        sizes = (3,) * (len(digits) // 3)
    else:
        sizes = (4,) * (len(digits) // 4) + ((len(digits) % 4,) if len(digits) % 4 else ())
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [digits[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _character(character: str) -> str:
    return DIGITS[int(character)] if character in "0123456789" else character.upper()


def clock(hour: int, minute: int, half: str = "") -> str:
    """9, 30, "am" -> nine thirty AM. Hours of the 24-hour clock become AM and PM."""
    if not half and (hour > 12 or hour == 0):
        half = "PM" if hour > 12 else "AM"
    if (hour, minute, half.upper()[:1]) == (12, 0, "P"):
        return "noon"
    said = cardinal(hour % 12 or 12)
    if minute:
        said += f" {'oh ' + DIGITS[minute] if minute < 10 else cardinal(minute)}"
    return said + (f" {half.upper()[0]}M" if half else "")


def _said_date(month: int, day: int, written_year: str = "") -> str | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    number = int(written_year or 0)
    if written_year and number < 100:
        number += 2000 if number < 30 else 1900
    return f"{MONTHS[month - 1]} {ordinal(day)}" + (f", {year(number)}" if written_year else "")


def month_number(name: str) -> int:
    """`Mar`, `march` or `Mar.` -> 3."""
    return 1 + [month[:3].lower() for month in MONTHS].index(name[:3].lower())


def _decimal(written: str) -> str:
    whole, _, fraction = written.replace(",", "").partition(".")
    said = cardinal(int(whole or 0))
    return f"{said} point {' '.join(DIGITS[int(d)] for d in fraction)}" if fraction else said


def _money(match: re.Match[str]) -> str:
    unit, small = _MONEY[match["sign"]]
    amount, scale = match["amount"].replace(",", ""), match["scale"]
    whole, _, cents = amount.partition(".")
    if scale:
        return f"{_decimal(amount)} {scale} {unit}s"
    parts = []
    if int(whole) or not int(cents or 0):
        parts.append(f"{round_hundreds(int(whole))} {unit}{'' if int(whole) == 1 else 's'}")
    if int(cents or 0):
        count = int(f"{cents}0"[:2])
        plural = "pence" if small == "penny" else small + "s"
        parts.append(f"{cardinal(count)} {small if count == 1 else plural}")
    return " and ".join(parts)


def _time(match: re.Match[str]) -> str:
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), (match["half"] or "").replace(".", "")
    if hour > 24 or minute > 59:
        return match[0]
    end = "." if (match["half"] or "").endswith(".") and match["end"] is not None else ""
    return clock(hour % 24 if hour != 12 else 12, minute, half) + end


def _iso_date(match: re.Match[str]) -> str:
    return _said_date(int(match[2]), int(match[3]), match[1]) or match[0]


def _slash_date(match: re.Match[str]) -> str:
    return _said_date(int(match[1]), int(match[2]), match[3]) or match[0]


def _month_day(match: re.Match[str]) -> str:
    if re.search(r"\d\w*\s+of\s", match[0]):  # the 21st of May
        said_year = f", {year(int(match['year']))}" if match["year"] else ""
        return f"{ordinal(int(match['day']))} of {MONTHS[month_number(match['month']) - 1]}{said_year}"
    return _said_date(month_number(match["month"]), int(match["day"]), match["year"] or "") or match[0]


def _count(match: re.Match[str]) -> str:
    written = match[0].replace(",", "")
    if "," in match[0] or "." in match[0]:
        return _decimal(written) if "." in written else round_hundreds(int(written))
    if len(written) > 1 and written.startswith("0"):
        return digit_by_digit(written)
    if len(written) >= 5:
        return digit_by_digit(written)
    if len(written) == 4:
        return year(int(written)) if written[:2] in ("18", "19", "20") else round_hundreds(int(written))
    return cardinal(int(written))


def _unit(match: re.Match[str]) -> str:
    name = _UNITS[match[2].lower()]
    return f"{match[1]} {name}" + ("" if match[1] == "1" else "s")


def _mixed(match: re.Match[str]) -> str:
    """A code of letters and figures: MX-4471 -> M X, four four seven one."""
    return digit_by_digit(match[0])


def _email(match: re.Match[str]) -> str:
    return match[0].replace("@", " at ").replace(".", " dot ").replace("_", " underscore ")


_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"[\w.]+@[\w-]+(?:\.\w+)+"), _email),
    (re.compile(r"\b(?:https?://)?(?:www\.)?([\w-]+(?:\.[a-z-]+)*)\.(com|org|net|gov|edu|io|example)\b"), r"\1 dot \2"),
    (re.compile(r"\b24/7\b"), "twenty-four seven"),
    (
        re.compile(r"(?P<sign>[$€£])\s?(?P<amount>\d[\d,]*(?:\.\d+)?)(?:\s(?P<scale>thousand|million|billion)\b)?"),
        _money,
    ),
    (re.compile(r"\b(?:911|988|999)\b"), lambda m: digit_by_digit(m[0])),
    (re.compile(r"(\d(?::\d\d|\s?[ap]\.?m\.?))\s?[-–]\s?(?=\d)", re.I), r"\1 to "),
    (re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b"), _iso_date),
    (re.compile(r"\b(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)\b"), _slash_date),
    (
        re.compile(rf"\b(?P<month>{_MONTH})\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\b(?:,?\s+(?P<year>\d{{4}})\b)?"),
        _month_day,
    ),
    (
        re.compile(
            rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?(?P<month>{_MONTH})\b(?:,?\s+(?P<year>\d{{4}})\b)?"
        ),
        _month_day,
    ),
    (
        re.compile(
            r"\b(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s?(?P<half>[ap]\.?m(?:\.|\b))"
            r"(?P<end>(?=\s*$|\s+(?-i:[A-Z])))?",
            re.I,
        ),
        _time,
    ),
    (re.compile(r"\b(?P<hour>\d{1,2}):(?P<minute>\d\d)(?P<half>)(?P<end>)\b"), _time),
    (
        re.compile(rf"\b((?:{_SINGLY}):?\s+#?(?:is\s+)?)(\d(?:[\d -]*\d)?)\b(?!,\d|\.\d|%)", re.I),
        lambda m: m[1] + _code(m),
    ),
    (re.compile(r"\+?\(?\b\d(?:[\d]*\)?[ -]\(?\d{2,}){2,}\b|\b\d{3}-\d{4}\b"), lambda m: digit_by_digit(m[0])),
    (re.compile(r"\b(?=[\d-]*[A-Z])(?=[A-Z-]*\d)(?=[A-Z\d-]{3})[A-Z\d]+(?:-[A-Z\d]+)*\b"), _mixed),
    (re.compile(r"#\s?(?=\d)"), "number "),
    (re.compile(r"(?<=\d)\s?[-–](?=\d)"), " to "),
    (re.compile(rf"\b(\d[\d,.]*)\s?({'|'.join(_UNITS)})\b"), _unit),
    (re.compile(r"(?<=\d)\s?%"), " percent"),
    (re.compile(r"\b(\d{1,3})(?:st|nd|rd|th)\b"), lambda m: ordinal(int(m[1]))),
    (re.compile(r"\b(\d{4})s\b"), lambda m: re.sub("y$", "ie", year(int(m[1]))) + "s"),
    (re.compile(r"(?<![\w-])-(?=\d)"), "minus "),
    (re.compile(r"\b\d[\d,]*\.\d+\b|\b\d{1,3}(?:,\d{3})+\b|\b\d+"), _count),
    (re.compile(r"\d+"), lambda m: f" {digit_by_digit(m[0])} "),
    (re.compile(rf"\b({'|'.join(_ABBREVIATIONS)})\.(?=\s)"), lambda m: _ABBREVIATIONS[m[1]]),
    (re.compile(r"\s?&\s?"), " and "),
    (re.compile(r"\s+"), " "),
)


def _code(match: re.Match[str]) -> str:
    """What follows `account` or `number`; up to two figures there are a count like any other."""
    digits = re.sub(r"\D", "", match[2])
    return digit_by_digit(match[2]) if len(digits) > 2 else match[2]


def speakable(text: str) -> str:
    """A sentence with every figure written as it is spoken.

    "$1,200 on 3/5/2024 at 9:30 am" -> "twelve hundred dollars on March fifth, twenty twenty-four at nine thirty AM".
    """
    text = text.strip()
    figure_first = text[:1].isdigit() or text[:1] in _MONEY
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text[:1].upper() + text[1:] if figure_first else text


_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')]*\s+(?=[\"'(]?[A-Z0-9$#])|\n+")
_NO_END = re.compile(r"\b(?:Dr|Mr|Mrs|Ms|Prof|St|No|vs|approx|[A-Z])\.$")


def sentences(text: str) -> list[str]:
    """Text cut after each sentence: "Thanks. Dr. Who is in." -> ["Thanks.", "Dr. Who is in."]."""
    found: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if _NO_END.search(text[start : match.start()]):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    return [sentence for sentence in [*found, text[start:].strip()] if sentence]
