"""What a body holds besides messages: limits, tools, and the rules of each server."""

import json
from typing import Any

import pytest
from hearing import asking

from perdure.domain.ports import ToolSchema
from perdure.models.chat_request import Dialect, Encoder, is_free, strict

OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ROLL = ToolSchema("roll", "Rolls dice.", OBJECT)
SENT_ROLL = {"type": "function", "function": {"name": "roll", "description": "Rolls dice.", "parameters": OBJECT}}
OFFICIAL = Dialect(official=True)


def options(dialect: Dialect | None = None, **fields: Any) -> dict[str, Any]:
    """The body without its messages."""
    body: dict[str, Any] = json.loads(Encoder().body(asking(**fields), dialect or Dialect()))
    del body["messages"]
    return body


def test_the_smallest_body() -> None:
    """Without settings nothing is said that a server might refuse."""
    assert options() == {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
    assert options(Dialect(stream_usage=False)) == {"model": "m", "stream": True}


SETTINGS = {"max_output_tokens": 100, "temperature": 0.5, "reasoning": {"reasoning_effort": "low"}}


@pytest.mark.parametrize(
    ("dialect", "model", "sent"),
    [
        (OFFICIAL, "o3-mini", {"max_completion_tokens": 100, "reasoning_effort": "low"}),
        (OFFICIAL, "gpt-5", {"max_completion_tokens": 100, "reasoning_effort": "low"}),
        (OFFICIAL, "gpt-5-chat-latest", {"max_tokens": 100, "temperature": 0.5}),
        (OFFICIAL, "gpt-4o", {"max_tokens": 100, "temperature": 0.5}),
        (Dialect(), "o3-mini", {"max_tokens": 100, "temperature": 0.5}),
        (Dialect(), "llama3", {"max_tokens": 100, "temperature": 0.5}),
    ],
)
def test_limits(dialect: Dialect, model: str, sent: dict[str, Any]) -> None:
    """OpenAI's reasoning models take an effort and no temperature; nobody else knows the newer names."""
    body = options(dialect, model=model, settings=SETTINGS)
    assert {key: body[key] for key in body if key not in ("model", "stream", "stream_options")} == sent


def test_settings_that_say_nothing() -> None:
    """Null and zero limits are left out; a temperature of zero is one."""
    body = options(settings={"max_output_tokens": None, "temperature": 0, "reasoning": None, "response_format": None})
    assert body == options() | {"temperature": 0}


def test_response_format() -> None:
    """JSON and schemas are passed on; plain text is what everybody does anyway."""
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
    assert options(settings={"response_format": schema})["response_format"] == schema
    assert "response_format" not in options(settings={"response_format": {"type": "text"}})


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("auto", "auto"), ("none", "none"), ("required", "required"),
        ("roll", {"type": "function", "function": {"name": "roll"}}),
    ],
)  # fmt: skip
def test_tool_choice(choice: str, sent: Any) -> None:
    """Three words, or the name of the one tool that must be called."""
    assert options(tools=[ROLL], tool_choice=choice)["tool_choice"] == sent


def test_tools() -> None:
    """A tool is sent with its schema as it is; without tools nothing is said of them."""
    body = options(tools=[ROLL])
    assert body["tools"] == [SENT_ROLL]
    assert "parallel_tool_calls" not in body
    assert "tool_choice" not in options(tool_choice="required", parallel_tool_calls=True)


@pytest.mark.parametrize("allowed", [True, False])
def test_parallel_calls(allowed: bool) -> None:
    """Whether several calls are wanted is said if it is known."""
    assert options(tools=[ROLL], parallel_tool_calls=allowed)["parallel_tool_calls"] is allowed


def test_strict_tools() -> None:
    """Strict mode wants every property required, optional ones nullable, and no others, at every depth."""
    inner = {"type": "object", "properties": {"a": {"type": "string"}}}
    tool = ToolSchema("f", "", {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "unit": {"type": "string", "enum": ["c", "f"]},
            "many": {"type": ["string", "integer"]},
            "ref": {"$ref": "#/$defs/x"},
            "none": {"type": "null"},
            "inner": inner,
            "list": {"type": "array", "items": inner},
        },
        "required": ["n", "list"],
    })  # fmt: skip
    strict_inner = {
        "type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"],
        "additionalProperties": False,
    }  # fmt: skip
    sent = options(tools=[tool], settings={"strict": True})["tools"][0]["function"]
    assert sent["strict"] is True
    assert sent["parameters"] == {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "unit": {"type": ["string", "null"], "enum": ["c", "f", None]},
            "many": {"type": ["string", "integer", "null"]},
            "ref": {"anyOf": [{"$ref": "#/$defs/x"}, {"type": "null"}]},
            "none": {"type": "null"},
            "inner": {**strict_inner, "type": ["object", "null"]},
            "list": {"type": "array", "items": strict_inner},
        },
        "required": ["n", "unit", "many", "ref", "none", "inner", "list"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "free",
    [
        {"type": "object"},
        {"type": "object", "properties": {"any": {"type": "object"}}},
        {"type": "object", "properties": {"any": {"type": "object", "properties": {}, "additionalProperties": True}}},
        {"type": "object", "properties": {"all": {"type": "array", "items": {"type": "object"}}}},
        {"type": "object", "properties": {"one": {"anyOf": [{"type": "object"}, {"type": "null"}]}}},
    ],
)
def test_a_tool_that_cannot_be_strict_is_sent_as_it_is(free: dict[str, Any]) -> None:
    """A dictionary of anything has no strict form; OpenAI would refuse the whole request for it."""
    sent = options(tools=[ToolSchema("f", "", free)], settings={"strict": True})["tools"][0]["function"]
    assert sent == {"name": "f", "description": "", "parameters": free}


def test_properties_may_be_called_like_keywords() -> None:
    """A property named `properties`, `type` or `required` is a property."""
    word = {"type": "string"}
    schema = {"type": "object", "properties": {"properties": word, "type": word, "required": word}, "required": []}
    assert not is_free(schema)
    assert strict(schema)["properties"]["properties"] == {"type": ["string", "null"]}
    assert strict(schema)["required"] == ["properties", "type", "required"]


def test_a_schema_is_not_changed() -> None:
    """The strict form is a new one: the tool's own schema is shared by all agents."""
    before = json.dumps(OBJECT)
    options(tools=[ROLL], settings={"strict": True})
    assert json.dumps(OBJECT) == before
