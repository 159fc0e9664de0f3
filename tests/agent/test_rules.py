"""Tool rules as tables: what may be called next, and when a turn may end (spec §8.4)."""

from typing import Any

import pytest

from perdure.agent.rules import (
    History,
    allow_parallel,
    choose,
    is_terminal,
    outstanding,
    prefill_problem,
    prefilled,
    violation,
)

ATTACHED = ["a", "b", "c"]
INIT = {"type": "run_first", "tool_name": "a", "args": {"k": 1}}
CHILD = {
    "type": "constrain_child_tools", "tool_name": "a", "children": ["b"],
    "child_arg_nodes": [{"name": "b", "args": {"x": "y"}}],
}
PARENT = {"type": "parent_last_tool", "tool_name": "a", "children": ["b"]}
MAX = {"type": "max_count_per_step", "tool_name": "a", "max_count_limit": 2}


def conditional(**more: Any) -> dict[str, Any]:
    mapping = {"yes": "b", "7": "c", "true": "c"}
    return {"type": "conditional", "tool_name": "a", "child_output_mapping": mapping, **more}


@pytest.mark.parametrize(
    ("rules", "called", "result", "names", "tool_choice"),
    [
        ([], [], "", ["a", "b", "c"], "auto"),
        ([INIT], [], "", ["a"], "a"),
        ([INIT, INIT | {"tool_name": "b"}], [], "", ["a", "b"], "required"),
        ([INIT], ["a"], "", ["a", "b", "c"], "auto"),
        ([CHILD], [], "", ["a", "b", "c"], "auto"),
        ([CHILD], ["a"], "", ["b"], "b"),
        ([CHILD], ["a", "b"], "", ["a", "b", "c"], "auto"),
        ([PARENT], [], "", ["a", "c"], "auto"),
        ([PARENT], ["a"], "", ["b"], "b"),
        ([MAX], ["a"], "", ["a", "b", "c"], "auto"),
        ([MAX], ["a", "a"], "", ["b", "c"], "auto"),
        ([conditional()], ["a"], "yes", ["b"], "b"),
        ([conditional()], ["a"], "7.0", ["c"], "c"),
        ([conditional()], ["a"], "True", ["c"], "c"),
        ([conditional()], ["a"], "no", ["a", "b", "c"], "auto"),
        ([conditional(default_child="c")], ["a"], "no", ["c"], "c"),
        ([conditional(require_output_mapping=True)], ["a"], "no", [], "none"),
        ([CHILD, {**CHILD, "children": ["c"]}], ["a"], "", [], "none"),
        ([CHILD | {"children": ["gone"]}], ["a"], "", [], "none"),
    ],
)
def test_what_may_be_called_next(
    rules: list[dict[str, Any]], called: list[str], result: str, names: list[str], tool_choice: str
) -> None:
    """The intersection of the rules in force; an empty one offers nothing (★S54)."""
    choice = choose(rules, ATTACHED, History(list(called), result))
    assert (list(choice.names), choice.tool_choice) == (names, tool_choice)


def test_a_call_outside_the_set_names_what_may_be_called() -> None:
    """Spec §1.6: the text begins with the marker, names the tool and the allowed ones."""
    choice = choose([CHILD], ATTACHED, History(["a"]))
    assert violation(choice, "b") is None
    assert violation(choice, "c") == (
        "[ToolConstraintError] Cannot call c now. Tools you may call: b. After a comes one of: b."
    )


def test_prefilled_arguments_come_from_the_rule_in_force() -> None:
    """First-call rules before any call, child nodes right after their parent."""
    assert prefilled([INIT, CHILD], "a", History()) == {"k": 1}
    assert prefilled([INIT, CHILD], "b", History(["a"])) == {"x": "y"}
    assert prefilled([INIT, CHILD], "a", History(["a"])) == {}


@pytest.mark.parametrize(
    ("arguments", "fine"),
    [
        ({"n": 1}, True), ({"n": "1"}, False), ({"n": True}, False), ({"s": "x"}, True), ({"other": 1}, False),
        ({}, True),
    ],
)
def test_prefilled_arguments_must_fit_the_tool(arguments: dict[str, Any], fine: bool) -> None:
    """Unknown names and wrong types are told."""
    parameters = {"properties": {"n": {"type": "integer"}, "s": {"type": "string"}}}
    assert (prefill_problem(arguments, parameters) is None) is fine


def test_what_must_be_called_before_the_end() -> None:
    """Only attached tools count; one call is enough."""
    rules = [{"type": "required_before_exit", "tool_name": name} for name in ("b", "gone", "b")]
    assert outstanding(rules, ATTACHED, History(["a"])) == ["b"]
    assert outstanding(rules, ATTACHED, History(["b"])) == []


def test_terminal_and_parallel() -> None:
    """Rules that say nothing about the next tool leave parallel calls possible (★S81)."""
    assert is_terminal([{"type": "exit_loop", "tool_name": "a"}], "a")
    assert not is_terminal([{"type": "exit_loop", "tool_name": "a"}], "b")
    assert allow_parallel([{"type": kind, "tool_name": "a"} for kind in ("continue_loop", "requires_approval")])
    assert not allow_parallel([MAX])
