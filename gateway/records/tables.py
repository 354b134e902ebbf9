"""The tables of the database, alike on SQLite and PostgreSQL.

Owns names, columns and indices; `migrations/` makes them. Knows no queries. Moments are seconds since
1970 (UTC), as floats, so that both databases compare them alike; times within a call are seconds from
answer. Rows that a live call writes are keyed so that writing one again replaces it.
"""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, text

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    }
)

instances = Table(
    "instances",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    comment="gateway processes; one whose lease has run out is dead, and its live calls are lost",
)

calls = Table(
    "calls",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("instance", String(64), nullable=False),
    Column("state", String(8), nullable=False, comment="live, ended"),
    Column("carrier", String(32), nullable=False),
    Column("carrier_call_id", String(128), nullable=False, default=""),
    Column("direction", String(8), nullable=False, default="inbound"),
    Column("from_number", String(128), nullable=False, default=""),
    Column("to_number", String(128), nullable=False, default=""),
    Column("persona", String(64), nullable=False),
    Column("persona_version", String(16), nullable=False),
    Column("engine", String(32), nullable=False, default=""),
    Column("started_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("end_reason", String(32), nullable=False, default=""),
    Column("transfer_target", String(255), nullable=False, default=""),
    Column("fallback", String(255), nullable=False, default=""),
    Column("metrics", JSON, nullable=False, default=dict),
    Column("recording", Text, nullable=False, default="", comment="where the sound is kept; empty: nowhere"),
    Column("files_on", Text, nullable=False, server_default="", comment="host:folder of its files"),
    Column("erased_at", Float, comment="when texts, numbers and sound were removed on request or by age"),
    Index(None, "started_at", "id"),
    Index(None, "from_number", "started_at"),
    Index(None, "to_number", "started_at"),
    Index(None, "persona", "started_at"),
    Index(None, "end_reason", "started_at"),
    Index(None, "carrier_call_id"),
    Index(None, "state", "instance"),
)

utterances = Table(
    "utterances",
    metadata,
    Column("call_id", ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("speaker", String(8), nullable=False),
    Column("text", Text, nullable=False),
    Column("unsaid", Text, nullable=False, default="", comment="what a flush cut off: announced, never heard"),
    Column("start", Float, nullable=False),
    Column("end", Float, nullable=False),
    Column("interrupted", Boolean, nullable=False, default=False),
    Column("final", Boolean, nullable=False, default=True),
    Column("confidence", Float),
)

events = Table(
    "events",
    metadata,
    Column("call_id", ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False, comment="seconds from answer"),
    Column("kind", String(32), nullable=False, comment="keypad, transfer, flush, worker, deadlines, consent ..."),
    Column("data", JSON, nullable=False, default=dict),
)

call_texts = Table(
    "call_texts",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True, comment="grows with time: the newest have the highest"),
    Column("call_id", ForeignKey("calls.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("text", Text, nullable=False),
    comment="all that was said in a call that is over; searched through an index that each database has its own of",
)

CLAIMED = text("claimed_until > 0")
"""Which deliveries are under way, or were when their worker died: few, however many wait."""

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", String(64), primary_key=True, comment="the webhook-id: one for an event at an endpoint, for ever"),
    Column("endpoint", String(64), nullable=False, comment="its name in webhooks.yaml"),
    Column("event", String(64), nullable=False, comment="call.started, call.ended ..."),
    Column("call_id", String(128), nullable=False),
    Column("place", Integer, nullable=False, comment="order among the call's deliveries to this endpoint"),
    Column("created_at", Float, nullable=False),
    Column("body", Text, nullable=False, comment="the event as JSON; a retry sends the same bytes"),
    Column("state", String(16), nullable=False, default="waiting", comment="waiting, delivered, dead"),
    Column("attempts", Integer, nullable=False, default=0),
    Column("due", Float, nullable=False),
    Column("give_up_at", Float, nullable=False, comment="no attempt follows after this"),
    Column("claimed_by", String(64), nullable=False, default=""),
    Column("claimed_until", Float, nullable=False, default=0.0),
    Column("status", Integer, nullable=False, default=0, comment="HTTP status of the last attempt; 0: no answer"),
    Column("reason", Text, nullable=False, default="", comment="what came of the last attempt"),
    Column("settled_at", Float, comment="when it was delivered or given up"),
    Index(None, "state", "endpoint", "due"),
    Index(None, "call_id", "endpoint", "place"),
    Index("ix_deliveries_claims", "endpoint", "claimed_until", sqlite_where=CLAIMED, postgresql_where=CLAIMED),
    Index(None, "created_at"),
)

endpoint_states = Table(
    "endpoint_states",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("url", Text, nullable=False, comment="an endpoint that moves is enabled again"),
    Column("disabled_at", Float, nullable=False),
    Column("reason", Text, nullable=False),
    comment="endpoints that answered 410 and get nothing until someone enables them",
)

call_tokens = Table(
    "call_tokens",
    metadata,
    Column("digest", String(64), primary_key=True, comment="SHA-256 of the token, hex"),
    Column("carrier_call_id", String(128), nullable=False),
    Column("persona", String(64), nullable=False),
    Column("from_number", String(128), nullable=False, default=""),
    Column("to_number", String(128), nullable=False, default=""),
    Column("expires_at", Float, nullable=False),
    Index(None, "expires_at"),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("digest", String(64), primary_key=True, comment="SHA-256 of the token, hex"),
    Column("name", String(64), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("who", String(128), nullable=False, comment="api token's name, cli:user, retention"),
    Column("action", String(32), nullable=False, comment="view, play, export, erase, delete, redeliver ..."),
    Column("call_id", String(128), nullable=False, default=""),
    Column("detail", JSON, nullable=False, default=dict),
    Index(None, "at"),
    Index(None, "call_id", "at"),
)
