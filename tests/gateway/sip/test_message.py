"""Messages as peers write them, and the fields in them."""

from __future__ import annotations

import pytest

from gateway.sip.errors import SipError
from gateway.sip.fields import (
    MAX_PARTS,
    NameAddr,
    parse_cseq,
    parse_name_addr,
    parse_number,
    parse_via,
    quote_string,
    split_list,
)
from gateway.sip.message import (
    MAX_FIELDS,
    MAX_MESSAGE,
    Headers,
    Request,
    Response,
    UnfitMessage,
    parse_message,
    response_to,
)

OPTIONS = (
    b"OPTIONS sip:a@example.com SIP/2.0\r\n"
    b"v: SIP/2.0/UDP h1;branch=z9hG4bK1, SIP/2.0/UDP h2\r\n"
    b"Via: SIP/2.0/TCP h3\r\n"
    b'f: "A, B" <sip:b@h;x=1>;tag=1\r\n'
    b"t: <sip:a@example.com>\r\ni: c1\r\nCSeq: 1 OPTIONS\r\nl: 2\r\n\r\nhi and more"
)


def read(data: bytes) -> Request:
    message = parse_message(data)
    assert isinstance(message, Request)
    return message


def test_short_names_are_long_ones() -> None:
    message = read(OPTIONS)
    assert message.headers.items("via") == ["SIP/2.0/UDP h1;branch=z9hG4bK1", "SIP/2.0/UDP h2", "SIP/2.0/TCP h3"]
    assert message.from_.display == "A, B"
    assert message.from_.uri.param("x") == "1"
    assert message.call_id == "c1"
    assert message.body == b"hi"


def test_what_is_read_is_written() -> None:
    written = bytes(read(OPTIONS))
    assert written.startswith(b"OPTIONS sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/UDP h1")
    assert written.endswith(b"Content-Length: 2\r\n\r\nhi")
    assert bytes(read(written)) == written


def test_bytes_that_are_not_utf_8_are_latin_1_and_come_back_as_they_were() -> None:
    data = OPTIONS.replace(b"A, B", b"J\xfcrgen")
    message = read(data)
    assert message.from_.display == "Jürgen"
    assert b"J\xfcrgen" in bytes(response_to(message, 200, "t"))
    modern = read(OPTIONS.replace(b"A, B", "Jürgen".encode()))
    assert modern.from_.display == "Jürgen"
    assert "Jürgen".encode() in bytes(response_to(modern, 200, "t"))


def test_line_ends_and_folds_as_they_come() -> None:
    folded = OPTIONS.replace(b"CSeq: 1 OPTIONS", b"CSeq:\r\n\t1\r\n  OPTIONS")
    assert read(folded).cseq.number == 1
    bare = read(folded.replace(b"\r\n", b"\n"))
    assert str(bare.cseq) == "1 OPTIONS"
    assert bare.body == b"hi"
    assert read(b"\r\n\r\n" + OPTIONS).method == "OPTIONS"


def test_without_a_length_a_datagram_ends_where_it_ends() -> None:
    data = OPTIONS.replace(b"l: 2\r\n", b"")
    assert read(data).body == b"hi and more"
    assert parse_message(data, stream=True).body == b""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"hello",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SIP/2.0 OK\r\n\r\n",
        b"SIP/3.0 200 OK\r\n\r\n",
        b"SIP/2.0 20 OK\r\n\r\n",
        b"IN VITE\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\n folded\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nno colon\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\n: no name\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\nbad name: x\r\n\r\n",
        b"OPTIONS sip:a SIP/2.0\r\n" + b"a: b\r\n" * (MAX_FIELDS + 1) + b"\r\n",
        b"OPTIONS sip:a SIP/2.0\r\na: " + b"b" * 9000 + b"\r\n\r\n",
        b"x" * (MAX_MESSAGE + 1),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(SipError) as caught:
        parse_message(data)
    assert not isinstance(caught.value, UnfitMessage)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ((b"l: 2", b"l: 99"), 400),
        ((b"l: 2", b"l: 2\r\nContent-Length: 3"), 400),
        ((b"l: 2", b"l: two"), 400),
        ((b"l: 2", b"l: \xd9\xa2"), 400),
        ((b"SIP/2.0\r\nv", b"SIP/1.0\r\nv"), 505),
        ((b"l: 2", b"l: 2\r\nX-Long: " + b"x" * 9000), 513),
        ((b"l: 2", b"l: 2\r\nX-Folded: " + b"x" * 5000 + b"\r\n " + b"x" * 5000), 513),
    ],
)
def test_a_request_that_cannot_be_used_can_still_be_answered(change: tuple[bytes, bytes], code: int) -> None:
    with pytest.raises(UnfitMessage) as caught:
        parse_message(OPTIONS.replace(*change))
    assert caught.value.code == code
    assert caught.value.message.headers.first("Call-ID") == "c1"


@pytest.mark.parametrize("field", [b"v", b"Via", b"f", b"t", b"i", b"CSeq"])
def test_a_request_is_not_answered_without_what_its_answer_mirrors(field: bytes) -> None:
    """Were a Via passed over, the next one's host would be taken for the sender's."""
    with pytest.raises(SipError) as caught:
        parse_message(OPTIONS.replace(b"\r\n" + field + b": ", b"\r\n" + field + b": " + b"x" * 9000, 1))
    assert not isinstance(caught.value, UnfitMessage)


def test_an_answer_mirrors_its_request() -> None:
    response = response_to(read(OPTIONS), 486, "me", "Gone\r\nInjected: yes")
    assert response.start_line == "SIP/2.0 486 Gone  Injected: yes"
    assert response.headers.items("Via") == read(OPTIONS).headers.items("Via")
    assert response.to.tag == "me"
    assert response.headers.first("From") == read(OPTIONS).headers.first("From")
    tagged = response_to(
        read(OPTIONS.replace(b"<sip:a@example.com>\r\ni", b"<sip:a@example.com>;tag=x\r\ni")), 200, "me"
    )
    assert tagged.to.tag == "x"


def test_fields_keep_their_order_and_place() -> None:
    headers = Headers([("A", "1"), ("B", "2"), ("a", "3, 4")])
    assert headers.items("A") == ["1", "3", "4"]
    headers.put("A", "9")
    assert list(headers) == [("A", "9"), ("B", "2")]
    headers.put("C", "5")
    headers.prepend("Z", "0")
    assert [name for name, _ in headers] == ["Z", "A", "B", "C"]
    copy = headers.copy()
    headers.remove("b")
    assert "b" in copy
    assert "b" not in headers
    assert len(copy) == 4
    copy.add("L", '"x, y", z')
    copy.note_first("L", "w")
    assert copy.first("L") == "w, z"
    assert headers.first("none") == ""


def test_nobody_can_smuggle_a_field_into_a_value_of_ours() -> None:
    with pytest.raises(ValueError, match="line break"):
        Headers().add("Subject", "hi\r\nEvil: 1")


@pytest.mark.parametrize(
    ("text", "display", "uri", "tag"),
    [
        ("sip:a@h;tag=1", "", "sip:a@h", "1"),
        ("<sip:a@h;tag=2>;tag=1", "", "sip:a@h;tag=2", "1"),
        ('"Q \\" <x>" <sip:a@h> ; tag = 1', 'Q " <x>', "sip:a@h", "1"),
        ("Ann Lee<sip:a@h>;TAG=1", "Ann Lee", "sip:a@h", "1"),
        ('"" <sip:a@h>', "", "sip:a@h", ""),
        ("<tel:+44;phone-context=x>;tag=1", "", "tel:+44;phone-context=x", "1"),
        (
            '"J" <sip:a:pw@[2001:db8::1]:5060;transport=tls?h=v>',
            "J",
            "sip:a:pw@[2001:db8::1]:5060;transport=tls?h=v",
            "",
        ),
    ],
)
def test_names_and_addresses(text: str, display: str, uri: str, tag: str) -> None:
    read = parse_name_addr(text)
    assert (read.display, str(read.uri), read.tag) == (display, uri, tag)
    assert parse_name_addr(str(read)) == read


@pytest.mark.parametrize(
    "text",
    ["", "<>", "<sip:a@h", '"open <sip:a@h>', '"a" sip:a@h', "<sip:a@h> x", "a b", "sip:", "sip:@h", "sip:a@h?x=1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SipError):
        parse_name_addr(text)


def test_tags_are_put_and_taken_away() -> None:
    party: NameAddr = parse_name_addr("<sip:a@h>;tag=1;x")
    assert str(party.with_tag("2")) == "<sip:a@h>;x;tag=2"
    assert str(party.with_tag("")) == "<sip:a@h>;x"
    assert quote_string('a"b\\c\r\nd') == '"a\\"b\\\\c  d"'


def test_lists_are_cut_outside_of_quotes_and_brackets_only() -> None:
    assert split_list('"a,b" <c,d>, e') == ['"a,b" <c,d>', "e"]
    assert split_list('"a\\",b", c') == ['"a\\",b"', "c"]
    assert split_list('a;"b;c";d', ";") == ["a", '"b;c"', "d"]
    assert split_list('"never ends, really') == ['"never ends, really']
    with pytest.raises(SipError):
        split_list("," * (MAX_PARTS + 1))


@pytest.mark.parametrize(
    "text", ["", "1", "INVITE", "-1 INVITE", "1.5 INVITE", "2147483648 INVITE", "9" * 5000 + " A", "1 A B"]
)
def test_what_is_no_cseq_is_refused(text: str) -> None:
    with pytest.raises(SipError):
        parse_cseq(text)


@pytest.mark.parametrize(
    "text", ["", "SIP/2.0/UDP", "UDP h", "SIP/2.0/UDP h:0", "SIP/2.0/UDP h:99999", "SIP/2.0/UDP h h"]
)
def test_what_is_no_via_is_refused(text: str) -> None:
    with pytest.raises(SipError):
        parse_via(text)


@pytest.mark.parametrize(
    ("text", "host", "noted"),
    [
        ("SIP/2.0/UDP h:5070;branch=b", "192.0.2.5", "SIP/2.0/UDP h:5070;branch=b;received=192.0.2.5"),
        ("SIP/2.0/UDP 192.0.2.5;branch=b", "192.0.2.5", "SIP/2.0/UDP 192.0.2.5;branch=b"),
        ("SIP/2.0/UDP 192.0.2.5;rport", "192.0.2.5", "SIP/2.0/UDP 192.0.2.5;received=192.0.2.5;rport=1234"),
        ("SIP / 2.0 / tcp [::1];received=9.9.9.9", "::1", "SIP/2.0/TCP [::1]"),
    ],
)
def test_where_a_request_really_came_from_is_noted(text: str, host: str, noted: str) -> None:
    assert str(parse_via(text).received_from(host, 1234)) == noted


def test_numbers() -> None:
    assert parse_number(" 0042 ") == 42
    assert [parse_number(text) for text in ("", "-1", "+1", "1_0", "x", "٣", "9" * 11)] == [None] * 7
    assert Response(code=100, reason="Trying").start_line == "SIP/2.0 100 Trying"
