"""Tools over HTTP, alone and on agents (api-surface §1, tools and agents.tools; ★S78)."""

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.anyio

NONE = "tool-00000000-0000-4000-8000-000000000000"
SOURCE = '''
def NAME(text: str, times: int = 1) -> str:
    """Say it back.

    Args:
        text (str): what to say
        times (int): how often
    """
    return text * times
'''


async def test_life_of_a_tool(client: Any) -> None:
    """Made from source, found, changed, deleted."""
    made = await client.post("/v1/tools/", {"source_code": SOURCE.replace("NAME", "echo_life"), "tags": ["b", "a"]})
    assert made.status == 200
    assert (made["name"], made["tool_type"], made["source_type"]) == ("echo_life", "custom", "json")
    assert (made["tags"], made["return_char_limit"], made["enable_parallel_execution"]) == (["a", "b"], 50000, False)
    assert made["json_schema"] == {
        "name": "echo_life", "description": "Say it back.",
        "parameters": {
            "type": "object", "required": ["text"],
            "properties": {
                "text": {"type": "string", "description": "what to say"},
                "times": {"type": "integer", "description": "how often"},
            },
        },
    }  # fmt: skip
    path = f"/v1/tools/{made['id']}"
    assert (await client.get(path)).json == made.json
    again = await client.post("/v1/tools/", {"source_code": SOURCE.replace("NAME", "echo_life")})
    assert (again["id"], again["tags"]) == (made["id"], ["a", "b"])
    louder = await client.patch(path, {"description": "Louder.", "return_char_limit": 99})
    assert (louder["description"], louder["return_char_limit"]) == ("Louder.", 99)
    assert louder["json_schema"]["description"] == "Say it back."
    assert [t["id"] for t in (await client.get("/v1/tools/?name=echo_life")).json] == [made["id"]]
    deleted = await client.delete(path)
    assert (deleted.status, deleted.json) == (200, None)
    assert [(await client.get(path)).status, (await client.delete(path)).status] == [404, 404]


async def test_upsert(client: Any) -> None:
    """PUT makes a tool, and changes it the second time."""
    body = {"source_code": SOURCE.replace("NAME", "echo_put"), "description": "One."}
    first = await client.call("PUT", "/v1/tools/", body)
    second = await client.call("PUT", "/v1/tools/", body | {"description": "Two.", "source_type": "python"})
    assert (second["id"], second["description"], second["source_type"]) == (first["id"], "Two.", "python")


async def test_explicit_schema(client: Any) -> None:
    """A given schema wins over the source, its name too."""
    schema = {"name": "given", "description": "D.", "parameters": {"type": "object", "properties": {}}}
    made = await client.post("/v1/tools/", {"source_code": SOURCE.replace("NAME", "other"), "json_schema": schema})
    assert (made["name"], made["description"]) == ("given", "D.")
    renamed = await client.patch(f"/v1/tools/{made['id']}", {"source_code": SOURCE.replace("NAME", "renamed_tool")})
    assert (renamed["name"], renamed["json_schema"]["name"]) == ("renamed_tool", "renamed_tool")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"source_code": "this is no python"}, 400),
        ({"source_code": "def nodoc(x):\n    return x\n"}, 400),
        ({"source_code": ""}, 400),
        ({"source_code": SOURCE.replace("NAME", "x" * 49)}, 400),
        ({"source_code": SOURCE.replace("NAME", "größe")}, 400),
        ({"source_code": "export function f() {}", "source_type": "typescript"}, 400),
        ({"source_code": "x", "json_schema": {"description": "no name"}}, 400),
        ({}, 422),
        ({"source_code": "x", "return_char_limit": 0}, 422),
        ({"source_code": "x", "return_char_limit": 1000001}, 422),
        ({"source_code": SOURCE.replace("NAME", "memory_insert")}, 409),
    ],
)
async def test_refusals(client: Any, body: dict[str, Any], status: int) -> None:
    """What cannot become a tool is refused with words; a built-in's name is taken (★S78)."""
    refused = await client.post("/v1/tools/", body)
    assert (refused.status, type(refused.detail)) == (status, str)


async def test_long_source(client: Any) -> None:
    """A long source is read like a short one."""
    source = SOURCE.replace("NAME", "echo_long") + "# padding\n" * 5000
    assert (await client.post("/v1/tools/", {"source_code": source}))["name"] == "echo_long"


async def test_builtins_stay(client: Any) -> None:
    """Built-in tools are listed, and can be neither changed nor deleted."""
    base = await client.post("/v1/tools/add-base-tools")
    assert {"send_message", "memory_insert", "conversation_search"} <= {tool["name"] for tool in base.json}
    path = f"/v1/tools/{base.json[0]['id']}"
    refused = await client.patch(path, {"description": "Mine."})
    assert (refused.status, refused.headers["x-should-retry"]) == (409, "false")
    assert (await client.delete(path)).status == 409
    letta = await client.get("/v1/tools/?return_only_letta_tools=true&limit=1000")
    assert len(letta.json) == len(base.json)


async def test_name_taken(client: Any) -> None:
    """A change cannot give a tool another tool's name."""
    await client.tool("taken_name")
    other = await client.tool("free_name")
    changed = await client.patch(f"/v1/tools/{other['id']}", {"source_code": SOURCE.replace("NAME", "taken_name")})
    assert changed.status == 409


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("name=filter_a", 1), ("names=filter_a&names=filter_b", 2), ("names=filter_a,filter_b", 2),
        ("search=FILTER_", 2), ("search=filter_&tool_types=custom", 2), ("search=filter_&exclude_tool_types=custom", 0),
        ("search=filter_&return_only_letta_tools=true", 0),
    ],
)  # fmt: skip
async def test_filters(client: Any, query: str, count: int) -> None:
    """Tools are found by names, types and text, repeated or comma-separated."""
    await client.tool("filter_a")
    await client.tool("filter_b")
    assert len((await client.get(f"/v1/tools/?{query}")).json) == count
    assert (await client.get(f"/v1/tools/count?{query}")).json == count


async def test_on_agent(client: Any) -> None:
    """Attaching answers null to a current SDK and the agent to others; the agent's list shows ten."""
    tool, agent = await client.tool("attach_me"), await client.agent(include_base_tools=False)
    path = f"/v1/agents/{agent['id']}/tools"
    first = await client.patch(f"{path}/attach/{tool['id']}", sdk=True)
    assert (first.status, first.json) == (200, None)
    second = await client.patch(f"{path}/attach/{tool['id']}")
    assert [t["name"] for t in second["tools"]] == ["attach_me"]
    assert [t["name"] for t in (await client.get(path)).json] == ["attach_me"]
    assert (await client.patch(f"{path}/detach/{tool['id']}", sdk=True)).json is None
    assert (await client.patch(f"{path}/detach/{tool['id']}"))["tools"] == []
    assert (await client.patch(f"{path}/attach/{NONE}")).status == 404
    many = await client.agent(tool_ids=[(await client.tool(f"many_{n}"))["id"] for n in range(11)])
    assert len((await client.get(f"/v1/agents/{many['id']}/tools")).json) == 10


async def test_approval(client: Any) -> None:
    """A tool that asks for approval brings its rule; the rule is switched off and on, as often as one likes."""
    tool, agent = await client.tool("gated", default_requires_approval=True), await client.agent()
    rule = {"tool_name": "gated", "type": "requires_approval", "prompt_template": None}
    attached = await client.patch(f"/v1/agents/{agent['id']}/tools/attach/{tool['id']}")
    assert attached["tool_rules"] == [rule]
    path = f"/v1/agents/{agent['id']}/tools/approval/gated"
    for required, rules in ((False, []), (False, []), (True, [rule]), (True, [rule])):
        changed = await client.patch(path, {"requires_approval": required})
        assert (changed.status, changed["tool_rules"]) == (200, rules)
    assert (await client.patch(path + "?requires_approval=false"))["tool_rules"] == []
    assert (await client.patch(path, {"requires_approval": True}, sdk=True)).json is None
    assert (await client.patch(path)).status == 422
    unattached = path.replace("gated", "no_such_tool")
    assert (await client.patch(unattached, {"requires_approval": True})).status == 404


async def test_created_with_gated_tool(client: Any) -> None:
    """An agent made with such a tool has the rule from the start."""
    tool = await client.tool("gated_at_birth", default_requires_approval=True)
    made = await client.agent(tool_ids=[tool["id"]])
    assert [rule["type"] for rule in made["tool_rules"]] == ["requires_approval"]


async def test_same_name_at_once(client: Any) -> None:
    """Two clients that make one tool at the same moment end with one tool."""
    body = {"source_code": SOURCE.replace("NAME", "made_twice")}
    answers = await asyncio.gather(*(client.post("/v1/tools/", body) for _ in range(8)))
    assert {answer.status for answer in answers} == {200}
    assert len({answer["id"] for answer in answers}) == 1
    assert (await client.get("/v1/tools/count?name=made_twice")).json == 1
