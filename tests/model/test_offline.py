"""WAV in, the agent's WAV and text out: with a whole tiny model, in this process and as the command."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.conversation import Conversation, load_models, load_voice
from model.folder import FolderInvalid, ModelFolder
from model.offline import OfflineError, OfflineRun, run_offline, transcript, usable_device, write_wav
from model.prompt import PromptTooLong
from model.tokenizer import Tokenizer
from model.voices import Consent, add_voice
from model.wire import Sampling
from tests.model.golden_files import PCM_LIMIT, Case, assert_near, read_json
from tests.model.tiny_folder import VOICE, make_folder

SAMPLES = 24_000
PROMPT = "you are a teacher"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return make_folder(tmp_path_factory.mktemp("weights"))


def tone(samples: int, rate: int = 24_000) -> NDArray[np.float32]:
    sound = np.sin(np.arange(samples) * (2 * np.pi * 440 / rate)) * 0.4
    return np.asarray(sound * np.linspace(0.2, 1, samples), np.float32)


def wav(path: Path, pcm: NDArray[np.float32], rate: int = 24_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((pcm * 32_000).astype("<i2").tobytes())
    return path


def read(path: Path) -> NDArray[np.int16]:
    """`[channels, samples]`, 24 kHz."""
    with wave.open(str(path)) as file:
        assert file.getframerate() == 24_000
        data = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return data.reshape(-1, file.getnchannels()).T


def a_run(folder: ModelFolder, tmp_path: Path, **changes: Any) -> OfflineRun:
    run = OfflineRun(
        caller=tmp_path / "in.wav",
        out=tmp_path / "out.wav",
        text=tmp_path / "out.json",
        voice=VOICE,
        prompt=PROMPT,
        weights=folder.path,
        recordings=tmp_path / "voices",
        sampling=Sampling(seed=4),
    )
    if not run.caller.exists():
        wav(run.caller, tone(SAMPLES))
    return replace(run, **changes)


def silent(done: int, total: int) -> None:
    """Progress that nobody looks at."""


@pytest.mark.parametrize("name", ["prompt-wav", "prompt-pt", "prompt-pt-random", "prompt-pt-short"])
def test_a_conversation_is_the_reference_s_from_sound_to_sound(folder: ModelFolder, name: str, tmp_path: Path) -> None:
    case = Case(name)
    context = read_json("lm-tiny.json")["config"]["context"]
    models = load_models(make_folder(tmp_path / "weights", context))
    if "in_embeddings" in case:
        path = tmp_path / "voice.pt"
        torch.save({"embeddings": case["in_embeddings"], "cache": case["in_cache"]}, path)
        voice = load_voice(models, path)
    else:
        voice = case["out_voice_codes"][0]
    conversation = Conversation(models, voice, case["in_text_tokens"].flatten().tolist(), None)
    caller = case.pcm("in_user_pcm_i16").flatten().view(-1, 1920)
    heard = [conversation.frame(pcm) for pcm in caller]
    tokens = torch.tensor([frame.tokens for frame in heard])
    assert torch.equal(tokens, case["out_conv_out_tokens"][0].T)
    if "out_conv_pcm" in case:
        pcm = torch.cat([frame.pcm for frame in heard])
        assert_near(pcm, case["out_conv_pcm"].flatten(), PCM_LIMIT)


def test_the_agent_s_sound_is_as_long_as_the_caller_s_and_the_text_has_times(
    folder: ModelFolder, tmp_path: Path
) -> None:
    run, steps = a_run(folder, tmp_path, stereo=tmp_path / "both.wav"), []
    result = run_offline(run, lambda done, total: steps.append((done, total)))
    assert steps == [(n, 13) for n in range(1, 14)]
    agent, caller, both = read(run.out), read(run.caller), read(tmp_path / "both.wav")
    assert agent.shape == (1, SAMPLES)
    assert both.shape == (2, SAMPLES)
    assert np.array_equal(both[1], agent[0])
    assert np.abs(both[0].astype(int) - caller[0]).max() <= 1
    assert agent.any()
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["sampling"]["seed"] == 4
    assert result["seconds"] == 1.0
    assert "".join(piece["text"] for piece in result["pieces"]).strip() == result["text"]
    assert " ".join(word["text"] for word in result["words"]) == " ".join(result["text"].split())
    starts = [piece["start"] for piece in result["pieces"]]
    assert starts == sorted(set(starts))
    assert all(abs(start / 0.08 - round(start / 0.08)) < 1e-6 for start in starts)


def test_a_seed_gives_the_same_again_and_another_seed_something_else(folder: ModelFolder, tmp_path: Path) -> None:
    once = run_offline(a_run(folder, tmp_path), silent)
    first = read(tmp_path / "out.wav")
    again = run_offline(a_run(folder, tmp_path), silent)
    assert again == once
    assert np.array_equal(read(tmp_path / "out.wav"), first)
    run_offline(a_run(folder, tmp_path, sampling=Sampling(seed=5)), silent)
    assert not np.array_equal(read(tmp_path / "out.wav"), first)
    greedy = run_offline(a_run(folder, tmp_path, sampling=None), silent)
    assert greedy["sampling"] == "greedy"


def test_other_rates_are_resampled_and_half_a_frame_is_a_frame(folder: ModelFolder, tmp_path: Path) -> None:
    wav(tmp_path / "in.wav", tone(4_000, 8_000), 8_000)
    run_offline(a_run(folder, tmp_path), silent)
    assert read(tmp_path / "out.wav").shape == (1, 12_000)


def test_a_recording_is_used_only_with_consent(folder: ModelFolder, tmp_path: Path) -> None:
    recording = wav(tmp_path / "ann.wav", tone(SAMPLES))
    run = a_run(folder, tmp_path, voice="ann")
    with pytest.raises(OfflineError, match="no consent is recorded"):
        run_offline(run, silent)
    with pytest.raises(OfflineError, match="no consent is recorded"):
        run_offline(replace(run, voice=str(recording)), silent)
    agreed = Consent("Ann Lee", "2026-01-02", "the bank's telephone agent")
    add_voice(run.recordings, "ann", recording, agreed, datetime.date(2026, 1, 3))
    assert run_offline(run, silent)["voice"] == "ann"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"caller": Path("absent.wav")}, r"absent\.wav cannot be read: No such file"),
        ({"weights": Path("nowhere")}, "weights download"),
        ({"voice": "NATM3"}, "NATM3 is not in .*weights download"),
        ({"voice": "../NATF2"}, "no consent"),
        ({"prompt": "you are a teacher " * 200}, "prompt takes .* frames .* window holds 400"),
        ({"out": Path("nowhere/out.wav")}, r"out\.wav cannot be written"),
        ({"device": "tpu"}, "say cpu or cuda"),
    ],
)
def test_what_cannot_be_done_is_said_before_the_work(
    folder: ModelFolder, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(OfflineError, match=says):
        run_offline(a_run(folder, tmp_path, **changes), silent)
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(("one", "other"), [("out", "caller"), ("text", "out"), ("stereo", "out"), ("stereo", "text")])
def test_no_file_takes_another_s_place(folder: ModelFolder, tmp_path: Path, one: str, other: str) -> None:
    run = a_run(folder, tmp_path)
    before = run.caller.read_bytes()
    (tmp_path / "also").symlink_to(tmp_path)
    same = tmp_path / "also" / getattr(run, other).name
    with pytest.raises(OfflineError, match="is named twice"):
        run_offline(replace(run, **{one: same}), silent)
    assert run.caller.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk here")
def test_a_full_disk_is_one_sentence(folder: ModelFolder, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match="cannot be written: No space left"):
        run_offline(a_run(folder, tmp_path, text=Path("/dev/full")), silent)


def test_sound_that_is_none(folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "in.wav").write_bytes(b"nonsense")
    with pytest.raises(OfflineError, match=r"in\.wav"):
        run_offline(a_run(folder, tmp_path), silent)
    wav(tmp_path / "in.wav", tone(0))
    with pytest.raises(OfflineError, match="holds no sound"):
        run_offline(a_run(folder, tmp_path), silent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(OfflineError, match="callplex doctor"):
        usable_device("cuda")


def test_a_folder_that_is_not_a_model(folder: ModelFolder, tmp_path: Path) -> None:
    broken = make_folder(tmp_path / "weights")
    (broken.path / "lm.json").write_text('{"config": {"dim": 3}}')
    with pytest.raises(FolderInvalid, match=r"lm\.json does not give"):
        load_models(broken)
    wrong = make_folder(tmp_path / "weights")
    wrong.tokenizer.write_bytes(folder.tokenizer.read_bytes())
    sizes = json.loads((wrong.path / "lm.json").read_text())
    sizes["config"]["text_card"] += 1
    (wrong.path / "lm.json").write_text(json.dumps(sizes))
    with pytest.raises(FolderInvalid, match="pieces and the model's vocabulary"):
        load_models(wrong)
    wrong.lm.unlink()
    with pytest.raises(FolderInvalid, match=r"lacks model\.safetensors"):
        load_models(wrong)


def test_a_prompt_that_fits_no_window(tmp_path: Path) -> None:
    models = load_models(make_folder(tmp_path / "weights", context=24))
    from model.conversation import check_prompt, role_ids

    voice = torch.zeros(8, 4, dtype=torch.long)
    assert check_prompt(models, voice, role_ids(models, "")) == 16
    with pytest.raises(PromptTooLong, match="window holds 24"):
        check_prompt(models, voice, role_ids(models, PROMPT))


def test_words_and_pieces_have_the_times_of_their_frames(folder: ModelFolder) -> None:
    tokenizer = Tokenizer(folder.tokenizer)
    (hello,), (you,) = tokenizer.words("hello"), tokenizer.words("you")
    said = transcript(tokenizer, [3, 3, 0, *hello, 3, 3, 0, *you, 3])
    assert said["text"] == "hello you"
    second = round((3 + len(hello) + 3) * 0.08, 3)
    assert said["words"] == [{"start": 0.24, "text": "hello"}, {"start": second, "text": "you"}]
    assert len(said["pieces"]) == len(hello) + len(you)


def test_loud_sound_is_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "loud.wav", [np.array([2.0, -2.0, 0.5], np.float32)])
    assert read(tmp_path / "loud.wav")[0].tolist() == [32_767, -32_768, 16_384]


def test_the_command(folder: ModelFolder, tmp_path: Path) -> None:
    wav(tmp_path / "in.wav", tone(SAMPLES // 2))
    (tmp_path / "teacher.yaml").write_text(f"voice: {VOICE}\nrole: you are a teacher\n")
    command = [sys.executable, "-m", "gateway.cli", "offline", "--caller-wav", "in.wav", "--out", "out.wav"]
    environment = {"PATH": "/usr/bin:/bin", "CALLPLEX_WEIGHTS_DIR": str(folder.path)}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    done = call("--text", "out.json", "--persona", "teacher.yaml", "--greedy", "--device", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown == json.loads((tmp_path / "out.json").read_text())
    assert (shown["voice"], shown["prompt"]) == (VOICE, "you are a teacher.")
    assert read(tmp_path / "out.wav").shape == (1, SAMPLES // 2)
    refused = call("--voice", "ann", "--prompt", PROMPT)
    assert refused.returncode == 1
    assert refused.stderr.startswith("callplex: there is no voice 'ann'")
    assert call("--voice", VOICE, "--prompt", PROMPT, "--persona", "teacher.yaml", "--seed", "-1").returncode == 2
