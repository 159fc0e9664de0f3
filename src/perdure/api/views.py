"""Records as the wire shows them: plain dicts with every documented field, null where there is nothing (spec §0.2).

Field sets: api-surface §7. `reply` turns them into bytes; nothing here reads a store.
"""

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from starlette.responses import Response

from perdure.agent.model_profile import base_config, settings_view
from perdure.domain.conversations import ConversationState
from perdure.domain.ids import DEFAULT_USER
from perdure.domain.messages import Usage
from perdure.domain.records import Agent, AgentState, Block, ModelInfo, Run, Secret, Step, Tool

View = dict[str, Any]

RELATIONS = frozenset({"blocks", "tools", "tags", "secrets", "sources", "identities", "managed_group"})
"""What an agent is shown with unless a caller of the current kind leaves it out (api-surface §6, trap 3)."""


def reply(value: Any) -> Response:
    """A JSON answer, encoded once and not validated again."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def moment(when: datetime | None) -> str | None:
    """ISO 8601 in UTC with microseconds."""
    return None if when is None else when.astimezone(UTC).isoformat(timespec="microseconds")


def _nanoseconds(when: datetime) -> int:
    return int(when.timestamp() * 1_000_000) * 1000


def agent_view(state: AgentState, relations: Collection[str] = RELATIONS, pending_approval: View | None = None) -> View:
    """An AgentState. Relations that are not named are empty, not absent."""
    agent = state.agent
    blocks = [block_view(block) for block in state.blocks] if "blocks" in relations else []
    secrets = [secret_view(secret, agent) for secret in agent.secrets] if "secrets" in relations else []
    return {
        "id": agent.id,
        "name": agent.name,
        "agent_type": agent.agent_type,
        "description": agent.description,
        "metadata": agent.metadata,
        "system": agent.system,
        "timezone": agent.timezone,
        "model": agent.model,
        "model_settings": settings_view(agent.model_settings),
        "llm_config": agent.llm,
        "embedding": agent.embedding,
        "embedding_config": agent.embedding_config,
        "response_format": agent.response_format,
        "compaction_settings": agent.compaction_settings,
        "memory": memory_view(agent, blocks),
        "blocks": blocks,
        "tools": [tool_view(tool) for tool in state.tools] if "tools" in relations else [],
        "tool_rules": agent.tool_rules,
        "tags": agent.tags if "tags" in relations else [],
        "sources": [],
        "secrets": secrets,
        "tool_exec_environment_variables": secrets,
        "identities": [],
        "identity_ids": agent.identity_ids,
        "managed_group": None,
        "multi_agent_group": None,
        "pending_approval": pending_approval,
        "message_ids": state.message_ids,
        "message_buffer_autoclear": agent.message_buffer_autoclear,
        "enable_sleeptime": agent.enable_sleeptime,
        "hidden": agent.hidden,
        "max_files_open": agent.max_files_open,
        "per_file_view_window_char_limit": agent.per_file_view_window_char_limit,
        "last_run_completion": moment(state.last_run_completion),
        "last_run_duration_ms": state.last_run_duration_ms,
        "last_stop_reason": state.last_stop_reason,
        **_echoed(agent.extra, "project_id", "template_id", "base_template_id", "deployment_id", "entity_id"),
        "created_at": moment(agent.created_at),
        "updated_at": moment(agent.updated_at),
        **_makers(),
    }


def _echoed(extra: View, *names: str) -> View:
    return {name: extra.get(name) for name in names}


def _makers() -> View:
    """Who made and last changed a thing; a server of one tenant has one user."""
    return {"created_by_id": DEFAULT_USER, "last_updated_by_id": DEFAULT_USER}


def memory_view(agent: Agent, blocks: Sequence[View]) -> View:
    """The older form of an agent's blocks."""
    return {
        "agent_type": agent.agent_type, "blocks": blocks, "file_blocks": [], "git_enabled": False,
        "prompt_template": "",
    }  # fmt: skip


def secret_view(secret: Secret, agent: Agent) -> View:
    """An environment variable; the encrypted form is never shown (★S77)."""
    return {
        "id": secret.id, "agent_id": agent.id, "key": secret.key, "value": secret.value, "value_enc": None,
        "description": None, "created_at": None, "updated_at": None,
        **_makers(),
    }  # fmt: skip


def block_view(block: Block) -> View:
    """A memory block."""
    return {
        "id": block.id,
        "label": block.label,
        "value": block.value,
        "limit": block.limit,
        "description": block.description,
        "read_only": block.read_only,
        "metadata": block.metadata,
        "tags": block.tags,
        "hidden": block.hidden,
        "is_template": bool(block.extra.get("is_template")),
        "preserve_on_migration": bool(block.extra.get("preserve_on_migration")),
        **_echoed(
            block.extra, "project_id", "template_id", "template_name", "base_template_id", "deployment_id", "entity_id"
        ),
        **_makers(),
    }


def tool_view(tool: Tool) -> View:
    """A tool. One that was made without a source type reads `json` (api-surface §6, trap 13)."""
    return {
        "id": tool.id,
        "name": tool.name,
        "tool_type": tool.tool_type,
        "description": tool.description,
        "source_type": tool.source_type or ("json" if tool.tool_type == "custom" else "python"),
        "source_code": tool.source_code,
        "json_schema": tool.json_schema,
        "args_json_schema": tool.args_json_schema,
        "tags": sorted(tool.tags),
        "return_char_limit": tool.return_char_limit,
        "default_requires_approval": tool.default_requires_approval,
        "enable_parallel_execution": bool(tool.enable_parallel_execution),
        "pip_requirements": tool.pip_requirements,
        "npm_requirements": tool.npm_requirements,
        "metadata_": tool.metadata or {},
        "project_id": tool.project_id,
        **_makers(),
    }


def conversation_view(state: ConversationState) -> View:
    """A conversation."""
    conversation = state.conversation
    return {
        "id": conversation.id,
        "agent_id": conversation.agent_id,
        "summary": conversation.summary,
        "description": conversation.description,
        "in_context_message_ids": state.message_ids,
        "isolated_block_ids": state.isolated_block_ids,
        "model": conversation.model,
        "model_settings": settings_view(conversation.model_settings or {}),
        "context_window_limit": conversation.context_window_limit,
        "archived": conversation.archived_at is not None,
        "archived_at": moment(conversation.archived_at),
        "hidden": conversation.hidden,
        "last_message_at": moment(conversation.last_message_at),
        "created_at": moment(conversation.created_at),
        "updated_at": moment(conversation.updated_at),
        **_makers(),
    }


def run_view(run: Run) -> View:
    """A run."""
    return {
        "id": run.id,
        "agent_id": run.agent_id,
        "status": run.status,
        "created_at": moment(run.created_at),
        "completed_at": moment(run.completed_at),
        "stop_reason": run.stop_reason,
        "background": run.background,
        "conversation_id": run.conversation_id,
        "metadata": run.metadata,
        "request_config": run.request_config,
        "callback_url": run.callback_url,
        "callback_sent_at": moment(run.callback_sent_at),
        "callback_status_code": run.callback_status_code,
        "callback_error": run.callback_error,
        "ttft_ns": run.ttft_ns,
        "total_duration_ns": run.total_duration_ns,
        "base_template_id": None,
    }


def run_usage_view(usage: Usage) -> View:
    """The tokens of a run."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": _prompt_details(usage),
        "completion_tokens_details": _completion_details(usage),
    }


def _prompt_details(usage: Usage) -> View | None:
    if usage.cached_input_tokens is None and usage.cache_write_tokens is None:
        return None
    return {
        "cached_tokens": usage.cached_input_tokens, "cache_read_tokens": usage.cached_input_tokens,
        "cache_creation_tokens": usage.cache_write_tokens,
    }  # fmt: skip


def _completion_details(usage: Usage) -> View | None:
    return None if usage.reasoning_tokens is None else {"reasoning_tokens": usage.reasoning_tokens}


def run_metrics_view(run: Run, steps: int, tools_used: Sequence[str]) -> View:
    """How long a run took, and with what."""
    return {
        "id": run.id, "agent_id": run.agent_id, "run_start_ns": _nanoseconds(run.created_at),
        "run_ns": run.total_duration_ns, "num_steps": steps, "tools_used": tools_used, "organization_id": None,
        "project_id": None, "template_id": None, "base_template_id": None,
    }  # fmt: skip


def step_view(step: Step) -> View:
    """A step, with its own usage."""
    usage = step.usage
    return {
        "id": step.id,
        "run_id": step.run_id,
        "agent_id": step.agent_id,
        "status": step.status,
        "stop_reason": step.stop_reason,
        "provider_id": None,
        "provider_name": step.provider_name,
        "provider_category": step.provider_category,
        "model": step.model,
        "model_handle": step.model_handle,
        "model_endpoint": step.model_endpoint,
        "context_window_limit": step.context_window_limit,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "prompt_tokens_details": _prompt_details(usage),
        "completion_tokens_details": _completion_details(usage),
        "error_type": step.error_type,
        "error_data": step.error_data,
        "feedback": step.feedback,
        "tags": step.tags,
        "messages": [],
        "origin": None,
        "project_id": None,
        "request_id": step.request_id,
        "tid": None,
        "trace_id": None,
    }


def step_metrics_view(step: Step) -> View:
    """How long a step took."""
    return {
        "id": step.id, "run_id": step.run_id, "agent_id": step.agent_id, "provider_id": None, "project_id": None,
        "template_id": None, "base_template_id": None, "step_start_ns": _nanoseconds(step.created_at),
        "step_ns": step.duration_ns, "llm_request_start_ns": None, "llm_request_ns": None, "tool_execution_ns": None,
    }  # fmt: skip


def model_view(info: ModelInfo) -> View:
    """A model, with the fields of the older LlmConfig beside the current ones."""
    return base_config(info) | {
        "name": info.name, "display_name": info.display_name or info.name, "model_type": "llm",
        "provider_type": info.provider_type, "max_context_window": info.context_window,
    }  # fmt: skip


def embedding_config(info: ModelInfo, chunk_size: int = 300) -> View:
    """The older EmbeddingConfig of a model."""
    return {
        "embedding_model": info.name, "embedding_endpoint_type": info.endpoint_type,
        "embedding_endpoint": info.endpoint, "embedding_dim": info.embedding_dim, "embedding_chunk_size": chunk_size,
        "batch_size": 32, "handle": info.handle, "azure_endpoint": None, "azure_version": None,
        "azure_deployment": None,
    }  # fmt: skip


def embedding_model_view(info: ModelInfo) -> View:
    """An embedding model."""
    return embedding_config(info) | {
        "name": info.name, "display_name": info.display_name or info.name, "provider_name": info.provider_name,
        "provider_type": info.provider_type, "model_type": "embedding",
    }  # fmt: skip
