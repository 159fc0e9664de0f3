"""Contexts kept between runs: used only while nothing else has changed them."""

from datetime import UTC, datetime

import pytest

from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.domain.ports import Accepted, Committed, StepCommit
from perdure.domain.records import Agent, Context, Run, Step
from perdure.runs.contexts import ContextCache, weight

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 1, 2, tzinfo=UTC)
AGENT = Agent(
    id="agent-1", name="a", agent_type="letta_v1_agent", system="", model="m/m", llm={}, created_at=NOW, updated_at=NOW
)


def said(text: str) -> Message:
    return Message(id=new_id("message"), role="user", created_at=NOW, content=(Text(text),))


class Loads:
    """Contexts that count how often they are read."""

    def __init__(self) -> None:
        self.loads: list[str] = []

    async def load(self, context_id: str) -> Context:
        self.loads.append(context_id)
        return Context(
            id=context_id, agent=AGENT, blocks=(), tools=(), messages=[said("system")], agent_version=1,
            compiled_version=1, compiled_at=NOW, revision=0, last_sequence=1, hidden_count=0,
        )

    async def reset(self, *_: object, **__: object) -> None:
        raise AssertionError("not used here")


def commit(*messages: Message) -> StepCommit:
    run = Run(id="run-1", agent_id="agent-1", context_id="c", created_at=NOW)
    return StepCommit(run=run, messages=messages, step=Step(id="s", run_id="run-1", agent_id="agent-1", created_at=NOW))


async def test_a_context_that_nobody_changed_is_read_once() -> None:
    """The second run finds what the first one left, its own messages included."""
    source = Loads()
    cache = ContextCache(source)
    context = await cache.get("c", Accepted(1, 0, 1))
    cache.advance(context, commit(said("hi")), Committed(last_sequence=2))
    again = await cache.get("c", Accepted(1, 0, 2))
    assert source.loads == ["c"]
    assert len(again.messages) == 2


@pytest.mark.parametrize("accepted", [Accepted(2, 0, 1), Accepted(1, 1, 1), Accepted(1, 0, 9)])
async def test_any_change_from_elsewhere_makes_it_be_read_again(accepted: Accepted) -> None:
    """Another version of the agent, another revision, a message that is not ours."""
    source = Loads()
    cache = ContextCache(source)
    await cache.get("c", Accepted(1, 0, 1))
    await cache.get("c", accepted)
    assert source.loads == ["c", "c"]


async def test_memory_is_bounded() -> None:
    """The context used longest ago goes first; the one in use stays, however large."""
    source = Loads()
    cache = ContextCache(source, limit=2 * weight(said("system")))
    for name in ("a", "b", "a", "c"):
        await cache.get(name, Accepted(1, 0, 1))
    source.loads.clear()
    for name in ("a", "c", "b"):
        await cache.get(name, Accepted(1, 0, 1))
    assert source.loads == ["b"]
