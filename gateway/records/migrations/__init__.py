"""The schema's versions, oldest first, and how a database is brought from any of them to the newest.

Each file in `versions/` is one step, made once and never changed again. A step must run while older
gateways still use the database, so it adds and never renames or drops what they read.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


class SchemaNewer(Exception):
    """The database is at a version that this program does not know; the message is that version."""


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date inside the connection's transaction. Raises SchemaNewer."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    present = MigrationContext.configure(connection).get_current_revision()
    if present is not None and present not in known:
        raise SchemaNewer(present)
    if present != scripts.get_current_head():
        command.upgrade(config, "head")
