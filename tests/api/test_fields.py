"""Every documented field is there, and every path is described (api-surface §7; spec §0.2)."""

from typing import Any

import letta_client.types as t
import pytest
from letta_client.types.agents import Message, Run

pytestmark = pytest.mark.anyio

P0 = [
    ("GET", "/v1/health/"), ("GET", "/v1/agents/"), ("POST", "/v1/agents/"), ("GET", "/v1/agents/{agent_id}"),
    ("PATCH", "/v1/agents/{agent_id}"), ("DELETE", "/v1/agents/{agent_id}"),
    ("GET", "/v1/agents/{agent_id}/messages"), ("POST", "/v1/agents/{agent_id}/messages"),
    ("PATCH", "/v1/agents/{agent_id}/reset-messages"), ("GET", "/v1/agents/{agent_id}/core-memory/blocks"),
    ("PATCH", "/v1/agents/{agent_id}/core-memory/blocks/attach/{block_id}"),
    ("PATCH", "/v1/agents/{agent_id}/core-memory/blocks/detach/{block_id}"),
    ("GET", "/v1/agents/{agent_id}/core-memory/blocks/{block_label}"),
    ("PATCH", "/v1/agents/{agent_id}/core-memory/blocks/{block_label}"), ("GET", "/v1/agents/{agent_id}/tools"),
    ("PATCH", "/v1/agents/{agent_id}/tools/approval/{tool_name}"),
    ("PATCH", "/v1/agents/{agent_id}/tools/attach/{tool_id}"),
    ("PATCH", "/v1/agents/{agent_id}/tools/detach/{tool_id}"), ("GET", "/v1/blocks/"), ("POST", "/v1/blocks/"),
    ("GET", "/v1/blocks/{block_id}"), ("PATCH", "/v1/blocks/{block_id}"), ("DELETE", "/v1/blocks/{block_id}"),
    ("GET", "/v1/tools/"), ("POST", "/v1/tools/"), ("PUT", "/v1/tools/"), ("GET", "/v1/tools/{tool_id}"),
    ("PATCH", "/v1/tools/{tool_id}"), ("DELETE", "/v1/tools/{tool_id}"), ("GET", "/v1/models/"),
    ("GET", "/v1/models/embedding"), ("GET", "/v1/runs/"), ("GET", "/v1/runs/{run_id}"),
    ("GET", "/v1/runs/{run_id}/messages"), ("GET", "/v1/runs/{run_id}/steps"), ("GET", "/v1/runs/{run_id}/usage"),
    ("GET", "/v1/steps/"), ("GET", "/v1/steps/{step_id}"),
]  # fmt: skip


def fields(schema: Any) -> set[str]:
    """The wire names of an SDK type's fields."""
    return {field.alias or name for name, field in schema.model_fields.items()}


async def test_response_fields(client: Any) -> None:
    """What the SDK's types know is on the wire, with null where there is nothing."""
    tool = await client.tool("fields_tool")
    agent = await client.agent(
        memory_blocks=[{"label": "human", "value": ""}], tool_ids=[tool["id"]], secrets={"K": "V"},
        embedding="openai/text-embedding-3-small",
    )  # fmt: skip
    answer = await client.post(f"/v1/agents/{agent['id']}/messages", {"input": "hi"})
    run_id = answer["messages"][0]["run_id"]
    (step,) = (await client.get(f"/v1/runs/{run_id}/steps")).json
    model, embedder = (await client.get("/v1/models/")).json[0], (await client.get("/v1/models/embedding")).json[0]
    rows: list[tuple[Any, Any]] = [
        (t.AgentState, agent), (t.LlmConfig, agent["llm_config"]), (t.EmbeddingConfig, agent["embedding_config"]),
        (t.AgentEnvironmentVariable, agent["secrets"][0]), (t.Tool, tool), (t.BlockResponse, agent["blocks"][0]),
        (t.Model, model), (t.EmbeddingModel, embedder), (Run, (await client.get(f"/v1/runs/{run_id}")).json),
        (t.Step, step), (t.OpenAIModelSettings, agent["model_settings"]),
    ]  # fmt: skip
    for schema, shown in rows:
        assert fields(schema) - set(shown) == set(), schema.__name__
        schema.model_validate(shown)
    assert set(agent["memory"]) == {"agent_type", "blocks", "file_blocks", "git_enabled", "prompt_template"}
    assert Message is not None


@pytest.mark.parametrize("settings", ["anthropic", "openai", "google_ai", "zai", "baseten", "sglang", "chatgpt_oauth"])
async def test_settings_fields(client: Any, settings: str) -> None:
    """Settings read back in the form of their provider, every field of it."""
    names = {
        "anthropic": t.AnthropicModelSettings, "openai": t.OpenAIModelSettings, "google_ai": t.GoogleAIModelSettings,
        "zai": t.AgentState, "baseten": t.AgentState, "sglang": t.AgentState, "chatgpt_oauth": t.AgentState,
    }  # fmt: skip
    made = await client.agent(model_settings={"provider_type": settings, "temperature": 0.5})
    shown = made["model_settings"]
    assert (shown["provider_type"], shown["temperature"], shown["parallel_tool_calls"]) == (settings, 0.5, True)
    if names[settings] is not t.AgentState:
        assert fields(names[settings]) == set(shown)


async def test_description(client: Any) -> None:
    """The API's description names every P0 route with typed bodies and answers."""
    described = (await client.get("/openapi.json")).json
    for method, path in P0:
        operation = described["paths"][path][method.lower()]
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        assert schema or method == "DELETE", (method, path)
    create = described["paths"]["/v1/agents/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert create == {"$ref": "#/components/schemas/CreateAgentRequest"}
    assert {"AgentState", "Block", "Tool", "Run", "Step", "Model"} <= set(described["components"]["schemas"])


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 2), ("provider_name=openai", 1), ("provider_type=anthropic", 1), ("provider_name=nobody", 0),
        ("provider_category=base", 2), ("provider_category=byok", 0),
    ],
)  # fmt: skip
async def test_models(client: Any, query: str, count: int) -> None:
    """Models are a bare list, filtered by provider."""
    listed = (await client.get(f"/v1/models/?{query}")).json
    assert len(listed) == count
    assert all(model["model_type"] == "llm" for model in listed)


async def test_health(client: Any) -> None:
    """Health has a status and a version."""
    assert (await client.get("/v1/health/")).json == {"status": "ok", "version": "0.1.0"}
    assert (await client.get("/v1/ready/")).json == {"status": "ok", "version": "0.1.0"}
