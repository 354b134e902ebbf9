"""The prompt's frames, their number, and the tags around the role."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model.prompt import (
    SILENCE,
    SINE,
    PromptTooLong,
    check_length,
    prompt_frames,
    prompt_length,
    voice_frames,
    wrapped,
)

VOICE = [[100 * frame + code for code in range(8)] for frame in range(5)]


def test_the_four_parts_in_order() -> None:
    frames = prompt_frames(VOICE, [7, 8, 9])
    assert len(frames) == prompt_length(5, 3) == 5 + 6 + 3 + 6
    assert {len(frame) for frame in frames} == {17}
    assert [frame[0] for frame in frames] == [3] * 11 + [7, 8, 9] + [3] * 6
    assert [frame[1:9] for frame in frames[:5]] == [tuple(codes) for codes in VOICE]
    assert {frame[1:9] for frame in frames[5:]} == {SILENCE}
    assert {frame[9:] for frame in frames} == {SINE}


def test_a_voice_has_eight_codes_in_each_frame() -> None:
    with pytest.raises(ValueError, match="8 codes"):
        voice_frames([[1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  You are Ann.\n", "<system> You are Ann. <system>"),
        ("<system> You are Ann. <system>", "<system> You are Ann. <system>"),
        ("<system> You are Ann.", "<system> <system> You are Ann. <system>"),
        ("<system>", "<system> <system> <system>"),
    ],
)
def test_the_role_stands_between_tags(text: str, expected: str) -> None:
    assert wrapped(text) == expected


def test_a_prompt_that_does_not_fit_says_how_many_frames_it_takes() -> None:
    assert check_length(60, 400, 3000) == 472
    assert check_length(5, 5, 24) == 22
    with pytest.raises(PromptTooLong, match=r"takes 3072 frames \(246 s\).*holds 3000: 60 .* 3000 .* by 74 tokens"):
        check_length(60, 3000, 3000)
    with pytest.raises(PromptTooLong, match="take a shorter recording of the voice"):
        check_length(2990, 4, 3000)


def test_a_prompt_that_calls_are_given_back_leaves_room_for_what_was_said_last() -> None:
    assert check_length(60, 1128, 3000, reprimed=True) == 1200
    with pytest.raises(PromptTooLong) as refused:
        check_length(60, 1200, 3000, reprimed=True)
    assert str(refused.value) == (
        "the prompt takes 1272 frames (102 s), and 1200 are the most that long calls can be given back where the"
        " model's window holds 3000: 60 of the voice, 1200 of the role's text and 12 of pauses; shorten the text by 72"
        " tokens or more, or start the worker with --context sliding, where long calls forget their prompt"
    )
    with pytest.raises(PromptTooLong, match=r"by 1872 tokens or more$"):
        check_length(60, 3000, 3000, reprimed=True)


def test_it_loads_without_torch() -> None:
    check = "import sys, model.prompt; sys.exit(', '.join({'torch', 'numpy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
