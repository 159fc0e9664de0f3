"""The tables, declared once for both databases. `migrations/` builds them; a test proves that both agree.

Records stand whole as JSON text in `body` (jsonb would refuse U+0000); beside it is a column for everything that is
filtered, sorted or joined on. Moments are microseconds since 1970. Every row names its tenant, but for `workers`,
which are processes.

Each index of `messages`, `runs` and `steps` is paid for in every turn (about 10 µs), so they have those that a common
question needs and no others: lists of a tenant go along the primary key, steps of an agent go by its runs.

The index of words (FTS5 with its triggers; GIN) is not declared here, since no type of SQLAlchemy stands for it: see
`migrations/versions/0001_initial.py`, as for the function that tells the facts of a context on PostgreSQL.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

from perdure.store.codec import plain

WORD_RULES = "perdure_words"
"""PostgreSQL's text search configuration: English stems, no stop words (as FTS5's porter has none)."""


class Plain(TypeDecorator[str]):
    """Text from outside: what the database cannot hold is dropped on the way in, in values and in comparisons."""

    impl = Text
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[str | None], str | None]:
        """Given directly, not through `process_bind_param`: it runs some forty times in a turn."""
        return _plain


def _plain(value: str | None) -> str | None:
    return None if value is None else plain(value)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id() -> "Column[str]":
    return Column("id", Plain, primary_key=True)


def _tenant() -> "Column[str]":
    return Column("tenant_id", Plain, nullable=False)


def _sequence(name: str) -> "Column[int]":
    """A number given by saving, never given twice."""
    wide = BigInteger().with_variant(Integer, "sqlite")
    return Column(name, wide, Identity(), primary_key=True, autoincrement=True)


def _moment(name: str, *, nullable: bool = False) -> "Column[int]":
    return Column(name, BigInteger, nullable=nullable)


def _owner(name: str, target: str, *, primary_key: bool = False) -> "Column[str]":
    return Column(name, Plain, ForeignKey(target, ondelete="CASCADE"), primary_key=primary_key, nullable=False)


agents = Table(
    "agents", metadata,
    _id(), _tenant(),
    Column("name", Plain, nullable=False),
    _moment("created_at"), _moment("updated_at"),
    Column("version", BigInteger, nullable=False),
    Column("project_id", Plain), Column("template_id", Plain), Column("base_template_id", Plain),
    Column("created_by_id", Plain),
    Column("body", Text, nullable=False),
    Index(None, "tenant_id", "created_at", "id"),
)  # fmt: skip

blocks = Table(
    "blocks", metadata,
    _id(), _tenant(),
    Column("label", Plain, nullable=False),
    Column("value", Plain, nullable=False),
    Column("description", Plain),
    Column("template_name", Plain), Column("is_template", Boolean, nullable=False), Column("project_id", Plain),
    _moment("created_at"), _moment("updated_at"),
    Column("version", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index(None, "tenant_id", "created_at", "id"),
    Index(None, "tenant_id", "label"),
)  # fmt: skip

tools = Table(
    "tools", metadata,
    _id(), _tenant(),
    Column("name", Plain, nullable=False),
    Column("tool_type", Plain, nullable=False),
    Column("description", Plain),
    _moment("created_at"), _moment("updated_at"),
    Column("body", Text, nullable=False),
    UniqueConstraint("tenant_id", "name"),
    Index(None, "tenant_id", "created_at", "id"),
)  # fmt: skip

agent_blocks = Table(
    "agent_blocks", metadata,
    _owner("agent_id", "agents.id", primary_key=True), _owner("block_id", "blocks.id", primary_key=True),
    _tenant(), Column("position", Integer, nullable=False),
    Index(None, "block_id"),
)  # fmt: skip

agent_tools = Table(
    "agent_tools", metadata,
    _owner("agent_id", "agents.id", primary_key=True), _owner("tool_id", "tools.id", primary_key=True),
    _tenant(), Column("position", Integer, nullable=False),
    Index(None, "tool_id"),
)  # fmt: skip


def _marks(name: str, owner: str, target: str, mark: str) -> Table:
    """Words attached to a record, kept beside its body so that lists can be filtered by them."""
    return Table(
        name, metadata,
        _owner(owner, target, primary_key=True), Column(mark, Plain, primary_key=True), _tenant(),
        Index(None, "tenant_id", mark),
    )  # fmt: skip


agent_tags = _marks("agent_tags", "agent_id", "agents.id", "tag")
agent_identities = _marks("agent_identities", "agent_id", "agents.id", "identity_id")
block_tags = _marks("block_tags", "block_id", "blocks.id", "tag")
step_tags = _marks("step_tags", "step_id", "steps.id", "tag")

contexts = Table(
    "contexts", metadata,
    _id(), _tenant(), _owner("agent_id", "agents.id"),
    Column("conversation_id", Plain),
    Column("revision", BigInteger, nullable=False),
    Column("compiled_version", BigInteger, nullable=False),
    _moment("compiled_at"),
    Column("hidden_count", BigInteger, nullable=False),
    Index(None, "agent_id"),
)  # fmt: skip

messages = Table(
    "messages", metadata,
    _sequence("sequence_id"),
    Column("id", Plain, nullable=False, unique=True), _tenant(), _owner("agent_id", "agents.id"),
    Column("context_id", Plain, nullable=False),
    Column("conversation_id", Plain), Column("run_id", Plain), Column("step_id", Plain), Column("group_id", Plain),
    Column("role", Plain, nullable=False),
    _moment("created_at"),
    Column("is_err", Boolean, nullable=False),
    Column("in_context", Boolean, nullable=False),
    Column("position", BigInteger),
    Column("body", Text, nullable=False),
    Column("search_text", Plain),
    Index(None, "agent_id", "sequence_id"),
    Index(None, "run_id"),
    Index(None, "step_id"),
    sqlite_autoincrement=True,
)  # fmt: skip
Index(
    "ix_messages_in_context", messages.c.context_id, messages.c.sequence_id,
    postgresql_where=messages.c.in_context, sqlite_where=messages.c.in_context,
)  # fmt: skip
Index(
    "ix_messages_conversation", messages.c.conversation_id, messages.c.sequence_id,
    postgresql_where=messages.c.conversation_id.is_not(None), sqlite_where=messages.c.conversation_id.is_not(None),
)  # fmt: skip

message_images = Table(
    "message_images", metadata,
    _tenant(),
    Column("file_id", Plain, primary_key=True),
    _owner("message_id", "messages.id", primary_key=True),
    Index(None, "message_id"),
)  # fmt: skip

runs = Table(
    "runs", metadata,
    _sequence("sequence"),
    Column("id", Plain, nullable=False, unique=True), _tenant(), _owner("agent_id", "agents.id"),
    Column("context_id", Plain, nullable=False),
    Column("conversation_id", Plain),
    Column("status", Plain, nullable=False),
    Column("stop_reason", Plain),
    Column("background", Boolean, nullable=False),
    _moment("created_at"), _moment("completed_at", nullable=True),
    Column("epoch", BigInteger, nullable=False),
    Column("request", Plain, nullable=False),
    Column("body", Text, nullable=False),
    Column("worker", Plain, nullable=False, server_default=""),
    _moment("callback_at", nullable=True),
    Column("waiting_order", Text),
    Index(None, "agent_id", "completed_at"),
    sqlite_autoincrement=True,
)  # fmt: skip
OPEN = text("runs.status IN ('created', 'running')")
"""A run in one of these states is not over. No index serves this."""
HOLDS = text("runs.status = 'running'")
"""A run in this state holds its context, as a condition that the index of leases serves."""
WAITS = text("runs.status = 'created'")
"""A run in this state waits for its context, likewise for the index of the line."""


def _partial(name: str, condition: str, *columns: Any, unique: bool = False) -> None:
    where = text(condition)
    Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


_partial("uq_runs_lease", "status = 'running'", runs.c.context_id, unique=True)
_partial("ix_runs_line", "status = 'created'", runs.c.context_id, runs.c.sequence)
_partial("ix_runs_callback_at", "callback_at IS NOT NULL", runs.c.callback_at)

workers = Table("workers", metadata, _id(), _moment("heartbeat_at"))

run_otids = Table(
    "run_otids", metadata,
    _owner("run_id", "runs.id", primary_key=True), Column("otid", Plain, primary_key=True),
    _tenant(), Column("context_id", Plain, nullable=False),
    Index(None, "context_id", "otid"),
)  # fmt: skip

# By the number of the run: runs that are under way together are neighbours in the index then, so that saving frames
# of all of them costs SQLite half the time and a third of the bytes written.
run_frames = Table(
    "run_frames", metadata,
    Column("run_sequence", BigInteger, ForeignKey(runs.c.sequence, ondelete="CASCADE"), primary_key=True,
           autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    _tenant(),
    Column("count", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)  # fmt: skip

steps = Table(
    "steps", metadata,
    _sequence("sequence"),
    Column("id", Plain, nullable=False, unique=True), _tenant(),
    Column("run_id", Plain, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False),
    Column("agent_id", Plain, nullable=False),
    _moment("created_at"),
    Column("model", Plain), Column("feedback", Plain),
    Column("body", Text, nullable=False),
    Index(None, "run_id"),
    sqlite_autoincrement=True,
)  # fmt: skip

conversations = Table(
    "conversations", metadata,
    _id(), _tenant(), _owner("agent_id", "agents.id"),
    _moment("created_at"), _moment("updated_at"), _moment("last_message_at", nullable=True),
    _moment("archived_at", nullable=True), _moment("deleted_at", nullable=True),
    Column("hidden", Boolean, nullable=False),
    Column("summary", Plain),
    Column("body", Text, nullable=False),
    Index(None, "tenant_id", "created_at", "id"),
    Index(None, "agent_id", "created_at", "id"),
)  # fmt: skip

conversation_blocks = Table(
    "conversation_blocks", metadata,
    _owner("conversation_id", "conversations.id", primary_key=True),
    _owner("block_id", "blocks.id", primary_key=True),
    _tenant(),
    Index(None, "block_id"),
)  # fmt: skip

context_inherited = Table(
    "context_inherited", metadata,
    _owner("context_id", "contexts.id", primary_key=True),
    Column("message_sequence", BigInteger, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("in_context", Boolean, nullable=False),
)  # fmt: skip
"""Messages that a context shares with the one it was forked from. They go only with their agent, as contexts do."""
