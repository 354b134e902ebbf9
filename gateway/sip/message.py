"""SIP messages: bytes to requests and responses, and back.

Owns the grammar of the whole message (RFC 3261, section 7) and the limits of what is read at all. Tolerant where
the meaning is clear: compact names, folded lines, bare line feeds, any case, Latin-1 where it is not UTF-8. What
a field's value means is `fields`' affair; whether a request can be served, `admission`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from gateway.sip.errors import SipError
from gateway.sip.fields import CSeq, NameAddr, Via, parse_cseq, parse_name_addr, parse_number, parse_via, split_list

MAX_MESSAGE = 65_535
"""Bytes of a message, the most a datagram holds."""
MAX_FIELDS = 200
MAX_FIELD = 8_192
"""Characters of one field, folded lines together."""

MIRRORED = ("Via", "From", "To", "Call-ID", "CSeq")
"""What an answer has from its request (RFC 3261, section 8.2.6.2)."""

VERSION = "SIP/2.0"

COMPACT = {
    "a": "Accept-Contact",
    "b": "Referred-By",
    "c": "Content-Type",
    "d": "Request-Disposition",
    "e": "Content-Encoding",
    "f": "From",
    "i": "Call-ID",
    "j": "Reject-Contact",
    "k": "Supported",
    "l": "Content-Length",
    "m": "Contact",
    "o": "Event",
    "r": "Refer-To",
    "s": "Subject",
    "t": "To",
    "u": "Allow-Events",
    "v": "Via",
    "x": "Session-Expires",
    "y": "Identity",
}
"""Short names (RFC 3261, section 7.3.3, and the registry since)."""

REASONS = {
    100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK", 202: "Accepted",
    302: "Moved Temporarily", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 406: "Not Acceptable", 407: "Proxy Authentication Required",
    408: "Request Timeout", 413: "Request Entity Too Large", 415: "Unsupported Media Type",
    416: "Unsupported URI Scheme", 420: "Bad Extension", 422: "Session Interval Too Small",
    423: "Interval Too Brief", 480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist",
    482: "Loop Detected", 486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here",
    491: "Request Pending", 500: "Server Internal Error", 501: "Not Implemented", 503: "Service Unavailable",
    505: "Version Not Supported", 513: "Message Too Large", 600: "Busy Everywhere", 603: "Decline",
}  # fmt: skip

_LINE_END = re.compile(rb"\r\n|\n")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_METHOD = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+\Z")
_NAME = re.compile(r"[A-Za-z0-9.!%*_+`'~-]+\Z")
_STATUS = re.compile(r"([0-9]{3})(?: (.*))?\Z", re.DOTALL)
_BREAK = re.compile(r"[\r\n]")


class Headers:
    """Header fields in order. Names are compared without case, and short ones are long."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields: list[tuple[str, str, str]] = []
        for name, value in fields:
            self.add(name, value)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((name, value) for _, name, value in self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, name: str) -> bool:
        key = name.lower()
        return any(entry[0] == key for entry in self._fields)

    def add(self, name: str, value: str) -> None:
        """Append a field. A line break in a value is ours to prevent: ValueError."""
        if _BREAK.search(value):
            raise ValueError(f"the value of {name} contains a line break")
        self._fields.append((name.lower(), name, value))

    def put(self, name: str, value: str) -> None:
        """Set a field, in the place of the first of that name if there is one."""
        key = name.lower()
        place = next((place for place, entry in enumerate(self._fields) if entry[0] == key), len(self._fields))
        self._fields = [entry for entry in self._fields if entry[0] != key]
        self.add(name, value)
        self._fields.insert(place, self._fields.pop())

    def note_first(self, name: str, item: str) -> None:
        """Put `item` in the place of the first item of a list, leaving the others as they are."""
        key = name.lower()
        for place, (known, written, value) in enumerate(self._fields):
            if known == key:
                rest = split_list(value)[1:]
                self._fields[place] = (known, written, ", ".join([item, *rest]))
                return

    def prepend(self, name: str, value: str) -> None:
        """Add a field before all others, like a Via."""
        self.add(name, value)
        self._fields.insert(0, self._fields.pop())

    def remove(self, name: str) -> None:
        """Drop all fields of a name."""
        key = name.lower()
        self._fields = [entry for entry in self._fields if entry[0] != key]

    def first(self, name: str) -> str:
        """The first field's value; "" when there is none."""
        key = name.lower()
        return next((entry[2] for entry in self._fields if entry[0] == key), "")

    def all(self, name: str) -> list[str]:
        """Every field's value, as written."""
        key = name.lower()
        return [entry[2] for entry in self._fields if entry[0] == key]

    def items(self, name: str) -> list[str]:
        """The values of a list, over all its fields, cut at commas, without empty ones."""
        return [item for value in self.all(name) for item in split_list(value) if item]

    def tokens(self, name: str) -> list[str]:
        """The words of a list that has neither quotes nor brackets, as Allow, Supported and Require are."""
        return [token for value in self.all(name) for part in value.split(",") if (token := part.strip())]

    def copy(self) -> Headers:
        return Headers(self)


@dataclass(slots=True)
class Message:
    """What requests and responses share."""

    headers: Headers = field(default_factory=Headers)
    body: bytes = b""
    encoding: str = "utf-8"
    """How the head was, and will be, written."""

    @property
    def start_line(self) -> str:
        raise NotImplementedError

    @property
    def via(self) -> Via:
        """The topmost Via; raises SipError when it is missing or malformed, as the next ones do."""
        value = self.headers.first("Via")
        return parse_via(split_list(value)[0])

    @property
    def from_(self) -> NameAddr:
        return parse_name_addr(self.headers.first("From"))

    @property
    def to(self) -> NameAddr:
        return parse_name_addr(self.headers.first("To"))

    @property
    def cseq(self) -> CSeq:
        return parse_cseq(self.headers.first("CSeq"))

    @property
    def call_id(self) -> str:
        return self.headers.first("Call-ID")

    @property
    def contact(self) -> NameAddr | None:
        """The first Contact; None when there is none."""
        contacts = self.headers.items("Contact")
        return parse_name_addr(contacts[0]) if contacts else None

    def contacts(self) -> list[NameAddr]:
        """Every Contact that can be read."""
        found: list[NameAddr] = []
        for value in self.headers.all("Contact"):
            with suppress(SipError):
                for item in split_list(value):
                    with suppress(SipError):
                        found.append(parse_name_addr(item))
        return found

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case."""
        return self.headers.first("Content-Type").partition(";")[0].strip().lower()

    def __bytes__(self) -> bytes:
        """As it goes over the line, Content-Length counted."""
        lines = [self.start_line]
        lines += [f"{name}: {value}" for name, value in self.headers if name.lower() != "content-length"]
        lines += [f"Content-Length: {len(self.body)}", "", ""]
        return "\r\n".join(lines).encode(self.encoding, "replace") + self.body


@dataclass(slots=True)
class Request(Message):
    method: str = ""
    uri: str = ""

    @property
    def start_line(self) -> str:
        return f"{self.method} {self.uri} {VERSION}"


@dataclass(slots=True)
class Response(Message):
    code: int = 0
    reason: str = ""
    local: bool = False
    """Made by us in place of one that never came (RFC 3261, section 8.1.3.1)."""

    @property
    def start_line(self) -> str:
        return f"{VERSION} {self.code} {self.reason}"


def response_to(request: Request, code: int, tag: str = "", reason: str = "") -> Response:
    """The skeleton of an answer (RFC 3261, section 8.2.6.2); `tag` goes to a To that has none."""
    headers = Headers((name, value) for name, value in request.headers if name.lower() == "via")
    for name in MIRRORED[1:]:
        value = request.headers.first(name)
        if name == "To" and tag and value:
            value = _tagged(value, tag)
        if value:
            headers.add(name, value)
    phrase = reason or REASONS.get(code, "")
    return Response(headers, b"", request.encoding, code, _BREAK.sub(" ", phrase))


def _tagged(to: str, tag: str) -> str:
    try:
        return to if parse_name_addr(to).tag else f"{to};tag={tag}"
    except SipError:
        return to


def parse_message(data: bytes, stream: bool = False) -> Request | Response:
    """Read one datagram, or one message a StreamFramer cut out; raises SipError.

    Only the frame is judged: a start line, fields, and a body of the length announced. Bytes behind the body of a
    datagram are ignored (RFC 3261, section 18.3). An error about a request that can be answered carries it.
    """
    if len(data) > MAX_MESSAGE:
        raise SipError("the message is longer than 65535 bytes", 413)
    head, body = _cut(data.lstrip(b"\r\n"))
    text, encoding = _decode(head)
    first, *lines = text.split("\n")
    headers, fault = _headers(lines)
    message = _start(first.replace("\r", " "), headers, encoding)
    try:
        if fault is not None:
            raise fault
        message.body = _body(headers, body, stream)
    except SipError as error:
        raise UnfitMessage(message, error) from None
    return message


class UnfitMessage(SipError):
    """A message whose head could be read but which cannot be used."""

    def __init__(self, message: Request | Response, error: SipError) -> None:
        super().__init__(str(error), error.code, error.reason, error.headers)
        self.message = message


def _cut(data: bytes) -> tuple[bytes, bytes]:
    end = _HEAD_END.search(data)
    if end is None:
        return data.rstrip(b"\r\n"), b""
    return data[: end.start()], data[end.end() :]


def _decode(head: bytes) -> tuple[str, str]:
    head = _LINE_END.sub(b"\n", head)
    try:
        return head.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return head.decode("latin-1"), "latin-1"


def _headers(lines: list[str]) -> tuple[Headers, SipError | None]:
    """The fields; without one that is too long, which is the fault that its sender can then be told.

    Raises SipError where an answer would need that one: with a Via passed over, the next one's host would get it.
    """
    fields = list(_fields(lines))
    headers = Headers((name, value) for name, value, fits in fields if fits)
    too_long = {name.lower() for name, _, fits in fields if not fits}
    if not too_long:
        return headers, None
    fault = SipError(f"a header field is longer than {MAX_FIELD} characters", 513)
    if any(name.lower() in too_long or name not in headers for name in MIRRORED):
        raise fault
    return headers, fault


def _fields(lines: list[str]) -> Iterator[tuple[str, str, bool]]:
    """Unfold, split at the colon, and give short names their long form; whether each is within our limit."""
    unfolded: list[list[str]] = []
    for line in lines:
        line = line.replace("\r", " ")
        if line[:1] in (" ", "\t"):
            if not unfolded:
                raise SipError("the first field continues a line that is not there")
            unfolded[-1].append(line.strip())
        else:
            unfolded.append([line])
            if len(unfolded) > MAX_FIELDS:
                raise SipError(f"the message has more than {MAX_FIELDS} header fields")
    for parts in unfolded:
        name, colon, value = " ".join(parts).partition(":")
        name = name.rstrip(" \t")
        if not colon or not _NAME.match(name):
            raise SipError("a header field has no name")
        yield COMPACT.get(name.lower(), name), value.strip(), sum(map(len, parts)) <= MAX_FIELD


def _start(line: str, headers: Headers, encoding: str) -> Request | Response:
    line = line.rstrip(" \t")
    if line[:4].upper() == "SIP/":
        version, _, rest = line.partition(" ")
        found = _STATUS.match(rest)
        if version.upper() != VERSION or found is None:
            raise SipError("the status line is malformed")
        return Response(headers, b"", encoding, int(found[1]), found[2] or "")
    parts = line.split()
    if len(parts) < 3 or not parts[-1].upper().startswith("SIP/") or not _METHOD.match(parts[0]):
        raise SipError("the first line is neither a request nor a status line")
    request = Request(headers, b"", encoding, parts[0], " ".join(parts[1:-1]))
    if parts[-1].upper() != VERSION:
        raise UnfitMessage(request, SipError("the request is not of SIP 2.0", 505))
    return request


def _body(headers: Headers, rest: bytes, stream: bool) -> bytes:
    lengths = {value.strip() for value in headers.all("Content-Length")}
    if len(lengths) > 1:
        raise SipError("the message has two lengths")
    if not lengths:
        return b"" if stream else rest
    length = parse_number(lengths.pop())
    if length is None:
        raise SipError("the Content-Length is no number")
    if length > len(rest):
        raise SipError("the body is shorter than its Content-Length")
    return rest[:length]
