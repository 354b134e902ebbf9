"""When a delivery is tried again, and when it is given up. Pure: the time and chance are arguments.

Owns the back-off, what an endpoint may ask for with Retry-After, and the last moment of trying.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

GIVE_UP_AFTER = 72 * 3600.0
"""Seconds after an event was stored, or sent again by a person, beyond which no attempt follows."""
FIRST_DELAY = 2.0
LONGEST_DELAY = 3600.0


def next_delay(attempt: int, chance: float, retry_after: float = 0.0) -> float:
    """Seconds to wait after failed attempt number `attempt` (from 1): doubling from 1-2 s to 0.5-1 h.

    `chance` in [0, 1) spreads deliveries that failed together. The endpoint's own wish, `retry_after`,
    is obeyed where it is longer.
    """
    backoff = min(FIRST_DELAY * 2.0 ** min(attempt - 1, 20), LONGEST_DELAY)
    return max(backoff * (0.5 + 0.5 * chance), retry_after)


def retry_after_seconds(header: str, now: float) -> float:
    """Read a Retry-After header, seconds or a date (RFC 9110 section 10.2.3); 0 if it is neither."""
    value = header.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0
