"""TwiML as a carrier reads it: XML bytes -> verbs in order. Pure.

Knows the verbs a call needs (voice TwiML reference: Connect/Stream, Dial, Hangup, Redirect, Reject,
Say, Play, Pause); carries any other by name so that the report can mention it. Executes nothing.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

MAX_BYTES = 64 * 1024
"""Twilio's own limit on a document (error 11750)."""


class TwimlInvalid(Exception):
    """What the gateway answered is not TwiML; the message says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Stream:
    """`<Connect><Stream>`: where the sound goes, and what the start message carries."""

    url: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verb:
    name: str
    detail: str = ""
    """What is worth telling: the words of Say, the target of Dial, the URL of Redirect or Stream."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    stream: Stream | None = None


class _NoDoctype(ET.TreeBuilder):
    """Refuses a document type before its entities are read: no expansion, no external files."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise TwimlInvalid("The TwiML has a document type, which Twilio does not allow.")


def parse(document: bytes) -> list[Verb]:
    """The verbs of a response. Raises TwimlInvalid."""
    if len(document) > MAX_BYTES:
        raise TwimlInvalid(f"The TwiML has {len(document)} bytes; Twilio accepts {MAX_BYTES}.")
    parser = ET.XMLParser(target=_NoDoctype())
    try:
        parser.feed(document)
        root = parser.close()
    except (ET.ParseError, LookupError, ValueError) as error:
        raise TwimlInvalid(f"The answer is not TwiML: it is not XML ({error}).") from None
    if root.tag != "Response":
        raise TwimlInvalid(f"The answer is not TwiML: it begins with <{str(root.tag)[:40]}> instead of <Response>.")
    return [_verb(element) for element in root]


def _verb(element: ET.Element) -> Verb:
    attributes = dict(element.attrib)
    if element.tag == "Connect":
        stream = element.find("Stream")
        if stream is None:
            kinds = ", ".join(str(child.tag) for child in element) or "nothing"
            raise TwimlInvalid(f"<Connect> must hold a <Stream>; this one holds {kinds}.")
        url = stream.get("url", "")
        if not url.startswith(("wss://", "ws://")):
            raise TwimlInvalid(f"<Stream> needs a wss:// url; this one has {url[:100]!r}.")
        parameters = {p.get("name", ""): p.get("value", "") for p in stream.findall("Parameter")}
        return Verb("Connect", url, attributes, Stream(url, parameters))
    detail = " ".join(" ".join(element.itertext()).split())
    if element.tag == "Pause":
        detail = attributes.get("length", "1") + " s"
    elif element.tag == "Reject":
        detail = attributes.get("reason", "rejected")
    return Verb(str(element.tag), detail, attributes)
