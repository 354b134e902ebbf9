"""Events are what their published schemas say, and each has one identity."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jsonschema
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call_document import CallMetrics, CallRecord, to_document
from gateway.transcript import Utterance
from gateway.webhooks import events
from gateway.webhooks.routes import read_schema


def valid(event: events.Event) -> dict[str, Any]:
    """The event as an endpoint reads it, having checked its schema."""
    schema = orjson.loads(read_schema(event.kind))
    jsonschema.Draft202012Validator.check_schema(schema)
    body: dict[str, Any] = orjson.loads(event.body())
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(body)
    return body


@pytest.mark.parametrize("kind", events.KINDS)
def test_made_up_events_are_what_their_schema_says(kind: str) -> None:
    body = valid(events.sample(kind, 1_790_000_000.0))
    assert (body["type"], body["version"], body["timestamp"]) == (kind, 1, "2026-09-21T14:13:20.000Z")


@pytest.mark.parametrize("kind", events.KINDS)
def test_a_schema_refuses_an_event_that_lacks_any_of_its_fields(kind: str) -> None:
    schema = orjson.loads(read_schema(kind))
    whole = orjson.loads(events.sample(kind, 0.0).body())
    for name in whole["data"]:
        lacking = {**whole, "data": {key: value for key, value in whole["data"].items() if key != name}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(lacking, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**whole, "type": "call.other"}, schema)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SECONDS = st.floats(0, 20_000)
UTTERANCES = st.lists(
    st.builds(
        Utterance,
        number=st.integers(1, 10_000),
        speaker=st.sampled_from(["caller", "agent"]),
        text=TEXT,
        start=SECONDS,
        end=SECONDS,
        interrupted=st.booleans(),
        final=st.booleans(),
        unsaid=TEXT,
        confidence=st.none() | st.floats(0, 1),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(UTTERANCES, TEXT, TEXT, st.floats(0, 4e9))
def test_what_any_call_leaves_is_what_the_schemas_say(
    utterances: list[Utterance], from_number: str, to_number: str, at: float
) -> None:
    moment = datetime.fromtimestamp(at, UTC)
    record = CallRecord(
        "call_1", "bank", "0" * 12, "echo", from_number, to_number, moment, moment, "lost", utterances, CallMetrics()
    )
    assert valid(events.ended(to_document(record), at))["data"] == to_document(record)
    valid(events.transcript_updated("call_1", "bank", at, 1, utterances))
    numbers = {"from_number": from_number, "to_number": to_number}
    valid(events.failed("call_1", "bank", at, reason="lost", **numbers))
    valid(events.transferred("call_1", "bank", at, target="+15550100", **numbers))
    line = {"persona_version": "", "carrier": "sip", "direction": "inbound"}
    valid(events.started("call_1", "bank", at, **line, **numbers))


def test_an_event_has_one_id_at_an_endpoint_however_often_it_is_told() -> None:
    first, again = (events.ended({"call_id": "call_1", "persona": "bank"}, at) for at in (1.0, 2.0))
    assert first.webhook_id("crm") == again.webhook_id("crm")
    others = [
        first.webhook_id("other"),
        events.ended({"call_id": "call_2", "persona": "bank"}, 1.0).webhook_id("crm"),
        events.sample(events.STARTED, 1.0).webhook_id("crm"),
        *(events.transcript_updated("call_1", "bank", 1.0, number, []).webhook_id("crm") for number in (1, 2)),
    ]
    assert len({first.webhook_id("crm"), *others}) == 6
    assert first.webhook_id("crm").startswith("msg_")
