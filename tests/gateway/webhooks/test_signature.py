"""The signature is the one that the published library verifies."""

from __future__ import annotations

import base64
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from gateway.webhooks.signature import SecretInvalid, signed_headers, signing_key
from tests.gateway.webhooks.receiver import OTHER_SECRET, SECRET


@given(st.text(max_size=200))
def test_the_published_library_believes_it(body: str) -> None:
    headers = signed_headers([signing_key(SECRET)], "msg_1", time.time(), f'"{body.encode().hex()}"'.encode())
    assert Webhook(SECRET).verify(f'"{body.encode().hex()}"', headers) == body.encode().hex()


def test_during_rotation_either_secret_verifies_and_a_third_does_not() -> None:
    keys = [signing_key(SECRET), signing_key(OTHER_SECRET)]
    headers = signed_headers(keys, "msg_1", time.time(), b"{}")
    for secret in (SECRET, OTHER_SECRET):
        Webhook(secret).verify(b"{}", headers)
    assert len(headers["webhook-signature"].split(" ")) == 2
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(bytes(32)).decode()).verify(b"{}", headers)


def test_without_a_key_nothing_is_signed() -> None:
    assert signed_headers([], "msg_1", 12.7, b"{}") == {"webhook-id": "msg_1", "webhook-timestamp": "12"}


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("", "must start with whsec_"),
        ("hunter2", "must start with whsec_"),
        ("whsec_not base64!", "not base64"),
        ("whsec_" + base64.b64encode(b"short").decode(), "24 to 64 bytes"),
    ],
)
def test_a_secret_that_cannot_sign_is_refused_without_repeating_it(secret: str, says: str) -> None:
    with pytest.raises(SecretInvalid, match=says) as refused:
        signing_key(secret)
    assert not secret or secret not in str(refused.value)
