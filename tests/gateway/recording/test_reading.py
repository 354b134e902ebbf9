"""What was recorded can be read back by who has the key, and damage is told in a sentence."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.recording.reading import Recording, Unreadable, open_recording
from gateway.recording.recorder import Recorder
from gateway.recording.seal import DataKey
from tests.gateway.recording.sound import KEY, PIECE_SECONDS, expected, pitch, plan, record, tone

OTHER = DataKey(bytes(32))


def made(folder: Path, kind: str, pieces: int = 40) -> Path:
    recorder = Recorder(plan(folder, kind))
    if "opus" in kind:
        for index in range(pieces):
            recorder.write(tone(index, 400), tone(index, 1_000))
    else:
        record(recorder, pieces)
    recorder.close().result(5)
    assert recorder.failed == ""
    return recorder.plan.path


def opened(path: Path, data: bytes | None = None, keys: Sequence[DataKey] = (OTHER, KEY)) -> Recording:
    return open_recording(io.BytesIO(path.read_bytes() if data is None else data), path.name, keys)


def as_wav(recording: Recording) -> NDArray[np.int16]:
    with wave.open(io.BytesIO(b"".join(recording.wav()))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        data = file.readframes(file.getnframes())
        assert len(data) == 4 * file.getnframes()
    return np.frombuffer(data, "<i2").reshape(-1, 2)


@pytest.mark.parametrize("kind", ["wav", "wav.sealed"])
@pytest.mark.parametrize("pieces", [0, 1, 40])
def test_wav_comes_back_to_the_sample_with_sizes_that_fit(tmp_path: Path, kind: str, pieces: int) -> None:
    recording = opened(made(tmp_path, kind, pieces))
    for _ in range(2):
        stereo = as_wav(recording)
        assert np.array_equal(stereo[:, 0], expected(pieces, 0))
        assert np.array_equal(stereo[:, 1], expected(pieces, 1))
    assert (recording.complete, recording.cut_warning(), recording.media_type) == (True, "", "audio/wav")
    assert b"".join(recording.content()) == b"".join(recording.wav())


@pytest.mark.parametrize("kind", ["opus", "opus.sealed"])
def test_opus_comes_back_as_it_is_and_as_wav(tmp_path: Path, kind: str) -> None:
    recording = opened(made(tmp_path, kind))
    assert recording.media_type == "audio/ogg"
    assert b"".join(recording.content()).startswith(b"OggS")
    stereo = as_wav(recording).astype(np.float32)
    assert len(stereo) == 40 * 640
    assert pitch(stereo[:, 0], 8_000) == pytest.approx(400, abs=2)
    assert pitch(stereo[:, 1], 8_000) == pytest.approx(1_000, abs=2)
    assert recording.complete


@pytest.mark.parametrize("kind", ["wav.sealed", "opus.sealed"])
def test_nothing_of_the_sound_lies_open_in_a_sealed_file(tmp_path: Path, kind: str) -> None:
    raw = made(tmp_path, kind).read_bytes()
    assert not [mark for mark in (b"RIFF", b"OggS", b"Opus", expected(40, 0)[100:108].tobytes()) if mark in raw]


def test_the_wrong_key_is_told_with_its_id_and_without_the_key(tmp_path: Path) -> None:
    path = made(tmp_path, "wav.sealed")
    with pytest.raises(Unreadable, match=rf"another data key, whose id is {KEY.id.hex()}; .* has {OTHER.id.hex()}$"):
        opened(path, keys=[OTHER])
    with pytest.raises(Unreadable, match="set it as CALLPLEX_DATA_KEY"):
        opened(path, keys=[])


@pytest.mark.parametrize("kind", ["wav.sealed", "opus.sealed"])
def test_a_file_that_was_cut_plays_up_to_there_and_says_so(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    whole = path.read_bytes()
    full = as_wav(opened(path))
    for size in range(70, len(whole), 1 + len(whole) // 40):
        cut = opened(path, whole[:size])
        try:
            stereo = as_wav(cut)
        except Unreadable as error:
            assert "breaks off in its header" in str(error)  # noqa: PT017
            continue
        assert len(stereo) < len(full) or size > len(whole) - 40
        assert not cut.complete
        assert "breaks off: the gateway was killed" in cut.cut_warning()
        if kind == "wav.sealed":
            assert np.array_equal(stereo, full[: len(stereo)])
    # At a chunk's edge too: without its last chunk, a file is not whole.
    last = opened(path, whole[:-20])
    as_wav(last)
    assert last.cut_warning()


@pytest.mark.parametrize("kind", ["wav.sealed", "opus.sealed"])
def test_every_flipped_bit_is_noticed(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind, 16)
    whole = path.read_bytes()
    for place in {*range(60), *range(60, len(whole), 1 + len(whole) // 150), *range(len(whole) - 20, len(whole))}:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        try:
            recording = opened(path, bytes(damaged))
            as_wav(recording)
        except Unreadable as error:
            assert path.name in str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
        else:
            # A size that became larger than what is left looks like a file that was cut.
            assert not recording.complete


def test_chunks_that_change_places_or_come_twice_do_not_open(tmp_path: Path) -> None:
    path = made(tmp_path, "wav.sealed", 40)
    whole = path.read_bytes()
    places, at = [], 56
    while at < len(whole):
        end = at + 4 + int.from_bytes(whole[at : at + 4], "little")
        places.append(whole[at:end])
        at = end
    head = whole[:56]
    assert head + b"".join(places) == whole
    swapped = [*places[:2], places[3], places[2], *places[4:]]
    for wrong in (swapped, [*places[:3], *places[2:]], [*places[:2], *places[3:]]):
        with pytest.raises(Unreadable, match="does not open"):
            as_wav(opened(path, head + b"".join(wrong)))
    with pytest.raises(Unreadable, match="goes on after its end"):
        as_wav(opened(path, whole + places[0]))


@pytest.mark.parametrize("name", ["call.wav", "call.opus", "call.wav.sealed"])
@pytest.mark.parametrize("data", [b"", b"RIFX", bytes(4_000)])
def test_what_is_no_recording_is_told(name: str, data: bytes) -> None:
    with pytest.raises(Unreadable, match=f"^{name} is not a"):
        open_recording(io.BytesIO(data), name, [KEY])


def test_a_plain_wav_that_was_cut_keeps_its_whole_samples(tmp_path: Path) -> None:
    path = made(tmp_path, "wav")
    stereo = as_wav(opened(path, path.read_bytes()[:10_003]))
    assert len(stereo) == (10_003 - 44) // 4
    assert len(stereo) < 40 * PIECE_SECONDS * 8_000
    with pytest.raises(Unreadable, match="breaks off in its header"):
        as_wav(opened(path, path.read_bytes()[:30]))


def test_opus_that_ends_in_its_headers_is_empty_and_no_error(tmp_path: Path) -> None:
    path = made(tmp_path, "opus")
    whole = path.read_bytes()
    third_page = whole.index(b"OggS", whole.index(b"OggS", 4) + 4)
    assert len(as_wav(opened(path, whole[:third_page]))) == 0
