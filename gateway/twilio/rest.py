"""Twilio's REST API, as far as a live call needs it: ending one whose stream may be dead.

Owns one HTTP client. Knows nothing of streams or personas.
"""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import quote

import httpx

from gateway.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT = 5.0
"""Seconds for one request, its whole answer included; a call's end never waits longer."""


class TwilioRest:
    """Calls of one account. Failures are logged with what Twilio said, never raised at a call."""

    def __init__(self, url: str, account_sid: str, auth_token: str) -> None:
        self._account = account_sid
        self._client = httpx.AsyncClient(base_url=url, auth=(account_sid, auth_token), timeout=TIMEOUT)

    async def end_call(self, call_sid: str) -> bool:
        """Hang up a call in progress (Calls resource, Status=completed). False if Twilio did not."""
        path = f"/2010-04-01/Accounts/{quote(self._account, safe='')}/Calls/{quote(call_sid, safe='')}.json"
        posting = asyncio.ensure_future(self._client.post(path, data={"Status": "completed"}))
        try:
            # Not asyncio.timeout: in a cancelled task Python before 3.11.4 lets its own cancellation out.
            await asyncio.wait([posting], timeout=TIMEOUT)
        finally:
            posting.cancel()
        await asyncio.wait([posting])
        if posting.cancelled():
            log.warning("call %s could not be ended by REST: no answer within %g s", call_sid, TIMEOUT)
            return False
        try:
            response = posting.result()
        except httpx.HTTPError as error:
            log.warning("call %s could not be ended by REST: %s", call_sid, error or type(error).__name__)
            return False
        if response.is_success:
            return True
        log.warning("call %s could not be ended by REST: HTTP %d %.200s", call_sid, response.status_code, response.text)
        return False

    async def close(self) -> None:
        await self._client.aclose()


def rest_from(settings: Settings) -> TwilioRest | None:
    """A client when both credentials are set, else None."""
    token = settings.twilio_auth_token.get_secret_value()
    if not (token and settings.twilio_account_sid):
        return None
    return TwilioRest(settings.twilio_api_url, settings.twilio_account_sid, token)
