"""Memory blocks over HTTP, alone and on agents (api-surface §1, blocks and agents.blocks)."""

from typing import Any

import pytest

pytestmark = pytest.mark.anyio

NONE = "block-00000000-0000-4000-8000-000000000000"


async def test_life_of_a_block(client: Any) -> None:
    """Made, read, found, changed, deleted."""
    made = await client.post("/v1/blocks/", {"label": "tale", "value": "Once.", "metadata": {"k": "v"}})
    assert made.status == 200
    assert (made["limit"], made["read_only"], made["tags"], made["is_template"]) == (100000, False, [], False)
    assert "created_at" not in made.json
    path = f"/v1/blocks/{made['id']}"
    assert (await client.get(path)).json == made.json
    assert [b["id"] for b in (await client.get("/v1/blocks/?label=tale")).json] == [made["id"]]
    changed = await client.patch(path, {"value": "Twice.", "limit": 3, "read_only": True, "tags": ["b", "a"]})
    assert (changed["value"], changed["limit"], changed["tags"]) == ("Twice.", 3, ["a", "b"])
    cleared = await client.patch(path, {"description": None, "value": None, "label": None, "project_id": "p"})
    assert (cleared["value"], cleared["label"], cleared["project_id"]) == ("Twice.", "tale", "p")
    deleted = await client.delete(path)
    assert (deleted.status, deleted.json) == (200, None)
    assert [(await client.get(path)).status, (await client.delete(path)).status] == [404, 404]


async def test_default_description(client: Any) -> None:
    """persona and human come with words of their own, other labels without."""
    assert (await client.block("human"))["description"]
    assert (await client.block("other"))["description"] is None
    assert (await client.block("persona", description=""))["description"] == ""


async def test_on_agent(client: Any) -> None:
    """An agent's blocks are read and changed by label; the API keeps to no limit and no read_only (★S44)."""
    made = await client.agent(
        memory_blocks=[
            {"label": "human", "value": "Bo", "limit": 10}, {"label": "rules", "value": "be kind", "read_only": True}
        ]
    )  # fmt: skip
    path = f"/v1/agents/{made['id']}/core-memory/blocks"
    assert [b["label"] for b in (await client.get(path + "?order=asc")).json] == ["human", "rules"]
    assert (await client.get(path + "/human"))["value"] == "Bo"
    assert (await client.patch(path + "/human", {"value": "y" * 11}))["value"] == "y" * 11
    assert (await client.patch(path + "/rules", {"value": "be very kind"}))["value"] == "be very kind"
    missing = await client.get(path + "/nobody")
    assert (missing.status, "human, rules" in missing.detail) == (404, True)
    assert (await client.patch(path + "/nobody", {"value": "x"})).status == 404
    memory = await client.get(f"/v1/agents/{made['id']}/core-memory")
    assert sorted(b["label"] for b in memory["blocks"]) == ["human", "rules"]


@pytest.mark.parametrize("form", ["skills/py/test", "skills%2Fpy%2Ftest"])
async def test_label_with_slashes(client: Any, form: str) -> None:
    """A label may hold slashes, plain or encoded (api-surface §5.1)."""
    made = await client.agent(memory_blocks=[{"label": "skills/py/test", "value": "how"}])
    path = f"/v1/agents/{made['id']}/core-memory/blocks/{form}"
    assert (await client.get(path))["value"] == "how"
    assert (await client.patch(path, {"value": "why"}))["value"] == "why"


async def test_attach_and_detach(client: Any) -> None:
    """A shared block is attached once, seen by every agent that has it, and outlives detaching."""
    block, first, second = await client.block("shared", "One."), await client.agent(), await client.agent()
    for agent in (first, second):
        path = f"/v1/agents/{agent['id']}/core-memory/blocks/attach/{block['id']}"
        assert [b["label"] for b in (await client.patch(path))["blocks"]] == ["shared"]
        assert (await client.patch(path, sdk=True)).status == 200
    await client.patch(f"/v1/agents/{first['id']}/core-memory/blocks/shared", {"value": "Two."})
    assert (await client.get(f"/v1/agents/{second['id']}/core-memory/blocks/shared"))["value"] == "Two."
    having = await client.get(f"/v1/blocks/{block['id']}/agents", sdk=True)
    assert [agent["id"] for agent in having.json] == [second["id"], first["id"]]
    detached = await client.patch(f"/v1/agents/{first['id']}/core-memory/blocks/detach/{block['id']}")
    assert detached["blocks"] == []
    assert (await client.get(f"/v1/blocks/{block['id']}")).status == 200
    assert [a["id"] for a in (await client.get(f"/v1/blocks/{block['id']}/agents")).json] == [second["id"]]


async def test_attach_refusals(client: Any) -> None:
    """Unknown blocks are 404, a second block of a label 409, a label taken by changing 409."""
    agent = await client.agent(memory_blocks=[{"label": "human", "value": ""}, {"label": "notes", "value": ""}])
    path = f"/v1/agents/{agent['id']}/core-memory/blocks"
    other = await client.block("human")
    assert (await client.patch(f"{path}/attach/{NONE}")).status == 404
    assert (await client.patch(f"{path}/attach/{other['id']}")).status == 409
    assert (await client.patch(f"{path}/attach/nonsense")).status == 422
    assert (await client.patch(f"{path}/detach/{other['id']}")).status == 404
    assert (await client.patch(f"{path}/notes", {"label": "human"})).status == 409
    assert (await client.get(f"/v1/blocks/{NONE}/agents")).status == 404


async def test_page_of_agent_blocks(client: Any) -> None:
    """An agent's blocks page in both directions, and end in an empty page."""
    made = await client.agent(memory_blocks=[{"label": label, "value": ""} for label in "abc"])
    path = f"/v1/agents/{made['id']}/core-memory/blocks"
    every = [b["id"] for b in (await client.get(path + "?order=asc")).json]
    assert [b["id"] for b in (await client.get(path)).json] == every[::-1]
    assert [b["id"] for b in (await client.get(f"{path}?order=asc&limit=1&after={every[0]}")).json] == [every[1]]
    assert [b["id"] for b in (await client.get(f"{path}?order=asc&limit=1&before={every[2]}")).json] == [every[1]]
    assert (await client.get(f"{path}?order=asc&after={every[2]}")).json == []
    assert (await client.get(f"{path}?after={NONE}")).status == 404


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("label=findme", ["findme"]), ("label_search=NDM", ["findme"]), ("value_search=needle", ["findme"]),
        ("description_search=hay", ["findme"]), ("tags=only-here", ["findme"]), ("identifier_keys=x", []),
        ("label=findme&connected_to_agents_count_eq=0", ["findme"]),
        ("label=findme&connected_to_agents_count_gt=0", []),
        ("label=findme&connected_to_agents_count_lt=1", ["findme"]), ("label=findme&templates_only=true", []),
    ],
)  # fmt: skip
async def test_filters(client: Any, query: str, labels: list[str]) -> None:
    """Blocks are found by label, text, tags and by how many agents have them."""
    if not (await client.get("/v1/blocks/?label=findme")).json:
        await client.block("findme", "a needle", description="in the hay", tags=["only-here"])
    assert [b["label"] for b in (await client.get(f"/v1/blocks/?{query}")).json] == labels
    assert (await client.get(f"/v1/blocks/count?{query}")).json == len(labels)


@pytest.mark.parametrize(
    ("label", "status"),
    [
        ("human", 200), ("skills/a-b_c", 200), ("größe", 200), ("two words", 200), ("x", 200),
        ("x></x><y", 422), ("a/", 422), ("/a", 422), (" a", 422), ("a b/", 422), ("a\nb", 422), ("", 422),
    ],
)  # fmt: skip
async def test_labels_fit_a_path_and_the_system_message(client: Any, label: str, status: int) -> None:
    """A label becomes an element of the system message and part of a path."""
    answer = await client.post("/v1/blocks/", {"label": label, "value": "x"})
    assert answer.status == status
