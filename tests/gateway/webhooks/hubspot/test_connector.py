"""The HubSpot connector against a local server that behaves as HubSpot's documentation says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from gateway.webhooks.delivery import Answer, Sender
from gateway.webhooks.endpoints import Endpoint
from gateway.webhooks.events import ENDED, sample
from gateway.webhooks.guard import LOOPBACK
from gateway.webhooks.hubspot.connector import UNIQUE
from tests.gateway.webhooks.receiver import Receiver, Reply, Request

pytestmark = pytest.mark.anyio

CONTEXT = httpx.create_ssl_context(trust_env=False)
BODY = sample(ENDED, 1_790_000_000.0).body()
CALLER = "+15550199"


@dataclass
class HubSpot:
    """CRM objects v3, as far as they are documented: search, create, read by a unique property."""

    contacts: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: dict[str, dict[str, Any]] = field(default_factory=dict)
    failing: dict[str, Reply] = field(default_factory=dict)
    """`METHOD path` -> what is answered instead, once."""
    lost: set[str] = field(default_factory=set)
    """`METHOD path` whose answer is lost once: the thing is done, the answer is a 502."""

    def answer(self, request: Request) -> Reply:
        step = f"{request.method} {urlsplit(request.path).path}"
        if request.headers.get("authorization") != "Bearer pat-1":
            return self._json(401, {"status": "error", "category": "INVALID_AUTHENTICATION"})
        if step in self.failing:
            return self.failing.pop(step)
        status, reply = self._done(request, step)
        if step in self.lost:
            self.lost.remove(step)
            return 502, {}, b"<html>Bad gateway</html>"
        return self._json(status, reply)

    def _done(self, request: Request, step: str) -> tuple[int, Any]:
        body = json.loads(request.body) if request.body else {}
        if step == "POST /crm/v3/objects/contacts/search":
            return 200, self._search(body)
        if step == "POST /crm/v3/objects/contacts":
            self.contacts[str(100 + len(self.contacts))] = body["properties"]
            return 201, {"id": str(99 + len(self.contacts)), "properties": body["properties"]}
        if step == "POST /crm/v3/objects/calls":
            return self._log(body)
        if step.startswith("GET /crm/v3/objects/calls/"):
            wanted = step.rpartition("/")[2]
            assert parse_qs(urlsplit(request.path).query) == {"idProperty": [UNIQUE]}
            found = [one for one in self.calls.values() if one["properties"][UNIQUE] == wanted]
            return (200, found[0]) if found else (404, {"status": "error", "category": "OBJECT_NOT_FOUND"})
        return 405, {}

    def _search(self, body: dict[str, Any]) -> dict[str, Any]:
        def matches(contact: dict[str, str], group: dict[str, Any]) -> bool:
            return all(
                one["operator"] == "EQ" and contact.get(one["propertyName"]) == one["value"] for one in group["filters"]
            )

        found = [
            {"id": key, "properties": contact}
            for key, contact in self.contacts.items()
            if any(matches(contact, group) for group in body["filterGroups"])
        ]
        return {"total": len(found), "results": found[: body["limit"]]}

    def _log(self, body: dict[str, Any]) -> tuple[int, Any]:
        assert all(isinstance(value, str) for value in body["properties"].values())
        assert body["properties"]["hs_timestamp"]
        for link in body["associations"]:
            assert link["to"]["id"] in self.contacts
            assert link["types"] == [{"associationCategory": "HUBSPOT_DEFINED", "associationTypeId": 194}]
        if any(one["properties"][UNIQUE] == body["properties"][UNIQUE] for one in self.calls.values()):
            return 409, {"status": "error", "category": "CONFLICT"}
        self.calls[str(len(self.calls) + 1)] = body
        return 201, {"id": str(len(self.calls)), **body}

    @staticmethod
    def _json(status: int, reply: Any) -> Reply:
        return status, {"content-type": "application/json"}, json.dumps(reply).encode()


async def deliver(hubspot: HubSpot, *ids: str, body: str = BODY, token: str = "pat-1") -> list[Answer]:
    """Deliver the event under each of these ids."""
    async with Receiver(answer=hubspot.answer).listening() as receiver:
        endpoint = Endpoint(
            "hubspot",
            f"http://127.0.0.1:{receiver.port}",
            headers={"authorization": f"Bearer {token}"},
            kind="hubspot",
            allowed=LOOPBACK,
        )
        sender = Sender(endpoint, CONTEXT)
        answers = [await sender.attempt(one, body) for one in ids]
        await sender.close()
        return answers


async def test_a_new_caller_becomes_a_contact_with_the_call_on_it() -> None:
    hubspot = HubSpot()
    assert (await deliver(hubspot, "msg_1"))[0].taken
    assert hubspot.contacts == {"100": {"phone": CALLER}}
    (call,) = hubspot.calls.values()
    assert call["associations"][0]["to"] == {"id": "100"}
    properties = call["properties"]
    assert (properties["hs_call_direction"], properties["hs_call_status"]) == ("INBOUND", "COMPLETED")
    assert (properties["hs_call_from_number"], properties["hs_call_duration"]) == (CALLER, "7000")
    assert "<p><b>Caller:</b> What are your &quot;hours&quot;?" in properties["hs_call_body"]


@pytest.mark.parametrize("property_name", ["phone", "mobilephone"])
async def test_a_known_caller_is_found(property_name: str) -> None:
    hubspot = HubSpot({"7": {"phone": "+1"}, "8": {property_name: CALLER}})
    await deliver(hubspot, "msg_1")
    assert len(hubspot.contacts) == 2
    assert hubspot.calls["1"]["associations"][0]["to"] == {"id": "8"}


async def test_an_event_that_comes_twice_is_logged_once() -> None:
    hubspot = HubSpot()
    answers = await deliver(hubspot, "msg_1", "msg_1", "msg_2")
    assert all(answer.taken for answer in answers)
    assert [call["properties"][UNIQUE] for call in hubspot.calls.values()] == ["msg_1", "msg_2"]
    assert len(hubspot.contacts) == 1


@pytest.mark.parametrize("step", ["POST /crm/v3/objects/calls", "POST /crm/v3/objects/contacts"])
async def test_an_answer_that_is_lost_makes_nothing_twice(step: str) -> None:
    hubspot = HubSpot(lost={step})
    first, again = await deliver(hubspot, "msg_1", "msg_1")
    assert first.status == 502
    assert again.taken
    assert (len(hubspot.calls), len(hubspot.contacts)) == (1, 1)


async def test_two_that_log_at_once_are_told_apart_by_the_unique_property() -> None:
    hubspot = HubSpot()
    await deliver(hubspot, "msg_1")
    hubspot.failing["GET /crm/v3/objects/calls/msg_1"] = 404, {}, b"{}"
    assert (await deliver(hubspot, "msg_1")) == [Answer(200, "it was logged before")]


async def test_a_withheld_number_is_logged_on_nobody() -> None:
    hubspot = HubSpot()
    assert (await deliver(hubspot, "msg_1", body=BODY.replace(CALLER, "")))[0].taken
    assert hubspot.contacts == {}
    assert hubspot.calls["1"]["associations"] == []


@pytest.mark.parametrize(
    ("step", "reply", "says"),
    [
        ("GET /crm/v3/objects/calls/msg_1", (500, {}, b""), "looking for the call: it answered 500"),
        ("POST /crm/v3/objects/contacts/search", (429, {"retry-after": "10"}, b""), "looking for the contact: it answ"),
        ("POST /crm/v3/objects/contacts/search", (200, {}, b"<html>"), "looking for the contact: its answer is not"),
        ("POST /crm/v3/objects/contacts/search", (200, {}, b"[]"), "looking for the contact: its answer is not"),
        ("POST /crm/v3/objects/contacts/search", (200, {}, b'{"results": [5]}'), "looking for the contact: its answ"),
        ("POST /crm/v3/objects/contacts", (201, {}, b"{}"), "making the contact: its answer holds no id"),
        ("POST /crm/v3/objects/calls", (400, {}, b""), "logging the call: it answered 400"),
        ("POST /crm/v3/objects/calls", (410, {}, b""), "logging the call: it answered 410"),
    ],
)
async def test_a_step_that_fails_fails_the_attempt_and_the_next_begins_anew(step: str, reply: Reply, says: str) -> None:
    hubspot = HubSpot(failing={step: reply})
    first, again = await deliver(hubspot, "msg_1", "msg_1")
    assert not first.taken
    assert first.status != 410
    assert first.reason.startswith(says)
    assert first.retry_after == (10.0 if reply[0] == 429 else 0.0)
    assert again.taken
    assert len(hubspot.calls) == 1


async def test_a_wrong_token_is_told() -> None:
    (answer,) = await deliver(HubSpot(), "msg_1", token="old")
    assert answer == Answer(401, "looking for the call: it answered 401")


async def test_a_long_conversation_fits() -> None:
    event = json.loads(BODY)
    event["data"]["utterances"] = [{"speaker": "caller", "text": "<&>" * 300, "start": 0, "end": 1}] * 200
    hubspot = HubSpot()
    assert (await deliver(hubspot, "msg_1", body=json.dumps(event)))[0].taken
    body = hubspot.calls["1"]["properties"]["hs_call_body"]
    assert len(body) < 65_536
    assert body.endswith("</p><p>...</p>")
