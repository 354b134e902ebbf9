"""Garbage in, SipError at most: the parsers alone, and the whole core with broken messages amid good ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.sip.agent import UserAgentCore
from gateway.sip.bodies import find_sdp, read_digits
from gateway.sip.digest import parse_auth, read_challenges
from gateway.sip.errors import SipError
from gateway.sip.events import IncomingCall, Reoffer, Terminated
from gateway.sip.fields import parse_cseq, parse_name_addr, parse_via, split_list
from gateway.sip.framing import StreamFramer
from gateway.sip.message import MAX_MESSAGE, Request, Response, parse_message
from gateway.sip.offer import Capabilities, Srtp, answer_offer
from gateway.sip.sdp import is_hold, parse_sdp
from gateway.sip.transfer import read_sipfrag
from gateway.sip.uri import Addr, Transport, address_of, parse_uri
from tests.gateway.sip.pair import ANSWER, SDP, Line, Pair, agent

PEER = Addr("192.0.2.99", 5060)
TORTURE = [path.read_bytes() for path in sorted((Path(__file__).parent / "torture").glob("*.dat"))]
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b";", b",", b":", b"<", b">", b'"', b"\\", b"=", b"@", b"?", b"%", b"\x00",
    b"\xff", b"SIP/2.0", b"INVITE", b"ACK", b"BYE", b"CANCEL", b"z9hG4bK", b"tag=", b"branch=", b"rport", b"Via: ",
    b"v:", b"l: 0", b"Content-Length: 99999999999", b"CSeq: 4294967296 INVITE", b"Record-Route: <sip:a;lr>",
    b"Contact: *", b"Require: x", b"Session-Expires: 1", b"Authorization: Digest realm=callplex",
    b"multipart/mixed;boundary=b", b"m=audio 1 RTP/AVP 0", b"\r\n\r\n", "\u00e9\U0001f600".encode(), b"9" * 5000,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good message with pieces cut out, doubled, put in or overwritten."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        kind = draw(st.sampled_from("idox"))
        if kind == "i":
            data[place:place] = draw(st.sampled_from(PIECES))
        elif kind == "d":
            del data[place : place + length]
        elif kind == "o":
            data[place : place + length] = draw(st.binary(max_size=8))
        else:
            data[place:place] = data[place : place + length]
    return bytes(data)


def read_everything(message: Request | Response) -> None:
    """Every reader that a message meets on its way."""
    readings: list[Callable[[], object]] = [
        lambda: message.via,
        lambda: message.from_,
        lambda: message.to,
        lambda: message.cseq,
        lambda: message.contact,
        lambda: find_sdp(message),
    ]
    if isinstance(message, Request):
        readings += [lambda: read_digits(message), lambda: read_sipfrag(message)]
    else:
        readings.append(lambda: read_challenges(message))
    for reading in readings:
        try:
            reading()
        except SipError:
            continue
    again = parse_message(bytes(message))
    assert again.start_line.split() == message.start_line.split()
    assert list(again.headers)[:-1] == [pair for pair in message.headers if pair[0].lower() != "content-length"]
    assert again.body == message.body


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.binary(max_size=400), mutated(TORTURE)))
def test_a_message_is_read_or_refused_and_written_as_it_was_read(data: bytes) -> None:
    try:
        message = parse_message(data)
    except SipError:
        return
    read_everything(message)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200))
def test_values_are_read_or_refused(text: str) -> None:
    for reading in (parse_uri, parse_name_addr, parse_via, parse_cseq, parse_auth):
        try:
            read = reading(text)
        except SipError:
            continue
        assert read is not None
    assert "".join(split_list(text)).count('"') == text.count('"')


@settings(max_examples=300, deadline=None)
@given(st.from_regex(r"\A(sips?|tel):[ -~]{0,60}\Z"))
def test_a_uri_read_and_written_is_the_same(text: str) -> None:
    try:
        uri = parse_uri(text)
    except SipError:
        return
    assert parse_uri(str(uri)) == uri
    try:
        assert 0 < address_of(uri).port < 65536
    except SipError:
        assert uri.scheme == "tel" or uri.param("transport")


@settings(max_examples=600, deadline=None)
@given(mutated([SDP, ANSWER, *(data.partition(b"\r\n\r\n")[2] for data in TORTURE)]), st.sampled_from(Srtp))
def test_a_description_is_answered_or_refused(data: bytes, srtp: Srtp) -> None:
    is_hold(data)
    codes = set()
    try:
        offer = parse_sdp(data)
        answer = answer_offer(offer, Addr("192.0.2.7", 4000), Capabilities(srtp=srtp), session_id=1, key=bytes(30))
    except SipError as error:
        codes.add(error.code)
    assert codes <= {488}
    if codes:
        return
    ours = parse_sdp(answer.sdp)
    assert len(ours.media) == len(offer.media)
    assert sum(media.port > 0 for media in ours.media) == 1
    assert 0 < answer.agreed.remote.port < 65536


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=60), mutated(TORTURE), st.sampled_from(TORTURE)), max_size=5), st.data())
def test_a_stream_cut_anywhere_gives_the_same_messages(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole, pieces = StreamFramer(), StreamFramer()
    first: list[bytes] = []
    second: list[bytes] = []
    faults = 0
    try:
        first += whole.receive(stream)
        first += whole.receive(b"")
    except SipError:
        faults += 1
    try:
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            second += pieces.receive(stream[:size])
            stream = stream[size:]
        second += pieces.receive(b"")
    except SipError:
        faults -= 1
    assert first == second
    assert faults == 0


def drive(core: UserAgentCore, now: float) -> None:
    """The application: takes every call and every change, and hangs up in the end."""
    while (event := core.next_event()) is not None:
        if isinstance(event, IncomingCall | Reoffer):
            core.answer(event.call, ANSWER, now)
    core.datagrams_to_send(now)


@settings(max_examples=300, deadline=None)
@given(st.lists(mutated(TORTURE), min_size=1, max_size=8), st.sampled_from(("udp", "tcp", "tls")))
def test_the_core_survives_whatever_comes(messages: list[bytes], transport: Transport) -> None:
    core = agent("192.0.2.200", addresses={transport: ("192.0.2.200", 5060)})
    now = 0.0
    for message in messages:
        core.receive(message, PEER._replace(transport=transport), now)
        drive(core, now)
        now += 0.4
        core.handle_timer(now)
    for _ in range(1000):
        due = core.get_timer()
        if due is None:
            break
        core.handle_timer(due)
        drive(core, due)
    assert (core.calls, core.transactions, core.timers) == (0, 0, 0)


class BrokenLine(Pair):
    """Changes some bytes of some messages."""

    def spoil(self, rate: float) -> None:
        chance = random.Random(self.seed)
        for core in (self.left, self.right):
            receive = core.receive

            def spoiled(data: bytes, addr: Addr, now: float, receive: object = receive) -> None:
                assert callable(receive)
                if chance.random() < rate:
                    broken = bytearray(data)
                    for _ in range(chance.randrange(1, 6)):
                        place = chance.randrange(len(broken))
                        broken[place : place + chance.randrange(4)] = chance.choice(PIECES[:-1])
                    receive(bytes(broken), addr, now)
                receive(data, addr, now)

            core.receive = spoiled  # type: ignore[method-assign]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32))
def test_broken_copies_of_every_message_do_no_harm(seed: int) -> None:
    pair = BrokenLine(seed, Line(shuffled=0.1))
    pair.spoil(0.7)
    pair.call()
    pair.run(0.2)
    for _ in range(10):
        for core in (pair.left, pair.right):
            drive_calls(core, pair)
            pair.run(1.0)
    pair.run(2000.0)
    for core in (pair.left, pair.right):
        drive_calls(core, pair, hang_up=True)
    pair.run(2000.0)
    assert pair.at_rest()


def drive_calls(core: UserAgentCore, pair: Pair, hang_up: bool = False) -> None:
    pair.flush()
    for event in pair.events[core]:
        call = getattr(event, "call", None)
        if call is None:
            continue
        if hang_up:
            core.hangup(call, pair.now)
        elif isinstance(event, IncomingCall | Reoffer):
            core.answer(call, ANSWER, pair.now)
        elif not isinstance(event, Terminated):
            core.reinvite(call, SDP, pair.now)
            core.info_dtmf(call, "1", pair.now)


def test_a_message_too_long_and_a_flood_of_fields_are_only_counted() -> None:
    core = agent("192.0.2.200")
    start = b"OPTIONS sip:a@192.0.2.200 SIP/2.0\r\n"
    for flood in (
        b"x" * (MAX_MESSAGE + 1),
        start + b"X: 1\r\n" * 5000 + b"\r\n",
        start + b"X: " + b'"' * 20_000 + b"\r\n\r\n",
        start + b"X: 1\r\n" + b" fold\r\n" * 9000 + b"\r\n",
    ):
        for second in range(10):
            core.receive(flood, PEER, second / 100)
    assert core.datagrams_to_send(1.0) == []
    assert sum(core.dropped.values()) == 40
    events = 0
    while core.next_event() is not None:
        events += 1
    assert events == len(core.dropped) == 3
