"""Messages out of a byte stream: TCP and TLS (RFC 3261, section 18.3).

Owns one connection's bytes until a message is whole. A stream without Content-Length has no end to its message,
so a length that cannot be read is the end of the connection. Keep-alives (RFC 5626, section 3.5.1) are told apart.
"""

from __future__ import annotations

import re

from gateway.sip.errors import SipError
from gateway.sip.fields import parse_number
from gateway.sip.message import MAX_MESSAGE

PING = b"\r\n\r\n"
PONG = b"\r\n"

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:(?:\r?\n(?=[ \t]))?[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class StreamFramer:
    """Feed it what was read; it gives whole messages. After a SipError the connection is to be closed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._length: int | None = None
        """Bytes of the message whose head is complete."""
        self._fault: SipError | None = None
        self.pings = 0
        """Keep-alives that await an answer of PONG."""

    def receive(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete; raises SipError when the rest cannot be told apart."""
        if self._fault is not None:
            raise self._fault
        self._buffer += data
        messages: list[bytes] = []
        while (message := self._next(first=not messages)) is not None:
            messages.append(message)
        return messages

    def _next(self, first: bool) -> bytes | None:
        """One whole message. A fault behind whole messages is raised the next time, so that those are not lost."""
        try:
            if self._length is None and not self._read_head():
                return None
        except SipError as fault:
            self._fault = fault
            if first:
                raise
            return None
        length = self._length
        if length is None or len(self._buffer) < length:
            return None
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._length = None
        self._searched = 0
        return message

    def _read_head(self) -> bool:
        self._skip_keep_alives()
        end = _HEAD_END.search(self._buffer, self._searched)
        if end is None:
            if len(self._buffer) > MAX_MESSAGE:
                raise SipError("the head of a message is longer than 65535 bytes", 413)
            self._searched = max(0, len(self._buffer) - 3)
            return False
        lengths = {bytes(value).strip() for value in _LENGTH.findall(self._buffer[: end.start()])}
        if len(lengths) != 1:
            raise SipError("a message on a stream has no single Content-Length")
        length = parse_number(lengths.pop().decode("latin-1"))
        if length is None:
            raise SipError("the Content-Length is no number")
        if end.end() + length > MAX_MESSAGE:
            raise SipError("the message is longer than 65535 bytes", 413)
        self._length = end.end() + length
        return True

    def _skip_keep_alives(self) -> None:
        while self._buffer[:2] == b"\r\n":
            if self._buffer[:4] == PING:
                self.pings += 1
                del self._buffer[:4]
            elif len(self._buffer) < 4:
                if len(self._buffer) > 2 and self._buffer[2:3] != b"\r":
                    del self._buffer[:2]
                    continue
                break
            else:
                del self._buffer[:2]
