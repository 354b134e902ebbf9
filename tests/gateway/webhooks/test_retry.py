"""Back-off, and what a Retry-After header may say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.webhooks.retry import GIVE_UP_AFTER, next_delay, retry_after_seconds


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_delays_stay_between_a_second_and_an_hour(attempt: int, chance: float) -> None:
    assert 1.0 <= next_delay(attempt, chance) <= 3600.0


def test_delays_double_spread_and_obey_the_endpoint() -> None:
    assert [next_delay(attempt, 0.0) for attempt in (1, 2, 3, 11, 12, 13)] == [1, 2, 4, 1024, 1800, 1800]
    assert next_delay(3, 0.5) == 6.0
    assert next_delay(1, 0.5, retry_after=300) == 300
    assert next_delay(12, 0.5, retry_after=3) == 2700
    assert GIVE_UP_AFTER == 72 * 3600


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("", 0.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("²", 0.0),
        ("9" * 400, 999_999_999.0),
        ("Thu, 01 Jan 1970 00:17:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:17:40", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str, seconds: float) -> None:
    assert retry_after_seconds(header, now=1_000.0) == seconds


@given(st.text(max_size=40))
def test_retry_after_reads_anything(header: str) -> None:
    assert retry_after_seconds(header, now=1_000.0) >= 0
