"""The models of the rehearsal engine, loaded once for all its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from model.rehearsal import matcher_minilm
from model.rehearsal.engine import load_models
from model.rehearsal.matcher import LexicalMatcher, Matcher
from model.rehearsal.session import Models
from model.rehearsal.weights import find_weights


@pytest.fixture(scope="session")
def models() -> Iterator[Models]:
    models = load_models(find_weights())
    yield models
    models.shut_down()


@pytest.fixture(scope="session")
def minilm() -> matcher_minilm.MiniLmMatcher:
    return matcher_minilm.MiniLmMatcher(matcher_minilm.find_weights(None))


@pytest.fixture(params=["meaning", "words"])
def matcher(request: pytest.FixtureRequest, minilm: matcher_minilm.MiniLmMatcher) -> Matcher:
    return minilm if request.param == "meaning" else LexicalMatcher()
