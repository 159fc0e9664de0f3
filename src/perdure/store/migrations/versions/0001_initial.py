"""The first tables, the words of messages made searchable, and what accepting a run asks of a context."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT, LONG, FLAG = sa.Text(), sa.BigInteger(), sa.Boolean()
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Everything, from nothing."""
    _records()
    _links()
    _history()
    if op.get_bind().dialect.name == "sqlite":
        _run(SQLITE_WORDS)
    else:
        _run(POSTGRES_WORDS)
        _run(POSTGRES_FACTS)


def _run(statements: tuple[str, ...]) -> None:
    for statement in statements:
        op.get_bind().exec_driver_sql(statement)


def _text(name: str, *, optional: bool = False) -> "sa.Column[str]":
    return sa.Column(name, TEXT, nullable=optional)


def _long(name: str, *, optional: bool = False) -> "sa.Column[int]":
    return sa.Column(name, LONG, nullable=optional)


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, SEQUENCE, sa.Identity(), autoincrement=True, nullable=False)


def _key(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=f"pk_{table}")


def _owned(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        [column], [f"{target}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE"
    )  # fmt: skip


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _records() -> None:
    op.create_table(
        "agents",
        _text("id"), _text("tenant_id"), _text("name"), _long("created_at"), _long("updated_at"), _long("version"),
        _text("project_id", optional=True), _text("template_id", optional=True),
        _text("base_template_id", optional=True), _text("created_by_id", optional=True), _text("body"),
        _key("agents", "id"),
    )  # fmt: skip
    _index("agents", "tenant_id", "created_at", "id")
    op.create_table(
        "blocks",
        _text("id"), _text("tenant_id"), _text("label"), _text("value"), _text("description", optional=True),
        _text("template_name", optional=True), sa.Column("is_template", FLAG, nullable=False),
        _text("project_id", optional=True), _long("created_at"), _long("updated_at"), _long("version"), _text("body"),
        _key("blocks", "id"),
    )  # fmt: skip
    _index("blocks", "tenant_id", "created_at", "id")
    _index("blocks", "tenant_id", "label")
    op.create_table(
        "tools",
        _text("id"), _text("tenant_id"), _text("name"), _text("tool_type"), _text("description", optional=True),
        _long("created_at"), _long("updated_at"), _text("body"),
        _key("tools", "id"), sa.UniqueConstraint("tenant_id", "name", name="uq_tools_tenant_id_name"),
    )  # fmt: skip
    _index("tools", "tenant_id", "created_at", "id")


def _links() -> None:
    for table, other, target in (("agent_blocks", "block_id", "blocks"), ("agent_tools", "tool_id", "tools")):
        op.create_table(
            table,
            _text("agent_id"), _text(other), _text("tenant_id"), sa.Column("position", sa.Integer(), nullable=False),
            _key(table, "agent_id", other), _owned(table, "agent_id", "agents"), _owned(table, other, target),
        )  # fmt: skip
        _index(table, other)
    _marks("agent_tags", "agent_id", "agents", "tag")
    _marks("agent_identities", "agent_id", "agents", "identity_id")
    _marks("block_tags", "block_id", "blocks", "tag")


def _marks(table: str, owner: str, target: str, mark: str) -> None:
    op.create_table(
        table,
        _text(owner), _text(mark), _text("tenant_id"),
        _key(table, owner, mark), _owned(table, owner, target),
    )  # fmt: skip
    _index(table, "tenant_id", mark)


def _history() -> None:
    op.create_table(
        "contexts",
        _text("id"), _text("tenant_id"), _text("agent_id"), _text("conversation_id", optional=True),
        _long("revision"), _long("compiled_version"), _long("compiled_at"), _long("hidden_count"),
        _key("contexts", "id"), _owned("contexts", "agent_id", "agents"),
    )  # fmt: skip
    _index("contexts", "agent_id")
    _messages()
    _runs()
    op.create_table(
        "steps",
        _number("sequence"), _text("id"), _text("tenant_id"), _text("run_id"), _text("agent_id"),
        _long("created_at"), _text("model", optional=True), _text("feedback", optional=True), _text("body"),
        _key("steps", "sequence"), sa.UniqueConstraint("id", name="uq_steps_id"), _owned("steps", "run_id", "runs"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    _index("steps", "run_id")
    _marks("step_tags", "step_id", "steps", "tag")


def _messages() -> None:
    op.create_table(
        "messages",
        _number("sequence_id"), _text("id"), _text("tenant_id"), _text("agent_id"), _text("context_id"),
        _text("conversation_id", optional=True), _text("run_id", optional=True), _text("step_id", optional=True),
        _text("group_id", optional=True), _text("role"), _long("created_at"),
        sa.Column("is_err", FLAG, nullable=False), sa.Column("in_context", FLAG, nullable=False),
        _long("position", optional=True), _text("body"), _text("search_text", optional=True),
        _key("messages", "sequence_id"), sa.UniqueConstraint("id", name="uq_messages_id"),
        _owned("messages", "agent_id", "agents"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    _index("messages", "agent_id", "sequence_id")
    _index("messages", "run_id")
    _index("messages", "step_id")
    # SQLite uses a partial index only for queries that spell its condition the same way.
    op.create_index(
        "ix_messages_in_context", "messages", ["context_id", "sequence_id"],
        postgresql_where=sa.text("in_context"), sqlite_where=sa.text("in_context = 1"),
    )  # fmt: skip
    op.create_table(
        "message_images",
        _text("tenant_id"), _text("file_id"), _text("message_id"),
        _key("message_images", "file_id", "message_id"),
        sa.ForeignKeyConstraint(
            ["message_id"], ["messages.id"], name="fk_message_images_message_id", ondelete="CASCADE"
        ),
    )  # fmt: skip
    _index("message_images", "message_id")


def _runs() -> None:
    op.create_table(
        "runs",
        _number("sequence"), _text("id"), _text("tenant_id"), _text("agent_id"), _text("context_id"),
        _text("conversation_id", optional=True), _text("status"), _text("stop_reason", optional=True),
        sa.Column("background", FLAG, nullable=False), _long("created_at"), _long("completed_at", optional=True),
        _long("heartbeat_at"), _long("epoch"), _text("request"), _text("body"),
        _key("runs", "sequence"), sa.UniqueConstraint("id", name="uq_runs_id"),
        _owned("runs", "agent_id", "agents"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    _index("runs", "agent_id", "completed_at")
    holds = sa.text("status IN ('created', 'running')")
    op.create_index(
        "uq_runs_lease", "runs", ["context_id"], unique=True, postgresql_where=holds, sqlite_where=holds
    )  # fmt: skip


# The agent is indexed as a word of its own so that a search reads the postings of one agent only.
# `detail=column` keeps no word positions: a search is for words, never for phrases.
# The view is what the index is of: not all messages have words. `integrity-check` and `rebuild` go by it.
SQLITE_WORDS = (
    """
    CREATE VIEW message_texts AS
        SELECT sequence_id, agent_id, search_text FROM messages WHERE search_text <> ''""",
    """
    CREATE VIRTUAL TABLE message_words USING fts5(
        agent_id, search_text, content='message_texts', content_rowid='sequence_id', detail='column',
        tokenize="porter unicode61 remove_diacritics 0 categories 'L* N* M* Co' tokenchars '-'"
    )""",
    """
    CREATE TRIGGER message_words_insert AFTER INSERT ON messages WHEN new.search_text <> '' BEGIN
        INSERT INTO message_words (rowid, agent_id, search_text)
        VALUES (new.sequence_id, new.agent_id, new.search_text);
    END""",
    """
    CREATE TRIGGER message_words_delete AFTER DELETE ON messages WHEN old.search_text <> '' BEGIN
        INSERT INTO message_words (message_words, rowid, agent_id, search_text)
        VALUES ('delete', old.sequence_id, old.agent_id, old.search_text);
    END""",
    """
    CREATE TRIGGER message_words_update AFTER UPDATE OF search_text, agent_id ON messages BEGIN
        INSERT INTO message_words (message_words, rowid, agent_id, search_text)
        SELECT 'delete', old.sequence_id, old.agent_id, old.search_text WHERE old.search_text <> '';
        INSERT INTO message_words (rowid, agent_id, search_text)
        SELECT new.sequence_id, new.agent_id, new.search_text WHERE new.search_text <> '';
    END""",
)

# The built-in `english` drops stop words, which would make a search for "who" find nothing here and much on SQLite.
POSTGRES_WORDS = (
    "CREATE TEXT SEARCH DICTIONARY perdure_stem (TEMPLATE = snowball, Language = english)",
    "CREATE TEXT SEARCH CONFIGURATION perdure_words (COPY = simple)",
    """
    ALTER TEXT SEARCH CONFIGURATION perdure_words
        ALTER MAPPING FOR asciiword, word, numword, asciihword, hword, numhword, hword_asciipart, hword_part,
            hword_numpart WITH perdure_stem""",
    """
    CREATE INDEX ix_messages_words ON messages USING gin (to_tsvector('perdure_words', search_text))
        WHERE search_text <> ''""",
)

# VOLATILE matters: each statement in such a function sees what is committed by then, not what was when the INSERT
# that calls it began, so accepting a run never answers from before the run that held the context ended.
POSTGRES_FACTS = (
    """
    CREATE FUNCTION context_facts(context text) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
    BEGIN
        RETURN (
            SELECT ARRAY[
                a.version, c.revision,
                coalesce((SELECT max(m.sequence_id) FROM messages m WHERE m.context_id = c.id AND m.in_context), 0)
            ] FROM contexts c JOIN agents a ON a.id = c.agent_id WHERE c.id = context
        );
    END $$""",
)
