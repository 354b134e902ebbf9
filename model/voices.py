"""The voices there are: those published with the model, and recordings of people who agreed to it.

Owns the list of names, the consent records in `voices.yaml` and the rule that no recording is used without one:
who agreed, when, for what purpose, and the recording's SHA-256, so that another file under the same name is refused.
Knows no codec and no torch; `model.voice` turns a file into a prompt.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

PUBLISHED = (
    *(f"NATF{n}" for n in range(4)),
    *(f"NATM{n}" for n in range(4)),
    *(f"VARF{n}" for n in range(5)),
    *(f"VARM{n}" for n in range(5)),
)
"""Natural and varied, female and male; synthetic speakers of the model's makers."""

RECORDS = "voices.yaml"
LONGEST_SECONDS = 30.0
"""Of a recording: each second takes 12 frames of the model's memory in every call."""
_NO_YAML = (YAMLError, ValueError, OverflowError, KeyError, RecursionError)
"""What the reader raises: other than its own error for a date that there is not, a number or a character beyond any,
`!!bool maybe`, and a thousand brackets."""
_HEADER = "Consent to the use of recorded voices. Kept by `callplex voices`; a recording without a record is refused.\n"


class VoiceRefused(Exception):
    """A voice may not be used, or does not exist; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Consent:
    """Who agreed to what."""

    who: str
    """The person whose voice it is."""
    when: str
    """The day they agreed, as in 2026-03-31."""
    purpose: str
    """What the voice may be used for."""


@dataclass(frozen=True, slots=True)
class Voice:
    """One voice, and whether it can be used."""

    name: str
    kind: str
    """`published` or `recording`."""
    path: Path
    usable: bool
    detail: str
    """Of a recording whose it is and what for; else why it cannot be used."""


def list_voices(published: Path, recordings: Path) -> list[Voice]:
    """All voices: `published` is the folder of `.pt` files, `recordings` that of voices.yaml. Raises VoiceRefused."""
    found = []
    for name in PUBLISHED:
        path = published / f"{name}.pt"
        there = path.is_file()
        found.append(Voice(name, "published", path, there, "" if there else "not downloaded"))
    for name, record in sorted(_read(recordings).items()):
        try:
            path = permitted(recordings, name)
            detail = f"{record['who']}, {record['when']}: {record['purpose']}"
            found.append(Voice(name, "recording", path, True, detail))
        except VoiceRefused as error:
            found.append(Voice(name, "recording", recordings / f"{name}.wav", False, str(error)))
    return found


def voice_file(name: str, published: Path, recordings: Path) -> Path:
    """The file of a voice that may be used: `.pt`, or a recording with consent. Raises VoiceRefused."""
    if name not in PUBLISHED:
        return permitted(recordings, name)
    path = published / f"{name}.pt"
    if not path.is_file():
        raise VoiceRefused(f"the voice {name} is not in {published}; get it with: callplex weights download")
    return path


def permitted(recordings: Path, name: str) -> Path:
    """The recording `name`, if its consent record is complete and is about this very file. Raises VoiceRefused."""
    fix = f"callplex voices add {name if _is_name(name) else 'NAME'} FILE.wav --who ... --when ... --purpose ..."
    record = _read(recordings).get(name) if _is_name(name) else None
    if record is None:
        raise VoiceRefused(f"there is no voice {name[:60]!r}: no consent is recorded for it; {fix}")
    missing = [field for field in ("who", "when", "purpose", "sha256") if not str(record.get(field) or "").strip()]
    if missing:
        raise VoiceRefused(f"the consent record of the voice {name} lacks {', '.join(missing)}; {fix}")
    path = recordings / f"{name}.wav"
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise VoiceRefused(f"the recording {path} cannot be read: {error.strerror}") from error
    if found != record["sha256"]:
        raise VoiceRefused(f"{path} is not the recording that {record['who']} agreed to: its SHA-256 is {found}; {fix}")
    return path


def add_voice(recordings: Path, name: str, recording: Path, consent: Consent, today: datetime.date) -> Voice:
    """Copy a recording into the folder together with its consent record. Raises VoiceRefused.

    A voice of that name is replaced, with its consent: that is about one recording only.
    """
    if not _is_name(name):
        raise VoiceRefused(f"{name!r} is no name for a voice: lower-case letters, digits and hyphens, such as ann-lee")
    _check_consent(consent, today)
    data = _fit(recording)
    records = _read(recordings)
    records[name] = {**asdict(consent), "sha256": hashlib.sha256(data).hexdigest()}
    recordings.mkdir(parents=True, exist_ok=True)
    path = recordings / f"{name}.wav"
    path.write_bytes(data)
    _write(recordings, records)
    return Voice(name, "recording", path, True, f"{consent.who}, {consent.when}: {consent.purpose}")


def remove_voice(recordings: Path, name: str) -> None:
    """Delete a recording and its record, as when consent is withdrawn. Raises VoiceRefused."""
    records = _read(recordings)
    path = recordings / f"{name}.wav"
    if name in PUBLISHED:
        raise VoiceRefused(f"{name} is published with the model; only recordings can be removed")
    if not _is_name(name) or (name not in records and not path.exists()):
        raise VoiceRefused(f"there is no recording {name[:60]!r} in {recordings}")
    path.unlink(missing_ok=True)
    if records.pop(name, None) is not None:
        _write(recordings, records)


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9-]{0,39}", name) is not None


def _check_consent(consent: Consent, today: datetime.date) -> None:
    for field, value in asdict(consent).items():
        if not value.strip():
            raise VoiceRefused(f"consent needs `{field}`: who agreed, when, and for what purpose")
    try:
        day = datetime.date.fromisoformat(consent.when)
    except ValueError:
        raise VoiceRefused(f"{consent.when!r} is not a date such as 2026-03-31") from None
    if day > today:
        raise VoiceRefused(f"{consent.when} is in the future: nobody has agreed yet")


def _fit(recording: Path) -> bytes:
    """The bytes of a recording that can be a voice prompt."""
    from model.loudness import LoudnessError, parse_voice
    from model.wav import WavError

    try:
        data = recording.read_bytes()
        seconds = len(parse_voice(data, recording)) / 24_000
    except OSError as error:
        raise VoiceRefused(f"{recording} cannot be read: {error.strerror}") from error
    except (LoudnessError, WavError) as error:
        raise VoiceRefused(str(error)) from error
    if seconds > LONGEST_SECONDS:
        raise VoiceRefused(f"{recording} has {seconds:.0f} s; a voice prompt has {LONGEST_SECONDS:.0f} s at most")
    return data


def _read(recordings: Path) -> dict[str, dict[str, Any]]:
    """The records by name, as they stand in the file; none if there is no file. Raises VoiceRefused."""
    path = recordings / RECORDS
    try:
        text = path.read_text() if path.exists() else ""
        data = YAML(typ="safe").load(text) or {}
    except (OSError, *_NO_YAML) as error:
        raise VoiceRefused(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    voices = data.get("voices", {}) if isinstance(data, dict) else None
    if not isinstance(voices, dict) or not all(isinstance(record, dict) for record in voices.values()):
        raise VoiceRefused(f"{path} must hold `voices:` and below it one record for each name")
    return {str(name): {**record, "when": str(record.get("when") or "")} for name, record in voices.items()}


def _write(recordings: Path, records: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file at once: a reader never sees half of it."""
    yaml, text = YAML(), io.StringIO()
    yaml.dump({"voices": {name: dict(records[name]) for name in sorted(records)}}, text)
    unfinished = recordings / f".{RECORDS}.part"
    unfinished.write_text(f"# {_HEADER}{text.getvalue()}")
    unfinished.replace(recordings / RECORDS)
