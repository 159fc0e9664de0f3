"""Which records a list is of, and which window of it: questions to the store."""

from datetime import datetime

import msgspec


class Page(msgspec.Struct, frozen=True):
    """A window of a list. Cursors are ids; `after` means later in the requested order (api-surface §5.5)."""

    limit: int = 50
    before: str | None = None
    after: str | None = None
    ascending: bool = False


class AgentQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which agents. Empty fields do not restrict."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    match_all_tags: bool = False
    query_text: str | None = None
    last_stop_reason: str | None = None
    identity_id: str | None = None
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None
    block_id: str | None = None
    created_by_id: str | None = None


class BlockQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which blocks. Empty fields do not restrict; the *_search fields match anywhere, ignoring case."""

    label: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    match_all_tags: bool = False
    label_search: str | None = None
    description_search: str | None = None
    value_search: str | None = None
    agents_eq: int | None = None
    agents_gt: int | None = None
    agents_lt: int | None = None
    templates_only: bool = False
    project_id: str | None = None
    identity_id: str | None = None


class ToolQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which tools. Empty fields do not restrict."""

    name: str | None = None
    names: tuple[str, ...] = ()
    tool_ids: tuple[str, ...] = ()
    tool_types: tuple[str, ...] = ()
    exclude_tool_types: tuple[str, ...] = ()
    search: str | None = None
    letta_only: bool = False
    agent_id: str | None = None


class MessageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages. `conversation_id`: None = all, `default` = the agent's own."""

    agent_id: str | None = None
    run_id: str | None = None
    step_id: str | None = None
    group_id: str | None = None
    conversation_id: str | None = None
    include_err: bool = False


class RunQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs. Empty fields do not restrict."""

    agent_ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    background: bool | None = None
    stop_reason: str | None = None
    conversation_id: str | None = None


class StepQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which steps. Empty fields do not restrict."""

    agent_id: str | None = None
    run_id: str | None = None
    model: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    tags: tuple[str, ...] = ()
    feedback: str | None = None
    has_feedback: bool | None = None
    trace_ids: tuple[str, ...] = ()
    project_id: str | None = None
