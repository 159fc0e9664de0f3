"""What a new agent is made of, and what a change makes of it (behaviour spec §1.2, §1.8, §5.1, §7.3, §8.5)."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from perdure.agent import profile
from perdure.agent.model_profile import base_config, model_profile, retuned, settings_view
from perdure.domain.errors import Invalid
from perdure.domain.messages import Message, Text, text_of
from perdure.domain.records import ModelInfo, Tool

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
GPT = ModelInfo(
    handle="openai/gpt-4o-mini", name="gpt-4o-mini", provider_name="openai", provider_type="openai",
    endpoint_type="openai", context_window=128_000, max_output_tokens=16_384,
)  # fmt: skip
CLAUDE = ModelInfo(
    handle="anthropic/c", name="c", provider_name="anthropic", provider_type="anthropic", endpoint_type="anthropic",
    context_window=200_000, max_output_tokens=64_000,
)  # fmt: skip
LOCAL = ModelInfo(
    handle="ollama/q", name="q", provider_name="ollama", provider_type="ollama", endpoint_type="ollama",
    context_window=8_000,
)  # fmt: skip


def tool(name: str, **fields: Any) -> Tool:
    """A tool of that name."""
    return Tool(id=f"tool-{name}", name=name, json_schema={"name": name}, created_at=NOW, updated_at=NOW, **fields)


def rules_of(fields: dict[str, Any], *names: str) -> list[tuple[str, str]]:
    """The rules of a new agent with these tools."""
    rules = profile.initial_rules(fields, [tool(name) for name in names])
    return [(rule["tool_name"], rule["type"]) for rule in rules]


def test_base_rules_come_with_named_tools() -> None:
    """Naming tools, or rules, brings the rules of base tools (spec §1.8)."""
    both = ("memory_insert", "send_message", "mine")
    expected = [("memory_insert", "continue_loop"), ("send_message", "exit_loop")]
    assert rules_of({"tools": ["memory_insert"]}, *both) == expected
    assert rules_of({"include_base_tool_rules": True}, *both) == expected
    own = {"tool_name": "memory_insert", "type": "exit_loop"}
    assert rules_of({"tool_rules": [own]}, "memory_insert") == [
        ("memory_insert", "exit_loop"), ("memory_insert", "continue_loop")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "fields", [{}, {"include_base_tools": True}, {"tools": []}, {"tools": ["x"], "include_base_tool_rules": False}]
)
def test_base_rules_stay_away(fields: dict[str, Any]) -> None:
    """Base tools alone bring no rules, nor does naming tools with the rules declined."""
    assert rules_of(fields, "memory_insert", "send_message") == []


@pytest.mark.parametrize(
    ("agent_type", "sleeptime", "names"),
    [
        ("letta_v1_agent", False, "conversation_search memory_replace memory_insert"),
        ("letta_v1_agent", True, "conversation_search archival_memory_search"),
        ("memgpt_agent", True, "send_message conversation_search archival_memory_search"),
        ("memgpt_v2_agent", False, "send_message conversation_search memory_replace memory_insert"),
        ("sleeptime_agent", True, "memory_replace memory_insert memory_rethink memory_finish_edits"),
        ("react_agent", False, ""),
        ("workflow_agent", False, ""),
    ],
)
def test_base_tools(agent_type: str, sleeptime: bool, names: str) -> None:
    """Each type has its own base tools; a current agent speaks without send_message (★S49)."""
    assert profile.base_tool_names(agent_type, sleeptime) == tuple(names.split())


@pytest.mark.parametrize(
    ("window", "limits"),
    [(1, (3, 5_000)), (8_000, (3, 5_000)), (8_001, (5, 15_000)), (128_000, (10, 25_000)), (128_001, (10, 40_000)),
     (200_001, (15, 40_000))],
)  # fmt: skip
def test_file_limits(window: int, limits: tuple[int, int]) -> None:
    """A larger window holds more of more files (spec §8.5)."""
    assert profile.file_limits(window) == limits


@pytest.mark.parametrize(
    ("wish", "effective"),
    [
        ({}, False),
        ({"parallel_tool_calls": True}, True),
        ({"model_settings": {}}, True),
        ({"model_settings": {"parallel_tool_calls": False}}, False),
        ({"model_settings": {}, "parallel_tool_calls": False}, False),
        ({"model_settings": {"parallel_tool_calls": True}, "parallel_tool_calls": False}, True),
        ({"llm_config": {"parallel_tool_calls": True}}, True),
    ],
)
def test_parallel_calls(wish: dict[str, Any], effective: bool) -> None:
    """The setting in force is llm's; settings always read true (spec §1.2, ★S81)."""
    made = model_profile(GPT, wish)
    assert made.llm["parallel_tool_calls"] is effective
    assert made.settings["parallel_tool_calls"] is True


def test_sent_settings() -> None:
    """A sent object means what its schema promises, but for the output limit, which stays the model's."""
    made = model_profile(GPT, {"model_settings": {"temperature": 0.2}})
    assert made.settings == {
        "provider_type": "openai", "max_output_tokens": 16_384, "temperature": 0.2, "parallel_tool_calls": True,
        "reasoning": {"reasoning_effort": "high"}, "strict": True,
    }  # fmt: skip
    assert (made.llm["temperature"], made.llm["reasoning_effort"], made.llm["strict"]) == (0.2, "high", True)
    thinking = {"type": "enabled", "budget_tokens": 2048, "clear_thinking": None}
    claude = model_profile(CLAUDE, {"model_settings": {"thinking": thinking, "max_output_tokens": 4096}})
    assert claude.settings["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert (claude.llm["enable_reasoner"], claude.llm["max_tokens"], claude.llm["temperature"]) == (True, 4096, 1.0)


def test_retuned() -> None:
    """A change of one thing leaves the rest; new settings replace the old."""
    made = model_profile(CLAUDE, {"context_window_limit": 9_000, "parallel_tool_calls": True})
    changed = retuned(made.llm, made.settings, {"max_tokens": 100})
    assert (changed.llm["context_window"], changed.llm["max_tokens"]) == (9_000, 100)
    assert (changed.settings["max_output_tokens"], changed.llm["parallel_tool_calls"]) == (100, True)
    assert retuned(made.llm, made.settings, {}) == made


def test_other_providers() -> None:
    """A provider without a settings form of its own reads back in OpenAI's; null fields are shown, not stored."""
    made = model_profile(LOCAL, {})
    assert made.settings["provider_type"] == "openai"
    assert "max_output_tokens" not in made.settings
    shown = settings_view(made.settings)
    assert shown is not None
    assert shown["max_output_tokens"] is None
    assert settings_view({}) is None
    assert base_config(LOCAL)["model_endpoint_type"] == "ollama"


def test_reasoners() -> None:
    """Models that think by themselves are known by name."""
    made = model_profile(msgspec.structs.replace(GPT, handle="openai/o3", name="o3"), {})
    assert (made.llm["enable_reasoner"], made.settings["reasoning"]) == (True, {"reasoning_effort": "medium"})


def test_new_agent() -> None:
    """A new agent has a system message with its blocks and rules in it (★S4)."""
    made = profile.new_agent(
        {
            "name": "Ada", "system": "Be kind.", "tools": ["memory_insert"],
            "memory_blocks": [{"label": "human", "value": "Bo"}],
        },
        GPT, now=NOW, tools=[tool("memory_insert")],
    )  # fmt: skip
    (system,) = made.messages
    text = text_of(system.content)
    assert (system.role, system.agent_id) == ("system", made.agent.id)
    assert text.startswith("Be kind.")
    assert "<human>" in text
    assert "memory_insert" in text.partition("<tool_usage_rules>")[2]
    assert made.blocks[0].description == profile.BLOCK_DESCRIPTIONS["human"]


def test_two_blocks_of_one_label() -> None:
    """Labels are unique within an agent, shared blocks included."""
    shared = profile.new_block({"label": "human", "value": ""}, NOW)
    with pytest.raises(Invalid, match="human"):
        profile.new_agent({"memory_blocks": [{"label": "human", "value": ""}]}, GPT, now=NOW, attached=[shared])


def test_legacy_opening() -> None:
    """The older loops begin with a boot and a login; a given opening replaces them, in their envelope."""
    made = profile.new_agent({"agent_type": "memgpt_agent"}, GPT, now=NOW, tools=[tool("send_message")])
    assert [m.role for m in made.messages] == ["system", "assistant", "tool", "user"]
    assert made.messages[1].tool_calls[0].id == made.messages[2].tool_returns[0].tool_call_id
    assert json.loads(text_of(made.messages[3].content))["type"] == "login"
    hello = Message(id="message-1", role="user", created_at=NOW, content=(Text("hi"),))
    given = profile.new_agent({"agent_type": "memgpt_agent"}, GPT, now=NOW, opening=[hello])
    assert json.loads(text_of(given.messages[1].content))["message"] == "hi"
    plain = profile.new_agent({}, GPT, now=NOW, opening=[hello])
    assert [text_of(m.content) for m in plain.messages[1:]] == ["hi"]
    assert len(profile.new_agent({"agent_type": "memgpt_agent"}, GPT, now=NOW, opening=[]).messages) == 1


def test_every_type_has_words() -> None:
    """Each type of agent has a system text of its own making, and none is empty."""
    for agent_type in ("letta_v1_agent", "memgpt_agent", "sleeptime_agent", "react_agent", "workflow_agent"):
        assert len(profile.new_agent({"agent_type": agent_type}, GPT, now=NOW).agent.system) > 100


def test_friendly_name() -> None:
    """The same id always gives the same name, of letters only."""
    agent_id = "agent-123e4567-e89b-42d3-a456-426614174000"
    assert profile.friendly_name(agent_id) == profile.friendly_name(agent_id)
    assert profile.friendly_name(agent_id).isalpha()


def test_secrets_keep_their_ids() -> None:
    """A secret that stays keeps its id, with a new value too; others go."""
    before = profile.new_secrets({"A": "1", "B": "2"}, (), NOW)
    after = profile.new_secrets({"A": "3", "C": "4"}, before, NOW)
    assert [(s.key, s.value) for s in after] == [("A", "3"), ("C", "4")]
    assert after[0].id == before[0].id


@pytest.mark.parametrize("name", ["Mars/Olympus", "../../etc/passwd", "Europe", "UTC\n"])
def test_time_zones(name: str) -> None:
    """A time zone that does not exist is refused rather than read as UTC."""
    assert profile.checked_timezone("Europe/Lisbon") == "Europe/Lisbon"
    with pytest.raises(Invalid):
        profile.checked_timezone(name)
