"""What exists besides messages: agents, blocks, tools, runs, steps, models (api-surface §7).

These are the stored facts; response bodies are made from them in `api`.
"""

from datetime import datetime
from typing import Any

import msgspec

from perdure.domain.messages import Message, Usage

DEFAULT_BLOCK_LIMIT = 100_000
DEFAULT_RETURN_LIMIT = 50_000
DEFAULT_MAX_STEPS = 50


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A labelled piece of core memory; may be attached to many agents."""

    id: str
    label: str
    value: str
    created_at: datetime
    updated_at: datetime
    limit: int = DEFAULT_BLOCK_LIMIT
    description: str | None = None
    read_only: bool = False
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    hidden: bool | None = None
    version: int = 1
    """Counts changes; an edit made from an older version is refused and tried again on the newer text."""
    extra: dict[str, Any] = {}
    """Fields stored and echoed only: is_template, template_id, project_id, …"""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Something an agent can call. `json_schema` = {name, description, parameters}."""

    id: str
    name: str
    json_schema: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    tool_type: str = "custom"
    description: str | None = None
    source_type: str | None = None
    source_code: str | None = None
    args_json_schema: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    return_char_limit: int = DEFAULT_RETURN_LIMIT
    default_requires_approval: bool | None = None
    enable_parallel_execution: bool | None = None
    pip_requirements: list[dict[str, Any]] | None = None
    npm_requirements: list[dict[str, Any]] | None = None
    metadata: dict[str, Any] | None = None
    project_id: str | None = None


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's environment variable for its tools."""

    id: str
    key: str
    value: str
    created_at: datetime


class Agent(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as it was configured. `llm` is the effective model configuration (api-surface, LlmConfig)."""

    id: str
    name: str
    agent_type: str
    system: str
    model: str
    llm: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    model_settings: dict[str, Any] = {}
    description: str | None = None
    embedding: str | None = None
    embedding_config: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    tags: tuple[str, ...] = ()
    tool_rules: tuple[dict[str, Any], ...] = ()
    timezone: str = "UTC"
    secrets: tuple[Secret, ...] = ()
    compaction_settings: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    message_buffer_autoclear: bool = False
    enable_sleeptime: bool | None = None
    hidden: bool | None = None
    max_files_open: int | None = None
    per_file_view_window_char_limit: int | None = None
    identity_ids: tuple[str, ...] = ()
    extra: dict[str, Any] = {}
    """Fields stored and echoed only: project_id, template_id, base_template_id, …"""


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """An agent with everything a read of it shows."""

    agent: Agent
    blocks: tuple[Block, ...] = ()
    tools: tuple[Tool, ...] = ()
    message_ids: tuple[str, ...] = ()
    last_stop_reason: str | None = None
    last_run_completion: datetime | None = None
    last_run_duration_ms: int | None = None


class Context(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a run needs of a context: the agent and the messages in it, system message first.

    `revision` counts changes other than appending; `agent_version` is that of the agent when this was read;
    `compiled_version` that of the agent when the system message was compiled.
    """

    id: str
    agent: Agent
    blocks: tuple[Block, ...]
    tools: tuple[Tool, ...]
    messages: list[Message]
    agent_version: int
    compiled_version: int
    compiled_at: datetime
    revision: int
    last_sequence: int
    hidden_count: int
    """Stored messages outside the context when the system message was compiled (spec §1.2, memory_metadata)."""
    conversation_id: str | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One request. Statuses: created → running → completed | failed | cancelled (spec §9.1)."""

    id: str
    agent_id: str
    context_id: str
    created_at: datetime
    status: str = "running"
    stop_reason: str | None = None
    completed_at: datetime | None = None
    conversation_id: str | None = None
    background: bool = False
    metadata: dict[str, Any] = {}
    request_config: dict[str, Any] | None = None
    callback_url: str | None = None
    callback_sent_at: datetime | None = None
    callback_status_code: int | None = None
    callback_error: str | None = None
    callback_tries: int = 0
    """How often the callback has been tried."""
    ttft_ns: int | None = None
    total_duration_ns: int | None = None
    usage: Usage = Usage()
    step_count: int = 0
    context_tokens: int | None = None
    error_kind: str = ""
    """The name of the error's class, by which whoever asks later is told the same."""
    input_count: int = 0
    """How many of its messages were given to it; they are the first ones."""
    otids: tuple[str, ...] = ()
    """The caller's own ids of the input messages, none if any message came without."""
    streamed: bool = False
    """Whether what it tells is written to the run log."""
    worker: str = ""
    """The process that has the run."""
    epoch: int = 1
    """The fencing number: a write by a worker that holds an older one changes nothing."""


def ended(run: Run, status: str, stop_reason: str, at: datetime, usage: Usage, **changes: Any) -> Run:
    """The run as it is recorded when it is over."""
    return msgspec.structs.replace(
        run, status=status, stop_reason=stop_reason, completed_at=at, usage=usage,
        total_duration_ns=int((at - run.created_at).total_seconds() * 1e9), **changes,
    )  # fmt: skip


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One model call plus the tools it triggered (spec §9.2)."""

    id: str
    run_id: str
    agent_id: str
    created_at: datetime
    status: str = "success"
    stop_reason: str | None = None
    provider_name: str | None = None
    provider_category: str | None = "base"
    model: str | None = None
    model_handle: str | None = None
    model_endpoint: str | None = None
    context_window_limit: int | None = None
    usage: Usage = Usage()
    error_type: str | None = None
    error_data: dict[str, Any] | None = None
    feedback: str | None = None
    tags: tuple[str, ...] = ()
    request_id: str | None = None
    duration_ns: int | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that a configured provider really offers. `handle` = provider/model."""

    handle: str
    name: str
    provider_name: str
    provider_type: str
    endpoint_type: str
    endpoint: str | None = None
    context_window: int = 32_000
    max_output_tokens: int | None = None
    kind: str = "llm"
    """`llm` or `embedding`."""
    embedding_dim: int | None = None
    display_name: str | None = None
