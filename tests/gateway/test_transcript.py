"""Pieces of text with frame numbers become the utterances a person would write down."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.transcript import Transcript, Utterance
from model.wire import AgentFrame, AgentText, CallerText, Done, Flush, Output

FRAME = 0.08


def words(text: str, start: int, every: int = 4) -> list[Output]:
    """One piece a word, 0.32 s apart, as the rehearsal engine sends them."""
    return [AgentText(start + every * i, " " + word) for i, word in enumerate(text.split())]


def transcribe(*outputs: Output) -> list[Utterance]:
    transcript = Transcript(FRAME)
    for output in outputs:
        transcript.add(output)
    return transcript.utterances()


def told(utterances: list[Utterance]) -> list[tuple[str, str, bool]]:
    return [(one.speaker, one.text, one.interrupted) for one in utterances]


def test_words_of_one_breath_are_one_utterance() -> None:
    (only,) = transcribe(*words("Thank you for calling.", 10))
    assert only.text == "Thank you for calling."
    assert only.start == pytest.approx(0.8)
    last_onset = (10 + 3 * 4) * FRAME
    assert last_onset + 0.2 < only.end < last_onset + 1.0


def test_pieces_without_a_leading_space_continue_the_word() -> None:
    pieces = [AgentText(5, " De"), AgentText(6, "pot"), AgentText(7, ","), AgentText(9, " Miami")]
    assert told(transcribe(*pieces)) == [("agent", "Depot, Miami", False)]


def test_a_pause_of_more_than_a_second_parts_two_utterances() -> None:
    first, second = transcribe(*words("One moment.", 0), *words("I have it.", 30))
    assert (first.text, second.text) == ("One moment.", "I have it.")
    assert first.end < second.start == pytest.approx(30 * FRAME)


def test_a_sentence_pause_does_not_part_them() -> None:
    assert len(transcribe(*words("I see. Let me look.", 0, every=9))) == 1


def test_an_answer_between_two_quick_sentences_parts_them() -> None:
    turns = [*words("Is that right?", 0), CallerText(13, 16, "Yes."), *words("Great.", 19)]
    assert told(transcribe(*turns)) == [
        ("agent", "Is that right?", False),
        ("caller", "Yes.", False),
        ("agent", "Great.", False),
    ]


def test_recognition_that_comes_late_parts_them_too() -> None:
    in_time = transcribe(*words("Is that right?", 0), CallerText(13, 16, "Yes."), *words("Great.", 19))
    late = transcribe(*words("Is that right?", 0), *words("Great.", 19), CallerText(13, 16, "Yes."))
    assert told(late) == told(in_time)


def test_the_caller_talking_over_the_agent_leaves_both_whole_and_overlapping() -> None:
    agent, caller = transcribe(
        *words("Your card was declined at a shop in Miami.", 0), CallerText(8, 20, "Which card?")
    )
    assert agent.text == "Your card was declined at a shop in Miami."
    assert agent.start < caller.start < caller.end < agent.end


def test_an_interruption_marks_the_utterance_and_drops_what_was_never_said() -> None:
    said = words("Your card was declined at a shop", 0)
    utterances = transcribe(*said, Flush(17), CallerText(14, 30, "Wait, which card do you mean?"), *words("Sorry.", 40))
    assert told(utterances) == [
        ("agent", "Your card was declined at", True),
        ("caller", "Wait, which card do you mean?", False),
        ("agent", "Sorry.", False),
    ]
    assert utterances[0].end <= 18 * FRAME + 1e-9


def test_a_flush_after_the_agent_fell_silent_interrupts_nothing() -> None:
    assert told(transcribe(*words("Hello there.", 0), Flush(60))) == [("agent", "Hello there.", False)]


def test_what_a_flush_cut_off_is_kept_as_unsaid() -> None:
    (only,) = transcribe(*words("Your card was declined in Miami.", 0), Flush(9))
    assert (only.text, only.unsaid, only.interrupted) == ("Your card was", "declined in Miami.", True)


def test_a_sentence_that_goes_on_leaves_nothing_unsaid() -> None:
    again = words("declined in Miami.", 20)
    (one, _) = transcribe(*words("Your card was declined in Miami.", 0), Flush(9), CallerText(11, 14, "Mm-hm."), *again)
    assert (one.text, one.unsaid, one.interrupted) == ("Your card was declined in Miami.", "", False)


def test_a_flush_before_anything_was_said_leaves_only_what_was_not() -> None:
    assert transcribe(Flush(3)) == []
    (only,) = transcribe(*words("Never heard at all", 10), Flush(5))
    assert (only.text, only.unsaid, only.start, only.end) == ("", "Never heard at all", 5 * FRAME, 5 * FRAME)


def test_what_was_announced_when_the_call_ended_is_unsaid() -> None:
    transcript = Transcript(FRAME)
    for piece in words("Thank you for calling.", 0):
        transcript.add(piece)
    assert transcript.stop(20) == []
    (only,) = transcript.stop(7)
    assert (only.text, only.unsaid) == ("Thank you", "for calling.")


@pytest.mark.parametrize("backchannel_first", [True, False])
def test_a_sentence_resumed_after_a_backchannel_stays_one_sentence(backchannel_first: bool) -> None:
    before, after = words("Your card was declined", 0), words("at a Home Depot in Miami.", 30)
    backchannel = CallerText(12, 20, "Mm-hm.")
    rest: list[Output] = [backchannel, *after] if backchannel_first else [*after, backchannel]
    assert told(transcribe(*before, Flush(14), *rest)) == [
        ("agent", "Your card was declined at a Home Depot in Miami.", False),
        ("caller", "Mm-hm.", False),
    ]


@pytest.mark.parametrize("backchannel_first", [True, False])
def test_a_word_said_again_from_its_start_is_written_once(backchannel_first: bool) -> None:
    """The rehearsal engine goes on from the start of the word that it was cut off in."""
    before, after = words("Your card was declined at a Home", 0), words("Home Depot in Miami.", 44)
    backchannel = CallerText(24, 36, "Okay, I see.")
    rest: list[Output] = [backchannel, *after] if backchannel_first else [*after, backchannel]
    assert told(transcribe(*before, Flush(26), *rest)) == [
        ("agent", "Your card was declined at a Home Depot in Miami.", False),
        ("caller", "Okay, I see.", False),
    ]


def test_the_only_word_said_again_is_written_once() -> None:
    said = transcribe(AgentText(3, " Hello"), Flush(4), CallerText(3, 8, "Uh."), *words("Hello there.", 20))
    assert told(said) == [("caller", "Uh.", False), ("agent", "Hello there.", False)]


@pytest.mark.parametrize("gap", [4, 20])
@pytest.mark.parametrize("pieces", [(" telephone",), (" tele", "phone")])
def test_a_word_that_a_lost_worker_cut_off_and_the_next_says_again_is_written_once(
    gap: int, pieces: tuple[str, ...]
) -> None:
    transcript = Transcript(FRAME)
    for output in [*words("Your", 10), *(AgentText(14 + at, piece) for at, piece in enumerate(pieces))]:
        transcript.add(output)
    for index in range(18, 18 + gap):
        transcript.lost(index)
    for output in [*(AgentText(18 + gap + at, piece) for at, piece in enumerate(pieces)), *words("bill.", 30 + gap)]:
        transcript.add(output)
    assert told(transcript.utterances()) == [("agent", "Your telephone bill.", False)]


@pytest.mark.parametrize(
    ("lost", "then", "text"),
    [
        pytest.param(22, [" that", " card"], "Yes that that card", id="said-to-its-end"),
        pytest.param(15, [" card"], "Yes that card", id="not-said-again"),
        pytest.param(15, ["ched", " card"], "Yes thatched card", id="goes-on-within-the-word"),
    ],
)
def test_what_a_lost_worker_said_and_the_next_does_not_say_again_stays(lost: int, then: list[str], text: str) -> None:
    transcript = Transcript(FRAME)
    for output in words("Yes that", 10):
        transcript.add(output)
    transcript.lost(lost)
    for place, piece in enumerate(then):
        transcript.add(AgentText(lost + 1 + 4 * place, piece))
    assert told(transcript.utterances()) == [("agent", text, False)]


def test_a_sentence_said_to_its_end_was_not_interrupted_by_an_okay() -> None:
    turns = [
        *words("Your card was declined.", 0),
        Flush(16),
        CallerText(14, 20, "Okay."),
        *words("It was in Miami.", 30),
    ]
    assert told(transcribe(*turns)) == [
        ("agent", "Your card was declined.", False),
        ("caller", "Okay.", False),
        ("agent", "It was in Miami.", False),
    ]


def test_an_interruption_is_still_one_when_the_words_that_made_it_come_late() -> None:
    late = CallerText(13, 26, "No, that is not what I asked you.")
    told_late = told(transcribe(*words("Your card was declined", 0), Flush(14), *words("I see, sorry.", 30), late))
    assert told_late == [
        ("agent", "Your card was declined", True),
        ("caller", "No, that is not what I asked you.", False),
        ("agent", "I see, sorry.", False),
    ]


def test_texts_of_the_caller_that_follow_closely_are_merged() -> None:
    (only,) = transcribe(CallerText(0, 10, "I would like"), CallerText(15, 25, " to pay. "))
    assert (only.text, only.start) == ("I would like to pay.", 0.0)
    assert only.end == pytest.approx(2.0)


def test_texts_of_the_caller_far_apart_are_not_merged() -> None:
    assert len(transcribe(CallerText(0, 10, "Hello."), CallerText(18, 25, "Anyone?"))) == 2


def test_texts_of_the_caller_with_an_answer_between_are_not_merged() -> None:
    turns = transcribe(CallerText(0, 10, "Hello."), AgentText(12, " Hi."), CallerText(16, 25, "Who is this?"))
    assert [one.speaker for one in turns] == ["caller", "agent", "caller"]


def test_live_changes_end_in_what_the_transcript_says() -> None:
    outputs = [
        *words("Is that right?", 0),
        CallerText(13, 15, "Ye", final=False),
        *words("Great, your card was declined", 19),
        CallerText(13, 16, "Yes."),
        Flush(30),
        CallerText(31, 40, "Stop", final=False),
        CallerText(31, 50, "Stop please, I want a person."),
        CallerText(52, 60, "Now.", final=False),
        CallerText(52, 60, "Now."),
        AgentText(70, " Unheard"),
        Flush(69),
    ]
    transcript, shown = Transcript(FRAME), dict[int, Utterance]()
    for output in outputs:
        for change in transcript.add(output):
            shown[change.number] = change
    live = sorted((one for one in shown.values() if one.text or one.unsaid), key=lambda one: (one.start, one.number))
    assert live == transcript.utterances()
    assert [(one.text, one.unsaid) for one in live][-2:] == [
        ("Stop please, I want a person. Now.", ""),
        ("", "Unheard"),
    ]


def test_words_being_recognised_when_the_caller_hangs_up_are_kept() -> None:
    (only,) = transcribe(CallerText(0, 10, "I wanted to", final=False))
    assert only.text == "I wanted to"
    assert not only.final


def test_recognised_silence_takes_the_provisional_words_back() -> None:
    transcript = Transcript(FRAME)
    (shown,) = transcript.add(CallerText(0, 5, "uh", final=False))
    (gone,) = transcript.add(CallerText(0, 5, " "))
    assert (gone.number, gone.text) == (shown.number, "")
    assert transcript.utterances() == []


def test_sound_and_done_change_nothing() -> None:
    transcript = Transcript(FRAME)
    assert transcript.add(AgentFrame(0, b"")) == []
    assert transcript.add(Done(0, "goodbye")) == []


INDEX = st.integers(0, 200)
OUTPUTS = st.one_of(
    st.builds(AgentText, INDEX, st.sampled_from([" yes", "ter", ".", " And", " ", "", " card"])),
    st.builds(CallerText, INDEX, INDEX, st.sampled_from(["mm-hm", "Which one do you mean?", "", "No."]), st.booleans()),
    st.builds(Flush, INDEX),
)


@given(st.lists(OUTPUTS, max_size=40))
@example([AgentText(0, " "), AgentText(1, " yes"), Flush(0)])
def test_whatever_comes_utterances_are_ordered_and_live_changes_agree(outputs: list[Output]) -> None:
    transcript, shown = Transcript(FRAME), dict[int, Utterance]()
    for output in outputs:
        for change in transcript.add(output):
            shown[change.number] = change
    utterances = transcript.utterances()
    assert [one.start for one in utterances] == sorted(one.start for one in utterances)
    assert all(one.end >= one.start and (one.text or one.unsaid) for one in utterances)
    live = sorted((one for one in shown.values() if one.text or one.unsaid), key=lambda one: (one.start, one.number))
    assert live == utterances


def test_a_turn_is_as_sure_as_its_least_sure_part_and_says_so_only_where_each_is_known() -> None:
    def sure(first: float | None, second: float | None) -> float | None:
        (one,) = transcribe(
            CallerText(0, 10, "My name is", confidence=first), CallerText(12, 20, "David.", confidence=second)
        )
        return one.confidence

    assert sure(0.9, 0.6) == 0.6
    assert sure(0.5, 1.7) == 0.5, "a worker may send what it likes"
    assert (sure(None, 0.6), sure(0.9, None)) == (None, None)
