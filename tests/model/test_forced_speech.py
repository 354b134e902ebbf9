"""Words are said in the model's timing and in full, clips come out code for code, and a cut is accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.clip import Clip, ClipError, load_clip, save_clip
from model.forced_speech import LAST_WORD_FRAMES, ForcedSpeech, Spoken
from model.lm import LM, LMState, greedy
from model.sampling import SlotSampling
from model.tokenizer import Tokenizer
from model.wire import Sampling
from model.word_queue import LONGEST, PAUSE_FRAMES, START_FRAMES, WordQueue
from tests.model.tiny import CONFIG, VOICE, random_codes, random_lm, same_memory, slot_memory
from tests.model.tiny_tokenizer import train

PAD, END = 3, 0
OWN, ON = 20, 21
"""A word's first piece and a further one."""
WORDS = [[10, 11, 12], [13], [14, 15]]
STARTS = [token in (10, 13, 14, OWN) for token in range(32)]


class Planned:
    """A sampler that chooses what it was told to, each slot from its own list."""

    def __init__(self, *plans: list[int]) -> None:
        self.plans = [iter(plan) for plan in plans]

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        return torch.tensor([next(self.plans[slot]) for slot in slots.tolist()])


def decided(queue: WordQueue, steps: int, slots: tuple[int, ...] = (0,), row: int = 0) -> list[list[int]]:
    """What the queue makes of the plan, step by step."""
    named, logits = torch.tensor(slots), torch.zeros(len(slots), 32)
    return [queue(logits, row, torch.ones(len(slots), dtype=torch.long), named).tolist() for _ in range(steps)]


def flat(plan: list[int], words: list[list[int]] = WORDS) -> list[int]:
    queue = WordQueue(Planned(plan), STARTS, 1)
    queue.start(0, words)
    return [ids[0] for ids in decided(queue, len(plan))]


def test_a_sampled_word_is_replaced_by_the_next_and_its_pieces_follow_at_once() -> None:
    plan = [PAD, PAD, OWN, PAD, ON, PAD, PAD, OWN, END, PAD, PAD, OWN]
    assert flat(plan) == [PAD, PAD, 10, 11, 12, PAD, PAD, 13, END, 14, 15, OWN]


def test_after_the_end_of_padding_a_word_begins_whatever_is_sampled() -> None:
    assert flat([END, PAD, PAD, PAD, END, END, PAD]) == [END, 10, 11, 12, END, 13, PAD]


def test_a_word_of_its_own_is_finished_first_but_not_for_ever() -> None:
    queue = WordQueue(Planned([OWN, ON, ON, OWN, ON, ON]), STARTS, 1)
    assert decided(queue, 2) == [[OWN], [ON]]
    queue.start(0, WORDS)
    assert decided(queue, 4) == [[ON], [10], [11], [12]]
    endless = WordQueue(Planned([OWN] + [ON] * 20), STARTS, 1)
    decided(endless, 1)
    endless.start(0, WORDS)
    assert [10] in decided(endless, START_FRAMES)


def test_padding_is_bounded_at_the_start_and_between_words() -> None:
    assert flat([PAD] * 40) == [
        *([PAD] * (START_FRAMES - 1) + [END, 10, 11, 12]),
        *([PAD] * (PAUSE_FRAMES - 1) + [END, 13]),
        *([PAD] * (PAUSE_FRAMES - 1) + [END, 14, 15]),
        *([PAD] * (40 - START_FRAMES - 2 * PAUSE_FRAMES - 6)),
    ]


@given(st.lists(st.sampled_from([PAD, END, OWN, ON, 10, 12, 31]), min_size=60, max_size=60))
def test_whatever_is_sampled_all_is_said_in_order_and_in_time(plan: list[int]) -> None:
    text = flat(plan)
    spoken = [token for token in text if token not in (PAD, END)]
    assert spoken[:6] == [10, 11, 12, 13, 14, 15]
    places = [place for place, token in enumerate(text) if token not in (PAD, END)][:6]
    assert places[2] == places[0] + 2
    assert places[5] == places[4] + 1
    assert places[0] <= START_FRAMES
    assert places[3] - places[2] <= PAUSE_FRAMES + 1
    assert places[4] - places[3] <= PAUSE_FRAMES + 1
    assert text[places[5] + 1 :] == plan[places[5] + 1 :]


def test_without_words_and_in_other_rows_nothing_is_replaced() -> None:
    plan = [PAD, OWN, ON, END, END, PAD, ON]
    assert flat(plan, []) == plan
    queue = WordQueue(Planned(plan), STARTS, 1)
    queue.start(0, WORDS)
    assert [ids[0] for ids in decided(queue, len(plan), row=1)] == plan


def test_each_slot_has_its_own_words_and_time() -> None:
    queue = WordQueue(Planned([OWN] * 9, [OWN] * 9, [PAD] * 9), STARTS, 3)
    queue.start(0, [[13]])
    queue.start(2, WORDS)
    assert decided(queue, 1, (2, 0)) == [[PAD, 13]]
    assert decided(queue, 1, (1, 0)) == [[OWN, OWN]]
    later = decided(queue, START_FRAMES, (2,))
    assert [ids[0] for ids in later] == [PAD] * (START_FRAMES - 2) + [END, 10]
    queue.stop(2)
    assert decided(queue, 2, (2,)) == [[PAD], [PAD]]


def test_a_step_that_runs_nothing_says_nothing() -> None:
    queue = WordQueue(Planned([OWN, OWN]), STARTS, 1)
    queue.start(0, WORDS)
    assert queue(torch.zeros(1, 32), 0, torch.tensor([0]), torch.tensor([0])).tolist() == [OWN]
    assert queue(torch.zeros(1, 32), 0, torch.tensor([1]), torch.tensor([0])).tolist() == [10]


def test_too_much_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        WordQueue(greedy, STARTS, 1).start(0, [[10]] * (LONGEST + 1))


class Talk:
    """A few slots of the tiny model in conversation, with things to say."""

    def __init__(self, tokenizer: Tokenizer, slots: int = 1, seed: int = 5) -> None:
        self.lm: LM = random_lm()
        self.state: LMState = self.lm.streaming(slots)
        sampling = SlotSampling(slots)
        for slot in range(slots):
            sampling.set(slot, Sampling(1.0, 1.0, 50, 40, seed + slot))
        self.words = WordQueue(sampling, tokenizer.word_starts(), slots)
        self.speech = ForcedSpeech(self.words, tokenizer, slots)
        self.caller = [iter(random_codes(80 + slot, 400, VOICE).T) for slot in range(slots)]

    def step(self, *slots: int) -> tuple[list[list[int]], list[Spoken]]:
        """The frames returned, and what came to its end."""
        forced, mask = self.speech.rows(slots)
        codes = torch.stack([next(self.caller[slot]) for slot in slots])
        output = self.lm.step(self.state, torch.tensor(slots), codes, forced, mask, sampler=self.words)
        frames = output.tokens.tolist()
        ended = [self.speech.returned(slot, frame) for slot, frame in zip(slots, frames, strict=True)]
        return frames, [spoken for spoken in ended if spoken]

    def run(self, steps: int, slot: int = 0) -> Iterator[tuple[list[int], list[Spoken]]]:
        for _ in range(steps):
            frames, ended = self.step(slot)
            yield frames[0], ended


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(train(tmp_path_factory.mktemp("spm") / "text.model", CONFIG.text_card))


def clip_of(tokenizer: Tokenizer, text: str = "this call is recorded", seed: int = 3) -> Clip:
    """Any codes, with the text's pieces at the front of its words' frames."""
    ids: list[int] = []
    for word in tokenizer.words(text):
        ids += [*word, PAD, END]
    codes = random_codes(seed, len(ids), VOICE)
    return Clip(text, torch.cat((torch.tensor(ids)[None], codes)), voice="NATF0")


def test_a_clip_comes_out_code_for_code(tokenizer: Tokenizer) -> None:
    talk, clip = Talk(tokenizer), clip_of(tokenizer)
    list(talk.run(7))
    talk.speech.play(0, clip)
    length = clip.tokens.shape[1]
    came = list(talk.run(length + 6))
    # The step that takes the clip's first frame returns the one before it.
    frames = torch.tensor([frame for frame, _ in came[1 : 1 + length]]).T
    assert torch.equal(frames[:9], clip.tokens)
    assert came[length][1] == [Spoken(clip.text, clip.text, length, complete=True)]
    assert not talk.speech.busy(0)
    beyond = torch.tensor([frame for frame, _ in came[1 + length :]]).T
    assert not torch.equal(beyond[:9], clip.tokens[:, : beyond.shape[1]])


def test_the_model_knows_that_it_said_the_clip(tokenizer: Tokenizer) -> None:
    """The columns it reads hold the clip's tokens, delayed as its own are."""
    talk, clip = Talk(tokenizer), clip_of(tokenizer)
    list(talk.run(5))
    talk.speech.play(0, clip)
    inputs = []
    for _ in range(clip.tokens.shape[1]):
        forced, mask = talk.speech.rows([0])
        output = talk.lm.step(talk.state, torch.tensor([0]), next(talk.caller[0])[None], forced, mask)
        inputs.append(output.trace.inputs[0])
        talk.speech.returned(0, output.tokens[0].tolist())
    read = torch.stack(inputs[1:]).T
    assert torch.equal(read[0], clip.tokens[0, :-1])
    assert torch.equal(read[1], clip.tokens[1, :-1])
    assert torch.equal(read[2:9, 1:], clip.tokens[2:, :-2])


def test_clips_in_some_slots_leave_the_others_alone(tokenizer: Tokenizer) -> None:
    quiet, talk = Talk(tokenizer, 3), Talk(tokenizer, 3)
    clip = clip_of(tokenizer)
    talk.speech.play(1, clip)
    talk.speech.say(2, "hello you")
    for _ in range(20):
        before = quiet.step(0, 1, 2)[0]
        after = talk.step(0, 1, 2)[0]
        assert before[0] == after[0]
    assert same_memory(slot_memory(quiet.state, 0), slot_memory(talk.state, 0))
    assert not same_memory(slot_memory(quiet.state, 1), slot_memory(talk.state, 1))


def test_what_is_said_comes_in_full_and_its_end_is_told(tokenizer: Tokenizer) -> None:
    talk, text = Talk(tokenizer), "you are a teacher"
    list(talk.run(4))
    talk.speech.say(0, text)
    text_ids, ended = [], []
    for frame, told in talk.run(80):
        text_ids.append(frame[0])
        ended += told
        if told:
            break
    assert [(spoken.text, spoken.heard, spoken.complete) for spoken in ended] == [(text, text, True)]
    spoken_ids = [token for token in text_ids if token not in (PAD, END)]
    pieces = tokenizer.encode(text)
    assert any(spoken_ids[place : place + len(pieces)] == pieces for place in range(len(spoken_ids)))


def test_things_are_said_in_the_order_they_came(tokenizer: Tokenizer) -> None:
    talk, clip = Talk(tokenizer), clip_of(tokenizer)
    list(talk.run(3))
    talk.speech.play(0, clip)
    talk.speech.say(0, "hello")
    talk.speech.play(0, clip)
    ended = [spoken.text for _, told in talk.run(100) for spoken in told]
    assert ended == [clip.text, "hello", clip.text]


def test_a_cut_reports_what_was_really_heard_of_a_clip(tokenizer: Tokenizer) -> None:
    talk, clip = Talk(tokenizer), clip_of(tokenizer)
    list(talk.run(3))
    talk.speech.play(0, clip)
    talk.speech.say(0, "hello")
    returned = len(tokenizer.words(clip.text)[0]) + 2
    list(talk.run(1 + returned + 1))
    cut = talk.speech.cut(0, unheard=1)
    assert [(spoken.text, spoken.complete) for spoken in cut] == [(clip.text, False), ("hello", False)]
    assert cut[0].frames == returned
    assert cut[0].heard == "this"
    assert (cut[1].heard, cut[1].frames) == ("", 0)
    assert not talk.speech.busy(0)
    after = torch.tensor([frame for frame, _ in talk.run(8)]).T
    # One more frame had its text and first code decided before the cut; from then on the model speaks for itself.
    assert not torch.equal(after[1:9, 1:4], clip.tokens[1:, returned + 2 : returned + 5])


def test_a_cut_reports_what_was_really_heard_of_words(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    list(talk.run(3))
    talk.speech.say(0, "you are a kind teacher")
    first_two, came = tokenizer.encode("you are"), []
    for frame, _ in talk.run(80):
        came += [frame[0]] if frame[0] not in (PAD, END) else []
        if came[-len(first_two) :] == first_two:
            break
    (cut,) = talk.speech.cut(0)
    assert cut.heard == "you are"
    assert not cut.complete


def test_a_cut_with_nothing_to_say_is_nothing(tokenizer: Tokenizer) -> None:
    assert Talk(tokenizer).speech.cut(0) == []


def test_a_reset_slot_has_nothing_to_say(tokenizer: Tokenizer) -> None:
    talk = Talk(tokenizer)
    talk.speech.say(0, "hello")
    list(talk.run(3))
    talk.speech.reset(0)
    assert not talk.speech.busy(0)
    assert talk.speech.rows([0])[1].any().item() is False


def test_the_end_waits_for_the_last_word_s_sound(tokenizer: Tokenizer) -> None:
    silence = WordQueue(Planned([OWN] + [PAD] * 40), tokenizer.word_starts(), 1)
    speech = ForcedSpeech(silence, tokenizer, 1)
    word = tokenizer.words("hello")[0]
    speech.say(0, "hello")
    ids = [*word] + [PAD] * LAST_WORD_FRAMES
    speech.rows([0])
    for token in ids[:-1]:
        speech.rows([0])
        assert speech.returned(0, [token]) is None
    speech.rows([0])
    assert speech.returned(0, [ids[-1]]) == Spoken("hello", "hello", len(ids), complete=True)


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_text_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(ValueError, match="nothing to say"):
        Talk(tokenizer).speech.say(0, text)


def test_a_text_or_clip_that_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    speech = Talk(tokenizer).speech
    with pytest.raises(ValueError, match="can be said at once"):
        speech.say(0, "hello " * LONGEST)
    with pytest.raises(ValueError, match="does not fit"):
        speech.play(0, Clip("", torch.zeros(17, 3, dtype=torch.long)))


@pytest.mark.parametrize(("row", "token"), [(0, CONFIG.text_card), (3, CONFIG.card), (0, -1), (8, -2)])
def test_a_clip_of_another_model_is_refused(tokenizer: Tokenizer, row: int, token: int) -> None:
    speech, clip = (
        ForcedSpeech(WordQueue(greedy, STARTS, 1), tokenizer, 1, CONFIG.rows, CONFIG.card),
        clip_of(tokenizer),
    )
    speech.play(0, clip)
    clip.tokens[row, -1] = token
    with pytest.raises(ValueError, match="made with another"):
        speech.play(0, clip)


def test_a_clip_s_file_holds_all_of_it(tokenizer: Tokenizer, tmp_path: Path) -> None:
    clip = Clip("hi", clip_of(tokenizer).tokens, "NATF2", "bank", "0123456789ab", "hi", "7")
    save_clip(tmp_path / "hi.clip", clip)
    read = load_clip(tmp_path / "hi.clip")
    assert torch.equal(read.tokens, clip.tokens)
    told = [(c.text, c.voice, c.persona, c.version, c.heard, c.seed) for c in (read, clip)]
    assert told[0] == told[1]
    assert [path.name for path in tmp_path.iterdir()] == ["hi.clip"]


def test_a_file_that_is_no_clip(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "hi.clip").write_bytes(b"nonsense nonsense")
    with pytest.raises(ClipError, match=r"hi\.clip cannot be read"):
        load_clip(tmp_path / "hi.clip")
    save_clip(tmp_path / "wrong.clip", Clip("hi", torch.zeros(3, 4)))
    with pytest.raises(ClipError, match=r"wrong\.clip is not a clip"):
        load_clip(tmp_path / "wrong.clip")
    save_clip(tmp_path / "negative.clip", Clip("hi", clip_of(tokenizer).tokens - 40))
    with pytest.raises(ClipError, match="no tokens"):
        load_clip(tmp_path / "negative.clip")
