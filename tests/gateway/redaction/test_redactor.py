"""What the redactor lets through, what it masks and mutes, and how long it holds back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from gateway.redaction.redactor import LONGEST_TURN_SECONDS, REMEMBERED_SECONDS, SETTLE_SECONDS, Redactor
from gateway.redaction.rules import CustomPattern, Rules
from gateway.redaction.word_times import BEYOND
from gateway.transcript import Speaker, Utterance
from tests.gateway.redaction.conversation import ALL, CARD, LONGEST_HOLD, Watcher, is_muted, redacted, said, texts


@pytest.mark.parametrize(
    "number",
    [
        "four one one one, one one one one, one one one one, one one one one",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1",
        "forty-one eleven, eleven eleven, eleven eleven, eleven eleven",
        "four triple one, then double one double one, um, 1111 and four ones",
        "three seven eight two, eight two two four six three, one oh oh oh five",
    ],
)
def test_a_card_number_is_masked_and_the_rest_is_kept(number: str) -> None:
    assert texts(("caller", f"Sure, it is {number}. Thank you.")) == ["Sure, it is [card number]. Thank you."]


def test_a_number_split_over_turns_with_the_agent_in_between() -> None:
    turns: list[tuple[Speaker, str]] = [
        ("caller", "It's four two four two"),
        ("agent", "Mm-hm."),
        ("caller", "four two four two,"),
        ("agent", "Four two four two, and then?"),
        ("caller", "Yes, and then forty-two forty-two"),
        ("agent", "Go on."),
        ("caller", "four two, sorry, four two."),
    ]
    assert texts(*turns)[::2] == [
        "It's [card number]",
        "[card number],",
        "Yes, and then [card number]",
        "[card number].",
    ]


def test_the_agent_that_reads_it_back_is_masked_and_muted_too() -> None:
    turns = said(("caller", "5425 2334 3010 9903"), ("agent", "So that is 5 4 2 5 2 3 3 4 3 0 1 0 9 9 0 3, correct?"))
    watcher = redacted(turns)
    assert watcher.texts() == ["[card number]", "So that is [card number], correct?"]
    assert is_muted(watcher.mutes, "caller", turns[0].start, turns[0].end)
    assert any(mute.speaker == "agent" for mute in watcher.mutes)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1", "My card number is [card number]"),
        ("4111 1111 1111", "My card number is [card number]"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "My card number is [card number]"),
        ("4111 11", "My card number is [card number]"),
        ("on file", "My card number is on file"),
    ],
)
def test_what_recognition_got_wrong_is_masked_where_a_card_is_spoken_of(number: str, shown: str) -> None:
    assert texts(("caller", f"My card number is {number}")) == [shown]


def test_a_group_that_is_read_back_is_masked_though_the_caller_seemed_to_speak_of_last_digits() -> None:
    assert texts(
        ("caller", "The one ending your letter, so 4308. 6747. Sorry again 6747."),
        ("agent", "I heard four three zero eight."),
        ("caller", "4973. Moving on 2171."),
        ("agent", "I heard four nine seven three."),
    )[1::2] == ["I heard [card number].", "I heard [card number]."]


def test_what_is_read_back_of_a_card_is_masked_whatever_else_was_spoken_of() -> None:
    assert texts(
        ("caller", "Can I pay over the phone? It is 3 7 6 3 8 0 4 9 8. Right 3 7 9. What 8 6 8 is that going through?"),
        ("agent", "I heard three seven six, three eight zero, four nine eight."),
        rules=CARD,
    ) == ["Can I pay over the phone? It is [card number] is that going through?", "I heard [card number]."]


def test_an_interrupted_number_is_masked_when_the_agent_asked_for_it() -> None:
    turns: list[tuple[Speaker, str]] = [
        ("agent", "Could you read me the number on your card?"),
        ("caller", "Yes, it is four one one one, one one"),
    ]
    assert texts(*turns)[1] == "Yes, it is [card number]"


@pytest.mark.parametrize(
    "text",
    [
        "My card was declined at a Home Depot in Miami. It was twelve hundred dollars.",
        "The branch closes at five PM on Saturday.",
        "The credit card has a fee of 95 dollars a year.",
        "The card ending in 4821 was charged 12 times.",
        "What are the last four digits of your card number? 4 8 2 1.",
        "Flight 1420 leaves at 10:30 from gate 22.",
        "I have 2 kids, 3 dogs and 4 cats.",
        "It is order 94001, two boxes of 500.",
        "Ten in the morning works for me.",
        "It is lisinopril, ten milligrams.",
        "May I have one? For me, to go, too.",
    ],
)
def test_ordinary_talk_is_left_alone(text: str) -> None:
    assert texts(("caller", text)) == [text]


@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        (["The security code is seven three seven."], ["The security code is [security code]."]),
        (
            ["4111 1111 1111 1111, and the security code is 737"],
            ["[card number], and the security code is [security code]"],
        ),
        (["737 is the security code."], ["[security code] is the security code."]),
        (["And the three digits on the back?", "737."], ["And the three digits on the back?", "[security code]."]),
        (["My social is 123 45 6789."], ["My social is [social security number]."]),
        (["It's 123-45-6789."], ["It's [social security number]."]),
        (["My social security number?", "1 2 3 4 5 6 7 8 9"], None),
        (["Call me at 206-555-0123."], ["Call me at [phone number]."]),
        (["Two oh six, five five five, oh one two three"], ["[phone number]"]),
        (["It is plus 358 40 123 4567."], ["It is plus [phone number]."]),
        (["What is your date of birth?", "March fifth, nineteen eighty."], None),
        (["I was born on the 5th of March 1980."], ["I was born on the [date of birth]."]),
        (["My date of birth is 03/05/1980."], ["My date of birth is [date of birth]."]),
        (["Let's meet on March 5th."], ["Let's meet on March 5th."]),
        (["Write to jane.doe99@mail.example.com please."], ["Write to [e-mail address] please."]),
        (["It's john dot smith at gmail dot com."], ["It's [e-mail address]."]),
        (["My e-mail is john smith at gmail.com"], ["My e-mail is [e-mail address]"]),
        (["It's J O H N underscore 7 at corp dot co dot uk"], ["It's [e-mail address]"]),
        (["Let's meet at noon."], ["Let's meet at noon."]),
    ],
)
def test_other_kinds(turns: list[str], shown: list[str] | None) -> None:
    speakers: list[Speaker] = ["agent", "caller"] if len(turns) == 2 else ["caller"]
    result = texts(*zip(speakers, turns, strict=True))
    if shown is None:
        assert not any(char.isdigit() for char in result[-1])
        assert "[" in result[-1]
    else:
        assert result == shown


def test_an_address_that_goes_on_in_the_next_turn() -> None:
    shown = texts(("agent", "Your e-mail?"), ("caller", "It's john dot smith"), ("caller", "at gmail dot com"))
    assert shown == ["Your e-mail?", "It's [e-mail address]", "[e-mail address]"]


def test_only_what_the_rules_name_is_masked() -> None:
    text = "Card 4111 1111 1111 1111, born May 5th 1980, phone 206 555 0123"
    assert texts(("caller", text), rules=Rules.of(["card"])) == [
        "Card [card number], born May 5th 1980, phone 206 555 0123"
    ]
    assert texts(("caller", text), rules=Rules.of(["phone"])) == [
        "Card 4111 1111 1111 1111, born May 5th 1980, phone [phone number]"
    ]


def test_the_last_four_digits_can_be_kept_in_the_text() -> None:
    rules = Rules.of(["card_but_last_four"])
    assert texts(("caller", "It's 5425 2334 3010 9903."), rules=rules) == ["It's [card number ending in 9903]."]
    assert texts(("caller", "My card number is 5425 2334"), rules=rules) == ["My card number is [card number]"]


def test_custom_patterns_see_the_text_and_its_figures_as_digits() -> None:
    rules = Rules.of([], [CustomPattern("member number", r"\bAB\d{4}\b"), CustomPattern("name", "rumpelstiltskin")])
    assert texts(("caller", "I am Rumpelstiltskin, member A B one two, three four."), rules=rules) == [
        "I am [name], member [member number]."
    ]


def test_keys_are_masked() -> None:
    turns = said(("agent", "Please type your card number."), ("caller", "[keypad 4111111111111111#]"))
    assert redacted(turns).texts()[1] == "[keypad [card number]#]"


def test_without_rules_everything_passes_at_once() -> None:
    redactor = Redactor(Rules())
    provisional = Utterance(1, "caller", "4111 1111 1111 1111", 1.0, 2.0, final=False)
    passed = redactor.update([provisional], 2.0)
    assert (passed.utterances, passed.mutes, passed.safe_until) == ((provisional,), (), 2.0)


def test_text_without_private_data_passes_after_it_has_settled() -> None:
    (utterance,) = said(("caller", "What time does the branch close on Saturday?"))
    redactor = Redactor(ALL)
    redactor.update([utterance], utterance.end)
    (shown,) = redactor.update([], utterance.end + SETTLE_SECONDS).utterances
    assert shown == replace(utterance, onsets=())
    assert not redactor.update([], utterance.end + 60).utterances


def test_figures_at_the_end_are_held_and_the_words_before_them_shown() -> None:
    (utterance,) = said(("caller", "I would like to pay now, it is four one one one"))
    redactor = Redactor(CARD)
    redactor.update([utterance], utterance.end)
    (shown,) = redactor.update([], utterance.end + SETTLE_SECONDS).utterances
    assert (shown.text, shown.final) == ("I would like to pay now, it is", False)
    (rest,) = redactor.update([], utterance.end + LONGEST_HOLD).utterances
    assert rest.text == utterance.text
    assert rest.final


def test_an_utterance_that_is_taken_back_disappears() -> None:
    (utterance,) = said(("agent", "Good morning to you."))
    redactor, watcher = Redactor(ALL), Watcher()
    watcher.see(redactor.update([utterance], 10.0))
    watcher.see(redactor.update([replace(utterance, text="")], 11.0))
    watcher.see(redactor.finish())
    assert watcher.texts() == []
    never_shown = Redactor(ALL)
    never_shown.update([utterance], utterance.start)
    assert not never_shown.update([replace(utterance, text="")], utterance.start).utterances


def test_provisional_words_are_not_shown() -> None:
    redactor, watcher = Redactor(ALL), Watcher()
    provisional = Utterance(1, "caller", "Hello there", 1.0, 2.0, final=False)
    assert not watcher.see(redactor.update([provisional], 20.0)).utterances
    watcher.see(redactor.finish())
    assert watcher.texts() == ["Hello there"]


def test_sound_is_safe_when_no_text_of_it_can_come_any_more() -> None:
    redactor = Redactor(ALL)
    assert redactor.update([], 10.0).safe_until == 0.0
    assert redactor.update([], 100.0).safe_until == 100.0 - LONGEST_TURN_SECONDS
    held = Utterance(1, "caller", "four one one", 62.0, 64.0)
    assert redactor.update([held], 65.0).safe_until <= 61.0
    assert redactor.finish().safe_until == float("inf")


def test_words_with_known_times_are_muted_to_the_word() -> None:
    text = "My card number is 4111 1111 1111 1111 and my name is Ann"
    onsets = tuple(1.0 + place for place in range(len(text.split())))
    watcher = redacted([Utterance(1, "caller", text, 1.0, 14.0, onsets=onsets)])
    assert (watcher.mutes[0].start, watcher.mutes[0].end) == (4.4, 9.6)


def test_what_was_said_but_not_recognised_is_muted() -> None:
    question, answer = said(("agent", "How can I help?"), ("caller", "What time does the branch close on Saturday?"))
    redactor, watcher = Redactor(CARD), Watcher()
    watcher.see(redactor.update([question, answer], answer.end))
    for second in range(10, 90):
        watcher.see(redactor.update([], float(second)))
    assert is_muted(watcher.mutes, "caller", 0.0, answer.start - BEYOND)
    assert is_muted(watcher.mutes, "caller", answer.end + BEYOND, 40.0)
    assert not any(mute.start < answer.end and mute.end > answer.start for mute in watcher.mutes)


def test_the_sound_of_an_utterance_with_too_few_words_is_muted() -> None:
    watcher = redacted([Utterance(1, "caller", "Give me a second.", 1.0, 12.0)], CARD)
    assert is_muted(watcher.mutes, "caller", 1.0, 12.0)


CARD_SAID: tuple[Speaker, str] = ("caller", "My card number is 4 1 1 1 1 1 1 1 1 1 1")


@pytest.mark.parametrize(
    ("turns", "shown"),
    [
        ([("caller", "You can charge for 0 5 9."), ("caller", "Followed by 29 2 2. Followed by 4 4 6 9.")], None),
        ([("caller", "And it's like 2 2 1."), ("agent", "Sorry?"), ("caller", "8 9 7 9. Next in 4 1 9 5")], None),
        ([("caller", "Here goes 30 7 3 7.")], ["Here goes [card number]."]),
        ([("caller", "It is 12345678.")], ["It is [card number]."]),
        ([CARD_SAID, ("caller", "free to oh please")], ["My card number is [card number]", "[card number]"]),
        ([CARD_SAID, ("agent", "I heard seven.")], ["My card number is [card number]", "I heard [card number]."]),
        ([CARD_SAID, ("agent", "One moment please.")], ["My card number is [card number]", "One moment please."]),
        ([CARD_SAID, ("agent", "That is 12 dollars.")], ["My card number is [card number]", "That is 12 dollars."]),
        ([("caller", "It is 555-0123.")], ["It is 555-0123."]),
        ([("caller", "It was on 03/05/1980.")], ["It was on 03/05/1980."]),
        ([("caller", "There are 2 or 3 of them, flight 1420.")], ["There are 2 or 3 of them, flight 1420."]),
    ],
)
def test_figures_of_which_nobody_said_that_they_are_a_card(
    turns: list[tuple[Speaker, str]], shown: list[str] | None
) -> None:
    result = texts(*turns, rules=CARD)
    if shown is None:
        assert not any(char.isdigit() for text in result for char in text)
    else:
        assert result == shown


def test_the_sound_between_two_parts_of_a_number_is_muted_whatever_words_came_of_it() -> None:
    turns = said(
        ("caller", "My card number is 4 1 1 1"), ("caller", "let me be so free old Cameron"), ("caller", "1 1 1 1")
    )
    assert is_muted(redacted(turns, CARD).mutes, "caller", turns[1].start, turns[1].end)


def test_what_is_said_first_when_the_agent_asked_for_a_card_is_muted_with_the_figures_that_follow() -> None:
    turns = said(
        ("agent", "Could I have your card number, please?"),
        ("caller", "Sure, it is I'm free sick."),
        ("agent", "Okay, go on."),
        ("caller", "And then 8 5 1 5."),
    )
    mutes = redacted(turns, CARD).mutes
    assert is_muted(mutes, "caller", turns[1].start, turns[3].end)
    assert not is_muted(mutes, "agent", turns[2].start, turns[2].end)


# Properties


def test_an_hour_of_talk_leaves_nothing_behind() -> None:
    redactor = Redactor(ALL)
    for number in range(600):
        at = 6.0 * number
        redactor.update([Utterance(number, "caller", "It is number 12, I think.", at, at + 3.0)], at + 4.0)
    assert redactor.remembered <= REMEMBERED_SECONDS / 6 + 8


def test_mutes_follow_the_words() -> None:
    utterances = said(("caller", "It is 4111 1111"), ("agent", "Yes?"), ("caller", "1111 1111"))
    watcher = redacted(utterances)
    for one in (utterances[0], utterances[2]):
        assert is_muted(watcher.mutes, "caller", one.end - 1.0, one.end)
    for earlier, later in pairwise(sorted(watcher.mutes, key=lambda mute: mute.start)):
        assert earlier.start <= later.start
