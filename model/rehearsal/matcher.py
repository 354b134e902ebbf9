"""Which scripted answer a caller means: the interface of a matcher, and one that compares words.

Owns the ranking of candidates by their example phrases. Knows no dialogue, no persona and no audio;
`matcher_minilm` is the other implementation, which compares meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from rapidfuzz import fuzz

CERTAIN = 0.12
"""How far above its threshold a score must lie to be taken for an intent of its own beside another."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that may be meant, with examples of what callers say for it."""

    id: str
    phrases: tuple[str, ...]
    bonus: float = 0.0
    """Added to the score because of where the conversation stands, for example a direct reply."""


@dataclass(frozen=True, slots=True)
class Match:
    id: str
    score: float


class Matcher(Protocol):
    """Safe to use from several threads at once."""

    threshold: float
    """A score from here on means that the caller is in scope of that candidate."""

    def prepare(self, phrases: Sequence[str]) -> Future[None] | None:
        """Do ahead what ranking against these phrases will need; in the background if it returns a future."""

    def rank(self, heard: str, candidates: Sequence[Candidate]) -> list[Match]:
        """Every candidate with its score, about 0 to 1, the best first."""


def best(matcher: Matcher, heard: str, candidates: Sequence[Candidate]) -> Match | None:
    """The candidate that is meant, or None if nothing reaches the matcher's threshold."""
    ranked = matcher.rank(heard, candidates)
    return ranked[0] if ranked and ranked[0].score >= matcher.threshold else None


def best_first(scored: Sequence[tuple[Candidate, float]]) -> list[Match]:
    """Candidates with their bare scores -> matches, bonus added, the best first, ties in script order."""
    matches = [Match(candidate.id, score + candidate.bonus) for candidate, score in scored]
    return sorted(matches, key=lambda match: -match.score)


_CONTRACTIONS = (
    (re.compile(r"\bcan't\b|\bcannot\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\bwanna\b"), "want to"),
    (re.compile(r"\bgonna\b"), "going to"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(i)'m\b"), r"\1 am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'d\b"), " would"),
    (re.compile(r"\b(what|that|it|he|she|who|where|when|how|there|name)'s\b"), r"\1 is"),
)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation, contractions written out: "I can't!" -> i can not."""
    text = text.lower().replace("\u2019", "'")
    for pattern, written in _CONTRACTIONS:
        text = pattern.sub(written, text)
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text)


_ARTICLES = frozenset(("a", "an", "the", "my", "your", "his", "her", "i", "is", "are", "am", "to", "of", "in"))
_ENDINGS = ("ingly", "edly", "ings", "ing", "ies", "ied", "ed", "es", "s", "ly", "e", "y")


@lru_cache(maxsize=8192)
def stem(word: str) -> str:
    """A word without its ending, good enough to let breathe, breathes and breathing meet."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


def occurs(phrase: str, heard: str) -> bool:
    """Whether a phrase occurs in what was heard, leaning to yes: meant for words that mean an emergency.

    Its words must all be there within a few others, in any order and inflection, and a slip of one
    letter in a long word is forgiven, since recognisers slip.
    """
    tokens = words(phrase)
    wanted = [stem(word) for word in tokens if word not in _ARTICLES] or [stem(word) for word in tokens]
    said = [stem(word) for word in words(heard)]
    if not wanted:
        return False
    reach = len(wanted) + 4
    starts = range(max(1, len(said) - reach + 1))
    return any(all(any(_same(w, s) for s in said[i : i + reach]) for w in wanted) for i in starts)


def _same(wanted: str, said: str) -> bool:
    return wanted == said or (len(wanted) >= 5 and len(said) >= 5 and fuzz.ratio(wanted, said) > 85)


_LITTLE_WORDS = (
    "a an the i me my we our you your it its he his she her they them is am are was were be been being do does did "
    "have has had will would can could shall should may might must to of in on at for from by with about as and or "
    "but so if then that this these those there here just please what which who how when where why know tell want "
    "like need get give let some any up out us im hi hello okay"
)
_FUNCTION_WORDS = frozenset(_LITTLE_WORDS.split())


def _content(tokens: Sequence[str]) -> list[str]:
    return [stem(token) for token in tokens if token not in _FUNCTION_WORDS]


class LexicalMatcher:
    """Compares words: rare ones weigh more, endings and small slips are forgiven.

    For machines without the MiniLM weights. It finds what is said in the script's own words and
    misses what is said in others, and it is set to rather miss than to answer something else.
    """

    threshold = 0.5

    def prepare(self, phrases: Sequence[str]) -> None:
        return

    def rank(self, heard: str, candidates: Sequence[Candidate]) -> list[Match]:
        weight = _rarity(candidates)
        said = words(heard)
        scored = [(c, max((_likeness(said, p, weight) for p in c.phrases), default=0.0)) for c in candidates]
        return best_first(scored)


def _rarity(candidates: Sequence[Candidate]) -> Callable[[str], float]:
    """The weight of a word: 1 if one candidate alone uses it, less if many do."""
    uses: dict[str, int] = {}
    for candidate in candidates:
        for token in {t for phrase in candidate.phrases for t in _content(words(phrase))}:
            uses[token] = uses.get(token, 0) + 1
    return lambda token: 1.0 / uses.get(token, 1) ** 0.5


def _likeness(said: Sequence[str], phrase: str, weight: Callable[[str], float]) -> float:
    """How much of the phrase was said and how much of what was said is the phrase, 0 to 1."""
    tokens = words(phrase)
    wanted, content = _content(tokens), _content(said)
    if not wanted or not content:
        same = fuzz.ratio(" ".join(said), " ".join(tokens)) / 100
        return same if same > 0.85 else 0.0
    total = sum(map(weight, wanted))
    found = sum(weight(w) for w in wanted if any(_same(w, s) for s in content)) / total
    used = sum(weight(s) for s in content if any(_same(w, s) for w in wanted)) / sum(map(weight, content))
    order: float = fuzz.token_sort_ratio(" ".join(said), " ".join(tokens)) / 100
    return 0.6 * found + 0.25 * used + 0.15 * order
