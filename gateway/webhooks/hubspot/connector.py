"""HubSpot: find or create the contact by phone, then log the call on it, once.

Written from HubSpot's published API (CRM objects v3: contacts, calls, search); it was never tried with
HubSpot itself. A call is logged under its webhook id, in a property that HubSpot keeps unique, so that
an event that comes twice, or whose answer was lost, is logged once. `deploy/webhooks.md` says how to
make the property and the token. Nothing else in Callplex knows HubSpot: without this folder and its
`kind` it goes on.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from gateway.webhooks.delivery import Answer
from gateway.webhooks.events import stored

UNIQUE = "callplex_webhook_id"
"""The property of calls that holds the webhook id; made once, by hand, as one with unique values."""
CALL_TO_CONTACT = 194
"""HubSpot's own type of association from a call to a contact."""
LARGEST_REPLY = 256 * 1024
LONGEST_BODY = 60_000
"""Characters; HubSpot takes 65,536."""

_STATUS = {"busy": "BUSY", "failed": "FAILED", "worker_lost": "FAILED", "lost": "FAILED"}


class Requests(Protocol):
    """What sends requests to the endpoint."""

    async def call(self, method: str, path: str, body: bytes | None, most: int) -> tuple[Answer, bytes]: ...


class _Refused(Exception):
    """A step was not taken; carries the answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


async def log_call(requests: Requests, webhook_id: str, body: str) -> Answer:
    """Log one `call.ended` event. A step that fails fails the attempt, and the next begins anew.

    Raises EventUnreadable, or LookupError, TypeError or AttributeError if the event lacks what such a call has.
    """
    call = stored(body)["data"]
    try:
        if await _logged(requests, webhook_id):
            return Answer(200, "it was logged before")
        contact = await _contact(requests, str(call["from"])) if call["from"] else ""
        return await _log(requests, webhook_id, call, contact)
    except _Refused as refused:
        return refused.answer


async def _logged(requests: Requests, webhook_id: str) -> bool:
    path = f"/crm/v3/objects/calls/{quote(webhook_id, safe='')}?idProperty={UNIQUE}"
    answer, _ = await requests.call("GET", path, None, LARGEST_REPLY)
    if answer.status == 404:
        return False
    if not answer.taken:
        raise _Refused(_at(answer, "looking for the call"))
    return True


async def _contact(requests: Requests, number: str) -> str:
    """The id of the oldest contact with the caller's number; made if there is none."""
    by = [[{"propertyName": name, "operator": "EQ", "value": number}] for name in ("phone", "mobilephone")]
    search = {
        "filterGroups": [{"filters": filters} for filters in by],
        "properties": ["phone"],
        "sorts": [{"propertyName": "createdate", "direction": "ASCENDING"}],
        "limit": 1,
    }
    step = "looking for the contact"
    found = await _json(requests, "/crm/v3/objects/contacts/search", search, step)
    results = found.get("results")
    if isinstance(results, list) and results:
        return _id(results[0], step)
    step = "making the contact"
    made = await _json(requests, "/crm/v3/objects/contacts", {"properties": {"phone": number}}, step)
    return _id(made, step)


async def _log(requests: Requests, webhook_id: str, call: Mapping[str, Any], contact: str) -> Answer:
    to = {"to": {"id": contact}, "types": [_ASSOCIATION]}
    request = {"properties": _properties(webhook_id, call), "associations": [to] if contact else []}
    answer, _ = await requests.call("POST", "/crm/v3/objects/calls", orjson.dumps(request), LARGEST_REPLY)
    if answer.status == 409:
        return Answer(200, "it was logged before")
    return answer if answer.taken else _at(answer, "logging the call")


_ASSOCIATION = {"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": CALL_TO_CONTACT}


def _properties(webhook_id: str, call: Mapping[str, Any]) -> dict[str, str]:
    began, ended = (datetime.fromisoformat(str(call[name])) for name in ("started_at", "ended_at"))
    return {
        "hs_timestamp": str(call["started_at"]),
        "hs_call_title": f"Call answered by {call['persona']}",
        "hs_call_body": _words(call["utterances"]),
        "hs_call_direction": "INBOUND",
        "hs_call_duration": str(max(0, round((ended - began).total_seconds() * 1000))),
        "hs_call_from_number": str(call["from"]),
        "hs_call_to_number": str(call["to"]),
        "hs_call_status": _STATUS.get(str(call["end_reason"]), "COMPLETED"),
        UNIQUE: webhook_id,
    }


def _words(utterances: Iterable[Mapping[str, Any]]) -> str:
    """Who said what, as the HTML HubSpot shows, as far as it takes it."""
    words = ""
    for one in utterances:
        who = "Agent" if one["speaker"] == "agent" else "Caller"
        line = f"<p><b>{who}:</b> {html.escape(str(one['text']))}</p>"
        if len(words) + len(line) > LONGEST_BODY:
            return words + "<p>...</p>"
        words += line
    return words


async def _json(requests: Requests, path: str, body: Mapping[str, Any], step: str) -> Mapping[str, Any]:
    answer, reply = await requests.call("POST", path, orjson.dumps(body), LARGEST_REPLY)
    if not answer.taken:
        raise _Refused(_at(answer, step))
    try:
        read = orjson.loads(reply)
    except orjson.JSONDecodeError:
        read = None
    if not isinstance(read, dict):
        raise _Refused(Answer(0, f"{step}: its answer is not JSON, or too long"))
    return read


def _id(record: object, step: str) -> str:
    found = record.get("id") if isinstance(record, dict) else None
    if not isinstance(found, str) or not found:
        raise _Refused(Answer(0, f"{step}: its answer holds no id"))
    return found


def _at(answer: Answer, step: str) -> Answer:
    # 410 here is about one object, and must not disable the endpoint.
    status = answer.status if answer.status != 410 else 0
    return Answer(status, f"{step}: {answer.reason}", answer.retry_after)
