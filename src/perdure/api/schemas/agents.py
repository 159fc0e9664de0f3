"""Schemas of agents (api-surface §7, Agents)."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from perdure.api.schemas.blocks import Block, CreateBlock
from perdure.api.schemas.messages import ApprovalRequestMessage
from perdure.api.schemas.models import (
    CompactionSettings,
    EmbeddingConfig,
    LLMConfig,
    ModelSettings,
    PositiveInt,
    ResponseFormat,
)
from perdure.api.schemas.tools import Tool, ToolRule
from perdure.api.send_schema import MessageCreate

AgentType = Literal[
    "memgpt_agent", "memgpt_v2_agent", "letta_v1_agent", "react_agent", "workflow_agent", "split_thread_agent",
    "sleeptime_agent", "voice_convo_agent", "voice_sleeptime_agent",
]  # fmt: skip
Deprecated = Field(json_schema_extra={"deprecated": True})
Few = Annotated[list[str], Field(max_length=1000)]
Many = Annotated[list[str], Field(max_length=10_000)]
"""Lists of ids and names that end up in one database statement."""


class CreateAgentRequest(BaseModel):
    """A new agent. Unknown fields, unknown block ids and fields of the hosted service are ignored."""

    name: str | None = None
    agent_type: AgentType = "letta_v1_agent"
    description: str | None = None
    metadata: dict[str, Any] | None = None
    tags: Few | None = None
    system: str | None = None
    timezone: str | None = None
    hidden: bool | None = None
    model: str | None = None
    model_settings: ModelSettings | None = None
    context_window_limit: PositiveInt | None = None
    response_format: ResponseFormat | None = None
    compaction_settings: CompactionSettings | None = None
    embedding: str | None = None
    memory_blocks: list[CreateBlock] | None = None
    block_ids: Few | None = None
    tools: Few | None = None
    tool_ids: Few | None = None
    tool_rules: list[ToolRule] | None = None
    include_base_tools: bool | None = True
    include_base_tool_rules: bool | None = None
    include_multi_agent_tools: bool | None = False
    secrets: dict[str, str] | None = None
    initial_message_sequence: list[MessageCreate] | None = None
    message_buffer_autoclear: bool | None = False
    enable_sleeptime: bool | None = None
    max_files_open: Annotated[int, Field(ge=0)] | None = None
    per_file_view_window_char_limit: Annotated[int, Field(ge=0)] | None = None
    identity_ids: Few | None = None
    folder_ids: list[str] | None = None
    source_ids: Annotated[list[str] | None, Deprecated] = None
    llm_config: Annotated[LLMConfig | None, Deprecated] = None
    embedding_config: Annotated[EmbeddingConfig | None, Deprecated] = None
    embedding_chunk_size: Annotated[int | None, Deprecated] = None
    max_tokens: Annotated[PositiveInt | None, Deprecated] = None
    max_reasoning_tokens: Annotated[int | None, Deprecated] = None
    parallel_tool_calls: Annotated[bool | None, Deprecated] = None
    reasoning: Annotated[bool | None, Deprecated] = None
    enable_reasoner: Annotated[bool | None, Deprecated] = None
    tool_exec_environment_variables: Annotated[dict[str, str] | None, Deprecated] = None
    project_id: Annotated[str | None, Deprecated] = None
    template_id: Annotated[str | None, Deprecated] = None
    base_template_id: Annotated[str | None, Deprecated] = None


class UpdateAgent(BaseModel):
    """A change of an agent: only the fields that are sent; null clears what may be empty and leaves the rest alone."""

    name: str | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    tags: Few | None = None
    system: str | None = None
    timezone: str | None = None
    hidden: bool | None = None
    model: str | None = None
    model_settings: ModelSettings | None = None
    context_window_limit: PositiveInt | None = None
    response_format: ResponseFormat | None = None
    compaction_settings: CompactionSettings | None = None
    embedding: str | None = None
    block_ids: Few | None = None
    tool_ids: Few | None = None
    tool_rules: list[ToolRule] | None = None
    secrets: dict[str, str] | None = None
    message_ids: Many | None = None
    message_buffer_autoclear: bool | None = None
    enable_sleeptime: bool | None = None
    max_files_open: Annotated[int, Field(ge=0)] | None = None
    per_file_view_window_char_limit: Annotated[int, Field(ge=0)] | None = None
    identity_ids: Few | None = None
    folder_ids: list[str] | None = None
    source_ids: Annotated[list[str] | None, Deprecated] = None
    llm_config: Annotated[LLMConfig | None, Deprecated] = None
    embedding_config: Annotated[EmbeddingConfig | None, Deprecated] = None
    max_tokens: Annotated[PositiveInt | None, Deprecated] = None
    parallel_tool_calls: Annotated[bool | None, Deprecated] = None
    reasoning: Annotated[bool | None, Deprecated] = None
    tool_exec_environment_variables: Annotated[dict[str, str] | None, Deprecated] = None
    project_id: str | None = None
    template_id: str | None = None
    base_template_id: str | None = None


class AgentEnvironmentVariable(BaseModel):
    """A secret of an agent, in clear for those who may read the agent."""

    id: str
    agent_id: str
    key: str
    value: str
    value_enc: str | None
    description: str | None
    created_at: datetime | None
    updated_at: datetime | None
    created_by_id: str | None
    last_updated_by_id: str | None


class Memory(BaseModel):
    """The agent's blocks in their older form; deprecated."""

    agent_type: str | None
    blocks: list[Block]
    file_blocks: list[dict[str, Any]]
    git_enabled: bool
    prompt_template: str


class AgentState(BaseModel):
    """An agent. Relations that were not asked for are empty."""

    id: str
    name: str
    agent_type: AgentType
    description: str | None
    metadata: dict[str, Any] | None
    system: str
    timezone: str | None
    model: str | None
    model_settings: ModelSettings | None
    llm_config: LLMConfig
    embedding: str | None
    embedding_config: EmbeddingConfig | None
    response_format: ResponseFormat | None
    compaction_settings: CompactionSettings | None
    memory: Memory
    blocks: list[Block]
    tools: list[Tool]
    tool_rules: list[ToolRule] | None
    tags: list[str]
    sources: list[dict[str, Any]]
    secrets: list[AgentEnvironmentVariable]
    tool_exec_environment_variables: list[AgentEnvironmentVariable]
    identities: list[dict[str, Any]]
    identity_ids: list[str]
    managed_group: dict[str, Any] | None
    multi_agent_group: dict[str, Any] | None
    pending_approval: ApprovalRequestMessage | None
    message_ids: list[str] | None
    message_buffer_autoclear: bool
    enable_sleeptime: bool | None
    hidden: bool | None
    max_files_open: int | None
    per_file_view_window_char_limit: int | None
    last_run_completion: datetime | None
    last_run_duration_ms: int | None
    last_stop_reason: str | None
    project_id: str | None
    template_id: str | None
    base_template_id: str | None
    deployment_id: str | None
    entity_id: str | None
    created_at: datetime | None
    updated_at: datetime | None
    created_by_id: str | None
    last_updated_by_id: str | None


class Deleted(BaseModel):
    """What was deleted, in words."""

    message: str
