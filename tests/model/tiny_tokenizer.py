"""A SentencePiece model of a few dozen pieces, with the release's special ids: 0 end of padding, 3 padding."""

from __future__ import annotations

from pathlib import Path

from model.bench.vocabulary import train_vocabulary

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
    return train_vocabulary(path, _TEXT.strip().splitlines() * 4, size, _MOST)
