"""Reads what a caller says from files: a WAV with its sidecar, or a script of clips.

A WAV's sidecar is `callers.json` in its folder, or a JSON file of the same name, giving words and times:
`[{"file": "x.wav", "turns": [{"text": "...", "start": 0.6, "end": 3.8}]}]`. Without one the phone
finds the turns by their sound. A script is JSON (the paths are relative to it; times in seconds):

    {"quiet": 4, "linger": 20, "clips": [
      {"wav": "x.wav", "from": 0.6, "to": 3.8, "text": "Hello?", "when": "agent_finished", "after": 1.2},
      {"wav": "y.wav", "text": "Wait, stop.", "when": "agent_speaking", "after": 2.0}]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.phone.caller import Clip, ScriptedCaller, When
from gateway.phone.metrics import Turn
from gateway.phone.sound import RATE, SoundUnreadable, read_wav

CALLERS = Path(__file__).parent / "callers"
"""Recorded callers that come with the package; `demo.json` is the script of the demo."""
_T = TypeVar("_T")
_Seconds = Annotated[float, Field(ge=0, le=3_600)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")
    text: str = ""
    start: _Seconds
    end: _Seconds


class _Recording(BaseModel):
    model_config = ConfigDict(extra="ignore")
    file: str
    turns: list[_Line] = []


class _ScriptClip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    wav: str
    from_: _Seconds = Field(0.0, alias="from")
    to: _Seconds | None = None
    text: str = ""
    when: When = "agent_finished"
    after: _Seconds = 1.0


class _Script(BaseModel):
    model_config = ConfigDict(extra="forbid")
    quiet: _Seconds = 2.0
    linger: _Seconds = 10.0
    clips: list[_ScriptClip] = Field(min_length=1)


def load_caller(path: Path) -> ScriptedCaller:
    """A caller from a WAV file or a script (`.json`). Raises SoundUnreadable with one sentence."""
    if path.suffix.lower() == ".json":
        return _load_script(path)
    pcm = read_wav(path)
    return ScriptedCaller([Clip(pcm, turns=known_turns(path))])


def _load_script(path: Path) -> ScriptedCaller:
    script = _read(path, TypeAdapter(_Script))
    sounds: dict[str, bytes] = {}
    clips: list[Clip] = []
    for clip in script.clips:
        if clip.wav not in sounds:
            sounds[clip.wav] = read_wav(path.parent / clip.wav)
        end = None if clip.to is None else 2 * round(clip.to * RATE)
        pcm = sounds[clip.wav][2 * round(clip.from_ * RATE) : end]
        if not pcm:
            raise SoundUnreadable(f"{path}: {clip.wav} has no sound from {clip.from_} to {clip.to} s.")
        clips.append(Clip(pcm, clip.when, clip.after, (Turn(0.0, len(pcm) / 2 / RATE, clip.text),)))
    return ScriptedCaller(clips, script.quiet, script.linger)


def known_turns(path: Path) -> tuple[Turn, ...]:
    """What a WAV's sidecar says is in it, in seconds; nothing without one. Raises SoundUnreadable."""
    own, shared = path.with_suffix(".json"), path.parent / "callers.json"
    for sidecar in (own, shared):
        if not sidecar.is_file():
            continue
        for recording in _read(sidecar, TypeAdapter(list[_Recording])):
            if recording.file == path.name:
                return tuple(Turn(line.start, line.end, line.text) for line in recording.turns)
    return ()


def _read(path: Path, adapter: TypeAdapter[_T]) -> _T:
    try:
        return adapter.validate_json(path.read_bytes())
    except OSError as error:
        raise SoundUnreadable(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SoundUnreadable(f"{path}: {where + ': ' if where else ''}{first['msg']}.") from None
