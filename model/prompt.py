"""The system prompt as frames: a voice, a pause, the role as text, a pause; every token of it is known.

Owns the order of the four parts, the codes that stand for silence and for the caller's tone, and how long a prompt
may be. Standard library only. Knows no network and no tokenizer: text comes in as ids.

A frame is a tuple of 17 ids: one of text, eight of the agent's voice, eight of the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.config import TEXT_PAD

Frame = tuple[int, ...]

CODEBOOKS = 8
"""Codes of one voice in a frame."""
SILENCE: Frame = (948, 243, 1178, 546, 1736, 1030, 1978, 2008)
"""The agent's codes while it is silent, semantic first."""
SINE: Frame = (430, 1268, 381, 1611, 1095, 1495, 56, 472)
"""What the model was trained to hear from the caller during a prompt: a tone of 440 Hz."""
PAUSE_FRAMES = 6
"""Half a second, in whole frames."""
FRAME_SECONDS = 0.08
TAG = "<system>"


class PromptTooLong(Exception):
    """The prompt would push its own beginning out of the model's memory; the message says by how much."""


def wrapped(text: str) -> str:
    """The role's text between system tags (the closing tag is the same), unless it already stands there."""
    text = text.strip()
    if text.startswith(TAG) and text.endswith(TAG) and len(text) >= 2 * len(TAG):
        return text
    return f"{TAG} {text} {TAG}"


def voice_frames(codes: Iterable[Sequence[int]]) -> list[Frame]:
    """The voice part, from the recording's codes, eight for each frame. Raises ValueError for another number."""
    frames = [(TEXT_PAD, *column, *SINE) for column in codes]
    if any(len(frame) != 1 + 2 * CODEBOOKS for frame in frames):
        raise ValueError(f"a frame of a voice has {CODEBOOKS} codes")
    return frames


def role_frames(text_ids: Iterable[int]) -> list[Frame]:
    """What follows the voice: a pause, one frame for each id of the role's text, a pause."""
    pause = [TEXT_PAD] * PAUSE_FRAMES
    return [(text, *SILENCE, *SINE) for text in (*pause, *text_ids, *pause)]


def prompt_frames(voice_codes: Iterable[Sequence[int]], text_ids: Iterable[int]) -> list[Frame]:
    """The whole prompt, for a voice known by its codes."""
    return [*voice_frames(voice_codes), *role_frames(text_ids)]


def prompt_length(voice: int, text: int) -> int:
    """Frames of a prompt with a voice of `voice` frames and a role of `text` ids."""
    return voice + PAUSE_FRAMES + text + PAUSE_FRAMES


def longest_prompt(context: int) -> int:
    """Frames that calls can be given back, again and again, when a window of `context` is full.

    With the newest of the talk they get 45 % of it (`model.history.kept_frames`): so a twentieth is left for that, 12 s
    of the published model's. A longer prompt would have to come back more often, with less: it is refused before a
    call depends on it. A persona in YAML has to have both the longest text and the longest voice to come near.
    """
    return context * 2 // 5


def check_length(voice: int, text: int, context: int, *, reprimed: bool = False) -> int:
    """The prompt's frames. Raises PromptTooLong if they do not fit into a window of `context` frames, or are too many
    to be given back where calls are `reprimed`.

    A streaming model may see one frame fewer than its context, and must see at least one of the conversation.
    """
    frames, fitting = prompt_length(voice, text), context - 2
    most = longest_prompt(context) if reprimed else fitting
    if frames <= most:
        return frames
    over = frames - most
    fix = f"shorten the text by {over} tokens or more" if over < text else "take a shorter recording of the voice"
    limit = f" and the model's window holds {context}"
    if reprimed:
        limit = f", and {most} are the most that long calls can be given back where the model's window holds {context}"
        if frames <= fitting:
            fix += ", or start the worker with --context sliding, where long calls forget their prompt"
    raise PromptTooLong(
        f"the prompt takes {frames} frames ({frames * FRAME_SECONDS:.0f} s){limit}: {voice} of the voice, {text} of the"
        f" role's text and {2 * PAUSE_FRAMES} of pauses; {fix}"
    )
