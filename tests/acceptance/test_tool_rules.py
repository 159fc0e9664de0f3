"""Tool rules steer what may be called and when a turn may end (behaviour spec §8.4 and §11, 17-23)."""

import json
from typing import Any

import pytest
from acceptance.stage import Stage, types_of

from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

TOOLS = ["memory_insert", "memory_rethink", "conversation_search"]


async def ruled(stage: Stage, *rules: dict[str, Any], **fields: Any) -> str:
    """An agent with three tools, a block `human` and these rules only."""
    return await stage.agent(
        tools=TOOLS, include_base_tools=False, include_base_tool_rules=False, tool_rules=list(rules),
        memory_blocks=[{"label": "human", "value": ""}], **fields,
    )  # fmt: skip


def insert(text: str = "Bo") -> Say:
    """A step that calls memory_insert."""
    return Say(calls=[Call("memory_insert", {"label": "human", "new_string": text})])


def rethink(text: str) -> Say:
    """A step that calls memory_rethink, whose result is the text."""
    return Say(calls=[Call("memory_rethink", {"label": "human", "new_memory": text})])


SEARCH = Say(calls=[Call("conversation_search", {"query": "zebra"})])


def offers(stage: Stage) -> list[tuple[list[str], str]]:
    """What each request to the model offered, and what it demanded."""
    return [([tool.name for tool in request.tools], request.tool_choice) for request in stage.requests]


async def test_a17_a_tool_that_ends_the_turn(stage: Stage) -> None:
    """After an exit_loop tool the model is not asked again, even if the tool failed."""
    agent = await ruled(stage, {"type": "exit_loop", "tool_name": "memory_insert"})
    answer = await stage.send(agent, "hi", insert())
    failing = Say(calls=[Call("memory_insert", {"label": "nobody", "new_string": "x"})])
    failed = await stage.send(agent, "hi", failing)
    assert [(a.types, a.stop) for a in (answer, failed)] == [
        (["tool_call_message", "tool_return_message"], "tool_rule")
    ] * 2
    assert failed["messages"][1]["status"] == "error"
    assert [run["status"] for run in await stage.runs(agent)] == ["completed", "completed"]


async def test_a17_a_tool_that_ends_the_turn_among_others(stage: Stage) -> None:
    """In a batch the ending tool wins: all calls run, then the turn is over."""
    agent = await ruled(stage, {"type": "exit_loop", "tool_name": "memory_insert"}, parallel_tool_calls=True)
    batch = Say(calls=[*insert("one").calls, *SEARCH.calls, *insert("two").calls])
    answer = await stage.send(agent, "hi", batch)
    assert (answer.stop, len(answer["messages"][1]["tool_returns"])) == ("tool_rule", 3)
    assert await stage.block(agent, "human") == "one\ntwo"


async def test_a18_a_tool_that_must_be_called(stage: Stage) -> None:
    """Words alone do not end the turn while a required tool is uncalled: the model is told which, out of sight."""
    agent = await ruled(stage, {"type": "required_before_exit", "tool_name": "memory_insert"})
    answer = await stage.send(agent, "hi", Say("Bye."), insert(), Say("Now bye."))
    assert answer.types == ["assistant_message", "tool_call_message", "tool_return_message", "assistant_message"]
    assert (answer.stop, answer["usage"]["step_count"]) == ("end_turn", 3)
    hint = stage.requests[1].messages[-1]
    listed = await stage.history(agent)
    assert hint.role == "user"
    assert types_of(listed)[:3] == ["user_message", "assistant_message", "user_message"]
    assert json.loads(listed[2]["content"])["reason"] == (
        "[This is a hidden system message] Before you may end your turn, call: memory_insert."
    )
    again = await stage.send(agent, "hi", Say("Bye."), max_steps=1)
    assert (again.stop, len(again["messages"])) == ("max_steps", 1)


async def test_a18_a_required_tool_before_an_ending_one(stage: Stage) -> None:
    """An exit_loop tool does not end the turn either while a required one is uncalled."""
    rules = [
        {"type": "exit_loop", "tool_name": "memory_rethink"},
        {"type": "required_before_exit", "tool_name": "memory_insert"},
    ]
    agent = await ruled(stage, *rules)
    answer = await stage.send(agent, "hi", rethink("a"), insert(), rethink("b"))
    assert (answer.stop, answer["usage"]["step_count"]) == ("tool_rule", 3)


async def test_a19_the_first_tool(stage: Stage) -> None:
    """Before any call only the run_first tools are offered, and one of them is demanded."""
    one = await ruled(stage, {"type": "run_first", "tool_name": "memory_insert"})
    await stage.send(one, "hi", insert(), Say("Done."))
    assert offers(stage) == [(["memory_insert"], "memory_insert"), (TOOLS, "auto")]
    stage.cast.clear()
    rules = [{"type": "run_first", "tool_name": name} for name in ("memory_insert", "memory_rethink")]
    two = await ruled(stage, *rules)
    await stage.send(two, "hi", rethink("a"), Say("Done."))
    assert offers(stage) == [(["memory_insert", "memory_rethink"], "required"), (TOOLS, "auto")]


async def test_a20_what_comes_after_a_tool(stage: Stage) -> None:
    """After a tool only its children are offered, forced; another call is refused and changes nothing."""
    agent = await ruled(
        stage, {"type": "constrain_child_tools", "tool_name": "memory_insert", "children": ["conversation_search"]}
    )
    answer = await stage.send(agent, "hi", insert("one"), insert("two"), SEARCH, Say("Done."))
    assert offers(stage) == [
        (TOOLS, "auto"), (["conversation_search"], "conversation_search"),
        (["conversation_search"], "conversation_search"), (TOOLS, "auto"),
    ]  # fmt: skip
    refused = answer["messages"][3]
    assert (refused["status"], refused["name"]) == ("error", "memory_insert")
    assert refused["tool_return"] == (
        "[ToolConstraintError] Cannot call memory_insert now. Tools you may call: conversation_search. "
        "After memory_insert comes one of: conversation_search."
    )
    assert await stage.block(agent, "human") == "one"


async def test_what_comes_only_after_a_tool(stage: Stage) -> None:
    """The children of a parent_last_tool rule are offered right after it only, and then alone."""
    agent = await ruled(
        stage, {"type": "parent_last_tool", "tool_name": "memory_insert", "children": ["memory_rethink"]}
    )
    await stage.send(agent, "hi", insert(), rethink("a"), Say("Done."))
    others = ["memory_insert", "conversation_search"]
    assert offers(stage) == [(others, "auto"), (["memory_rethink"], "memory_rethink"), (others, "auto")]


async def test_a21_a_tool_that_is_used_up(stage: Stage) -> None:
    """A tool limited to two uses gives two results; then it is not offered, and a third call is refused."""
    agent = await ruled(stage, {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 2})
    answer = await stage.send(agent, "hi", insert("one"), insert("two"), insert("three"), Say("Done."))
    statuses = [m["status"] for m in answer["messages"] if m["message_type"] == "tool_return_message"]
    assert statuses == ["success", "success", "error"]
    assert "[ToolConstraintError]" in answer["messages"][5]["tool_return"]
    assert [names for names, _ in offers(stage)] == [TOOLS, TOOLS, TOOLS[1:], TOOLS[1:]]
    assert await stage.block(agent, "human") == "one\ntwo"
    assert (await stage.send(agent, "again", insert("three"), Say("Done."))).stop == "end_turn"
    assert await stage.block(agent, "human") == "one\ntwo\nthree"


async def test_a21_a_tool_that_is_used_up_within_a_batch(stage: Stage) -> None:
    """The limit counts the calls of one batch, too."""
    rule = {"type": "max_count_per_step", "tool_name": "memory_insert", "max_count_limit": 2}
    agent = await ruled(stage, rule, parallel_tool_calls=True)
    batch = Say(calls=[call for text in ("one", "two", "three") for call in insert(text).calls])
    answer = await stage.send(agent, "hi", batch, Say("Done."))
    assert [r["status"] for r in answer["messages"][1]["tool_returns"]] == ["success", "success", "error"]
    assert await stage.block(agent, "human") == "one\ntwo"


CONDITION = {
    "type": "conditional", "tool_name": "memory_rethink", "child_output_mapping": {"yes": "memory_insert"},
    "default_child": "conversation_search",
}  # fmt: skip


@pytest.mark.parametrize(
    ("result", "key", "offered"),
    [
        ("yes", "yes", ["memory_insert"]), ("no", "yes", ["conversation_search"]), ("True", "true", ["memory_insert"]),
        ("2.0", "2", ["memory_insert"]), ("yes!", "yes", ["conversation_search"]),
    ],
)  # fmt: skip
async def test_a22_a_result_decides(stage: Stage, result: str, key: str, offered: list[str]) -> None:
    """The result of a tool decides what comes next: by its text, as a truth value, as a number, or by default."""
    agent = await ruled(stage, CONDITION | {"child_output_mapping": {key: "memory_insert"}})
    following = insert() if offered == ["memory_insert"] else SEARCH
    await stage.send(agent, "hi", rethink(result), following, Say("Done."))
    assert offers(stage)[1] == (offered, offered[0])


async def test_a22_a_result_that_leads_nowhere(stage: Stage) -> None:
    """Where a mapped result is required and none fits, no tool is offered and the model is told why."""
    agent = await ruled(stage, CONDITION | {"default_child": None, "require_output_mapping": True})
    answer = await stage.send(agent, "hi", rethink("no"), Say("I stop."))
    assert (offers(stage)[1], answer.stop) == (([], "none"), "end_turn")
    assert stage.requests[1].system.endswith(
        "You have no tools now. The result of memory_rethink decides what comes next."
    )
    free = await ruled(stage, CONDITION | {"default_child": None, "require_output_mapping": False})
    await stage.send(free, "hi", rethink("no"), Say("I stop."))
    assert offers(stage)[3] == (TOOLS, "auto")


async def test_a23_arguments_that_a_rule_gives(stage: Stage) -> None:
    """A prefilled argument overrides the model's, in what runs and in what is shown."""
    agent = await ruled(stage, {"type": "run_first", "tool_name": "memory_insert", "args": {"new_string": "Ada"}})
    answer = await stage.send(agent, "hi", insert("Bo"), insert("Bo"), Say("Done."))
    shown = json.loads(answer["messages"][0]["tool_call"]["arguments"])
    assert shown == {"label": "human", "new_string": "Ada"}
    assert await stage.block(agent, "human") == "Ada\nBo"


async def test_a23_arguments_of_a_child(stage: Stage) -> None:
    """A child rule gives its children arguments of their own."""
    rule = {
        "type": "constrain_child_tools", "tool_name": "memory_insert", "children": ["memory_rethink"],
        "child_arg_nodes": [{"name": "memory_rethink", "args": {"new_memory": "clean"}}],
    }  # fmt: skip
    agent = await ruled(stage, rule)
    await stage.send(agent, "hi", insert("Bo"), rethink("dirty"), Say("Done."))
    assert await stage.block(agent, "human") == "clean"


@pytest.mark.parametrize("args", [{"colour": "red"}, {"new_string": 7}, {"insert_line": True}])
async def test_a23_arguments_that_do_not_fit(stage: Stage, args: dict[str, Any]) -> None:
    """A prefilled argument that the tool does not have, or of a wrong type, ends the turn; nothing runs."""
    agent = await ruled(stage, {"type": "run_first", "tool_name": "memory_insert", "args": args})
    answer = await stage.send(agent, "hi", insert("Bo"))
    (name,) = args
    assert (answer.stop, answer["messages"][1]["status"]) == ("invalid_tool_call", "error")
    assert f"A tool rule prefills the argument {name!r}" in answer["messages"][1]["tool_return"]
    assert json.loads(answer["messages"][0]["tool_call"]["arguments"]) == {"label": "human", "new_string": "Bo"}
    assert (await stage.runs(agent))[0]["status"] == "failed"
    assert await stage.block(agent, "human") == ""


async def test_rules_are_told(stage: Stage) -> None:
    """The rules are in the system message from the first compilation on; rules of tools not attached are not."""
    agent = await ruled(
        stage, {"type": "exit_loop", "tool_name": "memory_insert"}, {"type": "exit_loop", "tool_name": "elsewhere"}
    )
    await stage.send(agent, "hi", Say("Hello."))
    told = "<tool_usage_rules>\n- Using memory_insert ends your turn.\n</tool_usage_rules>"
    assert told in stage.requests[0].system


async def test_parallel_calls_and_rules(stage: Stage) -> None:
    """The provider is told that calls may be parallel only where no rule restricts their order."""
    plain = await ruled(stage, {"type": "continue_loop", "tool_name": "memory_insert"}, parallel_tool_calls=True)
    strict = await ruled(stage, {"type": "exit_loop", "tool_name": "memory_insert"}, parallel_tool_calls=True)
    for agent in (plain, strict):
        await stage.send(agent, "hi", Say("Hello."))
    assert [request.parallel_tool_calls for request in stage.requests] == [True, False]
