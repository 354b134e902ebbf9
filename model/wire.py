"""The wire between a gateway and a worker: one WebSocket a call, subprotocol `callplex.v1`, `.v1.1` to `.v1.3`.

Owns the messages, their bytes and the limits on them; both sides import this file and nothing else
of each other. Standard library only, so that it loads without torch, numpy or a web framework.

The order of a session:

    gateway -> worker   open        (JSON)    what the session is: prompt, voice, script, seed
                        history     (binary)  only after an open that announces one: see below
    worker  -> gateway  ready       (JSON)    a slot is held; or error (JSON), then the socket closes
    gateway -> worker   caller frame (binary) index 0, 1, 2 ... one every 80 ms
    worker  -> gateway  agent frame  (binary) the same indices, one for each caller frame
                        agent text   (binary) a piece of what the agent says, at a frame
                        caller text  (JSON)   what the caller said, from one frame to another
                        flush        (JSON)   sound up to a frame that is not yet heard is void
                        cut          (JSON)   history before a frame is no longer needed
                        columns      (binary) of frames that no worker answered, after a resume
                        late         (JSON)   an agent frame came late by the engine's own count; from 1.1 on
                        gave_way     (JSON)   the rest of what was to be said is not said; from 1.2 on
                        played       (JSON)   a clip has been played to its end
                        done         (JSON)   the agent is finished: goodbye, or a transfer
    gateway -> worker   say, play, close (JSON)
    worker  -> gateway  closed       (JSON)   after close or done: the slot is free; from 1.2 on

The worker then closes the socket: at once, or, where a caller's last words have still to be recognised, after `closed`
and those, as caller text, a few seconds later at most.

A binary message is one byte of kind, the frame's index as a little-endian u32, then the payload.

A session that outlives its worker goes on elsewhere from its history: see `model.wire_resume`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from model.wire_fields import FRAME_BYTES as FRAME_BYTES
from model.wire_fields import FRAME_SAMPLES as FRAME_SAMPLES
from model.wire_fields import FRAME_SECONDS as FRAME_SECONDS
from model.wire_fields import HEADER, build, json_object, split
from model.wire_fields import NO_TOKEN as NO_TOKEN
from model.wire_fields import SAMPLE_RATE as SAMPLE_RATE
from model.wire_fields import TOKENS_BYTES as TOKENS_BYTES
from model.wire_fields import WireError as WireError
from model.wire_resume import AGENT_SILENT as AGENT_SILENT
from model.wire_resume import KIND_HISTORY as KIND_HISTORY
from model.wire_resume import MAX_HISTORY_CALLER_FRAMES as MAX_HISTORY_CALLER_FRAMES
from model.wire_resume import MAX_HISTORY_FRAMES as MAX_HISTORY_FRAMES
from model.wire_resume import History as History
from model.wire_resume import Resume as Resume
from model.wire_resume import build_resume
from model.wire_resume import decode_history as decode_history
from model.wire_resume import encode_history as encode_history
from model.wire_script import Answer as Answer
from model.wire_script import Question as Question
from model.wire_script import Script as Script

SUBPROTOCOL = "callplex.v1"
WITH_LATE = "callplex.v1.1"
"""The worker may say `late`, too."""
WITH_CLOSED = "callplex.v1.2"
"""And `gave_way`, and `closed`: who offers this waits for the caller's last words."""
WITH_LEVELS = "callplex.v1.3"
"""And the worker knows `agent_levels` in `resume`."""
SUBPROTOCOLS = (WITH_LEVELS, WITH_CLOSED, WITH_LATE, SUBPROTOCOL)
"""What a gateway offers, the newest first; the worker takes the first that it knows."""
PATH = "/api/session"

MAX_MESSAGE = 1 << 20
"""Bytes of the largest message either side accepts; a history is the largest."""

KIND_FRAME = 1
KIND_AGENT_TEXT = 2
KIND_COLUMNS = 4

DoneReason = Literal["goodbye", "transfer"]
ErrorCode = Literal["full", "invalid", "unauthorized", "failed", "draining"]
STOPPING = "the worker is being stopped"
"""Of a `draining`: somebody wants that, and the session has no part in it. An engine that ended says otherwise."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Defaults are PersonaPlex's own; a temperature of 0 is greedy."""

    temperature: float = 0.8
    text_temperature: float = 0.7
    top_k: int = 250
    text_top_k: int = 25
    seed: int = 0


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
    resume: Resume | None = None
    """Of a session that goes on here; a history message follows the request."""
    notice: str = ""
    """How the greeting begins where that must be heard: consent and disclosure. Not let go for a caller who speaks."""
    clip: str = ""
    """Name of a prepared clip of a part of the greeting; a worker that has it plays it in place of those words."""


@dataclass(frozen=True, slots=True)
class AgentFrame:
    """80 ms of the agent: 1,920 int16 samples at 24 kHz, the answer to the caller's frame `index`."""

    index: int
    pcm: bytes
    tokens: bytes = b""
    """The column of the token grid that this frame's step decided: 17 ids as u16, row r that of frame
    `index` less row r's delay, so that the columns in order are the whole history. NO_TOKEN where there
    is none yet. Empty where the engine has no tokens: its sessions cannot be resumed."""


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
    confidence: float | None = None
    """How sure the recogniser is, 0 to 1; None where it does not say."""


@dataclass(frozen=True, slots=True)
class Flush:
    """The caller interrupted: agent sound up to frame `index` that has not been heard yet is void."""

    index: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The slot was re-primed with the prompt and the frames from `index` on: history before it is not needed."""

    index: int


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of frames that nobody answered, from frame `index` on, TOKENS_BYTES each; see `Resume.missed`."""

    index: int
    columns: bytes


@dataclass(frozen=True, slots=True)
class Played:
    """A clip that `play` asked for was heard to its end by frame `index`."""

    index: int
    clip: str


@dataclass(frozen=True, slots=True)
class GaveWay:
    """The caller spoke over the agent: from frame `index` on nothing more is said of `text`, which had been begun.

    It ends what the greeting or a `say` asked for, or is all of it. What waits behind it follows.
    """

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Late:
    """The engine answered with agent frame `index` more than 80 ms after its answer was due."""

    index: int


@dataclass(frozen=True, slots=True)
class Done:
    """The agent is finished; its last sound was in agent frame `index`."""

    index: int
    reason: DoneReason
    target: str = ""
    """Name of the persona's transfer target, when the reason is `transfer`."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The slot is free; until the worker closes the socket only what the caller was still saying follows."""


Output = AgentFrame | AgentText | CallerText | Flush | Cut | Columns | Played | GaveWay | Late | Done


@dataclass(frozen=True, slots=True)
class Ready:
    """A slot is held for the session."""

    engine: str
    """What answers: `rehearsal`, `personaplex` or `echo`."""
    worker: str = ""
    """Which worker this is, for records and logs."""
    resumable: bool = False
    """Its agent frames carry token columns, from which another worker can go on."""


@dataclass(frozen=True, slots=True)
class Error:
    """Why the worker refuses or ends the session. `full` and `draining` are worth trying elsewhere: all
    slots are taken, or the worker is about to stop and its sessions are to be resumed on another."""

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
    """The call is over; the worker frees the slot, says the caller's last words and closes the socket."""


ToWorker = CallerFrame | Say | Play | Close
FromWorker = Output | Ready | Error | Closed

_TO_WORKER: dict[str, type[Any]] = {"say": Say, "play": Play, "close": Close}
_FROM_WORKER: dict[str, type[Any]] = {
    "ready": Ready,
    "error": Error,
    "caller_text": CallerText,
    "flush": Flush,
    "cut": Cut,
    "played": Played,
    "gave_way": GaveWay,
    "late": Late,
    "done": Done,
    "closed": Closed,
}
_NAMES = {kind: name for table in (_TO_WORKER, _FROM_WORKER) for name, kind in table.items()}


def encode_open(request: SessionRequest) -> str:
    """The first message of a session, gateway to worker."""
    data = asdict(request)
    if request.resume is not None and not request.resume.agent_levels:
        del data["resume"]["agent_levels"]  # which an older worker would refuse
    return json.dumps({"type": "open", **data})


def decode_open(message: str | bytes) -> SessionRequest:
    """Read the first message of a session. Raises WireError, naming the field, if it is not one."""
    if isinstance(message, bytes):
        raise WireError("the first message must be JSON text: an open request")
    data = json_object(message)
    if data.pop("type", None) != "open":
        raise WireError("the first message must have type open")
    sampling = build(Sampling, data.pop("sampling", {}), "sampling")
    script_data = data.pop("script", {})
    if not isinstance(script_data, dict):
        raise WireError("script must be an object")
    answers = tuple(build(Answer, a, "script.answers") for a in _list(script_data, "answers"))
    questions = tuple(build(Question, q, "script.questions") for q in _list(script_data, "questions"))
    plain = {k: v for k, v in script_data.items() if k not in ("answers", "questions")}
    script = build(Script, {**plain, "answers": answers, "questions": questions}, "script")
    resume = build_resume(data.pop("resume", None))
    return build(SessionRequest, {**data, "sampling": sampling, "script": script, "resume": resume}, "open")


def encode_frame(frame: CallerFrame | AgentFrame) -> bytes:
    """A frame of either side as one binary message."""
    if isinstance(frame, AgentFrame):
        return HEADER.pack(KIND_FRAME, frame.index) + frame.pcm + frame.tokens
    return HEADER.pack(KIND_FRAME, frame.index) + frame.pcm


def encode(message: ToWorker | FromWorker) -> str | bytes:
    """Any message but those that open a session: bytes for frames, columns and agent text, else JSON text."""
    if isinstance(message, CallerFrame | AgentFrame):
        return encode_frame(message)
    if isinstance(message, AgentText):
        return HEADER.pack(KIND_AGENT_TEXT, message.index) + message.text.encode(errors="replace")
    if isinstance(message, Columns):
        return HEADER.pack(KIND_COLUMNS, message.index) + message.columns
    return json.dumps({"type": _NAMES[type(message)], **asdict(message)})


def decode_to_worker(message: str | bytes) -> ToWorker:
    """Read what a gateway sent after its open request. Raises WireError if it is not allowed."""
    if isinstance(message, str):
        result: ToWorker = _decode_json(message, _TO_WORKER)
        return result
    return decode_caller_frame(message)


def decode_caller_frame(message: bytes) -> CallerFrame:
    """Read the one binary message that a gateway sends in a session. Raises WireError if it is not one."""
    kind, index, payload = split(message)
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
    kind, index, payload = split(message)
    if kind == KIND_FRAME:
        if len(payload) not in (FRAME_BYTES, FRAME_BYTES + TOKENS_BYTES):
            raise WireError(f"an agent frame cannot have {len(payload)} bytes")
        return AgentFrame(index, payload[:FRAME_BYTES], payload[FRAME_BYTES:])
    if kind == KIND_AGENT_TEXT:
        try:
            return AgentText(index, payload.decode())
        except UnicodeDecodeError as error:
            raise WireError("agent text is not UTF-8") from error
    if kind == KIND_COLUMNS:
        if not payload or len(payload) % TOKENS_BYTES or len(payload) > TOKENS_BYTES * MAX_HISTORY_CALLER_FRAMES:
            raise WireError(f"columns of missed frames cannot have {len(payload)} bytes")
        return Columns(index, payload)
    raise WireError(f"unknown binary kind {kind}")


def _decode_json(message: str, table: dict[str, type[Any]]) -> Any:
    data = json_object(message)
    name = data.pop("type", None)
    kind = table.get(name) if isinstance(name, str) else None
    if kind is None:
        raise WireError(f"unknown message type {str(name)[:40]!r}")
    return build(kind, data, str(name))


def _list(data: dict[str, Any], name: str) -> list[Any]:
    value = data.get(name, [])
    if not isinstance(value, list):
        raise WireError(f"script.{name} must be a list")
    return value
