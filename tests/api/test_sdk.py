"""The unchanged Python SDK 1.12.1 against a server on a real socket."""

from collections.abc import AsyncIterator
from typing import Any

import letta_client
import pytest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sdk(client: Any) -> AsyncIterator[letta_client.AsyncLetta]:
    """An SDK client of the shared server."""
    async with letta_client.AsyncLetta(base_url=client.base, api_key="unused", max_retries=0) as made:
        yield made


async def test_agents(sdk: letta_client.AsyncLetta) -> None:
    """Create, list with the pager, retrieve with relations, change, delete."""
    made = await sdk.agents.create(
        model="openai/gpt-4o-mini", tags=["sdk"], memory_blocks=[{"label": "human", "value": "Bo"}]
    )
    assert len(made.tools) == 3
    listed = [agent.id async for agent in sdk.agents.list(tags=["sdk"], limit=1)]
    assert listed == [made.id]
    assert (await sdk.agents.retrieve(made.id)).tools == []
    shown = await sdk.agents.retrieve(made.id, include=["agent.tools", "agent.blocks"])
    assert ([b.label for b in shown.blocks], len(shown.tools)) == (["human"], 3)
    assert (await sdk.agents.update(made.id, description="D.")).description == "D."
    await sdk.agents.delete(made.id)
    with pytest.raises(letta_client.NotFoundError, match="Agent not found"):
        await sdk.agents.retrieve(made.id)


async def test_pager_ends(sdk: letta_client.AsyncLetta) -> None:
    """The pager goes through every page once, in both directions."""
    ids = [(await sdk.blocks.create(label="paged", value=str(n), tags=["pager"])).id for n in range(5)]
    assert [b.id async for b in sdk.blocks.list(tags=["pager"], limit=2)] == ids
    assert [b.id async for b in sdk.blocks.list(tags=["pager"], limit=2, order="desc")] == ids[::-1]


async def test_blocks_of_agent(sdk: letta_client.AsyncLetta) -> None:
    """Blocks are attached, changed by a label with a slash, and detached."""
    agent = await sdk.agents.create(model="openai/gpt-4o-mini")
    block = await sdk.blocks.create(label="skills/go", value="one")
    assert [b.label for b in (await sdk.agents.blocks.attach(block.id, agent_id=agent.id)).blocks] == ["skills/go"]
    changed = await sdk.agents.blocks.update("skills/go", agent_id=agent.id, value="two")
    assert changed.value == "two"
    assert [b.id async for b in sdk.agents.blocks.list(agent.id)] == [block.id]
    assert (await sdk.agents.blocks.detach(block.id, agent_id=agent.id)).blocks == []
    await sdk.blocks.delete(block.id)


async def test_tools_of_agent(sdk: letta_client.AsyncLetta) -> None:
    """Tools are made, attached, gated, detached; attaching answers nothing."""
    agent = await sdk.agents.create(model="openai/gpt-4o-mini", include_base_tools=False)
    source = 'def sdk_tool(x: str) -> str:\n    """Say.\n\n    Args:\n        x (str): words\n    """\n    return x\n'
    tool = await sdk.tools.upsert(source_code=source)
    assert await sdk.agents.tools.attach(tool.id, agent_id=agent.id) is None
    await sdk.agents.tools.update_approval("sdk_tool", agent_id=agent.id, body_requires_approval=True)
    rules = (await sdk.agents.retrieve(agent.id)).tool_rules
    assert [rule.type for rule in rules or []] == ["requires_approval"]
    assert [found.name async for found in sdk.agents.tools.list(agent.id)] == ["sdk_tool"]
    await sdk.agents.tools.detach(tool.id, agent_id=agent.id)
    await sdk.tools.delete(tool.id)
    with pytest.raises(letta_client.BadRequestError, match="no docstring"):
        await sdk.tools.create(source_code="def f(x):\n    return x\n")


async def test_runs(sdk: letta_client.AsyncLetta) -> None:
    """A sent message leaves a run with messages, steps and usage."""
    agent = await sdk.agents.create(model="openai/gpt-4o-mini")
    answer = await sdk.agents.messages.create(agent.id, input="hi")
    (run,) = [found async for found in sdk.runs.list(agent_id=agent.id)]
    assert answer.messages[0].run_id == run.id
    assert [m.message_type async for m in sdk.runs.messages.list(run.id)] == ["user_message", "assistant_message"]
    (step,) = [found async for found in sdk.runs.steps.list(run.id)]
    assert (await sdk.steps.retrieve(step.id)).id == step.id
    assert (await sdk.runs.usage.retrieve(run.id)).total_tokens == 15
    with pytest.raises(letta_client.BadRequestError):
        await sdk.runs.retrieve("run-1")


async def test_models_and_health(sdk: letta_client.AsyncLetta) -> None:
    """Models and health decode."""
    assert [model.handle for model in await sdk.models.list()] == ["openai/gpt-4o-mini", "anthropic/claude-sonnet-4-5"]
    assert [model.embedding_dim for model in await sdk.models.embeddings.list()] == [1536]
    assert (await sdk.health()).status == "ok"
