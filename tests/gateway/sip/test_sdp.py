"""Offers and answers: captured descriptions of real peers, everything we decline, and keys."""

from __future__ import annotations

from base64 import b64encode
from contextlib import nullcontext

import pytest

from gateway.sip.errors import SipError
from gateway.sip.offer import Answer, Capabilities, Srtp, answer_offer, make_offer, read_answer
from gateway.sip.sdp import is_hold, parse_sdp
from gateway.sip.uri import Addr

LOCAL = Addr("203.0.113.9", 20000)
KEY = bytes(range(30))
THEIR_KEY = bytes(range(30, 60))
INLINE = b64encode(THEIR_KEY).decode()

ASTERISK = """v=0
o=- 1821834431 1821834431 IN IP4 192.0.2.10
s=Asterisk
c=IN IP4 192.0.2.10
t=0 0
m=audio 14232 RTP/AVP 9 8 0 101
a=rtpmap:9 G722/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-16
a=ptime:20
a=maxptime:150
a=sendrecv
"""
BARESIP = f"""v=0
o=- 3215352125 1404424848 IN IP4 127.0.0.1
s=-
c=IN IP4 127.0.0.1
t=0 0
a=tool:baresip 1.0.0
m=audio 11044 RTP/SAVP 96 0 101
b=AS:125
a=rtpmap:96 opus/48000/2
a=rtpmap:0 PCMU/8000
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-15
a=rtcp:11050
a=crypto:1 AES_256_CM_HMAC_SHA1_80 inline:{b64encode(bytes(46)).decode()}
a=crypto:2 AES_CM_128_HMAC_SHA1_80 inline:{INLINE}|2^31
a=crypto:3 AES_CM_128_HMAC_SHA1_32 inline:{INLINE}
a=sendrecv
a=label:1
"""


def offer(*lines: str, media: str = "m=audio 4000 RTP/AVP 0", host: str = "192.0.2.1") -> str:
    return "\r\n".join(["v=0", f"o=- 1 1 IN IP4 {host}", "s=-", f"c=IN IP4 {host}", "t=0 0", media, *lines, ""])


def answer(text: str, **changes: object) -> Answer:
    capabilities = Capabilities(**changes)  # type: ignore[arg-type]
    return answer_offer(parse_sdp(text.encode()), LOCAL, capabilities, session_id=7, key=KEY)


def refused(text: str, **changes: object) -> int:
    with pytest.raises(SipError) as caught:
        answer(text, **changes)
    return caught.value.code


def test_asterisk_is_answered_with_its_first_codec_that_we_know() -> None:
    got = answer(ASTERISK)
    assert (got.agreed.codec, got.agreed.payload_type, got.agreed.digits, got.agreed.ptime) == ("PCMA", 8, 101, 20)
    assert got.agreed.remote == Addr("192.0.2.10", 14232)
    assert got.agreed.remote_rtcp == Addr("192.0.2.10", 14233)
    assert got.agreed.direction == "sendrecv"
    assert got.sdp.decode() == (
        "v=0\r\no=callplex 7 1 IN IP4 203.0.113.9\r\ns=callplex\r\nc=IN IP4 203.0.113.9\r\nt=0 0\r\n"
        "m=audio 20000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
        "a=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n"
    )
    assert answer(ASTERISK, codecs=("PCMU",)).agreed.codec == "PCMU"


def test_baresip_with_keys_gets_ours_under_its_tag() -> None:
    got = answer(BARESIP)
    assert got.agreed.codec == "PCMU"
    assert got.agreed.remote_rtcp.port == 11050
    assert got.agreed.remote_crypto is not None
    assert got.agreed.local_crypto is not None
    assert (got.agreed.remote_crypto.tag, got.agreed.remote_crypto.key) == (2, THEIR_KEY)
    assert (got.agreed.local_crypto.tag, got.agreed.local_crypto.key) == (2, KEY)
    assert f"a=crypto:2 AES_CM_128_HMAC_SHA1_80 inline:{b64encode(KEY).decode()}\r\n" in got.sdp.decode()
    assert "m=audio 20000 RTP/SAVP 0 101" in got.sdp.decode()
    assert b64encode(KEY).decode() not in repr(got.agreed)


@pytest.mark.parametrize(
    "line",
    [
        "a=crypto:1 AES_256_CM_HMAC_SHA1_80 inline:" + b64encode(bytes(46)).decode(),
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:" + b64encode(bytes(29)).decode(),
        "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:!!!!",
        f"a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{INLINE} UNENCRYPTED_SRTP",
        f"a=crypto:x AES_CM_128_HMAC_SHA1_80 inline:{INLINE}",
        "a=crypto:1",
        "a=sendrecv",
    ],
)
def test_a_secure_stream_without_a_key_we_can_use_is_not_taken(line: str) -> None:
    assert refused(offer(line, media="m=audio 4000 RTP/SAVP 0")) == 488


def test_what_we_make_of_encryption_is_ours_to_say() -> None:
    secure = offer(f"a=crypto:1 AES_CM_128_HMAC_SHA1_32 inline:{INLINE}", media="m=audio 4000 RTP/SAVPF 0")
    assert answer(secure).agreed.local_crypto is not None
    assert answer(secure, srtp=Srtp.REQUIRED).agreed.local_crypto is not None
    assert refused(secure, srtp=Srtp.REFUSED) == 488
    assert refused(offer(), srtp=Srtp.REQUIRED) == 488
    assert answer(offer(), srtp=Srtp.REFUSED).agreed.local_crypto is None
    with pytest.raises(ValueError, match="30 bytes"):
        answer_offer(parse_sdp(secure.encode()), LOCAL, Capabilities(), session_id=1)


def test_streams_we_cannot_take_are_declined_in_their_place() -> None:
    text = offer(
        "m=audio 0 RTP/AVP 0",
        "m=audio 4000 RTP/AVP 8",
        "m=application 9 UDP/DTLS/SCTP webrtc",
        media="m=video 5 RTP/AVP 31",
    )
    got = parse_sdp(answer(text).sdp)
    assert [(media.kind, media.port) for media in got.media] == [
        ("video", 0),
        ("audio", 0),
        ("audio", 20000),
        ("application", 0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        offer(media="m=audio 4000 RTP/AVP 18"),
        offer("a=rtpmap:0 OPUS/48000/2"),
        offer(media="m=audio 4000 UDP/TLS/RTP/SAVPF 0"),
        offer(media="m=video 4000 RTP/AVP 0"),
        offer(media="m=audio 0 RTP/AVP 0"),
        offer(media="a=nothing"),
        offer(host="phone.example.com"),
        offer(host="224.0.0.1"),
        offer("c=IN IP6 ::1%x"),
        offer("c=IN IP6 ::1%\0"),
        offer("a=rtpmap:abc PCMU/8000", media="m=audio 4000 RTP/AVP abc"),
        offer("a=rtpmap:200 PCMU/8000", media="m=audio 4000 RTP/AVP 200"),
    ],
)
def test_nothing_in_common_is_488(text: str) -> None:
    assert refused(text) == 488


@pytest.mark.parametrize(
    "text", ["", "hello", "v=0\nm=audio x RTP/AVP 0", "v=0\nm=audio 70000 RTP/AVP 0", "v=0\nm=audio 1"]
)
def test_what_is_no_description_is_488(text: str) -> None:
    with pytest.raises(SipError) as caught:
        parse_sdp(text.encode())
    assert caught.value.code == 488


def test_a_description_too_long_is_not_read() -> None:
    for flood in (b"a=x\r\n" * 1000, b"m=audio 1 RTP/AVP 0\r\n" * 20):
        with pytest.raises(SipError, match="more than"):
            parse_sdp(b"v=0\r\n" + flood)


def test_payload_types_are_the_peers() -> None:
    text = offer("a=rtpmap:112 telephone-event/8000", "a=rtpmap:97 pcmu/8000/1", media="m=audio 4000 RTP/AVP 97 112 13")
    got = answer(text)
    assert (got.agreed.codec, got.agreed.payload_type, got.agreed.digits) == ("PCMU", 97, 112)
    assert b"a=rtpmap:97 PCMU/8000" in got.sdp
    assert answer(text, digits=False).agreed.digits is None
    assert answer(offer()).agreed.digits is None


@pytest.mark.parametrize(
    ("lines", "ptime"),
    [
        ((), 20),
        (("a=ptime:10",), 10),
        (("a=ptime:30",), 30),
        (("a=ptime:60", "a=maxptime:40"), 40),
        (("a=maxptime:10",), 10),
        (("a=maxptime:150",), 20),
        (("a=ptime:200",), 120),
        (("a=ptime:5",), 10),
        (("a=ptime:0",), 20),
        (("a=ptime:nonsense",), 20),
        (("a=ptime:20.0",), 20),
    ],
)
def test_packets_are_as_long_as_the_peer_likes(lines: tuple[str, ...], ptime: int) -> None:
    assert answer(offer(*lines)).agreed.ptime == ptime


@pytest.mark.parametrize(
    ("direction", "ours", "hold"),
    [
        ("sendrecv", "sendrecv", False),
        ("sendonly", "recvonly", True),
        ("recvonly", "sendonly", False),
        ("inactive", "inactive", True),
    ],
)
def test_directions_are_mirrored(direction: str, ours: str, hold: bool) -> None:
    text = offer(f"a={direction}")
    assert answer(text).agreed.direction == ours
    assert f"a={ours}\r\n".encode() in answer(text).sdp
    assert is_hold(text.encode()) is hold
    general = offer().replace("t=0 0\r\n", f"t=0 0\r\na={direction}\r\n")
    assert answer(general).agreed.direction == ours


def test_the_address_of_nowhere_is_the_old_hold() -> None:
    text = offer(host="0.0.0.0")
    assert is_hold(text.encode())
    assert answer(text).agreed.direction == "recvonly"
    assert not is_hold(b"garbage")
    hears_only = text.replace("t=0 0\r\n", "t=0 0\r\na=recvonly\r\n")
    assert answer(hears_only).agreed.direction == "inactive"


@pytest.mark.parametrize(
    ("host", "kinds", "taken"),
    [
        ("IP6 2001:db8::9", {4}, False),
        ("IP6 2001:db8::9", {6}, True),
        ("IP6 2001:db8::9", {4, 6}, True),
        ("IP4 192.0.2.10", {6}, False),
        ("IP4 0.0.0.0", {6}, True),
    ],
)
def test_sound_is_not_agreed_to_where_it_cannot_be_sent(host: str, kinds: set[int], taken: bool) -> None:
    """The address of nowhere is the old hold, whichever kind it is."""
    capabilities = Capabilities(kinds=frozenset(kinds))
    offer = parse_sdp(ASTERISK.replace("IP4 192.0.2.10", host).encode())
    with nullcontext() if taken else pytest.raises(SipError, match="no stream of the offer"):
        answer_offer(offer, LOCAL, capabilities, session_id=1)
    ours = make_offer(LOCAL, capabilities, session_id=1)
    with nullcontext() if taken else pytest.raises(SipError, match="takes no stream of ours"):
        read_answer(ours, offer, capabilities)


def test_addresses_of_the_stream_come_before_those_of_the_session() -> None:
    got = answer(offer("c=IN IP6 2001:db8::1", "a=rtcp:4007 IN IP6 2001:db8::1")).agreed
    assert got.remote == Addr("2001:db8::1", 4000)
    assert got.remote_rtcp == Addr("2001:db8::1", 4007)
    local = answer_offer(parse_sdp(offer().encode()), Addr("2001:db8::2", 4), Capabilities(), session_id=1)
    assert b"c=IN IP6 2001:db8::2\r\n" in local.sdp


def test_our_offer_and_its_answer() -> None:
    capabilities = Capabilities()
    ours = make_offer(LOCAL, capabilities, session_id=3)
    assert parse_sdp(ours).media[0].formats == ("0", "8", "101")
    theirs = answer_offer(parse_sdp(ours), Addr("192.0.2.1", 4000), Capabilities(codecs=("PCMA",)), session_id=4)
    agreed = read_answer(ours, parse_sdp(theirs.sdp), capabilities)
    assert (agreed.codec, agreed.payload_type, agreed.digits) == ("PCMA", 8, 101)
    other = parse_sdp(theirs.sdp.replace(b"8 101", b"8 96").replace(b":101", b":96"))
    assert (read_answer(ours, other, capabilities).digits, read_answer(ours, other, capabilities).digits_in) == (
        96,
        101,
    )
    assert agreed.remote == Addr("192.0.2.1", 4000)
    for useless in (offer(media="m=audio 0 RTP/AVP 0"), offer(media="a=x"), offer(media="m=audio 1 RTP/AVP 18")):
        with pytest.raises(SipError):
            read_answer(ours, parse_sdp(useless.encode()), capabilities)


def test_an_answer_of_ours_that_is_offered_again_is_answered_in_its_places() -> None:
    video = "m=video 4002 RTP/AVP 31"
    theirs = offer("m=audio 4000 RTP/AVP 0", media=video)
    ours = answer(theirs).sdp
    assert [media.port for media in parse_sdp(ours).media] == [0, LOCAL.port]
    again = parse_sdp(theirs.replace("4002", "0").encode())
    assert read_answer(ours, again, Capabilities()).remote == Addr("192.0.2.1", 4000)
    with pytest.raises(SipError):
        read_answer(ours, parse_sdp(offer().encode()), Capabilities())


def test_our_secure_offer_and_its_answer() -> None:
    capabilities = Capabilities(srtp=Srtp.REQUIRED)
    ours = make_offer(LOCAL, capabilities, session_id=3, key=KEY)
    theirs = answer_offer(parse_sdp(ours), Addr("192.0.2.1", 4), Capabilities(), session_id=4, key=THEIR_KEY)
    agreed = read_answer(ours, parse_sdp(theirs.sdp), capabilities)
    assert agreed.local_crypto is not None
    assert agreed.remote_crypto is not None
    assert (agreed.local_crypto.key, agreed.remote_crypto.key) == (KEY, THEIR_KEY)
    assert agreed.local_crypto.suite == agreed.remote_crypto.suite == "AES_CM_128_HMAC_SHA1_80"
    for change in ((b"crypto:1", b"crypto:9"), (b"SHA1_80", b"SHA1_32"), (b"RTP/SAVP", b"RTP/AVP")):
        with pytest.raises(SipError):
            read_answer(ours, parse_sdp(theirs.sdp.replace(*change)), capabilities)


def test_holding_a_call_ourselves() -> None:
    capabilities = Capabilities()
    ours = make_offer(LOCAL, capabilities, session_id=3, version=2, hold=True)
    assert is_hold(ours)
    theirs = answer_offer(parse_sdp(ours), Addr("192.0.2.1", 4000), capabilities, session_id=4)
    assert theirs.agreed.direction == "recvonly"
    assert read_answer(ours, parse_sdp(theirs.sdp), capabilities).direction == "sendonly"
    stubborn = theirs.sdp.replace(b"recvonly", b"sendrecv")
    assert read_answer(ours, parse_sdp(stubborn), capabilities).direction == "sendonly"


def test_latin_1_and_bare_line_feeds_are_read() -> None:
    text = offer().replace("s=-", "s=Büro").replace("\r\n", "\n").encode("latin-1")
    assert parse_sdp(text).media[0].port == 4000
