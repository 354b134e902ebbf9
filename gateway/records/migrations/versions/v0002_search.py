"""Searching what was said: an FTS5 index on SQLite, a GIN index of words on PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

FTS5 = (
    "CREATE VIRTUAL TABLE call_words USING fts5"
    "(text, content='call_texts', content_rowid='id', tokenize='unicode61 remove_diacritics 2')",
    "CREATE TRIGGER call_texts_insert AFTER INSERT ON call_texts BEGIN "
    "INSERT INTO call_words(rowid, text) VALUES (new.id, new.text); END",
    "CREATE TRIGGER call_texts_delete AFTER DELETE ON call_texts BEGIN "
    "INSERT INTO call_words(call_words, rowid, text) VALUES ('delete', old.id, old.text); END",
    "CREATE TRIGGER call_texts_update AFTER UPDATE ON call_texts BEGIN "
    "INSERT INTO call_words(call_words, rowid, text) VALUES ('delete', old.id, old.text); "
    "INSERT INTO call_words(rowid, text) VALUES (new.id, new.text); END",
)
GIN = ("CREATE INDEX ix_call_texts_words ON call_texts USING gin (to_tsvector('simple', text))",)


def upgrade() -> None:
    op.create_index(op.f("ix_calls_to_number_started_at"), "calls", ["to_number", "started_at"])
    op.create_index(op.f("ix_calls_end_reason_started_at"), "calls", ["end_reason", "started_at"])
    op.create_table(
        "call_texts",
        sa.Column(
            "id",
            sa.Integer(),
            autoincrement=True,
            nullable=False,
            comment="grows with time: the newest have the highest",
        ),
        sa.Column("call_id", sa.String(length=128), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], name=op.f("fk_call_texts_call_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_call_texts")),
        sa.UniqueConstraint("call_id", name=op.f("uq_call_texts_call_id")),
        comment="all that was said in a call that is over; searched through an index that each database has its own of",
    )
    for statement in FTS5 if op.get_bind().dialect.name == "sqlite" else GIN:
        op.execute(statement)
