"""Whether a request can be served at all, before anybody looks at what it wants.

Owns the inspection of RFC 3261, section 8.2, in its order: form, method, address, extensions, content. Each fault
is a SipError whose code is the answer. State (dialogs, transactions, passwords) is not looked at here.
"""

from __future__ import annotations

from gateway.sip.bodies import SDP, find_sdp
from gateway.sip.errors import SipError
from gateway.sip.fields import parse_name_addr, parse_number
from gateway.sip.message import Request, Response
from gateway.sip.uri import Uri, parse_uri

ALLOWED = ("INVITE", "ACK", "BYE", "CANCEL", "OPTIONS", "INFO", "UPDATE", "NOTIFY")
ALLOW = ", ".join(ALLOWED)
KNOWN = frozenset({*ALLOWED, "REGISTER", "SUBSCRIBE", "REFER", "MESSAGE", "PRACK", "PUBLISH"})
"""Methods that exist: those not allowed get 405, any other 501."""

EXTENSIONS = frozenset({"timer"})
SUPPORTED = ", ".join(sorted(EXTENSIONS))

TARGETING = ("INVITE", "UPDATE")
SINGLE = ("From", "To", "Call-ID", "CSeq", "Max-Forwards")
MAX_CALL_ID = 512
LONG_FLIGHT = 255


def inspect_form(message: Request | Response) -> None:
    """What every message must have to be answered or matched; raises SipError."""
    for name in SINGLE:
        if len(message.headers.all(name)) > 1:
            raise SipError(f"the message has more than one {name}")
    for name in ("Via", "From", "To", "Call-ID", "CSeq"):
        if not message.headers.first(name).strip():
            raise SipError(f"the message has no {name}")
    for value in message.headers.items("Via"):
        if not value[:3].upper().startswith("SIP"):
            raise SipError("a Via is malformed")
    if len(message.call_id) > MAX_CALL_ID:
        raise SipError("the Call-ID is too long")
    _ = (message.via, message.from_, message.to, message.cseq)
    if _names_target(message):
        for value in (*message.headers.items("Contact"), *message.headers.items("Record-Route")):
            if value != "*":
                parse_name_addr(value)


def _names_target(message: Request | Response) -> bool:
    """Whether Contact and Record-Route say where to send: they make or refresh a dialog, or a registration."""
    if isinstance(message, Response):
        return 200 <= message.code < 300 and message.cseq.method in TARGETING
    return message.method in (*TARGETING, "REGISTER")


def inspect_request(request: Request) -> None:
    """Form and method of a request; raises SipError."""
    inspect_form(request)
    if request.cseq.method != request.method:
        raise SipError("the method of the CSeq is another than the request's")
    forwards = request.headers.first("Max-Forwards")
    if forwards and (parse_number(forwards) is None or int(forwards) > LONG_FLIGHT):
        raise SipError("Max-Forwards is no number below 256")
    request_uri(request)
    if request.method not in KNOWN:
        raise SipError("the method is not known", 501, headers=(("Allow", ALLOW),))
    if request.method not in ALLOWED:
        raise SipError(f"{request.method} is not served", 405, headers=(("Allow", ALLOW),))


def request_uri(request: Request) -> Uri:
    """Who is called; raises SipError: 400, or 416 for an address that is no telephone's."""
    if request.uri.startswith("<"):
        raise SipError("the Request-URI is in angle brackets")
    uri = parse_uri(request.uri)
    if uri.scheme not in ("sip", "sips", "tel"):
        raise SipError("an address of that scheme is not served", 416)
    if uri.headers:
        raise SipError("the Request-URI carries header fields")
    return uri


def inspect_demands(request: Request) -> None:
    """Extensions and content that must be understood (sections 8.2.2.3 and 8.2.3); raises SipError."""
    if request.method in ("ACK", "CANCEL"):
        return
    unknown = [option for option in request.headers.tokens("Require") if option.lower() not in EXTENSIONS]
    if unknown:
        named = ", ".join(unknown)[:256]
        raise SipError("a required extension is not supported", 420, headers=(("Unsupported", named),))
    if request.method in ("INVITE", "UPDATE"):
        _inspect_accept(request)
        find_sdp(request)


def _inspect_accept(request: Request) -> None:
    if "Accept" not in request.headers:
        return
    kinds = {value.partition(";")[0].strip().lower() for value in request.headers.items("Accept")}
    if not kinds & {SDP, "application/*", "*/*"}:
        raise SipError("the caller does not accept a session description", 406, headers=(("Accept", SDP),))
