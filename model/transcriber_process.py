"""A process of the transcriber's pool: hears frames on standard input, says what callers said on standard output.

Owns one listener a call and the recogniser they share. It works through its input in order, one thing at a time, behind
everything else on the machine. It ends when its input does.

A line of its output is a JSON object: a session; `settled`, how many of the frames that came of it are done with, their
words told, if there were any; with a text also start, end and the words' onsets in frames, and how sure it is; `over`
after the last words of a call that is.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from model.rehearsal.weights import WeightsMissing, find_weights
from model.transcriber import CLOSE, FINISH, FRAME, HEADER, OPEN
from model.utterances import Utterances
from model.wire import FRAME_BYTES, FRAME_SECONDS

_NICE = 10
_WINDOWS_A_FRAME = 1_280 / 512
"""Of 32 ms in 80 ms."""
_MOST_SILENCE = 125
"""Frames of silence heard in place of those that were left out: more of them make no difference."""
_SILENCE = bytes(FRAME_BYTES)
_SETTLED_EVERY = 12
"""Frames of a call after which it is said how many are settled: a second."""


@dataclass(slots=True)
class _Caller:
    listener: Any
    first: int
    following: int
    taken: int = 0
    """Frames that came."""
    utterances: Utterances = field(default_factory=Utterances)

    @property
    def settled(self) -> int:
        return max(0, self.taken - math.ceil(self.utterances.under_way / _WINDOWS_A_FRAME))


class Scribe:
    """Listens to any number of callers. `listener` makes one (`model.rehearsal.listener`), `recogniser` as in `asr`."""

    def __init__(self, listener: Any, recogniser: Any) -> None:
        self._listener = listener
        self._recogniser = recogniser
        self._callers: dict[int, _Caller] = {}

    def take(self, kind: int, session: int, index: int, payload: bytes) -> list[dict[str, Any]]:
        """One message. Returns what there is to be told, a line each."""
        if kind == OPEN:
            self._callers[session] = _Caller(self._listener(), index, index)
            return []
        caller = self._callers.get(session)
        if caller is None:
            return []
        if kind == CLOSE:
            del self._callers[session]
            return []
        if kind == FINISH:
            del self._callers[session]
            said = self._written(session, caller, caller.utterances.end())
            return [*said, {"session": session, "settled": caller.taken, "over": True}]
        said = self._frame(session, caller, index, payload)
        caller.taken += 1
        if caller.taken % _SETTLED_EVERY == 0:
            said.append({"session": session, "settled": caller.settled})
        return said

    def _frame(self, session: int, caller: _Caller, index: int, payload: bytes) -> list[dict[str, Any]]:
        said = []
        missing = index - caller.following
        if missing > _MOST_SILENCE:
            # Times go on from the frame that came, in a new account of them.
            said += self._written(session, caller, caller.utterances.end())
            caller.listener, caller.utterances = self._listener(), Utterances()
            caller.first = caller.following = index
            missing = 0
        for _ in range(missing):
            said += self._hear(session, caller, _SILENCE, _SILENCE)
        return said + self._hear(session, caller, payload[:FRAME_BYTES], payload[FRAME_BYTES:] or _SILENCE)

    def _hear(self, session: int, caller: _Caller, pcm: bytes, agent: bytes) -> list[dict[str, Any]]:
        caller.following += 1
        said = []
        for speech in caller.listener.hear(pcm, agent):
            said += self._written(session, caller, caller.utterances.hear(speech))
        return said

    def _written(self, session: int, caller: _Caller, span: tuple[int, int] | None) -> list[dict[str, Any]]:
        if span is None:
            return []
        heard = self._recogniser.recognise(caller.listener.sound(*span))
        if not heard.text:
            return []
        start, end = (caller.first + window / _WINDOWS_A_FRAME for window in span)
        said = {"session": session, "settled": caller.settled}
        onsets = [math.floor(start + onset / FRAME_SECONDS) for onset in heard.onsets]
        said |= {"start": math.floor(start), "end": math.ceil(end), "text": heard.text}
        return [{**said, "confidence": heard.sure, "onsets": onsets}]


def serve(scribe: Scribe, source: BinaryIO, say: Any) -> None:
    """Until the source ends."""
    while len(header := source.read(HEADER.size)) == HEADER.size:
        kind, session, index, length = HEADER.unpack(header)
        payload = source.read(length)
        if kind not in (OPEN, FRAME, CLOSE, FINISH) or len(payload) < length:
            return
        for line in scribe.take(kind, session, index, payload):
            say(line)


def _say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def make_scribe(weights: Path | None) -> Scribe:
    """With the recogniser that is installed, on one thread; `weights`: where to look for it before.

    Raises ImportError, WeightsMissing.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    from model.rehearsal.asr import Recogniser
    from model.rehearsal.listener import Listener
    from model.rehearsal.vad import VadModel

    found = find_weights(weights)
    recogniser, vad = Recogniser(found.whisper, 1), VadModel(found.vad)
    return Scribe(lambda: Listener(vad), recogniser)


def main() -> int:
    """The process: the weights' folder as its argument, which may be empty."""
    os.nice(_NICE)
    try:
        scribe = make_scribe(Path(sys.argv[1]) if sys.argv[1] else None)
    except ImportError as error:
        _say({"refused": f"the transcriber needs the package {error.name}: pip install -e '.[rehearsal]'"})
        return 1
    except WeightsMissing as error:
        _say({"refused": str(error)})
        return 1
    _say({"refused": ""})
    serve(scribe, sys.stdin.buffer, _say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
