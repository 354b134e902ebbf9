"""The echo engine: the caller's sound comes back, and with it, if wanted, what a talk would have said."""

from __future__ import annotations

import pytest

from gateway.engine import TURN, WORD, EchoSession
from gateway.transcript import Transcript
from model.wire import FRAME_SECONDS, AgentFrame

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("words", [False, True])
async def test_sound_comes_back_and_words_are_a_talk_in_turns(words: bool) -> None:
    session = EchoSession(limit=6 * TURN, words=words)
    for number in range(4 * TURN):
        await session.send(bytes([number]), b"")
    await session.close()
    transcript, frames, updates = Transcript(FRAME_SECONDS), [], 0
    async for output in session.outputs():
        if isinstance(output, AgentFrame):
            frames.append(output.pcm)
        else:
            updates += len(transcript.add(output))
    assert frames == [bytes([number]) for number in range(4 * TURN)]
    said = [(one.speaker, len(one.text.split())) for one in transcript.utterances()]
    assert said == ([("agent", TURN // WORD), ("caller", TURN // WORD)] * 2 if words else [])
    assert bool(updates) == words
