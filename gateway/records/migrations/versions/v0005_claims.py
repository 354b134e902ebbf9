"""Who delivers what now, found without a look at all that waits: after days of a dead endpoint that is a lot."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    claimed = sa.text("claimed_until > 0")
    columns = ["endpoint", "claimed_until"]
    op.create_index("ix_deliveries_claims", "deliveries", columns, sqlite_where=claimed, postgresql_where=claimed)
