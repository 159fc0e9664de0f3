"""Memory: what tools write is stored, shown to the model and shared (behaviour spec §7 and §11, 68 and 69)."""

from typing import Any

import pytest
from acceptance.stage import Reply, Stage

from perdure.domain.messages import text_of
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio


async def shared_block(stage: Stage, value: str = "", **fields: Any) -> str:
    """The id of a block of its own."""
    made = await stage.call("POST", "/v1/blocks/", {"label": "human", "value": value, **fields})
    block_id: str = made["id"]
    return block_id


def calling(name: str, **arguments: Any) -> Say:
    """A step that calls one tool."""
    return Say(calls=[Call(name, arguments)])


def result(answer: Reply) -> tuple[str, str]:
    """Status and text of an answer's tool return."""
    (message,) = [m for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    return message["status"], message["tool_return"]


async def test_a68_what_an_agent_notes(stage: Stage) -> None:
    """What memory_insert writes is in the block, in the next prompt, and with every agent that shares the block."""
    block = await shared_block(stage)
    writer, reader = [await stage.agent(block_ids=[block]) for _ in range(2)]
    await stage.send(reader, "hi", Say("Hello."))
    noting = calling("memory_insert", label="human", new_string="Bo likes tea.")
    answer = await stage.send(writer, "I like tea", noting, Say("Noted."))
    assert result(answer) == ("success", "Bo likes tea.")
    assert (await stage.get(f"/v1/blocks/{block}"))["value"] == "Bo likes tea."
    assert await stage.block(reader, "human") == "Bo likes tea."
    assert "Bo likes tea." not in stage.requests[2].system  # the running loop keeps its prompt, and the prefix cache
    for agent in (writer, reader):
        await stage.send(agent, "hi", Say("Hello."))
        assert "Bo likes tea." in stage.requests[-1].system
        assert "Bo likes tea." in (await stage.get(f"/v1/agents/{agent}/messages")).json[0]["content"]


async def test_a68_a_block_that_may_only_be_read(stage: Stage) -> None:
    """A read-only block refuses the tools, not the API."""
    block = await shared_block(stage, "fixed", read_only=True)
    agent = await stage.agent(block_ids=[block])
    noting = calling("memory_insert", label="human", new_string="more")
    status, text = result(await stage.send(agent, "hi", noting, Say("Sorry.")))
    assert (status, "read" in text) == ("error", True)
    assert (await stage.get(f"/v1/blocks/{block}"))["value"] == "fixed"
    assert (await stage.call("PATCH", f"/v1/blocks/{block}", {"value": "changed"}))["value"] == "changed"
    await stage.send(agent, "hi", Say("Hello."))
    assert "changed" in stage.requests[-1].system


async def test_a69_a_replacement_that_is_not_clear(stage: Stage) -> None:
    """A text that occurs twice is not replaced: the lines are named. Displayed line numbers are refused."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": "tea\nmilk\ntea"}])
    twice = calling("memory_replace", label="human", old_string="tea", new_string="coffee")
    numbered = calling("memory_replace", label="human", old_string="3→ tea", new_string="coffee")
    once = calling("memory_replace", label="human", old_string="milk\ntea", new_string="coffee")
    status, text = result(await stage.send(agent, "hi", twice, Say("Sorry.")))
    assert (status, "on lines 1, 3" in text) == ("error", True)
    assert result(await stage.send(agent, "hi", numbered, Say("Sorry.")))[0] == "error"
    assert await stage.block(agent, "human") == "tea\nmilk\ntea"
    assert result(await stage.send(agent, "hi", once, Say("Done."))) == ("success", "tea\ncoffee")


async def test_edits_that_cannot_all_be_made(stage: Stage) -> None:
    """Calls of one step see each other's edits; one that fails does not undo the others."""
    agent = await stage.agent(parallel_tool_calls=True, memory_blocks=[{"label": "human", "value": "a"}])
    batch = Say(
        calls=[
            Call("memory_replace", {"label": "human", "old_string": "a", "new_string": "b"}),
            Call("memory_replace", {"label": "human", "old_string": "a", "new_string": "c"}),
            Call("memory_replace", {"label": "human", "old_string": "b", "new_string": "d"}),
        ]
    )
    answer = await stage.send(agent, "hi", batch, Say("Done."))
    assert [r["status"] for r in answer["messages"][1]["tool_returns"]] == ["success", "error", "success"]
    assert await stage.block(agent, "human") == "d"


async def test_blocks_that_come_and_go(stage: Stage) -> None:
    """memory_rethink makes a missing block, the omni tool makes, renames and deletes one; all of it in one turn."""
    agent = await stage.agent(tools=["memory", "memory_rethink"], include_base_tools=False)
    steps = [
        calling("memory_rethink", label="plans", new_memory="Lisbon"),
        calling("memory", command="create", path="/memories/pets", description="Animals.", file_text="Ida"),
        calling("memory", command="rename", old_path="/memories/pets", new_path="/memories/zoo"),
        calling("memory", command="delete", path="/memories/plans"),
    ]
    answer = await stage.send(agent, "hi", *steps, Say("Done."))
    statuses = [m["status"] for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    assert statuses == ["success"] * 4
    blocks = (await stage.get(f"/v1/agents/{agent}/core-memory/blocks")).json
    assert [(block["label"], block["value"]) for block in blocks] == [("zoo", "Ida")]
    await stage.send(agent, "hi", Say("Hello."))
    assert "<zoo>" in stage.requests[-1].system
    assert "<plans>" not in stage.requests[-1].system


async def test_what_the_api_changes_is_in_the_next_prompt(stage: Stage) -> None:
    """Attaching, detaching, a new system text and new rules reach the model with the next request (S5)."""
    agent = await stage.agent(system="You are Ada.")
    block = await shared_block(stage, "Bo is here.")
    await stage.send(agent, "hi", Say("Hello."))
    await stage.call("PATCH", f"/v1/agents/{agent}/core-memory/blocks/attach/{block}")
    await stage.send(agent, "hi", Say("Hello."))
    await stage.call("PATCH", f"/v1/agents/{agent}", {"system": "You are Eve."})
    await stage.call("PATCH", f"/v1/agents/{agent}/core-memory/blocks/detach/{block}")
    await stage.send(agent, "hi", Say("Hello."))
    texts = [request.system for request in stage.requests]
    assert ["Bo is here." in text for text in texts] == [False, True, False]
    assert [text[:12] for text in texts] == ["You are Ada.", "You are Ada.", "You are Eve."]
    stored = (await stage.get(f"/v1/agents/{agent}/messages")).json[0]
    assert (stored["content"], stored["id"]) == (texts[2], (await stage.context(agent))[0])


async def test_the_prompt_stays_the_same_between_changes(stage: Stage) -> None:
    """Requests without a change in between send the same system text, to the letter (prefix caches)."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": "Bo"}])
    for _ in range(3):
        await stage.send(agent, "hi", Say("Hello."))
    assert len({request.system for request in stage.requests}) == 1


async def test_resetting_hides_and_keeps(stage: Stage) -> None:
    """After a reset the model sees nothing of before; history and conversation_search still know it."""
    agent = await stage.agent()
    await stage.send(agent, "My zebra is called Ida.", Say("A fine name."))
    state = await stage.call("PATCH", f"/v1/agents/{agent}/reset-messages", {})
    assert (state.status, len(state["message_ids"])) == (200, 1)
    search = calling("conversation_search", query="zebra", roles=["user"])
    answer = await stage.send(agent, "Which pet?", search, Say("Ida."))
    assert [message.role for message in stage.requests[1].messages] == ["user"]
    assert "2 previous messages are stored in recall memory" in stage.requests[1].system
    assert "Ida" in result(answer)[1]
    assert len(await stage.history(agent)) == 6


async def test_a_context_chosen_by_hand(stage: Stage) -> None:
    """The messages that a client puts into the context are what the model sees, in that order; history keeps all."""
    agent = await stage.agent()
    for word in ("one", "two", "three"):
        await stage.send(agent, word, Say(f"{word}!"))
    system, *ids = await stage.context(agent)
    state = await stage.call("PATCH", f"/v1/agents/{agent}", {"message_ids": [system, *ids[4:], *ids[:2]]})
    assert state["message_ids"] == [system, *ids[4:], *ids[:2]]
    await stage.send(agent, "four", Say("four!"))
    seen = [text_of(message.content) for message in stage.requests[-1].messages]
    assert seen == ["three", "three!", "one", "one!", "four"]
    assert len(await stage.history(agent)) == 8
