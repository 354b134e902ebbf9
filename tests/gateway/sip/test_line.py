"""What a call that is up offers when its peer asks for an offer, and what of its peer's it no longer takes."""

from __future__ import annotations

from base64 import b64encode

import pytest

from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import Established, Progress
from gateway.sip.line import MediaRoom, SipLine
from gateway.sip.sdp import parse_sdp
from gateway.sip.settings import SipSettings
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.script import called
from tests.gateway.sip.switchboards import PEER_SDP

pytestmark = pytest.mark.anyio

KEY = b64encode(bytes(range(30))).decode()
OFFER = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 4002 RTP/SAVP 31\r\nm=audio 4000 RTP/SAVP 0\r\n"
    f"a=crypto:3 AES_CM_128_HMAC_SHA1_32 inline:{KEY}\r\nm=image 4004 udptl t38\r\n"
)


async def test_an_encrypted_call_is_offered_as_it_is_encrypted_and_stream_by_stream() -> None:
    """RFC 3264, section 8: no stream goes, a declined one stays in its place. The key and its tag stay too."""
    endpoint = SipEndpoint(SipSettings.model_validate({"listen": "udp:127.0.0.1:0"}))
    await endpoint.open()
    line = SipLine(endpoint, MediaRoom(endpoint.settings), Addr("127.0.0.1", 5061, "tls"))
    try:
        script, line.call = called()
        script.core.answer(line.call, line.answer(OFFER.encode()), script.now)
        before = parse_sdp(line.call.local_sdp)
        # The call is up, and the peer's next INVITE has no offer.
        line.call.local_sdp = line.answer(b"")
        offered = parse_sdp(line.call.local_sdp)
        assert [(one.kind, one.profile, bool(one.port)) for one in offered.media] == [
            ("video", "RTP/SAVP", False),
            ("audio", "RTP/SAVP", True),
            ("image", "UDPTL", False),
        ]
        assert offered.media[1].crypto == before.media[1].crypto
        assert (offered.media[1].crypto[0].tag, offered.media[1].formats) == (3, ("0", "8", "101"))
        assert int(offered.version) == int(before.version) + 1
        with pytest.raises(SipError, match="encrypt"):
            line.agree(OFFER.replace("SAVP", "AVP").encode())
        line.agree(OFFER.encode())
        assert line.rtp.stream is not None
        assert line.rtp.stream.plan.keys is not None
    finally:
        line.close()
        await endpoint.close()


async def test_a_call_that_is_encrypted_stays_so_whatever_its_peer_offers_later() -> None:
    """RFC 3264, section 8: an offer that is refused leaves the session as it was. The keys may still change."""
    endpoint = SipEndpoint(SipSettings.model_validate({"listen": "udp:127.0.0.1:0"}))
    await endpoint.open()
    line = SipLine(endpoint, MediaRoom(endpoint.settings), Addr("127.0.0.1", 5061, "tls"))
    try:
        line.answer(OFFER.encode())
        assert line.rtp.stream is not None
        agreed = line.rtp.stream.plan
        with pytest.raises(SipError) as refused:
            line.answer(OFFER.replace("SAVP", "AVP").encode())
        assert refused.value.code == 488
        assert line.rtp.stream.plan is agreed
        line.answer(OFFER.replace(KEY, b64encode(bytes(30)).decode()).encode())
        assert line.rtp.stream.plan.keys not in (None, agreed.keys)
    finally:
        line.close()
        await endpoint.close()


async def test_early_media_that_cannot_be_used_do_not_end_a_call_that_is_answered_later() -> None:
    """They are a preview: the answer is in the 200, perhaps of another phone that rang (RFC 3261, section 13.2.1)."""
    endpoint = SipEndpoint(SipSettings.model_validate({"listen": "udp:127.0.0.1:0"}))
    await endpoint.open()
    line = SipLine(endpoint, MediaRoom(endpoint.settings), Addr("127.0.0.1", 5060))
    try:
        line.call = endpoint.core.invite(parse_uri("sip:bob@127.0.0.1:9"), line.offer(), endpoint.now())
        line.heard(Progress(line.call, 183, PEER_SDP.replace(b"AVP 0", b"AVP 9")))
        assert not line.call.ended
        line.heard(Established(line.call, PEER_SDP))
        assert line.up.is_set()
        assert (line.fault, line.rtp.stream is None) == ("", False)
    finally:
        line.close()
        await endpoint.close()
