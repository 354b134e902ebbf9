"""Public URLs, the carrier's trust, and webhooks."""

from __future__ import annotations

import base64
import subprocess

import pytest

from tests.gateway.doctor.examined import wrong

SECRET = "whsec_" + base64.b64encode(bytes(32)).decode()


TOKEN = {"twilio_auth_token": "token", "twilio_account_sid": "AC" + "0" * 32}


@pytest.mark.parametrize(
    ("url", "fix"),
    [
        ("http://calls.example.com", "https://calls.example.com"),
        ("https://calls.example.com/twilio/voice", "https://calls.example.com"),
        ("https://calls.example.com:port", "https://calls.example.com"),
    ],
)
def test_a_public_url_that_carriers_cannot_use(url: str, fix: str) -> None:
    (found,) = wrong(public_url=url, **TOKEN)
    assert found.name == "public_url"
    assert found.fix == f"export CALLPLEX_PUBLIC_URL={fix}"


@pytest.mark.parametrize("url", ["https://calls.example.com:8443/?a=b", "calls.example.com", "https://[::1"])
def test_a_public_url_that_is_none_is_refused_with_the_settings(url: str) -> None:
    (found,) = wrong(public_url=url, **TOKEN)
    assert found.name == "settings"
    assert found.fix.startswith("unset CALLPLEX_PUBLIC_URL ")


@pytest.mark.parametrize("url", ["https://calls.example.com", "https://calls.example.com:8443/"])
def test_a_public_url_that_is_fine(url: str) -> None:
    assert wrong(public_url=url, **TOKEN) == []


@pytest.mark.parametrize(
    ("values", "says", "fails"),
    [
        ({"public_url": "https://calls.example.com"}, "no auth token", True),
        ({"twilio_auth_token": "token"}, "no account SID", False),
        ({"twilio_auth_token": "token", "twilio_account_sid": "hello"}, "32 hex digits", True),
        ({"allow_unsigned": True}, "whoever reaches the port", False),
    ],
)
def test_how_carriers_are_trusted(values: dict[str, object], says: str, fails: bool) -> None:
    (found,) = wrong(**values)
    assert (found.name, found.fails) == ("twilio", fails)
    assert says in found.detail


def test_a_webhook_that_cannot_be_signed_or_sent() -> None:
    (unsigned,) = wrong(webhook_url="https://example.com/hook", webhook_secret="hunter2")
    assert "whsec_" in unsigned.detail
    assert "hunter2" not in unsigned.detail + unsigned.fix
    (nowhere,) = wrong(webhook_url="example.com", webhook_secret=SECRET)
    assert "CALLPLEX_WEBHOOK_URL" in nowhere.detail
    assert wrong(webhook_url="https://example.com/hook", webhook_secret=SECRET) == []


def test_the_fix_for_the_webhook_secret_is_a_command_that_makes_a_valid_one() -> None:
    (unsigned,) = wrong(webhook_url="https://example.com/hook")
    shell = f"{unsigned.fix}; echo $CALLPLEX_WEBHOOK_SECRET"
    made = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    assert wrong(webhook_url="https://example.com/hook", webhook_secret=made) == []
