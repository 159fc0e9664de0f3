"""The system message: the agent's text with its memory injected (behaviour spec §1.2).

Pure text in, text out. Volatile facts (time of compiling, counts) stand last so that the prefix stays the same
between compilations and providers can reuse what they cached.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from perdure.domain.clock import local_time
from perdure.domain.records import Agent, Block, Tool

PLACEHOLDER = "{CORE_MEMORY}"
NUMBERED_TYPES = ("letta_v1_agent", "memgpt_v2_agent", "sleeptime_agent")
WITHOUT_BLOCKS = ("react_agent", "workflow_agent")
SKILL_PREFIX = "skills/"


def compile_system(
    agent: Agent, blocks: Sequence[Block], tools: Sequence[Tool], *, compiled_at: datetime, hidden_count: int = 0,
    conversation_id: str | None = None,
) -> str:
    """The text of message 0. The memory section replaces `{CORE_MEMORY}`, or follows the agent's text."""
    sections = [
        memory_blocks(agent, blocks),
        tool_usage_rules(agent.tool_rules, tools),
        memory_metadata(agent, compiled_at, hidden_count, conversation_id),
    ]
    memory = "\n\n".join(section for section in sections if section)
    if PLACEHOLDER in agent.system:
        return agent.system.replace(PLACEHOLDER, memory)
    return f"{agent.system}\n\n{memory}"


def memory_blocks(agent: Agent, blocks: Sequence[Block]) -> str:
    """One element per block, named by its label; lines are numbered for Anthropic models (spec §1.2)."""
    if agent.agent_type in WITHOUT_BLOCKS or not blocks:
        return ""
    numbered = agent.llm.get("model_endpoint_type") == "anthropic" and agent.agent_type in NUMBERED_TYPES
    shown = "\n\n".join(_block(block, numbered) for block in sorted(blocks, key=lambda b: b.created_at))
    return (
        "<memory_blocks>\nThese blocks are always in your context; change them with your memory tools.\n\n"
        f"{shown}\n</memory_blocks>"
    )


def _block(block: Block, numbered: bool) -> str:
    facts = ["- read_only=true"] if block.read_only else []
    facts += [f"- chars_current={len(block.value)}", f"- chars_limit={block.limit}"]
    value, warning = block.value, ""
    if numbered:
        value = "\n".join(f"{n}→ {line}" for n, line in enumerate(value.split("\n"), 1))
        warning = "<warning>\nThe line numbers are for orientation only. Never copy them into a memory.\n</warning>\n"
    return (
        f"<{block.label}>\n<description>\n{block.description or ''}\n</description>\n"
        f"<metadata>\n{chr(10).join(facts)}\n</metadata>\n{warning}<value>\n{value}\n</value>\n</{block.label}>"
    )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


RULE_WORDS: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "continue_loop": lambda r: f"After {r['tool_name']} you always get another step.",
    "constrain_child_tools": lambda r: f"After {r['tool_name']} you must use one of: {_names(r['children'])}.",
    "conditional": lambda r: f"The result of {r['tool_name']} decides which tool you may use next.",
    "max_count_per_step": lambda r: f"You may use {r['tool_name']} at most {r['max_count_limit']} times per request.",
    "parent_last_tool": lambda r: f"{_names(r['children'])} may be used only right after {r['tool_name']}.",
    "exit_loop": lambda r: f"Using {r['tool_name']} ends your turn.",
}


def tool_usage_rules(rules: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> str:
    """What the rules of attached tools mean, in words; empty when none is worth telling."""
    attached = {tool.name for tool in tools}
    lines = [
        RULE_WORDS[rule["type"]](dict(rule))
        for rule in rules
        if rule["type"] in RULE_WORDS and rule["tool_name"] in attached
    ]
    if not lines:
        return ""
    return "<tool_usage_rules>\n" + "\n".join(f"- {line}" for line in lines) + "\n</tool_usage_rules>"


def memory_metadata(agent: Agent, compiled_at: datetime, hidden_count: int, conversation_id: str | None) -> str:
    """Facts about this compilation."""
    return (
        "<memory_metadata>\n"
        f"- AGENT_ID: {agent.id}\n"
        f"- CONVERSATION_ID: {conversation_id or 'default'}\n"
        f"- System prompt last recompiled: {local_time(compiled_at, agent.timezone)}\n"
        f"- {hidden_count} previous messages are stored in recall memory (use conversation_search)\n"
        "</memory_metadata>"
    )


def available_skills(blocks: Sequence[Block], client_skills: Sequence[Mapping[str, str]]) -> str:
    """The `<available_skills>` section for one request; an agent's own skill wins over a client's of that name."""
    skills = {
        block.label.removeprefix(SKILL_PREFIX): (block.description or block.value, f"block {block.label}")
        for block in blocks
        if block.label.startswith(SKILL_PREFIX)
    }
    for skill in client_skills:
        skills.setdefault(skill["name"], (skill["description"], skill["location"]))
    if not skills:
        return ""
    lines = [
        f"- {name}: {(text.strip().splitlines() or [''])[0]} (location: {place})"
        for name, (text, place) in skills.items()
    ]
    return "<available_skills>\n" + "\n".join(lines) + "\n</available_skills>"
