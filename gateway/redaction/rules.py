"""What a persona wants redacted: kinds of data, and patterns of its own. Pure.

Own patterns run in RE2, whose time is linear in the text whatever the pattern: no pattern that loads can
hang a call, and none needs a time limit. The price is RE2's syntax: no look-around, no back-references.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, get_args

import re2

Kind = Literal["card", "card_but_last_four", "cvv", "ssn", "phone", "email", "birth_date"]
KINDS: tuple[Kind, ...] = get_args(Kind)

LABELS = {
    "card": "card number",
    "cvv": "security code",
    "ssn": "social security number",
    "phone": "phone number",
    "email": "e-mail address",
    "birth_date": "date of birth",
}
"""What stands in the text instead, in brackets."""

LONGEST_PATTERN = 500
_MEMORY = 1 << 20
"""Bytes that RE2 may use for one pattern: `(a{1000}){1000}` is refused when it is loaded."""


class PatternInvalid(Exception):
    """A pattern cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class CustomPattern:
    """What the persona calls it, and the RE2 expression that finds it. Capitals and small letters are the same."""

    label: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What is redacted. Without kinds and patterns, nothing is."""

    kinds: frozenset[str] = frozenset()
    custom: tuple[CustomPattern, ...] = field(default=())

    @classmethod
    def of(cls, kinds: Iterable[Kind], custom: Iterable[CustomPattern] = ()) -> Rules:
        """Raises ValueError for an unknown kind, PatternInvalid for a pattern that RE2 does not take."""
        chosen = frozenset(kinds)
        if unknown := chosen - set(KINDS):
            raise ValueError(f"unknown kinds: {', '.join(sorted(unknown))}")
        rules = cls(chosen, tuple(custom))
        for own in rules.custom:
            compiled(own.pattern)
        return rules

    @property
    def card(self) -> bool:
        return bool(self.kinds & {"card", "card_but_last_four"})

    @property
    def keeps_last_four(self) -> bool:
        """Whether the last four digits of a card stay in the text, as receipts have them. Never in the sound."""
        return "card_but_last_four" in self.kinds and "card" not in self.kinds

    def __bool__(self) -> bool:
        return bool(self.kinds or self.custom)


@lru_cache(maxsize=256)
def compiled(pattern: str) -> Any:
    """The RE2 expression of a pattern. Raises PatternInvalid."""
    if len(pattern) > LONGEST_PATTERN:
        raise PatternInvalid(f"has {len(pattern)} characters, {LONGEST_PATTERN} at most")
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = False
    options.max_mem = _MEMORY
    try:
        expression = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        told = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise PatternInvalid(f"is not a pattern that RE2 understands: {told}") from None
    if expression.search("") is not None:
        raise PatternInvalid("matches nothing at all, so it would match everywhere; let it ask for a character")
    return expression
