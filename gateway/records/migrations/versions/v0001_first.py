"""Calls and what they said, deliveries, tokens, instances and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the token, hex"),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_api_tokens")),
        sa.UniqueConstraint("name", name=op.f("uq_api_tokens_name")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False, comment="api token's name, cli:user, retention"),
        sa.Column(
            "action", sa.String(length=32), nullable=False, comment="view, play, export, erase, delete, redeliver ..."
        ),
        sa.Column("call_id", sa.String(length=128), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_at"), "audit", ["at"], unique=False)
    op.create_index(op.f("ix_audit_call_id_at"), "audit", ["call_id", "at"], unique=False)
    op.create_table(
        "call_tokens",
        sa.Column("digest", sa.String(length=64), nullable=False, comment="SHA-256 of the token, hex"),
        sa.Column("carrier_call_id", sa.String(length=128), nullable=False),
        sa.Column("persona", sa.String(length=64), nullable=False),
        sa.Column("from_number", sa.String(length=128), nullable=False),
        sa.Column("to_number", sa.String(length=128), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_call_tokens")),
    )
    op.create_index(op.f("ix_call_tokens_expires_at"), "call_tokens", ["expires_at"], unique=False)
    op.create_table(
        "calls",
        sa.Column("id", sa.String(length=128), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False, comment="live, ended"),
        sa.Column("carrier", sa.String(length=32), nullable=False),
        sa.Column("carrier_call_id", sa.String(length=128), nullable=False),
        sa.Column("direction", sa.String(length=8), nullable=False),
        sa.Column("from_number", sa.String(length=128), nullable=False),
        sa.Column("to_number", sa.String(length=128), nullable=False),
        sa.Column("persona", sa.String(length=64), nullable=False),
        sa.Column("persona_version", sa.String(length=16), nullable=False),
        sa.Column("engine", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("ended_at", sa.Float(), nullable=True),
        sa.Column("end_reason", sa.String(length=32), nullable=False),
        sa.Column("transfer_target", sa.String(length=255), nullable=False),
        sa.Column("fallback", sa.String(length=255), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("recording", sa.Text(), nullable=False, comment="where the sound is kept; empty: nowhere"),
        sa.Column(
            "erased_at",
            sa.Float(),
            nullable=True,
            comment="when texts, numbers and sound were removed on request or by age",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calls")),
    )
    op.create_index(op.f("ix_calls_carrier_call_id"), "calls", ["carrier_call_id"], unique=False)
    op.create_index(op.f("ix_calls_from_number_started_at"), "calls", ["from_number", "started_at"], unique=False)
    op.create_index(op.f("ix_calls_persona_started_at"), "calls", ["persona", "started_at"], unique=False)
    op.create_index(op.f("ix_calls_started_at_id"), "calls", ["started_at", "id"], unique=False)
    op.create_index(op.f("ix_calls_state_instance"), "calls", ["state", "instance"], unique=False)
    op.create_table(
        "deliveries",
        sa.Column(
            "id",
            sa.String(length=64),
            nullable=False,
            comment="the webhook-id: one for an event at an endpoint, for ever",
        ),
        sa.Column("endpoint", sa.String(length=64), nullable=False, comment="its name in webhooks.yaml"),
        sa.Column("event", sa.String(length=64), nullable=False, comment="call.started, call.ended ..."),
        sa.Column("call_id", sa.String(length=128), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False, comment="order among the call's deliveries to this endpoint"),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="the event as JSON; a retry sends the same bytes"),
        sa.Column("state", sa.String(length=16), nullable=False, comment="waiting, delivered, dead"),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due", sa.Float(), nullable=False),
        sa.Column("give_up_at", sa.Float(), nullable=False, comment="no attempt follows after this"),
        sa.Column("claimed_by", sa.String(length=64), nullable=False),
        sa.Column("claimed_until", sa.Float(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False, comment="HTTP status of the last attempt; 0: no answer"),
        sa.Column("reason", sa.Text(), nullable=False, comment="what came of the last attempt"),
        sa.Column("settled_at", sa.Float(), nullable=True, comment="when it was delivered or given up"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    op.create_index(
        op.f("ix_deliveries_call_id_endpoint_place"), "deliveries", ["call_id", "endpoint", "place"], unique=False
    )
    op.create_index(op.f("ix_deliveries_created_at"), "deliveries", ["created_at"], unique=False)
    op.create_index(op.f("ix_deliveries_state_endpoint_due"), "deliveries", ["state", "endpoint", "due"], unique=False)
    op.create_table(
        "endpoint_states",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("url", sa.Text(), nullable=False, comment="an endpoint that moves is enabled again"),
        sa.Column("disabled_at", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_endpoint_states")),
        comment="endpoints that answered 410 and get nothing until someone enables them",
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        comment="gateway processes; one whose lease has run out is dead, and its live calls are lost",
    )
    op.create_table(
        "events",
        sa.Column("call_id", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Float(), nullable=False, comment="seconds from answer"),
        sa.Column(
            "kind",
            sa.String(length=32),
            nullable=False,
            comment="keypad, transfer, flush, worker, deadlines, consent ...",
        ),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], name=op.f("fk_events_call_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "number", name=op.f("pk_events")),
    )
    op.create_table(
        "utterances",
        sa.Column("call_id", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("speaker", sa.String(length=8), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("unsaid", sa.Text(), nullable=False, comment="what a flush cut off: announced, never heard"),
        sa.Column("start", sa.Float(), nullable=False),
        sa.Column("end", sa.Float(), nullable=False),
        sa.Column("interrupted", sa.Boolean(), nullable=False),
        sa.Column("final", sa.Boolean(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], name=op.f("fk_utterances_call_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "number", name=op.f("pk_utterances")),
    )
