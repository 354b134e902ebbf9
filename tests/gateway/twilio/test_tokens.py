"""Call tokens: once, in time, for their own call, and bounded."""

from __future__ import annotations

import pytest

from gateway.twilio.tokens import CallTokens, Ticket, TokenRefused

TICKET = Ticket("CA1", "bank", "+1555", "+1666")


def test_a_token_opens_its_call_once() -> None:
    tokens = CallTokens()
    token = tokens.issue(TICKET, 0.0)
    assert tokens.redeem(token, "CA1", 59.9) == TICKET
    with pytest.raises(TokenRefused, match="unknown, used or expired"):
        tokens.redeem(token, "CA1", 59.9)


def test_a_token_expires() -> None:
    tokens = CallTokens()
    token = tokens.issue(TICKET, 10.0)
    with pytest.raises(TokenRefused, match="expired"):
        tokens.redeem(token, "CA1", 70.0)
    assert len(tokens) == 0


def test_another_calls_token_is_refused_and_stays_good_for_its_own() -> None:
    tokens = CallTokens()
    token = tokens.issue(TICKET, 0.0)
    with pytest.raises(TokenRefused, match="another call"):
        tokens.redeem(token, "CA2", 1.0)
    assert tokens.redeem(token, "CA1", 1.0) == TICKET


@pytest.mark.parametrize("token", ["", "x", "\ud800", "é" * 5000])
def test_a_made_up_token_is_refused(token: str) -> None:
    tokens = CallTokens()
    tokens.issue(TICKET, 0.0)
    with pytest.raises(TokenRefused):
        tokens.redeem(token, "CA1", 0.0)


def test_a_voice_request_that_is_repeated_gets_tokens_that_all_work() -> None:
    tokens = CallTokens()
    issued = {tokens.issue(TICKET, 0.0) for _ in range(3)}
    assert len(issued) == 3
    assert all(len(token) == 43 for token in issued)
    assert all(tokens.redeem(token, "CA1", 1.0) == TICKET for token in issued)


def test_tokens_are_bounded_and_the_oldest_go_first() -> None:
    tokens = CallTokens(limit=3)
    issued = [tokens.issue(Ticket(f"CA{i}", "bank"), float(i)) for i in range(5)]
    assert len(tokens) == 3
    with pytest.raises(TokenRefused):
        tokens.redeem(issued[1], "CA1", 5.0)
    assert tokens.redeem(issued[2], "CA2", 5.0).call_sid == "CA2"
