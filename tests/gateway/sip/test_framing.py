"""Messages on a stream: cut anywhere, with keep-alives between, and faults that end the connection."""

from __future__ import annotations

import pytest

from gateway.sip.errors import SipError
from gateway.sip.framing import StreamFramer
from gateway.sip.message import MAX_MESSAGE

ONE = b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 3\r\n\r\nabc"
TWO = b"BYE sip:a SIP/2.0\r\nl :\r\n 0\r\nX: 1\r\n\r\n"


def test_messages_are_cut_at_their_length() -> None:
    framer = StreamFramer()
    assert framer.receive(ONE + TWO + ONE[:-1]) == [ONE, TWO]
    assert framer.receive(b"c") == [ONE]


def test_every_cut_gives_the_same() -> None:
    stream = b"\r\n\r\n" + ONE + b"\r\n" + TWO + b"\r\n\r\n" + ONE
    for cut in range(len(stream)):
        framer = StreamFramer()
        assert framer.receive(stream[:cut]) + framer.receive(stream[cut:]) == [ONE, TWO, ONE]
        assert framer.pings == 2


def test_bare_line_feeds_end_a_head_too() -> None:
    assert StreamFramer().receive(ONE.replace(b"\r\n", b"\n")) == [ONE.replace(b"\r\n", b"\n")]


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS sip:a SIP/2.0\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nl: 1\r\nContent-Length: 2\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nl: many\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nl: -1\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nl: 65536\r\n\r\n",
        b"x" * (MAX_MESSAGE + 1),
    ],
)
def test_a_stream_that_cannot_be_cut_is_at_its_end(data: bytes) -> None:
    framer = StreamFramer()
    with pytest.raises(SipError):
        framer.receive(data)
    with pytest.raises(SipError):
        framer.receive(ONE)


def test_what_came_whole_before_a_fault_is_not_lost() -> None:
    framer = StreamFramer()
    assert framer.receive(ONE + b"nonsense\r\n\r\n") == [ONE]
    with pytest.raises(SipError):
        framer.receive(b"")
