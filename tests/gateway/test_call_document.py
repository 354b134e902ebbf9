"""The document of a call: its fields are a contract with whoever reads transcript.json or a webhook."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from gateway.call_document import CallMetrics, CallRecord, to_document
from gateway.transcript import Utterance

SAID = (
    Utterance(1, "agent", "Hello.", 0.08, 0.481),
    Utterance(2, "caller", "Hi.", 1.6, 2.64, confidence=0.876),
    Utterance(3, "agent", "I", 3.0, 3.2, True, unsaid="can help."),
)


def test_the_document_has_exactly_the_promised_fields() -> None:
    started = datetime(2026, 7, 25, 14, 0, 0, 123_456, timezone(timedelta(hours=2)))
    record = CallRecord(
        call_id="call_1",
        persona="first-neuron-bank",
        persona_version="0123456789ab",
        engine="rehearsal",
        from_number="+13055550100",
        to_number="+13055550199",
        started_at=started,
        ended_at=datetime(2026, 7, 25, 12, 1, tzinfo=UTC),
        end_reason="agent_goodbye",
        utterances=SAID,
        metrics=CallMetrics(
            answer_ms=41.26,
            response_ms=(812.44,),
            frames_in=750,
            frames_out=749,
            frames_lost=1,
            agent_frames_lost=2,
            agent_frames_late=0,
            deadline_misses=3,
        ),
    )
    document = to_document(record)
    assert json.loads(json.dumps(document)) == {
        "call_id": "call_1",
        "persona": "first-neuron-bank",
        "persona_version": "0123456789ab",
        "engine": "rehearsal",
        "from": "+13055550100",
        "to": "+13055550199",
        "started_at": "2026-07-25T12:00:00.123Z",
        "ended_at": "2026-07-25T12:01:00.000Z",
        "end_reason": "agent_goodbye",
        "utterances": [
            {"speaker": "agent", "text": "Hello.", "start": 0.08, "end": 0.48, "interrupted": False},
            {"speaker": "caller", "text": "Hi.", "start": 1.6, "end": 2.64, "interrupted": False, "confidence": 0.88},
            {"speaker": "agent", "text": "I", "start": 3.0, "end": 3.2, "interrupted": True, "unsaid": "can help."},
        ],
        "metrics": {
            "answer_ms": 41.3,
            "response_ms": [812.4],
            "frames_in": 750,
            "frames_out": 749,
            "frames_lost": 1,
            "agent_frames_lost": 2,
            "agent_frames_late": 0,
            "deadline_misses": 3,
        },
    }


def test_a_date_without_a_zone_is_refused() -> None:
    naive = datetime(2026, 7, 25)
    with pytest.raises(ValueError, match="time zone"):
        to_document(CallRecord("c", "p", "v", "echo", "", "", naive, naive, "failed"))


def test_what_was_not_counted_is_left_out_rather_than_none() -> None:
    at = datetime(2026, 7, 25, tzinfo=UTC)
    record = CallRecord("c", "p", "v", "echo", "", "", at, at, "failed", metrics=CallMetrics(agent_frames_lost=0))
    metrics = to_document(record)["metrics"]
    assert metrics["agent_frames_lost"] == 0
    assert "agent_frames_late" not in metrics
