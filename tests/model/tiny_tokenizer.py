"""A SentencePiece model of a few dozen pieces, with the release's special ids: 0 end of padding, 3 padding."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

_TEXT = """
hello and thank you for calling us at the bank
this call is recorded for training and as a record
you are a kind and wise teacher and you like to listen
the bank is on the corner of high street
"""
_MOST = 160
"""Pieces that the text surely gives."""


def train(path: Path, size: int) -> Path:
    """Write a model of `size` pieces, 30 at least, to `path`; those the text cannot give stand for nothing."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXT.strip().splitlines() * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=[f"<{n}>" for n in range(size - _MOST)],
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return path
