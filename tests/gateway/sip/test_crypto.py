"""Keys in a session description: RFC 4568's grammar, and what of it is of no use to us."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sip.crypto import SUITES, Crypto, read_crypto

# RFC 4568, section 4's example.
EXAMPLE = "1 AES_CM_128_HMAC_SHA1_80 inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20"
KEY = b"=-n@%^x!Bjufr9)?,#5h\\`=&]{qiPQ"


def test_the_rfcs_example_is_read() -> None:
    assert read_crypto(EXAMPLE) == Crypto(1, "AES_CM_128_HMAC_SHA1_80", KEY)


def test_what_is_written_is_read() -> None:
    for suite in SUITES:
        assert read_crypto(str(Crypto(3, suite, KEY))) == Crypto(3, suite, KEY)


def test_a_key_never_reaches_a_log() -> None:
    assert repr(KEY) not in repr(Crypto(1, SUITES[0], KEY))


@pytest.mark.parametrize(
    "value",
    [
        "nonsense",
        EXAMPLE.replace("HMAC_SHA1_80", "HMAC_SHA1_99"),
        EXAMPLE + "|1:4",
        EXAMPLE.replace("|2^20", "|1:4"),
        EXAMPLE + " UNENCRYPTED_SRTP",
        EXAMPLE + " KDR=4",
        EXAMPLE + ";inline:PS1uQCVeeCFCanVmcjkpPywjNWhcYD0mXXtxaVBR|2^20",
        "1 AES_CM_128_HMAC_SHA1_80 inline:abc",
        f"1 AES_CM_128_HMAC_SHA1_80 inline:{b64encode(bytes(16)).decode()}",
    ],
)
def test_what_cannot_be_done_as_offered_is_passed_over(value: str) -> None:
    """A master key identifier lengthens every packet, session parameters change what is encrypted."""
    assert read_crypto(value) is None


@given(st.text(max_size=100))
def test_any_line_is_read_or_passed_over(value: str) -> None:
    assert read_crypto(value) is None
