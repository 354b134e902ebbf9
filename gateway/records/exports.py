"""A call as something to read elsewhere: plain text, and WebVTT beside its recording. Pure.

Takes the call's document, as `transcript.json` has it. How sure the recogniser was stays in that document: whoever
reads or watches has no use for a figure at each line, and WebVTT no place for one but comments, which players drop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WHO = {"agent": "Agent", "caller": "Caller"}
SHORTEST_CUE = 0.2
"""Seconds; WebVTT wants an end after the start, and a key press takes no time."""


def as_text(document: Mapping[str, Any]) -> str:
    """The call as lines; what was never said aloud is in brackets."""
    numbers = f"{document['from'] or 'withheld'} -> {document['to'] or 'unknown'}"
    lines = [
        f"Call {document['call_id']}",
        f"{numbers}, {document['persona']} {document['persona_version']}, {document['engine'] or 'no engine'}",
        f"{document['started_at']} to {document['ended_at'] or 'now'}, {document['end_reason'] or 'on the line'}",
        "",
    ]
    lines += [f"[{_clock(one['start'])}] {WHO[one['speaker']]}: {_words(one)}" for one in document["utterances"]]
    return "\n".join(lines) + "\n"


def _words(one: Mapping[str, Any]) -> str:
    text = one["text"] + (" --" if one["interrupted"] and one["text"] else "")
    return " ".join(filter(None, (text, f"[unsaid: {one['unsaid']}]" if one.get("unsaid") else "")))


def as_vtt(document: Mapping[str, Any]) -> str:
    """The call as WebVTT cues with voices, in order of their starts; both sides may overlap (W3C WebVTT, 4.2)."""
    cues = ["WEBVTT"]
    for one in sorted(document["utterances"], key=lambda one: one["start"]):
        if one["text"]:
            end = max(one["end"], one["start"] + SHORTEST_CUE)
            times = f"{_clock(one['start'])} --> {_clock(end)}"
            cues.append(f"{times}\n<v {WHO[one['speaker']]}>{_escaped(one['text'])}")
    return "\n\n".join(cues) + "\n"


def _escaped(text: str) -> str:
    """A cue's text is one line, and has no tags of its own."""
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return " ".join(text.split())


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"
