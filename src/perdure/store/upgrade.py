"""Brings a database to the schema this program needs, or refuses. Alembic is imported only if there is work to do.

Above is `open.py`. The steps are in `migrations/versions`; their file names begin with their revision.
"""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from perdure.domain.errors import Invalid, SchemaTooNew
from perdure.store.schema import REVISION, metadata

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"


def revision_of(connection: Connection) -> str | None:
    """The revision of the database; None for an empty one. Raises SchemaTooNew, Invalid (somebody else's tables)."""
    tables = set(inspect(connection).get_table_names())
    revision = connection.scalar(text("SELECT version_num FROM alembic_version")) if VERSION_TABLE in tables else None
    if revision is None:
        _refuse_foreign(tables)
        return None
    if revision not in known_revisions():
        raise SchemaTooNew(
            f"The database has schema {revision}, and this Perdure knows up to {REVISION}: a newer Perdure wrote it. "
            "Start that version or a later one, or restore the copy it made in the `backups` folder when it upgraded."
        )
    return str(revision)


def _refuse_foreign(tables: set[str]) -> None:
    taken = sorted(tables & set(metadata.tables))
    if taken:
        raise Invalid(
            f"The database already has tables named {', '.join(taken)} that Perdure did not make. "
            "Give Perdure a database of its own."
        )


def known_revisions() -> list[str]:
    """All revisions this program can read, oldest first."""
    return sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def upgrade(connection: Connection) -> None:
    """Do the missing steps inside the connection's transaction."""
    from alembic import command  # a third of a second that a server with a current database need not spend

    command.upgrade(config(connection), "head")


def config(connection: Connection) -> Any:
    """Alembic's configuration for our steps on this connection."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made
