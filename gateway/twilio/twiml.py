"""The few TwiML documents we answer with, built as XML trees so that nothing can break out of its place. Pure.

Twilio's voice TwiML reference: Connect, Stream, Parameter, Dial, Say, Hangup, Reject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement, tostring

CONTENT_TYPE = "application/xml"

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 (section 2.2) cannot carry even when escaped."""


def connect_stream(url: str, action: str, parameters: Mapping[str, str]) -> bytes:
    """Open a bidirectional stream to `url` (ws or wss); when it ends, ask `action` what comes next.

    Twilio allows under 500 characters for a parameter's name and value together.
    """
    response = Element("Response")
    connect = SubElement(response, "Connect", action=clean(action), method="POST")
    stream = SubElement(connect, "Stream", url=clean(url))
    for name, value in parameters.items():
        SubElement(stream, "Parameter", name=clean(name), value=clean(value))
    return document(response)


def dial(target: str) -> bytes:
    """Connect the caller to a number or a sip: address, and hang up when they are done."""
    response = Element("Response")
    verb = SubElement(response, "Dial")
    if target.lower().startswith(("sip:", "sips:")):
        SubElement(verb, "Sip").text = clean(target)
    else:
        verb.text = clean(target)
    SubElement(response, "Hangup")
    return document(response)


def say(text: str) -> bytes:
    """The carrier's voice says this, then hangs up."""
    response = Element("Response")
    SubElement(response, "Say").text = clean(text)
    SubElement(response, "Hangup")
    return document(response)


def hangup() -> bytes:
    """End the call."""
    response = Element("Response")
    SubElement(response, "Hangup")
    return document(response)


def reject() -> bytes:
    """Do not answer: the caller hears the busy tone and nobody is charged."""
    response = Element("Response")
    SubElement(response, "Reject", reason="busy")
    return document(response)


def clean(text: str) -> str:
    """The text without what XML cannot carry."""
    return _NOT_XML.sub("", text)


def document(response: Element) -> bytes:
    """The tree as bytes, with its declaration."""
    body: bytes = tostring(response, encoding="utf-8", xml_declaration=True)
    return body
