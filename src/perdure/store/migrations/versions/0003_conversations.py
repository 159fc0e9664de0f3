"""Conversations: their records, the blocks they have for themselves, and the messages a fork shares."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

TEXT, LONG, FLAG = sa.Text(), sa.BigInteger(), sa.Boolean()


def upgrade() -> None:
    """Three tables, and an index of the messages that are not of an agent's own conversation."""
    op.create_table(
        "conversations",
        _column("id", TEXT), _column("tenant_id", TEXT), _column("agent_id", TEXT),
        _column("created_at", LONG), _column("updated_at", LONG), _column("last_message_at", LONG, optional=True),
        _column("archived_at", LONG, optional=True), _column("deleted_at", LONG, optional=True),
        _column("hidden", FLAG), _column("summary", TEXT, optional=True), _column("body", TEXT),
        sa.PrimaryKeyConstraint("id", name="pk_conversations"), _owned("conversations", "agent_id", "agents"),
    )  # fmt: skip
    op.create_index("ix_conversations_tenant_id_created_at_id", "conversations", ["tenant_id", "created_at", "id"])
    op.create_index("ix_conversations_agent_id_created_at_id", "conversations", ["agent_id", "created_at", "id"])
    op.create_table(
        "conversation_blocks",
        _column("conversation_id", TEXT), _column("block_id", TEXT), _column("tenant_id", TEXT),
        sa.PrimaryKeyConstraint("conversation_id", "block_id", name="pk_conversation_blocks"),
        _owned("conversation_blocks", "conversation_id", "conversations"),
        _owned("conversation_blocks", "block_id", "blocks"),
    )  # fmt: skip
    op.create_index("ix_conversation_blocks_block_id", "conversation_blocks", ["block_id"])
    op.create_table(
        "context_inherited",
        _column("context_id", TEXT), _column("message_sequence", LONG), _column("position", LONG),
        _column("in_context", FLAG),
        sa.PrimaryKeyConstraint("context_id", "message_sequence", name="pk_context_inherited"),
        _owned("context_inherited", "context_id", "contexts"),
    )  # fmt: skip
    elsewhere = sa.text("conversation_id IS NOT NULL")
    op.create_index(
        "ix_messages_conversation", "messages", ["conversation_id", "sequence_id"],
        postgresql_where=elsewhere, sqlite_where=elsewhere,
    )  # fmt: skip


def _column(name: str, kind: sa.types.TypeEngine[Any], *, optional: bool = False) -> "sa.Column[Any]":
    return sa.Column(name, kind, nullable=optional)


def _owned(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
