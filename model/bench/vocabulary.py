"""Vocabularies of any size for networks of random weights. Knows no networks."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


def train_vocabulary(path: Path, sentences: Iterable[str], size: int, surely: int) -> Path:
    """Write a SentencePiece model of `size` pieces with the published special ids: 0 end of padding, 3 padding.

    `surely`: pieces that the sentences can give; the rest stand for nothing.
    """
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=written,
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        user_defined_symbols=[f"<{number}>" for number in range(size - surely)],
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    return path
