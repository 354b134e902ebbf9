"""Rows of digits -> what they are: card, social security or phone number. Pure arithmetic.

Luhn's check is ISO/IEC 7812-1 annex B; its numbers have 13 to 19 digits on cards in use.
"""

from __future__ import annotations

import re

CARD_DIGITS = (13, 19)
_LIKELY_CARD = re.compile(r"(?:3[4-7]|4|5[0-9]|6[0-9]|2[2-7])\d*")
"""Amex and Diners, Visa, Mastercard, Discover, UnionPay, Maestro: ranges of issuers that people carry."""


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def holds_card(digits: str) -> bool:
    """Whether any 13 to 19 digits in the row pass Luhn's check."""
    shortest, longest = CARD_DIGITS
    return any(
        luhn(digits[start : start + length])
        for start in range(len(digits) - shortest + 1)
        for length in range(shortest, min(longest, len(digits) - start) + 1)
    )


def looks_like_card(digits: str) -> bool:
    """Whether it may be a card's number with a digit misheard, lost or doubled."""
    return 11 <= len(digits) <= 20 and _LIKELY_CARD.fullmatch(digits) is not None


def is_ssn(digits: str) -> bool:
    """Whether the Social Security Administration could have given it (20 CFR 422.103)."""
    if len(digits) != 9:
        return False
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in ("000", "666") and area[0] != "9" and group != "00" and serial != "0000"


def is_phone(digits: str) -> bool:
    """Whether it is a number of the North American plan, with or without its leading 1."""
    return re.fullmatch(r"1?[2-9]\d\d[2-9]\d{6}", digits) is not None
