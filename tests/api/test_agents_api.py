"""Agents over HTTP: making, reading, changing, deleting (api-surface §1, agents)."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from api.served import GPT

from perdure.agent import profile
from perdure.api.deps import Deps
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, ToolCall

pytestmark = pytest.mark.anyio

NOBODY = "agent-00000000-0000-4000-8000-000000000000"


async def test_defaults(client: Any) -> None:
    """A name and a model are enough; everything else has the documented default."""
    made = await client.post("/v1/agents/", {"name": "Ada", "model": "openai/gpt-4o-mini"})
    assert made.status == 200
    assert made["agent_type"] == "letta_v1_agent"
    assert made["model"] == "openai/gpt-4o-mini"
    assert made["model_settings"] == {
        "provider_type": "openai", "max_output_tokens": 16384, "parallel_tool_calls": True, "temperature": 1.0,
        "reasoning": {"reasoning_effort": "minimal"}, "strict": False, "response_format": None,
    }  # fmt: skip
    assert made["llm_config"]["context_window"] == 128000
    assert made["llm_config"]["parallel_tool_calls"] is False
    assert sorted(tool["name"] for tool in made["tools"]) == ["conversation_search", "memory_insert", "memory_replace"]
    assert (made["tool_rules"], made["tags"], made["blocks"]) == ([], [], [])
    assert (made["max_files_open"], made["per_file_view_window_char_limit"]) == (10, 25000)
    assert (made["timezone"], len(made["message_ids"])) == ("UTC", 1)


async def test_everything(client: Any) -> None:
    """What is sent is kept; a base tool's rule stands beside the caller's, secrets are shown without a second form."""
    made = await client.agent(
        description="An agent.", metadata={"n": 3}, tags=["b", "a", "b"], system="Be terse.", timezone="Europe/Lisbon",
        memory_blocks=[
            {"label": "human", "value": "Bo", "limit": 500},
            {"label": "notes", "value": "", "description": "Scratch.", "read_only": True},
        ],
        include_base_tools=False, tools=["memory_insert"], context_window_limit=20000, secrets={"K": "V"},
        tool_rules=[{"type": "exit_loop", "tool_name": "memory_insert"}], parallel_tool_calls=False,
    )  # fmt: skip
    assert made["tags"] == ["a", "b"]
    assert [rule["type"] for rule in made["tool_rules"]] == ["exit_loop", "continue_loop"]
    assert (made["max_files_open"], made["llm_config"]["context_window"]) == (5, 20000)
    (secret,) = made["secrets"]
    assert (secret["key"], secret["value"], secret["value_enc"]) == ("K", "V", None)
    assert secret["id"].startswith("agent-env-")
    assert made["tool_exec_environment_variables"] == made["secrets"]
    blocks = {block["label"]: block for block in made["blocks"]}
    assert blocks["human"]["description"]
    assert blocks["notes"]["description"] == "Scratch."
    assert blocks["notes"]["read_only"] is True


REFUSED = [
    ({"model": "nobody/none-1"}, 404),
    ({}, 400),
    ({"model": ""}, 400),
    ({"model": "gpt-4o-mini"}, 400),
    ({"model": "openai/text-embedding-3-small"}, 400),
    ({"model": "openai/gpt-4o-mini", "embedding": "nobody/none"}, 404),
    ({"model": "openai/gpt-4o-mini", "embedding": "openai/gpt-4o-mini"}, 400),
    ({"model": "openai/gpt-4o-mini", "agent_type": "no_such_type"}, 422),
    ({"model": "openai/gpt-4o-mini", "tool_ids": ["tool-00000000-0000-4000-8000-000000000000"]}, 400),
    ({"model": "openai/gpt-4o-mini", "tools": ["no_such_tool"]}, 400),
    ({"model": "openai/gpt-4o-mini", "model_settings": {"provider_type": "nobody"}}, 422),
    ({"model": "openai/gpt-4o-mini", "tool_rules": [{"type": "exit_loop"}]}, 422),
    ({"model": "openai/gpt-4o-mini", "tool_rules": [{"type": "sing", "tool_name": "x"}]}, 422),
    ({"model": "openai/gpt-4o-mini", "timezone": "Mars/Olympus"}, 400),
    ({"model": "openai/gpt-4o-mini", "folder_ids": ["source-1"]}, 501),
    ({"model": "openai/gpt-4o-mini", "memory_blocks": [{"label": "a", "value": ""}, {"label": "a", "value": ""}]}, 400),
    ({"model": "openai/gpt-4o-mini", "memory_blocks": [{"value": "x"}]}, 422),
    ({"model": "openai/gpt-4o-mini", "initial_message_sequence": [{"role": "wizard", "content": "x"}]}, 422),
]


@pytest.mark.parametrize(("body", "status"), REFUSED)
async def test_refusals(client: Any, body: dict[str, Any], status: int) -> None:
    """What cannot be made is refused with a status and one string that says why; nothing is stored."""
    before = (await client.get("/v1/agents/count")).json
    refused = await client.post("/v1/agents/", body)
    assert (refused.status, type(refused.detail)) == (status, str)
    assert (await client.get("/v1/agents/count")).json == before


async def test_forgiven(client: Any) -> None:
    """Unknown blocks and fields are ignored, long values and empty names are stored (api-surface §6, trap 13)."""
    made = await client.agent(
        name="", block_ids=["block-00000000-0000-4000-8000-000000000000"], no_such_field=1,
        memory_blocks=[{"label": "a", "value": "xxxxx", "limit": 3}],
    )  # fmt: skip
    assert made["name"] == ""
    assert [(block["value"], block["limit"]) for block in made["blocks"]] == [("xxxxx", 3)]


async def test_nameless(client: Any) -> None:
    """An agent without a name is given one."""
    made = await client.post("/v1/agents/", {"model": "openai/gpt-4o-mini"})
    assert made["name"].isalpha()


async def test_embedding(client: Any) -> None:
    """A named embedding model is kept with its older configuration."""
    made = await client.agent(embedding="openai/text-embedding-3-small")
    assert made["embedding"] == "openai/text-embedding-3-small"
    assert made["embedding_config"]["embedding_dim"] == 1536


async def test_older_config(client: Any) -> None:
    """llm_config names a model when model does not; its endpoint is not the caller's to choose."""
    config = {
        "model": "gpt-4o-mini", "model_endpoint_type": "openai", "model_endpoint": "http://169.254.169.254/",
        "context_window": 9000, "temperature": 0.3,
    }  # fmt: skip
    made = await client.post("/v1/agents/", {"llm_config": config})
    assert made.status == 200
    assert made["llm_config"]["model_endpoint"] == "http://models.test/v1"
    assert (made["llm_config"]["context_window"], made["model_settings"]["temperature"]) == (9000, 0.3)


async def test_initial_messages(client: Any) -> None:
    """Given first messages are in the context behind the system message, and in the history."""
    made = await client.agent(
        initial_message_sequence=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    )
    assert len(made["message_ids"]) == 3
    listed = await client.get(f"/v1/agents/{made['id']}/messages?order=asc")
    assert [m["message_type"] for m in listed.json] == ["system_message", "user_message", "assistant_message"]
    assert listed.json[1]["content"] == "hi"


async def test_gate(client: Any) -> None:
    """A current SDK sees the relations it asks for; other clients see them all."""
    made = await client.agent(tags=["t"], memory_blocks=[{"label": "human", "value": "Bo"}], secrets={"K": "V"})
    path = f"/v1/agents/{made['id']}"
    bare = await client.get(path, sdk=True)
    assert (bare["tools"], bare["blocks"], bare["tags"], bare["secrets"]) == ([], [], [], [])
    assert bare["llm_config"]["model"] == "gpt-4o-mini"
    some = await client.get(f"{path}?include=agent.tools&include=agent.tags", sdk=True)
    assert (len(some["tools"]), some["tags"], some["blocks"], some["secrets"]) == (3, ["t"], [], [])
    old_name = await client.get(f"{path}?include_relationships=memory", sdk=True)
    assert [block["label"] for block in old_name["blocks"]] == ["human"]
    everything = await client.get(path)
    assert (len(everything["tools"]), everything["tags"], len(everything["memory"]["blocks"])) == (3, ["t"], 1)
    assert everything["secrets"][0]["value"] == "V"
    listed = await client.get("/v1/agents/", sdk=True, params={"tags": "t", "include": "agent.blocks"})
    assert [len(agent["blocks"]) for agent in listed.json] == [1]
    assert (await client.get(f"{path}?include=agent.everything")).status == 422


async def test_list(client: Any) -> None:
    """Lists page in the order asked for; a cursor beyond the end gives nothing, an unknown one is refused."""
    ids = [(await client.agent(tags=["paged", str(n)]))["id"] for n in range(3)]

    async def page(**params: Any) -> list[str]:
        return [agent["id"] for agent in (await client.get("/v1/agents/", params={"tags": "paged", **params})).json]

    assert await page() == ids[::-1]
    assert await page(order="asc") == ids
    assert await page(ascending="true") == ids
    assert await page(order="desc", ascending="true") == ids[::-1]
    assert await page(order="asc", limit=2, after=ids[0]) == ids[1:]
    assert await page(order="asc", before=ids[2], limit=1) == [ids[1]]
    assert await page(after=ids[0]) == []
    assert (await client.get("/v1/agents/", params={"after": NOBODY})).status == 404
    counted = await client.get("/v1/agents/count", params={"tags": "paged"})
    assert counted.json == 3


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=0", 422), ("limit=1001", 422), ("limit=many", 422), ("order=sideways", 422), ("sort_by=luck", 422),
        ("last_stop_reason=boredom", 422), ("match_all_tags=perhaps", 422), ("identifier_keys=x", 200),
        ("created_by_id=user-1", 200), ("after=%00", 422),
    ],
)  # fmt: skip
async def test_list_parameters(client: Any, query: str, status: int) -> None:
    """Parameters are checked; a filter that nothing can match finds nothing."""
    listed = await client.get(f"/v1/agents/?{query}")
    assert listed.status == status
    assert listed.json == [] if status == 200 else isinstance(listed.detail, str)


async def test_change(client: Any) -> None:
    """A change touches the fields that are sent; null clears what may be empty and leaves the rest."""
    made = await client.agent(description="Old.", tags=["x"], secrets={"A": "1", "B": "2"}, system="Be kind.")
    path = f"/v1/agents/{made['id']}"
    changed = await client.patch(
        path, {"description": None, "name": None, "tags": ["y"], "secrets": {"A": "1"}, "metadata": {"k": 1}}
    )
    assert changed.status == 200
    assert (changed["description"], changed["name"], changed["system"]) == (None, "Ada", "Be kind.")
    assert (changed["tags"], changed["metadata"]) == (["y"], {"k": 1})
    assert [(s["id"], s["key"]) for s in changed["secrets"]] == [
        (s["id"], "A") for s in made["secrets"] if s["key"] == "A"
    ]
    assert changed["updated_at"] > made["updated_at"]
    again = await client.patch(path, {"tags": ["y"]})
    assert again["updated_at"] == changed["updated_at"]


async def test_change_model(client: Any) -> None:
    """Another model brings its own configuration; a limit of one's own can be set beside it."""
    made = await client.agent(parallel_tool_calls=True)
    changed = await client.patch(f"/v1/agents/{made['id']}", {"model": "anthropic/claude-sonnet-4-5"})
    assert changed["llm_config"]["context_window"] == 200000
    assert changed["llm_config"]["parallel_tool_calls"] is True
    assert changed["model_settings"]["thinking"] == {"type": "disabled", "budget_tokens": 1024}
    narrowed = await client.patch(f"/v1/agents/{made['id']}", {"context_window_limit": 5000})
    assert narrowed["llm_config"]["context_window"] == 5000
    assert narrowed["model"] == "anthropic/claude-sonnet-4-5"
    assert (await client.patch(f"/v1/agents/{made['id']}", {"model": "nobody/none"})).status == 404


async def test_change_links(client: Any) -> None:
    """Tools and blocks are replaced as a whole; a newly attached tool brings its approval rule."""
    tool = await client.tool("guarded_link", default_requires_approval=True)
    block = await client.block("lore")
    made = await client.agent(memory_blocks=[{"label": "human", "value": "Bo"}])
    changed = await client.patch(f"/v1/agents/{made['id']}", {"tool_ids": [tool["id"]], "block_ids": [block["id"]]})
    assert [t["name"] for t in changed["tools"]] == ["guarded_link"]
    assert [b["label"] for b in changed["blocks"]] == ["lore"]
    assert changed["tool_rules"] == [
        {"tool_name": "guarded_link", "type": "requires_approval", "prompt_template": None}
    ]
    assert (await client.patch(f"/v1/agents/{made['id']}", {"tool_ids": ["tool-1"]})).status == 400


async def test_delete(client: Any) -> None:
    """A deleted agent is gone for every route."""
    made = await client.agent()
    path = f"/v1/agents/{made['id']}"
    assert "message" in (await client.delete(path)).json
    assert [(await client.get(path)).status, (await client.delete(path)).status] == [404, 404]
    assert (await client.get(path)).detail == "Agent not found"
    for tail in ("/tools", "/core-memory/blocks", "/core-memory", "/messages"):
        assert (await client.get(path + tail)).status == 404


@pytest.mark.parametrize(
    ("path", "example"),
    [
        ("/v1/agents/nonsense", "agent-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/agents/agent-123E4567-e89b-42d3-a456-426614174000", "agent-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/agents/nonsense/tools", "agent-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/blocks/agent-1", "block-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/tools/x", "tool-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/steps/x", "step-123e4567-e89b-42d3-a456-426614174000"),
        ("/v1/messages/x", "message-123e4567-e89b-42d3-a456-426614174000"),
    ],
)
async def test_malformed_id(client: Any, path: str, example: str) -> None:
    """An id of the wrong form is 422 with an example of a right one."""
    refused = await client.get(path)
    assert refused.status == 422
    assert refused["examples"] == [example]
    assert json.loads(refused.detail)[0]["type"] == "string_pattern_mismatch"


async def test_pending_approval(client: Any, deps: Deps) -> None:
    """An agent whose context ends with a request for approval shows it to those who ask (spec §5.2)."""
    now = datetime.now(UTC)
    made = profile.new_agent({}, GPT, now=now)
    asked = Message(id=new_id("message"), role="approval", created_at=now, tool_calls=(ToolCall("call_1", "rm", "{}"),))
    await deps.store.agents.create(
        made.agent, blocks=(), block_ids=(), tool_ids=(), messages=(*made.messages, asked)
    )  # fmt: skip
    path = f"/v1/agents/{made.agent.id}"
    shown = (await client.get(f"{path}?include=agent.pending_approval", sdk=True))["pending_approval"]
    assert (shown["message_type"], shown["id"]) == ("approval_request_message", asked.id)
    assert shown["tool_calls"][0]["tool_call_id"] == "call_1"
    assert (await client.get(path))["pending_approval"] == shown
    assert (await client.get(path, sdk=True))["pending_approval"] is None
    listed = await client.get("/v1/agents/", params={"include": "agent.pending_approval", "limit": "1"})
    assert listed.json[0]["pending_approval"] == shown
