"""What holds of redaction whatever is said: no card number comes out, plain talk does, parts come to the whole."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.redaction.numbers import luhn
from gateway.redaction.redactor import LONGEST_TURN_SECONDS, Redactor
from gateway.redaction.rules import Rules
from gateway.transcript import Speaker, Utterance
from tests.gateway.redaction.conversation import ALL, CARD, LONGEST_HOLD, Watcher, redacted, said, texts

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@st.composite
def card_digits(draw: st.DrawFn) -> str:
    body = draw(st.sampled_from("123456789")) + draw(st.text("0123456789", min_size=11, max_size=17))
    return next(body + check for check in "0123456789" if luhn(body + check))


@st.composite
def spoken(draw: st.DrawFn, digits: str) -> list[str]:
    """The digits as a caller may say or a recogniser may write them, in pieces."""
    pieces: list[str] = []
    place = 0
    while place < len(digits):
        rest = digits[place:]
        ways = ["word", "digit", "group"]
        if len(rest) > 1 and rest[0] in "23456789" and rest[1] != "0":
            ways.append("pair")
        if rest[:1] == "1" and len(rest) > 1:
            ways.append("teen")
        if len(rest) > 1 and rest[0] == rest[1]:
            ways.append("double")
        way = draw(st.sampled_from(ways))
        if way == "word":
            pieces.append(ONES[int(rest[0])] if rest[0] != "0" else draw(st.sampled_from(["zero", "oh"])))
            place += 1
        elif way == "digit":
            pieces.append(rest[0])
            place += 1
        elif way == "group":
            size = draw(st.integers(2, 6))
            pieces.append(rest[:size])
            place += len(rest[:size])
        else:
            pieces.append(
                {
                    "pair": f"{TENS[int(rest[0])]}-{ONES[int(rest[1])]}",
                    "teen": TEENS[int(rest[1])] if len(rest) > 1 else "",
                    "double": f"double {ONES[int(rest[0])]}",
                }[way]
            )
            place += 2
    return pieces


@st.composite
def card_calls(draw: st.DrawFn) -> tuple[str, list[Utterance]]:
    """A valid number, and a conversation in which it is said, over any number of turns."""
    digits = draw(card_digits())
    pieces = draw(spoken(digits))
    turns: list[tuple[Speaker, str]] = []
    words: list[str] = [draw(st.sampled_from(["Sure, it's", "Okay,", "Hello, can I pay?", ""]))]
    for piece in pieces:
        words.append(piece)
        words.append(draw(st.sampled_from(["", "", "", ",", "um,", "and then", "okay", "."])))
        if draw(st.integers(0, 5)) == 0:
            turns.append(("caller", " ".join(filter(None, words))))
            words = []
            turns.append(("agent", draw(st.sampled_from(["Mm-hm.", "Go on.", "Okay, and then?", "Thank you."]))))
    words.append(draw(st.sampled_from(["", "That's it.", "Did you get that?"])))
    turns.append(("caller", " ".join(filter(None, words))))
    return digits, said(*[(speaker, text) for speaker, text in turns if text.strip()])


@settings(max_examples=150, deadline=None)
@given(card_calls(), st.floats(0.1, 5.0))
def test_no_valid_card_number_comes_out_however_it_is_said(call: tuple[str, list[Utterance]], lag: float) -> None:
    digits, utterances = call
    watcher = redacted(utterances, CARD, lag)
    out = " ".join(watcher.ever)
    assert not any(char.isdecimal() for char in out), (digits, watcher.texts())
    assert not [
        word for word in out.replace("-", " ").lower().split() if word.strip(",.") in {*ONES, *TEENS, *TENS[2:]}
    ]


WORDS = st.sampled_from(
    ["the", "my", "card", "number", "please", "what", "security", "code", "is", "hello", "dot", "at"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["caller", "agent"]), st.lists(WORDS, min_size=1, max_size=8)), max_size=6))
def test_text_without_figures_or_addresses_is_unchanged(turns: list[tuple[Speaker, list[str]]]) -> None:
    conversation = [(speaker, " ".join(words)) for speaker, words in turns]
    rules = Rules.of(["card", "cvv", "ssn", "phone", "birth_date"])
    assert texts(*conversation, rules=rules) == [text for _, text in conversation]


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[Utterance], list[tuple[Utterance, float]]]:
    """Utterances, and the same arriving in parts: provisional, or growing word by word, and then whole."""
    _, utterances = draw(card_calls())
    arrivals: list[tuple[Utterance, float]] = []
    for one in utterances:
        words = one.text.split(" ")
        for count in draw(st.lists(st.integers(1, len(words)), max_size=3)):
            share = count / len(words)
            end = one.start + share * (one.end - one.start)
            part = replace(one, text=" ".join(words[:count]), end=end, final=one.speaker == "agent")
            arrivals.append((part, end + 0.1))
        arrivals.append((one, one.end + 0.5))
    return utterances, sorted(arrivals, key=lambda arrival: arrival[1])


@settings(max_examples=100, deadline=None)
@given(updates())
def test_parts_come_to_the_same_as_the_whole(case: tuple[list[Utterance], list[tuple[Utterance, float]]]) -> None:
    whole, arrivals = case
    redactor, watcher = Redactor(ALL), Watcher()
    for part, at in arrivals:
        watcher.see(redactor.update([part], at))
    watcher.see(redactor.finish())
    assert watcher.texts() == redacted(whole).texts()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["four one", "Is it 12 or 15?", "Hello.", "1", "Okay, 4 1 1"]), min_size=1, max_size=12)
)
def test_nothing_is_held_for_longer_than_the_bound(lines: list[str]) -> None:
    utterances = said(*[("caller" if place % 2 else "agent", line) for place, line in enumerate(lines)])
    redactor, watcher = Redactor(CARD), Watcher()
    at, step = 0.0, 0.5
    last = utterances[-1].end + LONGEST_HOLD + step
    while at < last:
        watcher.see(redactor.update([one for one in utterances if at < one.end <= at + step], at + step))
        at += step
        for one in utterances:
            if one.end + LONGEST_HOLD <= at:
                assert watcher.seen[one.number].final
    assert watcher.safe_until >= at - LONGEST_TURN_SECONDS - LONGEST_HOLD
