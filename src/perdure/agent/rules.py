"""Tool rules: which tools may be called next, with what arguments, and when a turn may end (behaviour spec §8.4).

Pure functions over the agent's rules and what this request has called so far. A rule is a dict as the wire has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rule = Mapping[str, Any]

NOT_RESTRICTING = ("requires_approval", "continue_loop")
"""Rules that say nothing about which tool comes next, so that parallel calls stay possible (★S81)."""


@dataclass
class History:
    """What this request has called: names in order, and the result of the last call in plain text."""

    names: list[str] = field(default_factory=list)
    last_result: str = ""

    @property
    def last(self) -> str | None:
        """The tool called last."""
        return self.names[-1] if self.names else None

    def add(self, name: str, result: str) -> None:
        """Note an executed call, once (★S53)."""
        self.names.append(name)
        self.last_result = result


@dataclass(frozen=True)
class Choice:
    """The tools that may be called now, in the agent's order, and whether one of them must be."""

    names: tuple[str, ...]
    forced: bool
    why: str = ""
    """What restricts them, in words for the model; empty if nothing does."""

    @property
    def tool_choice(self) -> str:
        """`none`, `auto`, `required`, or the one tool that must be called (spec §1.2)."""
        if not self.names:
            return "none"
        if not self.forced:
            return "auto"
        return self.names[0] if len(self.names) == 1 else "required"


def choose(rules: Sequence[Rule], attached: Sequence[str], history: History) -> Choice:
    """The tools that may be called next: what every rule allows, even if that is none (★S54)."""
    if not rules:
        return Choice(tuple(attached), forced=False)
    allowed, forced = set(attached), False
    reasons: list[str] = []
    for names, force, why in _restrictions(rules, history):
        allowed &= names if names is not None else allowed
        forced, reasons = forced or force, [*reasons, why]
    for names, why in _removals(rules, history):
        if allowed & names:
            allowed -= names
            reasons.append(why)
    return Choice(tuple(name for name in attached if name in allowed), forced, " ".join(reasons))


def _of(rules: Sequence[Rule], kind: str) -> Iterable[Rule]:
    return (rule for rule in rules if rule["type"] == kind)


def _restrictions(rules: Sequence[Rule], history: History) -> Iterable[tuple[set[str] | None, bool, str]]:
    """Sets to which the next call is confined, whether a call is forced, and why."""
    first = {rule["tool_name"] for rule in _of(rules, "run_first")}
    if first and not history.names:
        yield first, True, f"The first tool must be one of: {', '.join(sorted(first))}."
    for rule in _of(rules, "constrain_child_tools"):
        if rule["tool_name"] == history.last:
            yield set(rule["children"]), True, f"After {history.last} comes one of: {', '.join(rule['children'])}."
    for rule in _of(rules, "parent_last_tool"):
        if rule["tool_name"] == history.last:
            yield set(rule["children"]), True, f"After {history.last} comes one of: {', '.join(rule['children'])}."
    for rule in _of(rules, "conditional"):
        if rule["tool_name"] == history.last and (chosen := _mapped(rule, history.last_result)) is not None:
            yield chosen, bool(chosen), f"The result of {history.last} decides what comes next."


def _mapped(rule: Rule, result: str) -> set[str] | None:
    """The tool a result leads to: mapped, default, none at all (empty set), or any (None)."""
    for key, child in rule["child_output_mapping"].items():
        if _same(key, result):
            return {child}
    if rule.get("default_child"):
        return {rule["default_child"]}
    return set() if rule.get("require_output_mapping") else None


def _same(key: str, result: str) -> bool:
    """Equality of a mapping's key and a result's text: as strings, booleans or numbers (★S52)."""
    if key == result:
        return True
    if key.lower() in ("true", "false"):
        return key.lower() == result.lower()
    try:
        return float(key) == float(result)
    except ValueError:
        return False


def _removals(rules: Sequence[Rule], history: History) -> Iterable[tuple[set[str], str]]:
    """Tools that may not be called now, and why."""
    for rule in _of(rules, "parent_last_tool"):
        if rule["tool_name"] != history.last:
            yield set(rule["children"]), f"{', '.join(rule['children'])}: only right after {rule['tool_name']}."
    for rule in _of(rules, "max_count_per_step"):
        if history.names.count(rule["tool_name"]) >= rule["max_count_limit"]:
            yield {rule["tool_name"]}, f"{rule['tool_name']} has been used {rule['max_count_limit']} times already."


def violation(choice: Choice, name: str) -> str | None:
    """The error for a call outside the allowed set, as the model reads it; None if the call is allowed."""
    if name in choice.names:
        return None
    allowed = ", ".join(choice.names) or "none"
    return f"[ToolConstraintError] Cannot call {name} now. Tools you may call: {allowed}. {choice.why}".strip()


def used_up(rules: Sequence[Rule], name: str, uses: int) -> str | None:
    """The error for a call beyond its tool's limit, which one batch of calls can reach; `uses` counts the request's."""
    for rule in _of(rules, "max_count_per_step"):
        if rule["tool_name"] == name and uses >= rule["max_count_limit"]:
            return f"[ToolConstraintError] Cannot call {name} now: it has been used {uses} times already."
    return None


def prefilled(rules: Sequence[Rule], name: str, history: History) -> dict[str, Any]:
    """Arguments that the rules in force give this call; they override the model's."""
    given: dict[str, Any] = {}
    if not history.names:
        for rule in _of(rules, "run_first"):
            given |= (rule.get("args") or {}) if rule["tool_name"] == name else {}
    for rule in _of(rules, "constrain_child_tools"):
        if rule["tool_name"] == history.last:
            for node in rule.get("child_arg_nodes") or ():
                given |= (node.get("args") or {}) if node["name"] == name else {}
    return given


_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip


def prefill_problem(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str | None:
    """What is wrong with prefilled arguments against a tool's schema; None if nothing is."""
    properties = parameters.get("properties") or {}
    for key, value in arguments.items():
        if key not in properties:
            return f"A tool rule prefills the argument {key!r}, which the tool does not have."
        kind = properties[key].get("type")
        wanted = _JSON_TYPES.get(kind) if isinstance(kind, str) else None
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and kind != "boolean")):
            return f"A tool rule prefills the argument {key!r} with {value!r}, which is not of type {kind}."
    return None


def is_terminal(rules: Sequence[Rule], name: str) -> bool:
    """Whether the turn ends after this tool."""
    return any(rule["tool_name"] == name for rule in _of(rules, "exit_loop"))


def outstanding(rules: Sequence[Rule], attached: Sequence[str], history: History) -> list[str]:
    """Attached tools that must be called before the turn may end, and were not."""
    required = dict.fromkeys(rule["tool_name"] for rule in _of(rules, "required_before_exit"))
    return [name for name in required if name in attached and name not in history.names]


def allow_parallel(rules: Sequence[Rule]) -> bool:
    """Whether the provider may be told to call several tools at once."""
    return all(rule["type"] in NOT_RESTRICTING for rule in rules)
