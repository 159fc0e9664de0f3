"""Conversation records from requests: what a new one is, and what a change makes of an old one.

Pure functions over plain mappings (the set fields of the wire's CreateConversation and UpdateConversation), the agent
and the entry of the model that the caller has looked up (behaviour spec §6.3). Beside `profile`, which does the same
for agents.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from perdure.agent.model_profile import model_profile, retuned
from perdure.domain.conversations import Conversation
from perdure.domain.ids import new_id
from perdure.domain.records import Agent, ModelInfo

Fields = Mapping[str, Any]

TUNED = (
    "temperature", "max_tokens", "effort", "verbosity", "strict", "reasoning_effort", "enable_reasoner",
    "max_reasoning_tokens", "response_format", "tool_call_parser", "parallel_tool_calls",
)  # fmt: skip
"""The entries of a model configuration that settings stand for."""


def new_conversation(agent: Agent, fields: Fields, *, now: datetime, model: ModelInfo | None = None) -> Conversation:
    """A new conversation of the agent. `model` is the entry of the model that is named."""
    bare = Conversation(
        id=new_id("conv"), agent_id=agent.id, created_at=now, updated_at=now, hidden=bool(fields.get("hidden")),
        summary=fields.get("summary"), description=fields.get("description"),
        context_window_limit=fields.get("context_window_limit"),
    )  # fmt: skip
    return msgspec.structs.replace(bare, **_model_change(agent, bare, fields, model))


def revised(
    conversation: Conversation, agent: Agent, fields: Fields, *, now: datetime, model: ModelInfo | None = None
) -> Conversation:
    """The conversation after a change by the set `fields`, itself if nothing differs; null clears, save for `archived`.

    `model` is the entry of the model that it has afterwards, if the fields say anything of a model.
    """
    clearable = ("summary", "description", "context_window_limit", "last_message_at")
    change: dict[str, Any] = {key: fields[key] for key in clearable if key in fields}
    if fields.get("archived") is not None:
        change["archived_at"] = (conversation.archived_at or now) if fields["archived"] else None
    after = msgspec.structs.replace(conversation, **change, **_model_change(agent, conversation, fields, model))
    return conversation if after == conversation else msgspec.structs.replace(after, updated_at=now)


def forked(source: Conversation, *, now: datetime, hidden: bool) -> Conversation:
    """A new conversation that goes on from another one: the same words about it, the same model."""
    return msgspec.structs.replace(
        source, id=new_id("conv"), created_at=now, updated_at=now, hidden=hidden, last_message_at=None,
        archived_at=None,
    )  # fmt: skip


def _model_change(agent: Agent, before: Conversation, fields: Fields, model: ModelInfo | None) -> dict[str, Any]:
    """The model's part of a change. A new model begins untuned, as an agent's does."""
    handle = model.handle if model else None
    if "model_settings" not in fields and ("model" not in fields or handle == before.model):
        return {}
    sent = fields.get("model_settings")
    if model:
        llm, settings = model_profile(model, {"model_settings": sent})
        return {
            "model": handle, "model_settings": settings if sent is not None else None, "llm": llm, "settings": settings,
        }  # fmt: skip
    if sent is None:
        return {"model": None, "model_settings": None, "llm": {}, "settings": {}}
    llm, shown = retuned(agent.llm, agent.model_settings, {"model_settings": sent})
    settings = {key: value for key, value in shown.items() if key != "provider_type"}
    return {"model": None, "model_settings": shown, "llm": {key: llm[key] for key in TUNED}, "settings": settings}
