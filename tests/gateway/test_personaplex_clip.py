"""Prepared clips on real workers with tiny weights: a persona's disclosure at a caller's ear, and a clip asked for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from gateway.audio import Downsampler, decode_ulaw, encode_ulaw
from gateway.personas import read_personas
from gateway.phone.call import CallOptions, CallReport, place_call
from gateway.phone.sound import read_wav
from gateway.resume import ResumingSession
from model.clip import Clip, save_clip
from model.conversation import Models, load_models
from model.folder import ModelFolder
from model.wire import Played, SessionRequest
from tests.gateway.gateway_process import running_gateway
from tests.gateway.personaplex_workers import ActingCaller, personaplex, ready, write_persona
from tests.gateway.token_workers import Caller, pool_of
from tests.model.tiny_folder import VOICE, make_folder

pytestmark = [pytest.mark.anyio, pytest.mark.long]

TEXT = "this call is recorded"
FRAMES = 25


def make_clip(models: Models) -> Clip:
    """Two seconds of noise that only this clip has; the text's pieces come one in each of the first frames."""
    pieces = [piece for word in models.tokenizer.words(TEXT) for piece in word]
    text = torch.tensor(pieces + [3] * (FRAMES - len(pieces)))
    codes = torch.randint(0, 2048, (8, FRAMES), generator=torch.Generator().manual_seed(5))
    return Clip(TEXT, torch.cat((text[None], codes)))


def at_the_ear(models: Models, clip: Clip) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The clip's sound, 8 kHz, as a telephone line carries it."""
    state, slot, downsample = models.mimi.streaming(1), torch.zeros(1, dtype=torch.long), Downsampler()
    line = b""
    for frame in clip.tokens[1:].T:
        pcm = models.mimi.decode_step(state, slot, frame[None, :, None])[0, 0] * 32768
        line += downsample(pcm.round().clamp(-32768, 32767).numpy().astype("<i2").tobytes())
    return np.frombuffer(decode_ulaw(encode_ulaw(line)), "<i2").astype(np.float64)


async def test_a_personas_disclosure_is_heard_sound_for_sound(tmp_path: Path) -> None:
    folder: ModelFolder = make_folder(tmp_path / "weights", context=3000)
    personas = write_persona(tmp_path / "personas", f"disclosure: {TEXT}\n")
    models = load_models(folder)
    clip = make_clip(models)
    (personas / "clips").mkdir()
    save_clip(personas / "clips" / f"teacher-{read_personas(personas, [])['teacher'].version}.clip", clip)
    settings = {
        "CALLPLEX_ENGINE": "personaplex",
        "CALLPLEX_WEIGHTS_DIR": str(folder.path),
        "CALLPLEX_PERSONAS": str(personas),
        "CALLPLEX_SLOTS": "1",
        "CALLPLEX_DEVICE": "cpu",
        "CALLPLEX_TRANSCRIBER": "none",
        "CALLPLEX_ALLOW_UNSIGNED": "1",
    }
    with running_gateway(tmp_path / "gateway", **settings) as gateway:
        await ready(gateway)
        caller = ActingCaller([], end=5, actions={})
        report = await place_call(CallOptions(gateway.url, caller, out=tmp_path / "heard"))
        assert gateway.stop() == 0
        (path,) = gateway.data.glob("calls/*/transcript.json")
        document = json.loads(path.read_text())
        assert "the disclosure is said in the model's own sound" not in gateway.log.read_text()
    said = " ".join(one["text"] for one in document["utterances"] if one["speaker"] == "agent")
    assert said.startswith(TEXT)
    heard = np.frombuffer(read_wav(Path(report.agent_wav)), "<i2").astype(np.float64)
    # The last 0.8 s: what the codec makes of the frames before depends on what it decoded before them.
    wanted = at_the_ear(models, clip)[9_600:]
    alike = likeness(heard, wanted)
    assert alike > 0.98, f"{alike:.3f}; {losses(report, document['metrics'])}"


def losses(report: CallReport, counted: Mapping[str, int]) -> str:
    """Where sound was lost on its way, in 20 ms, as each that plays or sends it has counted."""
    ear = report.metrics
    parts = (
        f"the ear had {ear.frames_lost} of silence in {ear.underruns} holes",
        f"the gateway had {counted['agent_frames_lost']} of the agent's too late or left out",
        f"and {counted['frames_lost']} of the caller's",
        f"{counted['deadline_misses']} of its ticks were late",
    )
    return ", ".join(parts)


def likeness(
    heard: np.ndarray[tuple[int], np.dtype[np.float64]], wanted: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """The best correlation of `wanted` with any part of `heard` that is as long."""
    size = 1 << (len(heard) + len(wanted)).bit_length()
    products = np.fft.irfft(np.fft.rfft(heard, size) * np.fft.rfft(wanted, size).conj(), size)
    places = len(heard) - len(wanted) + 1
    powers = np.convolve(heard**2, np.ones(len(wanted)), "valid")
    return float((products[:places] / np.sqrt(np.maximum(powers, 1.0) * (wanted**2).sum())).max())


async def test_a_clip_that_is_asked_for_is_played_to_its_end(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "weights")
    clip = make_clip(load_models(folder))
    (folder.path / "clips").mkdir()
    save_clip(folder.path / "clips" / "notice.clip", clip)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(
            personaplex(folder.path, 1, PERSONAS=str(folder.path), TRANSCRIBER="none")
        )
        pool = await stack.enter_async_context(pool_of(worker))
        session = await pool.open(SessionRequest("c1", prompt="you are a kind teacher", voice=VOICE))
        assert isinstance(session, ResumingSession)
        await session.play("notice")
        caller = Caller(pace=0.2)
        listening = asyncio.create_task(caller.listen(session, FRAMES + 10))
        await caller.speak(session, FRAMES + 10, listening)
        await listening
        assert session.history.clips == ()
        columns = np.frombuffer(session.history.content().columns, "<u2").reshape(-1, 17)
        await session.close()
    assert not any(isinstance(output, Played) for output in caller.heard), "that is for the session, not for the call"
    first = clip.tokens[1].tolist()
    semantic = columns[:, 1].tolist()
    assert any(semantic[at : at + FRAMES] == first for at in range(len(semantic) - FRAMES + 1))
