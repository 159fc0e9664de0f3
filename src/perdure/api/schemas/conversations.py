"""Schemas of conversations (api-surface §7, Conversation, CreateConversation, UpdateConversation)."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel

from perdure.api.schemas.models import ModelSettings, PositiveInt


def _in_utc(moment: datetime) -> datetime:
    """The same moment in UTC, which is meant where no zone is named. Raises ValueError at the ends of time."""
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("Not a moment that a clock can show. Send one in UTC.") from error


Moment = Annotated[datetime, AfterValidator(_in_utc)]


class CreateConversation(BaseModel):
    """A new conversation. What it says of its model goes before what the agent says."""

    summary: str | None = None
    description: str | None = None
    model: str | None = None
    model_settings: ModelSettings | None = None
    context_window_limit: PositiveInt | None = None
    hidden: bool | None = None
    isolated_block_labels: list[str] | None = None
    """Blocks of the agent that this conversation gets copies of, for itself alone."""


class UpdateConversation(BaseModel):
    """A change of a conversation: only the fields that are sent; null clears, save for `archived`."""

    summary: str | None = None
    description: str | None = None
    model: str | None = None
    model_settings: ModelSettings | None = None
    context_window_limit: PositiveInt | None = None
    archived: bool | None = None
    last_message_at: Moment | None = None


class RecompileRequest(BaseModel):
    """Whose system message, if the path says `default`. Settings of compaction change nothing here."""

    agent_id: str | None = None
    compaction_settings: dict[str, Any] | None = None


class Conversation(BaseModel):
    """A conversation beside the agent's own."""

    id: str
    agent_id: str
    summary: str | None
    description: str | None
    in_context_message_ids: list[str]
    isolated_block_ids: list[str]
    model: str | None
    model_settings: ModelSettings | None
    context_window_limit: int | None
    archived: bool | None
    archived_at: datetime | None
    hidden: bool
    last_message_at: datetime | None
    created_at: datetime | None
    updated_at: datetime | None
    created_by_id: str | None
    last_updated_by_id: str | None
