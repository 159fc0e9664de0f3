"""Agent records from requests: what a new agent is made of, and what a change makes of an old one.

Pure functions over plain mappings (the set fields of the wire's CreateAgentRequest and UpdateAgent), the model's entry
and the tools and blocks that the caller has looked up. Storing is the store's matter, versions included (behaviour spec
§1.8, §5.1, §7.1, §7.3, §8.5; ★S4, ★S49, ★S77).
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from perdure.agent.model_profile import model_profile, retuned
from perdure.agent.system_texts import default_system
from perdure.domain.clock import local_time
from perdure.domain.errors import Invalid
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, ToolCall, ToolReturn, text_of
from perdure.domain.records import Agent, Block, ModelInfo, Secret, Tool
from perdure.memory.prompt import compile_system

Fields = Mapping[str, Any]
Rule = dict[str, Any]

LEGACY_TYPES = ("memgpt_agent", "memgpt_v2_agent", "split_thread_agent")
_V1_TOOLS = ("conversation_search", "memory_replace", "memory_insert")
_MEMGPT_TOOLS = (
    "send_message", "conversation_search", "core_memory_append", "core_memory_replace", "memory", "memory_apply_patch",
)  # fmt: skip
BASE_TOOLS: Mapping[str, tuple[str, ...]] = {
    "letta_v1_agent": _V1_TOOLS,
    "memgpt_v2_agent": ("send_message", *_V1_TOOLS),
    "memgpt_agent": _MEMGPT_TOOLS,
    "split_thread_agent": _MEMGPT_TOOLS,
    "sleeptime_agent": ("memory_replace", "memory_insert", "memory_rethink", "memory_finish_edits"),
    "voice_convo_agent": ("send_message", "conversation_search"),
}
MULTI_AGENT_TOOLS = (
    "send_message_to_agent_and_wait_for_reply", "send_message_to_agents_matching_tags", "send_message_to_agent_async",
)  # fmt: skip
TERMINAL_TOOLS = ("send_message", "send_message_to_agent_async", "memory_finish_edits")
CONTINUING_TOOLS = (
    "conversation_search", "archival_memory_insert", "archival_memory_search", "core_memory_append",
    "core_memory_replace", "memory", "memory_apply_patch", "memory_insert", "memory_replace", "memory_rethink",
)  # fmt: skip
BLOCK_DESCRIPTIONS = {
    "persona": (
        "Who you are: your character, your manner of speaking, what you care about and what you have decided about "
        "yourself. Keep it in your own voice."
    ),
    "human": (
        "What you know about the person you talk with: name, circumstances, plans, likes and dislikes. Add what they "
        "tell you and correct what turns out wrong."
    ),
}
FILE_LIMITS = ((8_000, 3, 5_000), (32_000, 5, 15_000), (128_000, 10, 25_000), (200_000, 10, 40_000))
"""(context window up to, files open at most, characters shown of each); spec §8.5."""
LARGEST_FILE_LIMITS = (15, 40_000)
ECHOED = ("project_id", "template_id", "base_template_id")
"""Fields that are stored and shown, and mean nothing here."""

_FIRST = ("Amber", "Brisk", "Calm", "Clever", "Curious", "Gentle", "Keen", "Lively", "Merry", "Patient", "Quiet",
          "Steady", "Sunny", "Swift", "Thoughtful", "Witty")  # fmt: skip
_SECOND = ("Badger", "Beaver", "Finch", "Fox", "Hare", "Heron", "Ibex", "Lark", "Lynx", "Marten", "Otter", "Owl",
           "Raven", "Seal", "Swan", "Wren")  # fmt: skip


class NewAgent(msgspec.Struct, frozen=True):
    """What is stored when an agent is made: the record, its own new blocks, its first messages."""

    agent: Agent
    blocks: tuple[Block, ...]
    messages: tuple[Message, ...]


def new_agent(
    fields: Fields, model: ModelInfo, *, now: datetime, tools: Sequence[Tool] = (), attached: Sequence[Block] = (),
    opening: Sequence[Message] | None = None, embedding: Fields | None = None,
) -> NewAgent:
    """A new agent with its system message and whatever it begins with.

    `attached` are existing blocks it shares, `opening` the caller's own first messages (None: those of its type),
    `embedding` the configuration of its embedding model. Raises Invalid for two blocks of one label or an unknown
    time zone.
    """
    agent_id = new_id("agent")
    blocks = tuple(new_block(given, now) for given in fields.get("memory_blocks") or ())
    check_labels([*attached, *blocks])
    agent = _record(agent_id, fields, model, tools, embedding, now)
    system = compile_system(agent, [*attached, *blocks], tools, compiled_at=now)
    first = Message(id=new_id("message"), role="system", created_at=now, content=(Text(system),), agent_id=agent_id)
    begun = opening_messages(agent, tools, now) if opening is None else _opening(agent, opening, now)
    return NewAgent(agent, blocks, (first, *begun))


def _record(
    agent_id: str, fields: Fields, model: ModelInfo, tools: Sequence[Tool], embedding: Fields | None, now: datetime
) -> Agent:
    agent_type = fields.get("agent_type") or "letta_v1_agent"
    profile = model_profile(model, fields)
    files, characters = file_limits(profile.llm["context_window"])
    name, most, view = fields.get("name"), fields.get("max_files_open"), fields.get("per_file_view_window_char_limit")
    return Agent(
        id=agent_id,
        name=friendly_name(agent_id) if name is None else name,
        agent_type=agent_type,
        system=fields["system"] if fields.get("system") is not None else default_system(agent_type),
        model=model.handle,
        llm=profile.llm,
        model_settings=profile.settings,
        created_at=now,
        updated_at=now,
        description=fields.get("description"),
        embedding=fields.get("embedding") or (embedding or {}).get("handle"),
        embedding_config=dict(embedding) if embedding else None,
        metadata=fields.get("metadata"),
        tags=sorted_tags(fields.get("tags")),
        tool_rules=tuple(initial_rules(fields, tools)),
        timezone=checked_timezone(fields.get("timezone") or "UTC"),
        secrets=new_secrets(_variables(fields) or {}, (), now),
        compaction_settings=fields.get("compaction_settings"),
        response_format=fields.get("response_format"),
        message_buffer_autoclear=bool(fields.get("message_buffer_autoclear")),
        enable_sleeptime=fields.get("enable_sleeptime"),
        hidden=fields.get("hidden"),
        max_files_open=files if most is None else most,
        per_file_view_window_char_limit=characters if view is None else view,
        identity_ids=tuple(fields.get("identity_ids") or ()),
        extra={key: fields[key] for key in ECHOED if fields.get(key) is not None},
    )


_CLEARABLE = (
    "description", "metadata", "hidden", "response_format", "compaction_settings", "enable_sleeptime", "max_files_open",
    "per_file_view_window_char_limit",
)  # fmt: skip
_PLAIN = ("name", "system", "message_buffer_autoclear")


def revised(
    agent: Agent, fields: Fields, *, now: datetime, model: ModelInfo | None = None, embedding: Fields | None = None,
    new_tools: Iterable[Tool] = (),
) -> Agent:
    """The agent after a change by the set `fields`, itself if nothing differs; null clears what may be empty only.

    `model` is the entry of a newly named model, `new_tools` those that the change attaches. Raises Invalid for an
    unknown time zone.
    """
    change: dict[str, Any] = {key: fields[key] for key in _CLEARABLE if key in fields}
    change |= {key: fields[key] for key in _PLAIN if fields.get(key) is not None}
    if fields.get("timezone") is not None:
        change["timezone"] = checked_timezone(fields["timezone"])
    if fields.get("tags") is not None:
        change["tags"] = sorted_tags(fields["tags"])
    if fields.get("identity_ids") is not None:
        change["identity_ids"] = tuple(fields["identity_ids"])
    variables = _variables(fields)
    if variables is not None:
        change["secrets"] = new_secrets(variables, agent.secrets, now)
    if "embedding" in fields or "embedding_config" in fields:
        change |= _embedding_change(fields, embedding)
    rules = fields["tool_rules"] if fields.get("tool_rules") is not None else agent.tool_rules
    change["tool_rules"] = tuple(with_approvals(rules, new_tools))
    echoed = {key: fields[key] for key in ECHOED if key in fields}
    change["extra"] = {key: value for key, value in (agent.extra | echoed).items() if value is not None}
    after = msgspec.structs.replace(agent, **change, **_model_change(agent, fields, model))
    return agent if after == agent else msgspec.structs.replace(after, updated_at=now)


def _model_change(agent: Agent, fields: Fields, model: ModelInfo | None) -> dict[str, Any]:
    """The model's part of a change. A new model begins untuned, but for whether calls may be parallel."""
    if model is None:
        profile = retuned(agent.llm, agent.model_settings, fields)
        return {"llm": profile.llm, "model_settings": profile.settings}
    kept = {"parallel_tool_calls": agent.llm.get("parallel_tool_calls")}
    said = {key: value for key, value in fields.items() if value is not None}
    if "model_settings" in said:
        kept = {}
    profile = model_profile(model, kept | said)
    return {"model": model.handle, "llm": profile.llm, "model_settings": profile.settings}


def _embedding_change(fields: Fields, embedding: Fields | None) -> dict[str, Any]:
    handle = fields.get("embedding") or (embedding or {}).get("handle")
    return {"embedding": handle, "embedding_config": dict(embedding) if embedding else None}


# --- parts -------------------------------------------------------------------------------------------------------


def base_tool_names(agent_type: str, enable_sleeptime: bool) -> tuple[str, ...]:
    """The tools of `include_base_tools` (spec §7.3); a current agent speaks without send_message (★S49)."""
    if not enable_sleeptime or agent_type == "sleeptime_agent":
        return BASE_TOOLS.get(agent_type, ())
    searches = ("conversation_search", "archival_memory_search")
    return ("send_message", *searches) if agent_type in LEGACY_TYPES else searches


def initial_rules(fields: Fields, tools: Sequence[Tool]) -> list[Rule]:
    """The caller's rules, then those of base tools (if the request names tools or rules), then approvals."""
    rules: list[Rule] = [dict(rule) for rule in fields.get("tool_rules") or ()]
    wanted = fields.get("include_base_tool_rules")
    if wanted or (wanted is None and (fields.get("tools") or rules)):
        rules += [rule for tool in tools if (rule := base_rule(tool.name))]
    return with_approvals(rules, tools)


def base_rule(tool_name: str) -> Rule | None:
    """The rule that comes with a base tool (spec §1.8)."""
    kind = "exit_loop" if tool_name in TERMINAL_TOOLS else "continue_loop" if tool_name in CONTINUING_TOOLS else None
    return {"tool_name": tool_name, "type": kind, "prompt_template": None} if kind else None


def with_approvals(rules: Iterable[Fields], tools: Iterable[Tool]) -> list[Rule]:
    """The rules with one for each of these tools that asks for approval by default and has none yet."""
    every = [dict(rule) for rule in rules]
    for tool in tools:
        if tool.default_requires_approval and not requires_approval(every, tool.name):
            every.append(approval_rule(tool.name))
    return every


def approval_rule(tool_name: str) -> Rule:
    """The rule that a tool's calls wait for approval."""
    return {"tool_name": tool_name, "type": "requires_approval", "prompt_template": None}


def requires_approval(rules: Iterable[Fields], tool_name: str) -> bool:
    """Whether the rules make this tool wait."""
    return any(rule["type"] == "requires_approval" and rule["tool_name"] == tool_name for rule in rules)


def approval_set(agent: Agent, tool_name: str, required: bool, now: datetime) -> Agent:
    """The agent with or without the approval rule of a tool; itself if nothing changes (spec §5.1)."""
    if requires_approval(agent.tool_rules, tool_name) == required:
        return agent
    others = [r for r in agent.tool_rules if not (r["type"] == "requires_approval" and r["tool_name"] == tool_name)]
    rules = (*others, approval_rule(tool_name)) if required else tuple(others)
    return msgspec.structs.replace(agent, tool_rules=rules, updated_at=now)


def new_block(given: Fields, now: datetime) -> Block:
    """A block from its wire form; persona and human have a description of their own if none is given."""
    known = ("label", "value", "limit", "read_only", "hidden")
    echoed = ("is_template", "preserve_on_migration", "project_id", "template_id", "template_name", "base_template_id",
              "deployment_id", "entity_id")  # fmt: skip
    description = given.get("description")
    return Block(
        id=new_id("block"),
        created_at=now,
        updated_at=now,
        description=BLOCK_DESCRIPTIONS.get(given["label"]) if description is None else description,
        metadata=given.get("metadata") or {},
        tags=sorted_tags(given.get("tags")),
        extra={key: given[key] for key in echoed if given.get(key)},
        **{key: given[key] for key in known if given.get(key) is not None},
    )


def check_labels(blocks: Iterable[Block]) -> None:
    """Raises Invalid if two blocks of one agent have the same label."""
    seen: set[str] = set()
    for block in blocks:
        if block.label in seen:
            raise Invalid(f"Two memory blocks have the label {block.label!r}. Labels are unique within an agent.")
        seen.add(block.label)


def sorted_tags(tags: Iterable[str] | None) -> tuple[str, ...]:
    """Tags without repeats, in order."""
    return tuple(sorted(set(tags or ())))


def checked_timezone(name: str) -> str:
    """The name itself. Raises Invalid if this machine knows time zones and not this one."""
    if _knows(name) or not _knows("Europe/London"):
        return name
    raise Invalid(f"{name!r} is no time zone. Use a name such as 'Europe/Lisbon' or 'UTC'.")


def _knows(timezone: str) -> bool:
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def _variables(fields: Fields) -> dict[str, str] | None:
    """Secrets under either of their names; None if neither was sent."""
    sent = [fields[key] for key in ("tool_exec_environment_variables", "secrets") if fields.get(key) is not None]
    return {key: value for variables in sent for key, value in variables.items()} if sent else None


def new_secrets(variables: Mapping[str, str], before: Iterable[Secret], now: datetime) -> tuple[Secret, ...]:
    """These secrets and no others; one that was there keeps its id."""
    known = {secret.key: secret for secret in before}
    made = []
    for key, value in variables.items():
        old = known.get(key)
        if old is None:
            made.append(Secret(id=new_id("agent-env"), key=key, value=value, created_at=now))
        else:
            made.append(old if old.value == value else msgspec.structs.replace(old, value=value))
    return tuple(made)


def file_limits(context_window: int) -> tuple[int, int]:
    """How many files an agent may hold open, and how many characters of each it sees (spec §8.5)."""
    for up_to, files, characters in FILE_LIMITS:
        if context_window <= up_to:
            return files, characters
    return LARGEST_FILE_LIMITS


def friendly_name(agent_id: str) -> str:
    """A name for an agent that was given none; the same id always gives the same name."""
    number = uuid.UUID(agent_id.partition("-")[2]).int
    return f"{_FIRST[number % len(_FIRST)]}{_SECOND[number // len(_FIRST) % len(_SECOND)]}"


# --- first messages ----------------------------------------------------------------------------------------------


def _opening(agent: Agent, given: Sequence[Message], now: datetime) -> list[Message]:
    """The caller's own first messages; the older loops keep a user's words in an envelope (spec §1.8)."""
    placed = [msgspec.structs.replace(message, agent_id=agent.id) for message in given]
    if agent.agent_type not in LEGACY_TYPES:
        return placed
    return [_enveloped(message, agent, now) if message.role == "user" else message for message in placed]


def _enveloped(message: Message, agent: Agent, now: datetime) -> Message:
    if any(not isinstance(part, Text) for part in message.content):
        return message
    inner = {"type": "user_message", "message": text_of(message.content), "time": local_time(now, agent.timezone)}
    return msgspec.structs.replace(message, content=(Text(json.dumps(inner, ensure_ascii=False)),))


def opening_messages(agent: Agent, tools: Sequence[Tool], now: datetime) -> list[Message]:
    """What an agent of this type finds said when it begins: nothing, or for the older loops a boot and a login."""
    if agent.agent_type not in LEGACY_TYPES:
        return []
    login = {"type": "login", "last_login": "never", "time": local_time(now, agent.timezone)}
    hello = _stored(agent, now, "user", content=(Text(json.dumps(login, ensure_ascii=False)),))
    return [*_boot(agent, now), hello] if any(tool.name == "send_message" for tool in tools) else [hello]


def _boot(agent: Agent, now: datetime) -> list[Message]:
    """A first exchange that shows how to speak through send_message."""
    call = ToolCall(
        f"call_{uuid.uuid4().hex[:24]}", "send_message", json.dumps({"message": "I am here. What can I do for you?"})
    )
    said = ToolReturn(call.id, "Sent message successfully.", name=call.name)
    thought = Text("I have just come to life. I greet whoever is there.")
    return [
        _stored(agent, now, "assistant", content=(thought,), tool_calls=(call,)),
        _stored(agent, now, "tool", tool_returns=(said,)),
    ]


def _stored(agent: Agent, now: datetime, role: Any, **fields: Any) -> Message:
    return Message(id=new_id("message"), role=role, created_at=now, agent_id=agent.id, **fields)
