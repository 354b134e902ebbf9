"""The tokenizer's text, its words, and its errors, with a small one trained here."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.tokenizer import Tokenizer, TokenizerError
from tests.model.tiny_tokenizer import train

SENTENCE = "hello this call is recorded for training"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train(tmp_path_factory.mktemp("spm") / "text.model", 56))


def test_ids_are_plain_and_give_the_text_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(SENTENCE)
    assert tokenizer.size == 56
    assert all(3 < token < 56 for token in ids)
    assert tokenizer.text(ids) == " " + SENTENCE


def test_padding_says_nothing(tokenizer: Tokenizer) -> None:
    assert [tokenizer.piece(token) for token in (0, 3)] == ["", ""]
    assert not tokenizer.starts_word(0)
    assert not tokenizer.starts_word(3)


def test_words_are_cut_where_they_begin(tokenizer: Tokenizer) -> None:
    words = tokenizer.words(SENTENCE)
    assert [tokenizer.text(word) for word in words] == [" " + word for word in SENTENCE.split()]
    assert [token for word in words for token in word] == tokenizer.encode(SENTENCE)
    assert all(tokenizer.starts_word(word[0]) for word in words)
    assert not any(tokenizer.starts_word(piece) for word in words for piece in word[1:])
    assert any(len(word) > 1 for word in words)
    assert tokenizer.words("   ") == []


def test_word_starts_name_every_id(tokenizer: Tokenizer) -> None:
    starts = tokenizer.word_starts()
    assert len(starts) == tokenizer.size
    assert starts[tokenizer.encode("call")[0]]
    assert not any(starts[:4])


def test_a_file_that_is_missing_or_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent.model is missing"):
        Tokenizer(tmp_path / "absent.model")
    (tmp_path / "broken.model").write_bytes(b"nonsense" * 10)
    with pytest.raises(TokenizerError, match=r"broken.model is not a SentencePiece model"):
        Tokenizer(tmp_path / "broken.model")
