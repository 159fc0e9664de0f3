"""Conversations over HTTP: records, paths, models, lists and forks (api-surface §1, conversations; spec §6.3, §9.3)."""

import json
from typing import Any

import anyio
import letta_client
import letta_client.types as t
import pytest

pytestmark = pytest.mark.anyio

NONE = "00000000-0000-4000-8000-000000000000"
ROOT = "/v1/conversations/"
SMALL = {"provider_type": "openai", "temperature": 0.25}


async def made(client: Any, agent_id: str, body: Any = None, **params: Any) -> dict[str, Any]:
    """A new conversation."""
    answer = await client.post(ROOT, body, params={"agent_id": agent_id, **params})
    assert answer.status == 200, answer.json
    return answer.json


async def say(client: Any, conversation_id: str, words: str, **fields: Any) -> list[dict[str, Any]]:
    """The messages that answer a text."""
    body = {"input": words, "streaming": False, **fields}
    answer = await client.post(f"{ROOT}{conversation_id}/messages", body)
    assert answer.status == 200, answer.json
    return answer["messages"]


async def listed(client: Any, conversation_id: str, **params: Any) -> list[str]:
    """The contents of the messages listed, system messages left out."""
    answer = await client.get(f"{ROOT}{conversation_id}/messages", params=params)
    assert answer.status == 200, answer.json
    return [message["content"] for message in answer.json if message["message_type"] != "system_message"]


async def ids(client: Any, **params: Any) -> list[str]:
    answer = await client.get(ROOT, params=params)
    assert answer.status == 200, answer.json
    return [conversation["id"] for conversation in answer.json]


async def test_a_new_conversation(client: Any) -> None:
    """Every documented field is there; without a body it is as plain as can be."""
    agent = await client.agent()
    one = await made(client, agent["id"])
    documented = {field.alias or name for name, field in t.Conversation.model_fields.items()}
    assert documented - set(one) == set()
    assert (one["agent_id"], one["summary"], one["model"], one["model_settings"]) == (agent["id"], None, None, None)
    assert (one["archived"], one["archived_at"], one["last_message_at"], one["isolated_block_ids"]) == (
        False, None, None, []
    )  # fmt: skip
    assert len(one["in_context_message_ids"]) == 1
    shown = await client.get(f"/v1/messages/{one['in_context_message_ids'][0]}")
    assert f"CONVERSATION_ID: {one['id']}" in shown.json[0]["content"]
    assert (await client.get(ROOT + one["id"])).json == one
    two = await made(client, agent["id"], {"summary": "Über Öl", "description": "D", "context_window_limit": 9000})
    assert (two["summary"], two["description"], two["context_window_limit"]) == ("Über Öl", "D", 9000)


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        ("", {}, 422), (f"agent_id=agent-{NONE}", {}, 404), ("agent_id=nobody", {}, 404), (None, {"summary": 7}, 422),
        (None, {"model": "openai/unknown"}, 404), (None, {"model": "gpt"}, 400), (None, {"model": ""}, 400),
        (None, {"model": "openai/text-embedding-3-small"}, 400), (None, {"context_window_limit": 0}, 422),
        (None, {"model_settings": {"provider_type": "abacus"}}, 422), (None, {"hidden": "perhaps"}, 422),
        (None, {"isolated_block_labels": ["nothing"]}, 400), (None, [], 422),
    ],
)  # fmt: skip
async def test_refusals_of_a_new_conversation(client: Any, query: str | None, body: Any, status: int) -> None:
    """Each with words, and nothing is made."""
    agent = await client.agent()
    path = f"{ROOT}?{query if query is not None else 'agent_id=' + agent['id']}"
    answer = await client.post(path, body)
    assert (answer.status, bool(answer.detail)) == (status, True)
    assert await ids(client, agent_id=agent["id"]) == []


@pytest.mark.parametrize("wrong", ["conv-1", "conversation", f"CONV-{NONE}", f"block-{NONE}", "Default"])
@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("POST", "/messages"), ("POST", "/fork")])
async def test_ids_of_another_form(client: Any, wrong: str, method: str, rest: str) -> None:
    """422 with an example."""
    body = {"input": "hi"} if rest == "/messages" else None
    answer = await client.call(method, f"{ROOT}{wrong}{rest}", body)
    assert (answer.status, answer["examples"]) == (422, ["conv-123e4567-e89b-42d3-a456-426614174000"])


async def test_unknown_conversations(client: Any) -> None:
    """404 on every path; `default` without an agent too, and it is no record with one."""
    unknown = f"conv-{NONE}"
    agent = await client.agent()
    for method, rest, body in (
        ("GET", "", None), ("PATCH", "", {}), ("DELETE", "", None), ("POST", "/fork", None), ("POST", "/cancel", None),
        ("POST", "/recompile", None), ("POST", "/stream", None), ("GET", "/messages", None),
        ("POST", "/messages", {"input": "hi"}),
    ):  # fmt: skip
        gone = await client.call(method, f"{ROOT}{unknown}{rest}", body)
        assert (gone.status, gone.detail) == (404, f"Conversation not found: {unknown}")
        without = await client.call(method, f"{ROOT}default{rest}", body)
        assert (without.status, "default" in without.detail) == (404, True)
        params = {"agent_id": f"agent-{NONE}" if rest else agent["id"]}
        assert (await client.call(method, f"{ROOT}default{rest}", body, params=params)).status == 404
        other = await client.call(method, f"{ROOT}default{rest}", body, params={"agent_id": unknown})
        assert other.status == 404


async def test_the_list_is_filtered_and_sorted(client: Any) -> None:
    """Archived and hidden ones are left out unless asked for."""
    agent = await client.agent()
    a, b, c, d = [
        (await made(client, agent["id"], {"summary": f"Talk {n}", "hidden": n == 3}))["id"] for n in range(4)
    ]  # fmt: skip
    assert (await client.patch(ROOT + b, {"archived": True}))["archived"] is True

    async def found(**params: Any) -> list[str]:
        return await ids(client, agent_id=agent["id"], **params)

    assert await found() == [c, a]
    assert await found(order="asc") == [a, c]
    assert await found(archive_status="archived") == [b]
    assert await found(archive_status="all") == [c, b, a]
    assert await found(include_hidden="true") == [d, c, a]
    assert await found(summary_search="talk 2") == [c]
    assert await found(summary_search="%") == []
    assert await found(limit=1) == [c]
    assert await found(limit=1, after=c) == [a]
    assert await found(after=a) == []
    await say(client, a, "hi")
    assert await found(order_by="last_message_at") == [a, c]
    assert await found(order_by="last_run_completion") == [a, c]
    assert await ids(client, agent_id=f"agent-{NONE}") == []
    assert {a, c} <= set(await ids(client, limit=1000))
    unknown = await client.get(ROOT, params={"after": f"conv-{NONE}"})
    assert (unknown.status, "cursor" in unknown.detail) == (404, True)
    for wrong in ("limit=0", "archive_status=lost", "order_by=mood", "order=up"):
        assert (await client.get(f"{ROOT}?{wrong}")).status == 422


async def test_changes(client: Any) -> None:
    """Only what is sent changes; null clears, save for `archived`; nothing to change is no change."""
    agent = await client.agent()
    one = await made(client, agent["id"], {"summary": "S", "description": "D"})
    path = ROOT + one["id"]
    assert (await client.patch(path, {})).json == one
    assert (await client.patch(path, {"summary": "S", "archived": None, "unknown": 1})).json == one
    after = await client.patch(path, {"summary": None, "archived": True})
    assert (after["summary"], after["description"], after["archived"]) == (None, "D", True)
    assert after["updated_at"] > one["updated_at"]
    again = await client.patch(path, {"archived": True})
    assert again["archived_at"] == after["archived_at"]
    back = await client.patch(path, {"archived": False, "summary": "long " * 100_000})
    assert (back["archived"], back["archived_at"], len(back["summary"])) == (False, None, 500_000)
    for sent, kept in (
        ("2030-01-02T03:04:05+02:00", "2030-01-02T01:04:05.000000+00:00"),
        ("2030-01-02T03:04:05", "2030-01-02T03:04:05.000000+00:00"), (None, None),
    ):  # fmt: skip
        assert (await client.patch(path, {"last_message_at": sent}))["last_message_at"] == kept
    for wrong in ({"summary": ["x"]}, {"last_message_at": "soon"}, {"last_message_at": "0001-01-01T00:00:00+14:00"}):
        assert (await client.patch(path, wrong)).status == 422, wrong
    assert (await client.patch(path, {"model": "openai/unknown"})).status == 404


async def test_its_model_and_settings(client: Any) -> None:
    """They are shown as they were given, and go when they are cleared; a new model begins untuned."""
    agent = await client.agent()
    one = await made(client, agent["id"], {"model": "anthropic/claude-sonnet-4-5"})
    assert (one["model"], one["model_settings"]) == ("anthropic/claude-sonnet-4-5", None)
    path = ROOT + one["id"]
    tuned = await client.patch(path, {"model_settings": {"provider_type": "anthropic", "temperature": 0.5}})
    assert (tuned["model_settings"]["temperature"], tuned["model_settings"]["provider_type"]) == (0.5, "anthropic")
    assert (await client.patch(path, {"model": "anthropic/claude-sonnet-4-5"})).json == tuned.json
    other = await client.patch(path, {"model": "openai/gpt-4o-mini"})
    assert (other["model"], other["model_settings"]) == ("openai/gpt-4o-mini", None)
    both = await client.patch(path, {"model": None, "model_settings": SMALL})
    assert (both["model"], both["model_settings"]["temperature"]) == (None, 0.25)
    cleared = await client.patch(path, {"model_settings": None})
    assert (cleared["model"], cleared["model_settings"]) == (None, None)


async def test_sending_and_listing(client: Any) -> None:
    """Newest first, the parts of one message in their own order; the agent's own list has everything (★S58)."""
    agent = await client.agent()
    one, two = [(await made(client, agent["id"]))["id"] for _ in range(2)]
    [answer] = await say(client, one, "first")
    assert answer["message_type"] == "assistant_message"
    await say(client, two, "elsewhere")
    await say(client, one, "second")
    assert await listed(client, one) == ["Hello.", "second", "Hello.", "first"]
    assert await listed(client, one, order="asc") == ["first", "Hello.", "second", "Hello."]
    assert await listed(client, one, limit=1) == ["Hello."]
    assert await listed(client, one, before=answer["id"]) == ["first"]
    assert await listed(client, one, after=answer["id"]) == ["Hello.", "second"]
    assert await listed(client, one, order="asc", after=answer["id"], limit=1) == ["second"]
    assert await listed(client, one, include_return_message_types="user_message") == ["second", "first"]
    assert await listed(client, one, group_id="g") == []
    assert await listed(client, "default", agent_id=agent["id"]) == []
    foreign = (await client.get(f"{ROOT}{two}/messages")).json[0]["id"]
    for cursor in (foreign, f"message-{NONE}"):
        assert (await client.get(f"{ROOT}{one}/messages", params={"after": cursor})).status == 404
    everything = (await client.get(f"/v1/agents/{agent['id']}/messages", params={"order": "asc"})).json
    assert [message["message_type"] for message in everything[:3]] == ["system_message"] * 3
    assert len(everything) == 9
    shown = (await client.get(ROOT + one)).json
    assert shown["last_message_at"] > shown["created_at"]
    assert len(shown["in_context_message_ids"]) == 5
    run = (await client.get("/v1/runs/", params={"conversation_id": one, "limit": 1})).json[0]
    assert (run["conversation_id"], run["metadata"]["run_type"]) == (one, "send_conversation_message")
    assert (run["status"], run["stop_reason"]) == ("completed", "end_turn")


@pytest.mark.parametrize("where", ["query", "body", "agent"])
async def test_the_agents_own_conversation(client: Any, where: str) -> None:
    """`default` with an agent id in the query or the body, or the deprecated agent id itself."""
    agent_id = (await client.agent())["id"]
    path = f"{ROOT}{agent_id if where == 'agent' else 'default'}/messages"
    params = {"agent_id": agent_id} if where == "query" else {}
    beside = {"agent_id": agent_id} if where == "body" else {}
    answer = await client.post(path, {"input": "hi", "streaming": False, **beside}, params=params)
    assert (answer.status, answer["messages"][0]["content"]) == (200, "Hello.")
    assert await listed(client, "default", agent_id=agent_id) == ["Hello.", "hi"]
    assert await listed(client, agent_id) == ["Hello.", "hi"]
    (run,) = (await client.get("/v1/runs/", params={"agent_id": agent_id})).json
    assert run["conversation_id"] is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 422), ({"messages": []}, 422), ({"input": "a", "messages": [{"role": "user", "content": "b"}]}, 422),
        ({"input": "a", "include_pings": False, "streaming": False}, 422), ({"input": "a", "streaming": 7}, 422),
        ({"input": ""}, 400),
    ],
)  # fmt: skip
async def test_refusals_of_a_message(client: Any, body: Any, status: int) -> None:
    """The same as for an agent's own messages."""
    one = (await made(client, (await client.agent())["id"]))["id"]
    assert (await client.post(f"{ROOT}{one}/messages", body)).status == status
    assert await listed(client, one) == []


async def test_deleting(client: Any) -> None:
    """It is gone for everyone, and what was said stays in the agent's history."""
    agent = await client.agent()
    one = (await made(client, agent["id"]))["id"]
    await say(client, one, "remember")
    assert (await client.delete(ROOT + one)).json is None
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/messages"), ("POST", "/fork"), ("POST", "/cancel")):
        assert (await client.call(method, f"{ROOT}{one}{rest}")).status == 404
    assert (await client.post(f"{ROOT}{one}/messages", {"input": "hi", "streaming": False})).status == 404
    kept = (await client.get(f"/v1/agents/{agent['id']}/messages", params={"conversation_id": one})).json
    assert [m["message_type"] for m in kept] == ["system_message", "user_message", "assistant_message"]


async def test_an_agents_conversations_go_with_it(client: Any) -> None:
    """Whoever asks for one afterwards is told that it is not there."""
    agent = await client.agent()
    one = (await made(client, agent["id"]))["id"]
    await client.delete(f"/v1/agents/{agent['id']}")
    assert (await client.get(ROOT + one)).status == 404
    assert (await client.post(f"{ROOT}{one}/messages", {"input": "hi"})).status == 404


async def test_forks(client: Any) -> None:
    """A fork has a system message of its own and the same messages, as far as it was asked to go."""
    agent = await client.agent()
    one = (await made(client, agent["id"], {"summary": "S", "model_settings": SMALL}))["id"]
    [first] = await say(client, one, "one")
    await say(client, one, "two")
    source = (await client.get(ROOT + one)).json
    fork = (await client.post(f"{ROOT}{one}/fork")).json
    assert fork["in_context_message_ids"][1:] == source["in_context_message_ids"][1:]
    assert fork["in_context_message_ids"][0] != source["in_context_message_ids"][0]
    assert (fork["summary"], fork["model_settings"], fork["last_message_at"]) == ("S", source["model_settings"], None)
    await say(client, fork["id"], "three")
    assert await listed(client, fork["id"], order="asc") == ["one", "Hello.", "two", "Hello.", "three", "Hello."]
    assert await listed(client, one, limit=1) == ["Hello."]
    earlier = (await client.post(f"{ROOT}{one}/fork", params={"message_id": first["id"], "hidden": "true"})).json
    assert await listed(client, earlier["id"]) == ["Hello.", "one"]
    assert earlier["id"] not in await ids(client, agent_id=agent["id"])
    nowhere = await client.post(f"{ROOT}{one}/fork", params={"message_id": f"message-{NONE}"})
    assert nowhere.status == 404
    own = await client.post(f"{ROOT}default/fork", params={"agent_id": agent["id"]})
    assert (len(own["in_context_message_ids"]), own["model"], own["agent_id"]) == (1, None, agent["id"])


async def test_recompiling(client: Any) -> None:
    """The text comes as a JSON string; a dry run stores nothing."""
    agent = await client.agent(system="Old words.")
    one = await made(client, agent["id"])
    await client.patch(f"/v1/agents/{agent['id']}", {"system": "New words."})

    async def stored() -> str:
        return (await client.get(f"/v1/messages/{one['in_context_message_ids'][0]}")).json[0]["content"][:10]

    dry = await client.post(f"{ROOT}{one['id']}/recompile", params={"dry_run": "true"})
    assert (dry.json[:10], await stored()) == ("New words.", "Old words.")
    real = await client.post(f"{ROOT}{one['id']}/recompile", {"compaction_settings": {"mode": "all"}})
    assert (real.json[:10], await stored()) == ("New words.", "New words.")
    own = await client.post(f"{ROOT}default/recompile", {"agent_id": agent["id"]})
    assert "CONVERSATION_ID: default" in own.json


async def test_isolated_blocks(client: Any) -> None:
    """Copies with ids of their own, which can be read and changed like any block."""
    agent = await client.agent(memory_blocks=[{"label": "human", "value": "Bo"}, {"label": "persona", "value": "Ada"}])
    one = await made(client, agent["id"], {"isolated_block_labels": ["human", "human"]})
    [block_id] = one["isolated_block_ids"]
    assert (await client.get(f"/v1/blocks/{block_id}"))["value"] == "Bo"
    await client.patch(f"/v1/blocks/{block_id}", {"value": "Cy"})
    text = (await client.post(f"{ROOT}{one['id']}/recompile")).json
    assert ("\nCy\n" in text, "\nBo\n" in text, "\nAda\n" in text) == (True, False, True)
    await client.delete(ROOT + one["id"])
    assert (await client.get(f"/v1/blocks/{block_id}")).status == 404


async def test_streams_of_what_is_not_there(client: Any) -> None:
    """No run under way is 400, an unknown run or otid 404, a foreground run 400; a body is not needed (★S31)."""
    agent = await client.agent()
    one, two = [(await made(client, agent["id"]))["id"] for _ in range(2)]
    [answer] = await say(client, one, "hi")
    path = f"{ROOT}{one}/stream"
    assert (await client.post(path)).status == 400
    assert (await client.post(path, {"run_id": answer["run_id"]})).detail.startswith(answer["run_id"])
    assert (await client.post(f"{ROOT}{two}/stream", {"run_id": answer["run_id"]})).status == 404
    assert (await client.post(path, {"run_id": "run-1"})).status == 404
    begin = anyio.current_time()
    assert (await client.post(path, {"otid": "nobody"})).status == 404
    assert 1.4 < anyio.current_time() - begin < 3
    assert (await client.post(path, {"starting_after": -1})).status == 422


async def test_nothing_to_cancel(client: Any) -> None:
    """409 that no SDK repeats."""
    one = (await made(client, (await client.agent())["id"]))["id"]
    answer = await client.post(f"{ROOT}{one}/cancel")
    assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
    assert answer.detail.startswith("No active runs to cancel")


async def test_the_sdk(client: Any) -> None:
    """The unchanged SDK 1.12.1 through all of `client.conversations`."""
    agent_id = (await client.agent())["id"]
    async with letta_client.AsyncLetta(base_url=client.base, api_key="unused", max_retries=0) as sdk:
        talks = sdk.conversations
        one = await talks.create(agent_id=agent_id, summary="S", model="openai/gpt-4o-mini")
        found = await talks.list(agent_id=agent_id, archive_status="all", order_by="created_at")
        assert [talk.id for talk in found] == [one.id]
        stream = await talks.messages.create(one.id, input="hi")
        assert [part.message_type async for part in stream] == [
            "ping", "assistant_message", "stop_reason", "usage_statistics"
        ]  # fmt: skip
        assert (await talks.retrieve(one.id)).last_message_at is not None
        assert (await talks.update(one.id, archived=True, summary="T")).summary == "T"
        page = await talks.messages.list(one.id)
        assert [m.message_type for m in page.items] == ["assistant_message", "user_message", "system_message"]
        fork = await talks.fork(one.id, message_id=page.items[1].id)
        assert [m.message_type for m in (await talks.messages.list(fork.id, order="asc")).items] == [
            "user_message", "system_message"
        ]  # fmt: skip
        assert "CONVERSATION_ID" in await talks.recompile(one.id, dry_run=True)
        with pytest.raises(letta_client.ConflictError, match="No active runs"):
            await talks.cancel(one.id)
        with pytest.raises(letta_client.BadRequestError):
            await talks.messages.stream(one.id)
        own = await talks.messages.create("default", agent_id=agent_id, input="hi", include_pings=False)
        assert [part.message_type async for part in own] == ["assistant_message", "stop_reason", "usage_statistics"]
        await talks.delete(one.id)
        with pytest.raises(letta_client.NotFoundError):
            await talks.retrieve(one.id)


async def test_the_description_names_every_route(client: Any) -> None:
    """With the query parameters that clients send."""
    paths = json.loads(json.dumps((await client.get("/openapi.json")).json["paths"]))
    one = "/v1/conversations/{conversation_id}"
    wanted = {
        ROOT: {"get", "post"}, one: {"get", "patch", "delete"}, one + "/messages": {"get", "post"},
        one + "/stream": {"post"}, one + "/cancel": {"post"}, one + "/fork": {"post"}, one + "/recompile": {"post"},
    }  # fmt: skip
    assert {path: set(paths[path]) for path in wanted} == wanted
