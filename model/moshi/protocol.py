"""Moshi's protocol, as PersonaPlex's own server and web client speak it: the query, and the kinds of messages. Pure.

A client opens a WebSocket at `/api/chat?text_prompt=...&voice_prompt=NATF2.pt` and waits for the handshake, the byte 0.
Every message is one byte of kind and its payload; sound is one Ogg Opus stream each way, 24 kHz mono, cut anywhere.

    kind 0   server -> client, once   handshake: the agent listens
    kind 1   both                     a piece of the Ogg Opus stream
    kind 2   server -> client         a piece of what the agent says, UTF-8; a leading space starts a word
    kind 3   client -> server         control: start, end of turn, pause, restart
    kind 4   client -> server         metadata, JSON
    kind 5   server -> client         why the session ends, UTF-8
    kind 6   client -> server         ping

Kinds 3, 4, 6, unknown ones, empty messages and text messages are let pass unheeded, as the original does. Its own
settings stay those of one session here, a seed works, and a voice is a name, never a path.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from model.wire import Sampling, SessionRequest, WireError

PATH = "/api/chat"

HANDSHAKE = b"\x00"
KIND_SOUND = 1
KIND_TEXT = 2
KIND_ERROR = 5

MAX_SOUND = 64 * 1024
"""Bytes of sound in one message: the longest Ogg page (RFC 3533, section 6) and more than any client sends."""
TOKEN_PARAMETERS = ("worker_auth_id", "token")
"""Where a client that cannot set headers, as in a browser, may show the worker's token; the first is the original's."""

_VOICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
_SUFFIXES = (".pt", ".wav")
_NUMBERS: dict[str, tuple[str, float, float]] = {
    "audio_temperature": ("temperature", 0.0, 2.0),
    "text_temperature": ("text_temperature", 0.0, 2.0),
    "audio_topk": ("top_k", 1, 2_048),
    "text_topk": ("text_top_k", 1, 32_000),
    "seed": ("seed", 0, (1 << 63) - 1),
}
"""Of `Sampling`, by parameter: the field, and its least and greatest value; whole numbers where those are."""
_NO_SEED = ("seed", "-1")
_DEFAULTS = SessionRequest("")


def query(target: str) -> dict[str, str]:
    """The parameters of a request's target; of one given twice, the first."""
    _, _, text = target.partition("?")
    return dict(reversed(parse_qsl(text, keep_blank_values=True)))


def session_request(parameters: dict[str, str], call_id: str, seed: int) -> SessionRequest:
    """What the client wants; `seed` where it names none. Raises WireError: a parameter, and what may stand there.

    Unlike the original, neither `text_prompt` nor `voice_prompt` need be given. Parameters that it ignores,
    `pad_mult`, `repetition_penalty` and so on, are ignored; a `seed` of -1 is none, as there.
    """
    values: dict[str, float] = {"seed": seed}
    for name, (ours, least, most) in _NUMBERS.items():
        text = parameters.get(name, "")
        if text and (name, text) != _NO_SEED:
            values[ours] = _number(name, text, least, most)
    return SessionRequest(
        call_id,
        prompt=parameters.get("text_prompt", ""),
        voice=_voice(parameters.get("voice_prompt", "")),
        sampling=Sampling(**values),  # type: ignore[arg-type]
    )


def _number(name: str, text: str, least: float, most: float) -> float:
    kind = type(least)
    try:
        value = kind(text)
        bounded = least <= value <= most  # which NaN is not
    except ValueError:
        bounded = False
    if not bounded:
        whole = "whole " if kind is int else ""
        raise WireError(f"{name} must be a {whole}number from {least} to {most}, not {text[:40]!r}")
    return value


def _voice(text: str) -> str:
    """A voice's name; a client names the file of the published ones."""
    if not text:
        return _DEFAULTS.voice
    name = text
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if not _VOICE.fullmatch(name):
        raise WireError(f"voice_prompt must be the name of a voice, such as NATF2, not {text[:40]!r}")
    return name


def sound(data: bytes) -> bytes:
    """A message with a piece of the agent's Ogg Opus stream."""
    return bytes([KIND_SOUND]) + data


def text(piece: str) -> bytes:
    """A message with a piece of what the agent says."""
    return bytes([KIND_TEXT]) + piece.encode(errors="replace")


def error(reason: str) -> bytes:
    """A message that says why the session ends."""
    return bytes([KIND_ERROR]) + reason.encode(errors="replace")


def sound_in(message: str | bytes) -> bytes:
    """The piece of the client's Ogg Opus stream in a message; empty if it is of another kind. Raises WireError."""
    if isinstance(message, str) or message[:1] != bytes([KIND_SOUND]):
        return b""
    if len(message) > MAX_SOUND:
        raise WireError(f"a message may hold {MAX_SOUND} bytes of sound, this one has {len(message)}")
    return message[1:]
