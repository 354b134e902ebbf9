"""The one TeXML document that differs from TwiML: opening a stream. Pure. The others are `twilio.twiml`'s.

Telnyx's TeXML reference: Connect, Stream, Parameter, Redirect.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.etree.ElementTree import Element, SubElement

from gateway.twilio.twiml import clean, document


def connect_stream(url: str, after: str, parameters: Mapping[str, str]) -> bytes:
    """Open a bidirectional stream in mu-law to `url` (ws or wss); when it ends, `after` says what comes next."""
    response = Element("Response")
    connect = SubElement(response, "Connect")
    attributes = {
        "url": clean(url),
        "track": "inbound_track",
        "codec": "PCMU",
        "bidirectionalMode": "rtp",
        "bidirectionalCodec": "PCMU",
    }
    stream = SubElement(connect, "Stream", attributes)
    for name, value in parameters.items():
        SubElement(stream, "Parameter", name=clean(name), value=clean(value))
    SubElement(response, "Redirect", method="POST").text = clean(after)
    return document(response)
