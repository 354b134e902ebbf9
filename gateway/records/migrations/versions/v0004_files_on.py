"""On whose disk a call's files lie, so that a gateway that does not have them can say who does."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Gateways of the version before go on storing calls without it.
    column = sa.Column("files_on", sa.Text(), nullable=False, server_default="", comment="host:folder of its files")
    op.add_column("calls", column)
