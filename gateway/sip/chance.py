"""Names nobody can guess: tags, branches, Call-IDs, nonces, and the jitter of retries.

The bytes come in as an argument (`os.urandom`, or a seeded source in tests), so that nothing here knows chance.
"""

from __future__ import annotations

from collections.abc import Callable

Entropy = Callable[[int], bytes]

MAGIC_COOKIE = "z9hG4bK"
"""Begins a branch that is unique as RFC 3261, section 8.1.1.7, demands."""


class Chance:
    """Draws identifiers from a source of random bytes."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def token(self, size: int = 8) -> str:
        """`size` random bytes in hexadecimal: a tag, a cnonce (RFC 3261, section 19.3: at least 32 bits)."""
        return self._entropy(size).hex()

    def branch(self) -> str:
        """A new Via branch."""
        return MAGIC_COOKIE + self.token()

    def number(self, below: int) -> int:
        """A whole number from 0 to `below` - 1."""
        return int.from_bytes(self._entropy(6), "big") % below

    def between(self, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        return low + (high - low) * self.number(1 << 32) / (1 << 32)
