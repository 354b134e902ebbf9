"""The wire between a gateway and a worker: one WebSocket a call, subprotocol `callplex.v1`.

Owns the messages, their bytes and the limits on them; both sides import this file and nothing else
of each other. Standard library only, so that it loads without torch, numpy or a web framework.

The order of a session:

    gateway -> worker   open        (JSON)    what the session is: prompt, voice, script, seed
    worker  -> gateway  ready       (JSON)    a slot is held; or error (JSON), then the socket closes
    gateway -> worker   caller frame (binary) index 0, 1, 2 ... one every 80 ms
    worker  -> gateway  agent frame  (binary) the same indices, one for each caller frame
                        agent text   (binary) a piece of what the agent says, at a frame
                        caller text  (JSON)   what the caller said, from one frame to another
                        flush        (JSON)   sound up to a frame that is not yet heard is void
                        done         (JSON)   the agent is finished: goodbye, or a transfer
    gateway -> worker   say, play, close (JSON)

A binary message is one byte of kind, the frame's index as a little-endian u32, then the payload.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar, get_args

SUBPROTOCOL = "callplex.v1"
PATH = "/api/session"

SAMPLE_RATE = 24_000
FRAME_SAMPLES = 1_920
FRAME_SECONDS = 0.08
FRAME_BYTES = 2 * FRAME_SAMPLES
TOKENS_BYTES = 2 * 17
"""One text, eight agent and eight caller tokens of a frame, little-endian u16."""

MAX_MESSAGE = 1 << 20
"""Bytes of the largest message either side accepts; an open request with a long prompt is the largest."""

KIND_FRAME = 1
KIND_AGENT_TEXT = 2
_HEADER = struct.Struct("<BI")

DoneReason = Literal["goodbye", "transfer"]
ErrorCode = Literal["full", "invalid", "unauthorized", "failed"]


class WireError(Exception):
    """The peer sent what this protocol does not allow; the message says what."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Defaults are PersonaPlex's own; a temperature of 0 is greedy."""

    temperature: float = 0.8
    text_temperature: float = 0.7
    top_k: int = 250
    text_top_k: int = 25
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """Something the agent must learn from the caller, and the sentence that asks for it."""

    name: str
    """What it is called in `Answer.needs` and as `{name}` in what the agent says."""
    kind: Literal["name", "digits", "date", "words"] = "words"
    """How the caller's reply is read: a person's name, a number, a date, or whatever was said."""
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer of the rehearsal engine, matched by meaning against what the caller says."""

    id: str
    say: str
    when: tuple[str, ...] = ()
    """Examples of what a caller says. May be empty if the answer is only reached by `after`."""
    needs: tuple[str, ...] = ()
    """Questions whose answers must be known first; the agent asks them, then returns to this."""
    after: tuple[str, ...] = ()
    """Ids of answers that this one directly replies to; empty: it may come at any time."""
    then: Literal["", "hangup", "transfer"] = ""
    target: str = ""
    """Name of the persona's transfer target, when `then` is `transfer`."""
    urgent: bool = False
    """An emergency: said at once when any phrase of `when` occurs, whatever else is going on."""


@dataclass(frozen=True, slots=True)
class Script:
    """What the rehearsal engine says. The duplex model works from the prompt and ignores it."""

    answers: tuple[Answer, ...] = ()
    questions: tuple[Question, ...] = ()
    unknown: str = "I'm sorry, I don't know that. Would you like to speak to a person?"
    goodbye: str = "Thank you for calling. Goodbye."
    person: str = ""
    """Name of the transfer target offered with `unknown`; empty: there is nobody to offer."""
    transferring: str = "One moment, I am connecting you to a colleague."
    closed: str = "I'm sorry, nobody is available to take the call right now."
    """Said instead of transferring, when the caller wants a person and `person` is empty."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """Everything a worker needs to hold one call. It knows no phones, files or personas."""

    call_id: str
    prompt: str = ""
    """The role, organisation and facts, in the style PersonaPlex was trained on."""
    voice: str = "NATF2"
    greeting: str = ""
    """Said first, before the caller speaks."""
    sampling: Sampling = field(default_factory=Sampling)
    script: Script = field(default_factory=Script)


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """80 ms of the agent: 1,920 int16 samples at 24 kHz, the answer to the caller's frame `index`."""

    index: int
    pcm: bytes
    tokens: bytes = b""
    """The frame's 17 tokens as u16 where the engine has tokens, else empty."""


@dataclass(frozen=True, slots=True)
class CallerFrame:
    """80 ms of the caller: 1,920 int16 samples at 24 kHz."""

    index: int
    pcm: bytes


@dataclass(frozen=True, slots=True)
class AgentText:
    """A piece of what the agent says, heard from agent frame `index` on. A leading space starts a word."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallerText:
    """What the caller said from caller frame `start` up to and without `end`."""

    start: int
    end: int
    text: str
    final: bool = True
    onsets: tuple[int, ...] = ()
    """The caller frame in which each of the words between spaces begins; empty where that is not known."""


@dataclass(frozen=True, slots=True)
class Flush:
    """The caller interrupted: agent sound up to frame `index` that has not been heard yet is void."""

    index: int


@dataclass(frozen=True, slots=True)
class Done:
    """The agent is finished; its last sound was in agent frame `index`."""

    index: int
    reason: DoneReason
    target: str = ""
    """Name of the persona's transfer target, when the reason is `transfer`."""


Output = AgentFrame | AgentText | CallerText | Flush | Done


@dataclass(frozen=True, slots=True)
class Ready:
    """A slot is held for the session."""

    engine: str
    """What answers: `rehearsal`, `personaplex` or `echo`."""
    worker: str = ""
    """Which worker this is, for records and logs."""


@dataclass(frozen=True, slots=True)
class Error:
    """Why the worker refuses or ends the session. `full` is the only one worth trying elsewhere."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Say:
    """The agent says this next, in its own timing."""

    text: str


@dataclass(frozen=True, slots=True)
class Play:
    """A prepared clip, sound for sound."""

    clip: str


@dataclass(frozen=True, slots=True)
class Close:
    """The call is over; the worker frees the slot and closes the socket."""


ToWorker = CallerFrame | Say | Play | Close
FromWorker = Output | Ready | Error

_TO_WORKER: dict[str, type[Any]] = {"say": Say, "play": Play, "close": Close}
_FROM_WORKER: dict[str, type[Any]] = {
    "ready": Ready,
    "error": Error,
    "caller_text": CallerText,
    "flush": Flush,
    "done": Done,
}
_NAMES = {kind: name for table in (_TO_WORKER, _FROM_WORKER) for name, kind in table.items()}
_CHOICES: dict[tuple[type[Any], str], tuple[str, ...]] = {
    (Done, "reason"): get_args(DoneReason),
    (Error, "code"): get_args(ErrorCode),
    (Question, "kind"): ("name", "digits", "date", "words"),
    (Answer, "then"): ("", "hangup", "transfer"),
}
_T = TypeVar("_T")


def encode_open(request: SessionRequest) -> str:
    """The first message of a session, gateway to worker."""
    return json.dumps({"type": "open", **asdict(request)})


def decode_open(message: str | bytes) -> SessionRequest:
    """Read the first message of a session. Raises WireError, naming the field, if it is not one."""
    if isinstance(message, bytes):
        raise WireError("the first message must be JSON text: an open request")
    data = _object(message)
    if data.pop("type", None) != "open":
        raise WireError("the first message must have type open")
    sampling = _build(Sampling, data.pop("sampling", {}), "sampling")
    script_data = data.pop("script", {})
    if not isinstance(script_data, dict):
        raise WireError("script must be an object")
    answers = tuple(_build(Answer, a, "script.answers") for a in _list(script_data, "answers"))
    questions = tuple(_build(Question, q, "script.questions") for q in _list(script_data, "questions"))
    plain = {k: v for k, v in script_data.items() if k not in ("answers", "questions")}
    script = _build(Script, {**plain, "answers": answers, "questions": questions}, "script")
    return _build(SessionRequest, {**data, "sampling": sampling, "script": script}, "open")


def encode_frame(frame: CallerFrame | AgentFrame) -> bytes:
    """A frame of either side as one binary message."""
    if isinstance(frame, AgentFrame):
        return _HEADER.pack(KIND_FRAME, frame.index) + frame.pcm + frame.tokens
    return _HEADER.pack(KIND_FRAME, frame.index) + frame.pcm


def encode(message: ToWorker | FromWorker) -> str | bytes:
    """Any message but the open request: bytes for frames and agent text, else JSON text."""
    if isinstance(message, CallerFrame | AgentFrame):
        return encode_frame(message)
    if isinstance(message, AgentText):
        return _HEADER.pack(KIND_AGENT_TEXT, message.index) + message.text.encode(errors="replace")
    return json.dumps({"type": _NAMES[type(message)], **asdict(message)})


def decode_to_worker(message: str | bytes) -> ToWorker:
    """Read what a gateway sent after its open request. Raises WireError if it is not allowed."""
    if isinstance(message, str):
        result: ToWorker = _decode_json(message, _TO_WORKER)
        return result
    kind, index, payload = _split(message)
    if kind != KIND_FRAME:
        raise WireError(f"unknown binary kind {kind}")
    if len(payload) != FRAME_BYTES:
        raise WireError(f"a caller frame has {FRAME_BYTES} bytes of sound, this one {len(payload)}")
    return CallerFrame(index, payload)


def decode_from_worker(message: str | bytes) -> FromWorker:
    """Read what a worker sent. Raises WireError if it is not allowed."""
    if isinstance(message, str):
        result: FromWorker = _decode_json(message, _FROM_WORKER)
        return result
    kind, index, payload = _split(message)
    if kind == KIND_FRAME:
        if len(payload) not in (FRAME_BYTES, FRAME_BYTES + TOKENS_BYTES):
            raise WireError(f"an agent frame cannot have {len(payload)} bytes")
        return AgentFrame(index, payload[:FRAME_BYTES], payload[FRAME_BYTES:])
    if kind == KIND_AGENT_TEXT:
        try:
            return AgentText(index, payload.decode())
        except UnicodeDecodeError as error:
            raise WireError("agent text is not UTF-8") from error
    raise WireError(f"unknown binary kind {kind}")


def _split(message: bytes) -> tuple[int, int, bytes]:
    if len(message) < _HEADER.size:
        raise WireError(f"a binary message has at least {_HEADER.size} bytes, this one {len(message)}")
    kind, index = _HEADER.unpack_from(message)
    return kind, index, message[_HEADER.size :]


def _decode_json(message: str, table: dict[str, type[Any]]) -> Any:
    data = _object(message)
    name = data.pop("type", None)
    kind = table.get(name) if isinstance(name, str) else None
    if kind is None:
        raise WireError(f"unknown message type {str(name)[:40]!r}")
    return _build(kind, data, str(name))


def _object(message: str) -> dict[str, Any]:
    try:
        data = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise WireError("the message is not JSON") from error
    if not isinstance(data, dict):
        raise WireError("the message is not a JSON object")
    return data


def _list(data: dict[str, Any], name: str) -> list[Any]:
    value = data.get(name, [])
    if not isinstance(value, list):
        raise WireError(f"script.{name} must be a list")
    return value


def _build(kind: type[_T], data: Any, where: str) -> _T:
    """Make a message dataclass from JSON, checking names and plain types; nested ones are made already."""
    if not isinstance(data, dict):
        raise WireError(f"{where} must be an object")
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise WireError(f"{where} has no field {str(name)[:40]!r}")
        values[name] = _checked(kind, name, str(known[name].type), value, where)
    try:
        return kind(**values)
    except TypeError as error:
        raise WireError(f"{where} lacks a field: {error}") from error


def _checked(kind: type[Any], name: str, annotation: str, value: Any, where: str) -> Any:
    """The value of one field, or WireError; annotations are strings here (PEP 563)."""
    field_name = f"{where}.{name}"
    choices = _CHOICES.get((kind, name))
    if choices is not None:
        if value not in choices:
            raise WireError(f"{field_name} must be one of {', '.join(map(repr, choices))}")
        return value
    if annotation == "tuple[str, ...]":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise WireError(f"{field_name} must be a list of strings")
        return tuple(_writable(item) for item in value)
    if annotation == "tuple[int, ...]":
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
            raise WireError(f"{field_name} must be a list of numbers from 0")
        return tuple(value)
    plain: dict[str, type | tuple[type, ...]] = {"str": str, "bool": bool, "int": int, "float": (int, float)}
    expected = plain.get(annotation)
    if expected is None:
        return value
    if not isinstance(value, expected) or (isinstance(value, bool) and annotation != "bool"):
        raise WireError(f"{field_name} must be {annotation}")
    if isinstance(value, int) and annotation == "int" and not 0 <= value < 1 << 63:
        raise WireError(f"{field_name} is out of range")
    if isinstance(value, int | float) and annotation == "float" and not -1e9 <= value <= 1e9:  # nor NaN
        raise WireError(f"{field_name} is out of range")
    return _writable(value) if isinstance(value, str) else value


def _writable(text: str) -> str:
    r"""JSON can hold half a character (`"\ud83d"`, RFC 8259 section 8.2), which no file or socket takes."""
    return text if text.isascii() else text.encode(errors="replace").decode()
