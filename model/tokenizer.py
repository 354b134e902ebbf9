"""Words to ids and back: the SentencePiece model that comes with the weights.

Owns what an id looks like as text, and where words begin. Knows no prompt and no frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from model.config import TEXT_END_OF_PAD, TEXT_PAD

_SPACE = "\u2581"
"""SentencePiece's mark of a space, with which a word's first piece begins."""
_SILENT = (TEXT_END_OF_PAD, TEXT_PAD)


class TokenizerError(Exception):
    """The tokenizer's file cannot be used; the message names it."""


class Tokenizer:
    """Plain encoding, without start or end ids."""

    def __init__(self, path: Path) -> None:
        """Raises TokenizerError."""
        if not path.is_file():
            raise TokenizerError(f"{path} is missing: the model's tokenizer")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{path} is not a SentencePiece model") from error
        self.size: int = self._pieces.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ids: list[int] = self._pieces.encode(text)
        return ids

    def words(self, text: str) -> list[list[int]]:
        """The ids of a text, cut before every piece that begins a word.

        White space alone is no word, and what the vocabulary has no piece for is left out: its id means padding.
        """
        words: list[list[int]] = []
        open_mark = False
        for piece in (piece for piece in self.encode(text) if piece not in _SILENT):
            # A mark of its own belongs to the pieces after it.
            if self.starts_word(piece) and not open_mark:
                words.append([])
            if not words:
                words.append([])
            words[-1].append(piece)
            open_mark = self._pieces.id_to_piece(piece) == _SPACE
        return [word for word in words if self.text(word).strip()]

    def piece(self, token: int) -> str:
        """What a text id adds to the transcript: nothing for padding, a leading space where a word begins."""
        if token in _SILENT:
            return ""
        shown: str = self._pieces.id_to_piece(token)
        return shown.replace(_SPACE, " ")

    def text(self, tokens: Iterable[int]) -> str:
        """What ids add up to."""
        return "".join(map(self.piece, tokens))

    def starts_word(self, token: int) -> bool:
        """Whether the id begins a word. Padding does not."""
        shown: str = self._pieces.id_to_piece(token)
        return token not in _SILENT and shown.startswith(_SPACE)

    def word_starts(self) -> list[bool]:
        """`starts_word` of every id."""
        return [self.starts_word(token) for token in range(self.size)]
