"""Brings a database to the schema this program needs, or refuses. Alembic is imported only if there is work to do.

Above is `open.py`. The steps are in `migrations/versions`; their file names begin with the revision they lead to.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from perdure.domain.errors import Invalid, SchemaTooNew
from perdure.store.schema import metadata

FOLDER = Path(__file__).parent / "migrations"
VERSION_TABLE = "alembic_version"


class Migrations:
    """The steps in a folder, from an empty database to the newest schema."""

    def __init__(self, folder: Path = FOLDER):
        self.folder = folder
        self.known = sorted(path.name.partition("_")[0] for path in (folder / "versions").glob("[0-9]*_*.py"))
        self.newest = self.known[-1]

    def revision_of(self, connection: Connection) -> str | None:
        """The revision of the database, None for an empty one. Raises SchemaTooNew, Invalid (others' tables)."""
        tables = set(inspect(connection).get_table_names())
        revision: str | None = None
        if VERSION_TABLE in tables:
            revision = connection.scalar(text("SELECT version_num FROM alembic_version"))
        if revision is None:
            _refuse_foreign(tables)
        elif revision not in self.known:
            raise SchemaTooNew(
                f"The database has schema {revision}; this Perdure knows those up to {self.newest}, so a newer one "
                "wrote it, or another program. Start that version or a later one, restore the copy made before its "
                "upgrade (`backups`), or name a database of Perdure's own."
            )
        return revision

    def run(self, connection: Connection) -> None:
        """Do the missing steps inside the connection's transaction, if another server has not done them meanwhile."""
        if self.revision_of(connection) == self.newest:
            return
        from alembic import command  # a third of a second, which a server with a current database does not spend
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(self.folder).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _refuse_foreign(tables: set[str]) -> None:
    taken = sorted(tables & set(metadata.tables))
    if taken:
        raise Invalid(
            f"The database already has tables named {', '.join(taken)} that Perdure did not make. "
            "Give Perdure a database of its own."
        )
