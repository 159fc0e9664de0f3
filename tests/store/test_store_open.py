"""Opening: the schema is made, checked, upgraded or refused."""

import asyncio
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from making import a_block, make_agent, said, take_turn
from postgres import TestServer
from sqlalchemy import Connection, text

from perdure.domain.errors import Invalid, SchemaTooNew, Unavailable
from perdure.domain.ports import BlockQuery, Page
from perdure.store import SqlStore, open_store
from perdure.store.schema import metadata
from perdure.store.upgrade import FOLDER, Migrations

pytestmark = pytest.mark.anyio

NEWEST = Migrations().newest
NEXT = f"{int(NEWEST) + 1:04}"
FURTHER_STEP = '''
from alembic import op
import sqlalchemy as sa
revision, down_revision = "{next}", "{newest}"
def upgrade():
    with op.batch_alter_table("blocks") as table:
        table.add_column(sa.Column("colour", sa.Text(), nullable=False, server_default="red"))
    {then}
'''


def with_further_step(folder: Path, then: str = "pass") -> Path:
    """Our migrations and one more, as a later version has them."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    step = FURTHER_STEP.format(then=then, next=NEXT, newest=NEWEST)
    (folder / "versions" / f"{NEXT}_colour.py").write_text(step)
    return folder


async def labels(store: SqlStore) -> list[str]:
    return [block.label for block in await store.blocks.find(BlockQuery(), Page())]


def scalar(conn: Connection, sql: str) -> Any:
    return conn.scalar(text(sql))


async def test_the_migrations_build_exactly_the_declared_tables(store: SqlStore):
    """Alembic finds nothing to add, remove or change."""

    def differences(conn: Connection) -> list[Any]:
        def ours(name: str | None, kind: str, _: Any) -> bool:
            return not str(name).startswith(("message_words", "alembic_version", "ix_messages_words"))

        options = {"compare_type": True, "include_name": ours}
        return compare_metadata(MigrationContext.configure(conn, opts=options), metadata)

    assert await store.db.write(differences) == []


async def test_what_alembic_does_not_compare_is_there_too(store: SqlStore):
    """Foreign keys cascade, words are indexed, numbers are never given twice."""

    def found(conn: Connection) -> list[str]:
        if store.exclusive:
            sql = "SELECT name FROM sqlite_master WHERE type = 'trigger' OR sql LIKE '%fts5(%' OR name LIKE 'sqlite_s%'"
        else:
            sql = (
                "SELECT cfgname FROM pg_ts_config WHERE cfgname LIKE 'perdure%' "
                "UNION SELECT proname FROM pg_proc WHERE proname = 'context_facts' "
                "UNION SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%to_tsvector(''perdure_words''%'"
            )
        return sorted(conn.scalars(text(sql)))

    assert await store.db.read(found) == (
        ["message_words", "message_words_delete", "message_words_insert", "message_words_update", "sqlite_sequence"]
        if store.exclusive else ["context_facts", "ix_messages_words", "perdure_words"]
    )  # fmt: skip


async def test_the_index_of_words_follows_every_change(tmp_path: Path):
    """SQLite's index has no copy of the text: after insert, update and delete it must still agree with the table."""
    store = await open_store(f"sqlite:///{tmp_path / 'p.db'}")
    agent_id = (await make_agent(store)).agent.id
    await take_turn(store, agent_id, said("walrus"), said("otter"), said("seal"))

    def change(conn: Connection) -> None:
        conn.execute(text("UPDATE messages SET search_text = 'heron' WHERE search_text = 'otter'"))
        conn.execute(text("UPDATE messages SET search_text = NULL WHERE search_text = 'seal'"))
        conn.execute(text("DELETE FROM messages WHERE search_text = 'walrus'"))
        conn.execute(text("INSERT INTO message_words (message_words, rank) VALUES ('integrity-check', 1)"))

    await store.db.write(change)
    found = [
        len(await store.messages.search(agent_id, word, roles=None, start=None, end=None, limit=5))
        for word in ("walrus", "otter", "seal", "heron")
    ]
    assert found == [0, 0, 0, 1]
    await store.close()


async def test_the_newest_message_of_a_context_is_found_by_an_index(tmp_path: Path):
    """Accepting a run asks for it in every turn."""
    store = await open_store(f"sqlite:///{tmp_path / 'p.db'}")

    def plan(conn: Connection) -> str:
        sql = "EXPLAIN QUERY PLAN SELECT max(sequence_id) FROM messages WHERE context_id = 'x' AND in_context = 1"
        return " ".join(str(row) for row in conn.execute(text(sql)))

    assert "SEARCH messages USING" in await store.db.read(plan)
    await store.close()


def test_the_newest_step_is_alembics_head():
    """File names tell the revisions, so that looking does not need Alembic."""
    steps = ScriptDirectory(str(FOLDER))
    assert Migrations().known == sorted(step.revision for step in steps.walk_revisions())
    assert steps.get_current_head() == Migrations().newest


async def test_a_current_database_is_opened_without_alembic_and_drivers_of_others(tmp_path: Path):
    """They would be half of the server's start-up time."""
    url = f"sqlite:///{tmp_path / 'p.db'}"
    await (await open_store(url)).close()
    script = (
        "import asyncio, sys; from perdure.store import open_store\n"
        f"async def main(): await (await open_store({url!r})).close()\n"
        "asyncio.run(main()); print([m for m in ('alembic', 'psycopg') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


async def test_an_older_file_is_backed_up_and_upgraded(tmp_path: Path):
    """The copy is complete and named by its revision; rows and references survive the rebuilding of a table."""
    path, backups = tmp_path / "p.db", tmp_path / "kept"
    store = await open_store(f"sqlite:///{path}")
    agent_id = (await make_agent(store, blocks=[a_block("kept")])).agent.id
    await store.close()
    later = await open_store(
        f"sqlite:///{path}", backups=backups, migrations=with_further_step(tmp_path / "later")
    )
    assert await later.db.read(scalar, "SELECT colour FROM blocks") == "red"
    assert [block.label for block in (await later.agents.get(agent_id)).blocks] == ["kept"]
    await later.close()
    [copy] = backups.iterdir()
    assert copy.name.startswith(f"p-{NEWEST}-")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    restored = await open_store(f"sqlite:///{copy}")
    assert await labels(restored) == ["kept"]
    await restored.close()


async def test_an_upgrade_that_fails_changes_nothing(url: str, tmp_path: Path):
    """All steps are one transaction; the old program still opens the database."""
    store = await open_store(url)
    await store.blocks.create(a_block("kept"))
    await store.close()
    with pytest.raises(ZeroDivisionError):
        await open_store(url, migrations=with_further_step(tmp_path / "later", "1 / 0"))
    store = await open_store(url)
    assert await labels(store) == ["kept"]
    with pytest.raises(Exception, match="colour"):
        await store.db.read(scalar, "SELECT colour FROM blocks")
    await store.close()


async def test_a_newer_schema_is_refused_in_words(url: str, tmp_path: Path):
    """An old program must not touch what it does not know."""
    await (await open_store(url, migrations=with_further_step(tmp_path / "later"))).close()
    with pytest.raises(SchemaTooNew, match=f"has schema {NEXT}; this Perdure knows those up to {NEWEST}"):
        await open_store(url)


async def test_servers_that_start_together_upgrade_once(postgres: TestServer):
    """One holds the lock, the others wait and find the work done."""
    url = postgres.create(template="template0")
    stores = await asyncio.gather(*(open_store(url, pool_size=1) for _ in range(4)))
    await stores[0].blocks.create(a_block("one"))
    assert await labels(stores[3]) == ["one"]
    for store in stores:
        await store.close()
    postgres.drop(url)


async def test_tables_of_others_are_left_alone(tmp_path: Path):
    """A database that has an `agents` table of another program is refused, not changed."""
    with sqlite3.connect(tmp_path / "p.db") as raw:
        raw.execute("CREATE TABLE agents (id)")
    raw.close()
    with pytest.raises(Invalid, match="tables named agents"):
        await open_store(f"sqlite:///{tmp_path / 'p.db'}")


async def test_one_file_is_served_by_one_process(tmp_path: Path):
    """Two would end each other's runs. The claim ends with the store."""
    url = f"sqlite:///{tmp_path / 'new' / 'folder' / 'p.db'}"
    store = await open_store(url)
    with pytest.raises(Unavailable, match="already serving"):
        await open_store(url)
    await store.close()
    await (await open_store(url)).close()
    assert stat.S_IMODE((tmp_path / "new" / "folder" / "p.db").stat().st_mode) == 0o600


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "http://u:secret@h/x"])
async def test_other_urls_are_refused_in_words(url: str):
    """They say what to write instead and do not show a password."""
    with pytest.raises(Invalid, match="Write sqlite:///") as refused:
        await open_store(url)
    assert "secret" not in str(refused.value)


async def test_what_cannot_be_opened_says_why(tmp_path: Path):
    """No server, no database file, no such way of writing."""
    with pytest.raises(Unavailable, match="PostgreSQL"):
        await open_store(f"postgres://nobody@/x?host={tmp_path}")
    (tmp_path / "p.db").write_text("This is not a database, it is a text that is long enough to be looked at." * 20)
    with pytest.raises(Unavailable, match="not a database"):
        await open_store(f"sqlite:///{tmp_path / 'p.db'}")
    with pytest.raises(Unavailable, match="Check the path"):
        await open_store(f"sqlite:///{tmp_path / 'p.db' / 'below.db'}")
    with pytest.raises(Invalid, match="synchronous"):
        await open_store(f"sqlite:///{tmp_path / 'q.db'}", synchronous="OFF")
    assert not (tmp_path / "q.db").exists()
