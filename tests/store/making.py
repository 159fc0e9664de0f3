"""Records for the store's tests: the smallest that say what a test needs."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Part, Text
from perdure.domain.ports import StepCommit
from perdure.domain.records import Agent, AgentState, Block, Run, Step, Tool
from perdure.store import SqlStore

NOON = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def at(minutes: float) -> datetime:
    """A moment so long after noon."""
    return NOON + timedelta(minutes=minutes)


def an_agent(name: str = "Ada", *, minutes: float = 0, **fields: Any) -> Agent:
    known = {
        "id": new_id("agent"), "name": name, "agent_type": "letta_v1_agent", "system": "Be kind.",
        "model": "demo/script", "llm": {"context_window": 8000}, "created_at": at(minutes), "updated_at": at(minutes),
    }  # fmt: skip
    return Agent(**{**known, **fields})


def a_block(label: str = "human", value: str = "Unknown.", *, minutes: float = 0, **fields: Any) -> Block:
    return Block(
        id=new_id("block"), label=label, value=value, created_at=at(minutes), updated_at=at(minutes), **fields
    )  # fmt: skip


def a_tool(name: str = "add", *, minutes: float = 0, **fields: Any) -> Tool:
    schema = {"name": name, "description": "", "parameters": {"type": "object", "properties": {}}}
    known = {"json_schema": schema, "created_at": at(minutes), "updated_at": at(minutes)}
    return Tool(id=new_id("tool"), name=name, **{**known, **fields})


def said(*content: str | Part, role: Any = "user", minutes: float = 0, **fields: Any) -> Message:
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    return Message(id=new_id("message"), role=role, created_at=at(minutes), content=parts, **fields)


def a_run(agent_id: str, *, minutes: float = 0, **fields: Any) -> Run:
    known = {"context_id": agent_id, "created_at": at(minutes)}
    return Run(id=new_id("run"), agent_id=agent_id, **{**known, **fields})


def a_step(run: Run, *, minutes: float = 0, **fields: Any) -> Step:
    return Step(id=new_id("step"), run_id=run.id, agent_id=run.agent_id, created_at=at(minutes), **fields)


def ended(run: Run, *, minutes: float = 1, **fields: Any) -> Run:
    """The run as it ends well."""
    known = {"status": "completed", "stop_reason": "end_turn", "completed_at": at(minutes)}
    return msgspec.structs.replace(run, **{**known, **fields})


async def make_agent(store: SqlStore, name: str = "Ada", *, minutes: float = 0, **links: Any) -> AgentState:
    """A stored agent with a system message; `links` are those of `agents.create`, anything else is a field."""
    system = said("You are.", role="system")
    known: dict[str, Any] = {"blocks": [], "block_ids": [], "tool_ids": [], "messages": [system]}
    relations = {key: links.pop(key, default) for key, default in known.items()}
    return await store.agents.create(an_agent(name, minutes=minutes, **links), **relations)


async def take_turn(store: SqlStore, agent_id: str, *messages: Message, minutes: float = 0, **outcome: Any) -> Run:
    """A whole turn of one step; answers the run as it ended."""
    run = a_run(agent_id, minutes=minutes)
    await store.runs.accept(run, b"{}")
    over = ended(run, minutes=minutes + 1, **outcome)
    stamped = [msgspec.structs.replace(m, agent_id=agent_id, run_id=run.id) for m in messages]
    await store.runs.commit(StepCommit(run=run, messages=stamped, step=a_step(run, minutes=minutes), finished=over))
    return over
