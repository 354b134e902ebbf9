"""The 49 messages of RFC 4475, each with what we make of it.

The files in `torture/` are the RFC's own, byte for byte. A code is our answer over UDP: 100 means that the call is
offered to the application, None that nothing is answered because the message is a response to nobody.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.sip.admission import inspect_request
from gateway.sip.agent import UserAgentCore
from gateway.sip.errors import SipError
from gateway.sip.events import Established, IncomingCall, MessageDropped
from gateway.sip.fields import parse_name_addr
from gateway.sip.framing import StreamFramer
from gateway.sip.message import Request, Response, parse_message
from gateway.sip.sdp import parse_sdp
from gateway.sip.uri import Addr
from tests.gateway.sip.pair import agent

FOLDER = Path(__file__).parent / "torture"
PEER = Addr("192.0.2.99", 5060)

ANSWERS: dict[str, tuple[int | None, str]] = {
    # 3.1.1 Valid messages
    "wsinv": (481, "it has a To-tag of a dialog we never had"),
    "intmeth": (501, "a valid method that nobody knows"),
    "esc01": (100, "escapes in the URIs are no fault"),
    "escnull": (405, "we register nobody"),
    "esc02": (501, "a method with an escape is not the method without"),
    "lwsdisp": (200, "no space between name and address"),
    "longreq": (100, "long values and many Vias"),
    "dblreq": (405, "a REGISTER; what follows it in the datagram is ignored"),
    "semiuri": (200, "a semicolon in the user part"),
    "transports": (200, "Vias of transports that we do not speak"),
    "mpart01": (405, "a MESSAGE, whose binary body does no harm"),
    "unreason": (None, "a response to nobody, its reason in Russian"),
    "noreason": (None, "a response to nobody, without a reason"),
    # 3.1.2 Invalid messages
    "badinv01": (400, "separators without values in a Via"),
    "clerr": (400, "the Content-Length is larger than the datagram"),
    "ncl": (400, "the Content-Length is negative"),
    "scalar02": (400, "a CSeq beyond 2**31"),
    "scalarlg": (None, "a response with a CSeq beyond 2**31"),
    "quotbal": (400, "a quoted string does not end"),
    "ltgtruri": (400, "angle brackets around the Request-URI"),
    "lwsruri": (400, "a space in the Request-URI"),
    "lwsstart": (100, "two spaces in the request line are taken as one"),
    "trws": (200, "spaces at the end of the request line are passed over"),
    "escruri": (400, "header fields in the Request-URI"),
    "baddate": (100, "a date in a zone that SIP does not know, which we never read"),
    "regbadct": (400, "a Contact with header fields without angle brackets"),
    "badaspec": (200, "spaces within angle brackets are passed over"),
    "baddn": (200, "a comma in a name without quotes; To and From are no lists"),
    "badvers": (505, "SIP 7.0"),
    "mismatch01": (400, "the CSeq is of another known method"),
    "mismatch02": (400, "the CSeq is of another method, and that one unknown"),
    "bigcode": (None, "a response with a code beyond 699"),
    # 3.2 Transaction layer semantics
    "badbranch": (200, "a branch of nothing but the cookie: matched as RFC 2543 did"),
    # 3.3 Application layer semantics
    "insuf": (400, "neither To, From nor Call-ID"),
    "unkscm": (416, "a scheme nobody knows"),
    "novelsc": (416, "a scheme that is no telephone's"),
    "unksm2": (405, "unknown schemes in To, From and Contact do no harm"),
    "bext01": (420, "extensions that we do not have are required"),
    "invut": (415, "a body of a type that nobody knows"),
    "regaut01": (405, "an unknown authentication scheme is no affair of a request that we do not serve"),
    "multi01": (400, "two of fields that may come once"),
    "mcl01": (400, "two lengths"),
    "bcast": (None, "a response with two Vias is not ours"),
    "zeromf": (200, "Max-Forwards 0 stops proxies, not us"),
    "cparam01": (405, "we register nobody"),
    "cparam02": (405, "we register nobody"),
    "regescrt": (405, "we register nobody"),
    "sdp01": (406, "the caller accepts no session description"),
    # 3.4 Backward compatibility
    "inv2543": (100, "a caller of RFC 2543: no branch, no From-tag, no Contact, no Content-Length"),
}


def raw(name: str) -> bytes:
    return (FOLDER / f"{name}.dat").read_bytes()


def receive(name: str) -> tuple[UserAgentCore, list[Response]]:
    core = agent("192.0.2.200")
    core.receive(raw(name), PEER, 1.0)
    answers = [parse_message(data) for data, _ in core.datagrams_to_send(1.0)]
    assert all(isinstance(answer, Response) for answer in answers)
    return core, [answer for answer in answers if isinstance(answer, Response)]


def request(name: str) -> Request:
    message = parse_message(raw(name))
    assert isinstance(message, Request)
    return message


def test_every_message_of_the_rfc_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.dat")} == set(ANSWERS)
    assert len(ANSWERS) == 49


@pytest.mark.parametrize("name", ANSWERS)
def test_each_is_answered_as_it_should_be(name: str) -> None:
    code, why = ANSWERS[name]
    core, answers = receive(name)
    assert [answer.code for answer in answers] == ([] if code is None else [code]), why
    events = []
    while (event := core.next_event()) is not None:
        events.append(event)
    kinds = {type(event) for event in events}
    assert kinds == ({IncomingCall} if code == 100 else set() if code == 200 else {MessageDropped}), why
    if code != 100:
        assert core.calls == 0


@pytest.mark.parametrize("name", ANSWERS)
def test_each_stream_of_one_message_is_framed_or_refused(name: str) -> None:
    framer = StreamFramer()
    data = raw(name)
    refused = {"ncl", "mcl01", "inv2543"}
    unfinished = {"clerr"}
    if name in refused:
        with pytest.raises(SipError):
            framer.receive(data)
        return
    if name == "dblreq":
        data = data.replace(b"m =video", b"m=video")
    messages = [message for byte in data for message in framer.receive(bytes([byte]))]
    assert len(messages) == (0 if name in unfinished else 2 if name == "dblreq" else 1)
    if len(messages) == 1:
        assert messages[0] == data.lstrip(b"\r\n")


def test_wsinv_is_read_through_all_its_white_space() -> None:
    message = request("wsinv")
    inspect_request(message)
    assert message.uri == "sip:vivekg@chair-dnrc.example.com;unknownparam"
    assert message.to.tag == "1918181833n"
    assert message.from_.display == 'J Rosenberg \\"'
    assert message.from_.tag == "98asjd8"
    assert message.headers.first("Max-Forwards") == "0068"
    assert (message.cseq.number, message.cseq.method) == (9, "INVITE")
    assert (message.via.transport, message.via.host, message.via.branch) == ("UDP", "192.0.2.2", "390skdjuw")
    assert [value.partition(" ")[0] for value in message.headers.items("Via")] == ["SIP", "SIP", "SIP"]
    assert message.headers.first("Subject") == ""
    assert message.headers.first("NewFangledHeader") == "newfangled value continued newfangled value"
    assert message.headers.first("UnknownHeaderWithUnusualValue") == ";;,,;;,;"
    contact = message.contact
    assert contact is not None
    assert contact.display == 'Quoted string ""'
    assert (contact.param("newparam"), contact.param("secondparam"), contact.param("q")) == ("newvalue", "", "0.33")
    assert [media.kind for media in parse_sdp(message.body).media] == ["audio", "video"]


def test_intmeth_keeps_every_character() -> None:
    message = request("intmeth")
    assert message.method == "!interesting-Method0123456789_*+`.%indeed'~"
    assert message.to.display == "BEL:\x07 NUL:\x00 DEL:\x7f"
    assert message.from_.display == "token1~` token2'+_ token3*%!.-"
    assert message.from_.tag == "_token~1'+`*%!-."
    assert message.from_.param("fromparam''~+*_!.-%") == "работающий"
    assert message.call_id == "intmeth.word%ZK-!.*_+'@word`~)(><:\\/\"][?}{"
    assert message.headers.first("extensionHeader-!.%*+_`'~") == "\ufeff大停電"
    assert b"\xd1\x80\xd0\xb0\xd0\xb1" in bytes(message)


def test_escapes_stay_until_somebody_asks_for_the_name() -> None:
    message = request("esc01")
    core, _ = receive("esc01")
    call = core.next_event()
    assert isinstance(call, IncomingCall)
    assert call.uri.user == "sips%3Auser%40example.com"
    assert call.uri.name == "sips:user@example.com"
    assert str(message.to.uri) == "sip:%75se%72@example.com"
    assert message.from_.uri.name == "I have spaces"
    assert request("escnull").to.uri.name == "null-\x00-null"
    escaped = request("esc02")
    assert escaped.method == "RE%47IST%45R"
    assert len(escaped.headers.all("Contact")) == 2
    assert escaped.headers.first("C%6Fntact") == "<sip:alias2@host2.example.com>"
    assert escaped.to.display == "%Z%45"


def test_a_parameter_belongs_to_the_uri_only_inside_of_brackets() -> None:
    bare, bracketed = request("cparam01").contact, request("cparam02").contact
    assert bare is not None
    assert bracketed is not None
    assert (bare.param("unknownparam"), bare.uri.param("unknownparam")) == ("", None)
    assert (bracketed.param("unknownparam"), bracketed.uri.param("unknownparam")) == (None, "")
    fields = request("regescrt").contact
    assert fields is not None
    assert fields.uri.headers == "Route=%3Csip:sip.example.com%3E"


def test_longreq_is_read_whole() -> None:
    message = request("longreq")
    assert len(message.headers.items("Via")) == 34
    assert message.headers.items("Via")[-2] == "SIP/2.0/TCP sip1.example.com"
    assert message.from_.tag == "12" + 50 * "982" + "424"
    assert message.to.uri.param("longparam" + 25 * "name") == "shortvalue"


def test_semiuri_has_its_semicolon_in_the_user() -> None:
    uri = parse_name_addr("<sip:user;par=u%40example.net@example.com>").uri
    assert (uri.user, uri.name, uri.host, uri.params) == (
        "user;par=u%40example.net",
        "user;par=u@example.net",
        "example.com",
        (),
    )


def test_dblreq_holds_two_messages_on_a_stream() -> None:
    first, second = StreamFramer().receive(raw("dblreq"))
    assert first.startswith(b"REGISTER")
    assert second.startswith(b"INVITE")
    assert parse_message(second, stream=True).call_id == "dblreq.0ha0isnda977644900765@192.0.2.15"


def test_responses_are_read_whatever_their_reason() -> None:
    unreason, noreason = parse_message(raw("unreason")), parse_message(raw("noreason"))
    assert isinstance(unreason, Response)
    assert isinstance(noreason, Response)
    assert (unreason.code, noreason.code) == (200, 100)
    assert unreason.reason.endswith("простое")
    assert noreason.reason == ""


def test_what_420_406_415_and_405_must_tell() -> None:
    for name, field, value in (
        ("bext01", "Unsupported", "nothingSupportsThis, nothingSupportsThisEither"),
        ("sdp01", "Accept", "application/sdp"),
        ("invut", "Accept", "application/sdp"),
        ("regaut01", "Allow", "INVITE, ACK, BYE, CANCEL, OPTIONS, INFO, UPDATE, NOTIFY"),
    ):
        _, answers = receive(name)
        assert answers[0].headers.first(field) == value


def test_an_answer_copies_all_vias_in_order() -> None:
    _, answers = receive("transports")
    vias = answers[0].headers.items("Via")
    assert [via.partition(" ")[0] for via in vias] == [
        f"SIP/2.0/{name}" for name in ("UDP", "SCTP", "TLS", "UNKNOWN", "TCP")
    ]
    assert vias[0].endswith("received=192.0.2.99")


def test_a_caller_of_rfc_2543_can_be_talked_to() -> None:
    core, _ = receive("inv2543")
    event = core.next_event()
    assert isinstance(event, IncomingCall)
    sdp = event.offer
    assert sdp is not None
    core.answer(event.call, sdp, 2.0)
    answer = parse_message(core.datagrams_to_send(2.0)[0][0])
    assert isinstance(answer, Response)
    head = raw("inv2543").split(b"\r\n\r\n")[0].replace(b"INVITE", b"ACK")
    to = b"To: sip:+16505552222@ss1.example.net;user=phone"
    assert to in head
    core.receive(head.replace(to, to + b";tag=" + answer.to.tag.encode()) + b"\r\n\r\n", PEER, 2.1)
    assert isinstance(core.next_event(), Established)
    core.hangup(event.call, 3.0)
    data, addr = core.datagrams_to_send(3.0)[0]
    bye = parse_message(data)
    assert isinstance(bye, Request)
    assert bye.method == "BYE"
    assert bye.uri == "sip:UserB@example.com;maddr=ss1.example.com"
    assert bye.headers.items("Route") == ["<sip:+13035551111@ift.client.example.net;user=phone>"]
    assert addr.host == "ss1.example.com"
