"""Malformed requests: each is refused in words with its status, and leaves nothing behind (issue A, "Shows").

A row is method, path, body and the status that is specified; a body of bytes is sent as it stands. In paths `{agent}`,
`{block}`, `{tool}`, `{builtin}`, `{run}` and `{step}` stand for things that exist.
"""

import gzip
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from acceptance.stage import PIXEL, Stage
from sqlalchemy import Connection, func, select

from perdure.store import SqlStore
from perdure.store.schema import metadata
from perdure.testing import Say

pytestmark = pytest.mark.anyio

SEND = "/v1/agents/{agent}/messages"
AGENT, BLOCK, TOOL = "/v1/agents/{agent}", "/v1/blocks/{block}", "/v1/tools/{tool}"
NOBODY = "00000000-0000-4000-8000-00000000dead"
MODEL = {"model": "scripted/model"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Bad(NamedTuple):
    """One malformed request, the status it gets, and words of the refusal."""

    name: str
    method: str
    path: str
    body: Any
    status: int
    words: str = ""
    headers: Mapping[str, str] = {}


def said(**message: Any) -> dict[str, Any]:
    """A request with one message."""
    return {"messages": [{"role": "user", "content": "hi", **message}]}


def parts(*content: Any, role: str = "user") -> dict[str, Any]:
    """A request with one message of these parts."""
    return said(role=role, content=list(content))


def picture(**source: Any) -> dict[str, Any]:
    """A request with one picture."""
    return parts({"type": "image", "source": source})


def linked(url: str) -> dict[str, Any]:
    """A request with a picture by its address."""
    return picture(type="url", url=url)


def agent(**fields: Any) -> dict[str, Any]:
    """A request for a new agent."""
    return MODEL | fields


def rules(*given: Any) -> dict[str, Any]:
    """A request for a new agent with these tool rules."""
    return agent(tool_rules=list(given))


def source(text: str, **fields: Any) -> dict[str, Any]:
    """A request for a new tool."""
    return {"source_code": text, **fields}


GOOD = 'def {name}(x: str) -> str:\n    """Say.\n\n    Args:\n        x (str): words\n    """\n    return x\n'
CALL = {"type": "tool_call", "id": "c", "name": "roll", "input": {}}
RETURN = {"type": "tool_return", "tool_call_id": "c", "content": "4", "is_error": False}
SKILL = {"name": "s", "description": "d"}

TABLE = [
    # --- bodies that are no request at all
    Bad("no body", "POST", SEND, b"", 422),
    Bad("no JSON", "POST", SEND, b"hello", 422, "not JSON"),
    Bad("half an object", "POST", SEND, b'{"input": "hi"', 422, "not JSON"),
    Bad("two objects", "POST", SEND, b'{"input": "hi"}{"input": "hi"}', 422, "not JSON"),
    Bad("a list", "POST", SEND, b'[{"input": "hi"}]', 422, "not an object"),
    Bad("a string", "POST", SEND, b'"hi"', 422, "not an object"),
    Bad("a number", "POST", "/v1/agents/", b"7", 422, "not an object"),
    Bad("null", "POST", "/v1/agents/", b"null", 422),
    Bad("NaN", "POST", SEND, b'{"input": "hi", "max_steps": NaN}', 422, "not JSON"),
    Bad("infinity", "POST", "/v1/agents/", b'{"model": "scripted/model", "temperature": -Infinity}', 422, "not JSON"),
    Bad("not UTF-8", "POST", SEND, b'{"input": "\xff"}', 422, "UTF-8"),
    Bad("UTF-16", "POST", SEND, '{"input": "hi"}'.encode("utf-16"), 422),
    Bad("half a surrogate pair", "POST", SEND, rb'{"input": "\ud800"}', 422, "not JSON"),
    Bad("the other half", "POST", "/v1/blocks/", rb'{"label": "a", "value": "\udc00"}', 422, "not JSON"),
    Bad("compressed", "POST", SEND, gzip.compress(b'{"input": "hi"}'), 422, "", {"Content-Encoding": "gzip"}),
    Bad("a form", "POST", SEND, b"input=hi", 422, "application/json", FORM),
    Bad("plain text", "POST", SEND, b'{"input": "hi"}', 422, "application/json", {"Content-Type": "text/plain"}),
    Bad("an upload", "POST", SEND, b"--x--", 422, "", {"Content-Type": "multipart/form-data; boundary=x"}),
    Bad("a huge integer", "POST", SEND, b'{"input": "hi", "max_steps": 1%b}' % (b"0" * 400), 422),
    Bad("an integer of 65 bits", "POST", SEND, {"input": "hi", "extra": {"n": 2**64}}, 422, "64 bits"),
    Bad("too deep", "POST", SEND, b'{"input": %b"hi"%b}' % (b"[" * 120, b"]" * 120), 422, "levels deep"),
    Bad("far too deep", "POST", SEND, b'{"input": %b"hi"%b}' % (b"[" * 90_000, b"]" * 90_000), 422, "levels deep"),
    Bad("too large", "POST", SEND, b'{"input": "%b"}' % (b"x" * 2**19), 413, "larger than 0.5 MiB"),
    # --- addresses
    Bad("a bad agent id", "POST", "/v1/agents/agent-1/messages", {"input": "hi"}, 422, "agent-123e4567"),
    Bad("an id in capitals", "POST", "/v1/agents/{AGENT}/messages", {"input": "hi"}, 422, "agent-123e4567"),
    Bad("an id of another kind", "POST", "/v1/agents/{block}/messages", {"input": "hi"}, 422, "agent-123e4567"),
    Bad("an id and more", "GET", "/v1/agents/{agent}%0A", None, 422, "agent-123e4567"),
    Bad("an id with a NUL", "GET", "/v1/agents/{agent}%00", None, 422, "NUL"),
    Bad("half an escape in an id", "GET", "/v1/agents/%ff%fe", None, 422),
    Bad("an unknown agent", "POST", f"/v1/agents/agent-{NOBODY}/messages", {"input": "hi"}, 404, "Agent not found"),
    Bad("history of a bad id", "GET", "/v1/agents/x/messages", None, 422),
    Bad("history of an unknown agent", "GET", f"/v1/agents/agent-{NOBODY}/messages", None, 404),
    Bad("change of an unknown agent", "PATCH", f"/v1/agents/agent-{NOBODY}", {"name": "a"}, 404),
    Bad("deleting an unknown agent", "DELETE", f"/v1/agents/agent-{NOBODY}", None, 404),
    Bad("reset of an unknown agent", "PATCH", f"/v1/agents/agent-{NOBODY}/reset-messages", {}, 404),
    Bad("a bad block id", "GET", "/v1/blocks/human", None, 422, "block-123e4567"),
    Bad("an unknown block", "PATCH", f"/v1/blocks/block-{NOBODY}", {"value": "a"}, 404),
    Bad("deleting an unknown block", "DELETE", f"/v1/blocks/block-{NOBODY}", None, 404),
    Bad("a bad tool id", "PATCH", "/v1/tools/roll", {"tags": []}, 422, "tool-123e4567"),
    Bad("an unknown tool", "DELETE", f"/v1/tools/tool-{NOBODY}", None, 404),
    Bad("a bad run id", "GET", "/v1/runs/run-1", None, 400, "run-123e4567"),
    Bad("steps of a bad run id", "GET", "/v1/runs/{agent}/steps", None, 400, "run-123e4567"),
    Bad("deleting an unknown run", "DELETE", f"/v1/runs/run-{NOBODY}", None, 404),
    Bad("messages of an unknown run", "GET", f"/v1/runs/run-{NOBODY}/messages", None, 404),
    Bad("usage of an unknown run", "GET", f"/v1/runs/run-{NOBODY}/usage", None, 404),
    Bad("a bad step id", "GET", "/v1/steps/step-1", None, 422, "step-123e4567"),
    Bad("an unknown step", "PATCH", f"/v1/steps/step-{NOBODY}/feedback", {"feedback": "positive"}, 404),
    Bad("an unknown message", "GET", f"/v1/messages/message-{NOBODY}", None, 404),
    Bad("attaching a bad id", "PATCH", AGENT + "/core-memory/blocks/attach/human", None, 422),
    Bad("attaching an unknown block", "PATCH", AGENT + f"/core-memory/blocks/attach/block-{NOBODY}", None, 404),
    Bad("detaching a foreign block", "PATCH", AGENT + "/core-memory/blocks/detach/{other}", None, 404),
    Bad("an unknown label", "PATCH", AGENT + "/core-memory/blocks/nobody", {"value": "a"}, 404),
    Bad("attaching an unknown tool", "PATCH", AGENT + f"/tools/attach/tool-{NOBODY}", None, 404),
    Bad("detaching a bad id", "PATCH", AGENT + "/tools/detach/roll", None, 422),
    Bad("an address that is not there", "GET", "/v1/agent", None, 404, "/openapi.json"),
    Bad("a wrong method", "PUT", SEND, {"input": "hi"}, 405),
    Bad("another wrong method", "DELETE", "/v1/blocks/", None, 405),
    Bad("a bad user", "POST", SEND, {"input": "hi"}, 400, "user_id", {"user_id": "me"}),
    # --- sending: the request
    Bad("neither input nor messages", "POST", SEND, {}, 422, "exactly one"),
    Bad("both input and messages", "POST", SEND, {"input": "hi", **said()}, 422, "exactly one"),
    Bad("no messages", "POST", SEND, {"messages": []}, 422, "must not be empty"),
    Bad("messages that are none", "POST", SEND, {"messages": "hi"}, 422),
    Bad("a message that is none", "POST", SEND, {"messages": ["hi"]}, 422),
    Bad("input that is a number", "POST", SEND, {"input": 7}, 422),
    Bad("empty input", "POST", SEND, {"input": ""}, 400, "empty content in"),
    Bad("empty parts", "POST", SEND, {"input": []}, 400, "empty content in"),
    Bad("empty content", "POST", SEND, said(content=""), 400, "empty content in"),
    Bad("no content", "POST", SEND, said(content=None), 422),
    Bad("an unknown role", "POST", SEND, said(role="tool"), 422),
    Bad("no role", "POST", SEND, {"messages": [{"content": "hi"}]}, 422),
    Bad("an unknown kind of message", "POST", SEND, said(type="memo"), 422),
    Bad("a name that is no text", "POST", SEND, said(name=7), 422),
    Bad("no steps", "POST", SEND, {"input": "hi", "max_steps": 0}, 422),
    Bad("steps without end", "POST", SEND, {"input": "hi", "max_steps": 10**12}, 422),
    Bad("half a step", "POST", SEND, {"input": "hi", "max_steps": 1.5}, 422),
    Bad("tokens without a stream", "POST", SEND, {"input": "hi", "stream_tokens": True}, 422, "stream_tokens"),
    Bad("no pings without a stream", "POST", SEND, {"input": "hi", "include_pings": False}, 422, "include_pings"),
    Bad("streaming that is no truth", "POST", SEND, {"input": "hi", "streaming": "perhaps"}, 422),
    Bad("an unknown type to return", "POST", SEND, {"input": "hi", "include_return_message_types": ["memo"]}, 422),
    Bad("a model without provider", "POST", SEND, {"input": "hi", "override_model": "large"}, 400, "provider/model"),
    Bad("an unknown model", "POST", SEND, {"input": "hi", "override_model": "other/none"}, 404, "no model 'none'"),
    Bad("an unknown provider", "POST", SEND, {"input": "hi", "override_model": "none/large"}, 404),
    Bad("a model that embeds", "POST", SEND, {"input": "hi", "override_model": "other/embedder"}, 400),
    Bad("half a skill", "POST", SEND, {"input": "hi", "client_skills": [SKILL]}, 422, "location"),
    Bad("a system text that is none", "POST", SEND, {"input": "hi", "override_system": ["X"]}, 422),
    # --- sending: parts
    Bad("an unknown part", "POST", SEND, parts({"type": "video", "url": "x"}), 422),
    Bad("a part that is none", "POST", SEND, parts("hi"), 422),
    Bad("a text without text", "POST", SEND, parts({"type": "text"}), 422),
    Bad("thoughts of a user", "POST", SEND, parts({"type": "reasoning", "reasoning": "hm", "is_native": True}), 400),
    Bad("a call of a user", "POST", SEND, parts(CALL, RETURN), 400, "assistant message"),
    Bad("a call without a return", "POST", SEND, parts(CALL, role="assistant"), 400, "no tool return"),
    Bad("a return without a call", "POST", SEND, parts(RETURN), 400, "no tool call"),
    Bad(
        "a return before its call", "POST", SEND,
        {"messages": [parts(RETURN)["messages"][0], parts(CALL, role="assistant")["messages"][0]]}, 400,
    ),
    Bad("two returns of a call", "POST", SEND, parts(CALL, RETURN, RETURN, role="assistant"), 400, "two returns"),
    Bad("two calls of one id", "POST", SEND, parts(CALL, CALL, RETURN, role="assistant"), 400),
    Bad("a call whose input is a list", "POST", SEND, parts(CALL | {"input": []}, RETURN, role="assistant"), 422),
    Bad("an unknown kind of picture", "POST", SEND, picture(type="file", path="/etc/passwd"), 422),
    Bad("a picture without a source", "POST", SEND, parts({"type": "image"}), 422),
    Bad("a picture that is not base64", "POST", SEND, picture(type="base64", media_type="image/png", data="?"), 400),
    Bad("an empty picture", "POST", SEND, picture(type="base64", media_type="image/png", data=""), 400),
    Bad("a picture with its prefix", "POST", SEND,
        picture(type="base64", media_type="image/png", data=f"data:image/png;base64,{PIXEL}"), 400, "data: prefix"),
    Bad("an unknown stored picture", "POST", SEND, picture(type="letta", file_id="file-none"), 400, "file-none"),
    Bad("a file", "POST", SEND, linked("file:///etc/passwd"), 400, "http"),
    Bad("another protocol", "POST", SEND, linked("ftp://127.0.0.1/x.png"), 400, "http"),
    Bad("no address", "POST", SEND, linked(""), 400),
    Bad("nonsense for an address", "POST", SEND, linked("http://"), 400),
    Bad("the machine's own data", "POST", SEND, linked("http://169.254.169.254/latest/meta-data/"), 400, "internet"),
    Bad("a private address", "POST", SEND, linked("http://10.0.0.1/x.png"), 400, "internet"),
    Bad("a private address of six", "POST", SEND, linked("http://[fd00::1]/x.png"), 400, "internet"),
    Bad("this machine by number", "POST", SEND, linked("http://2130706433/x.png"), 400, "four decimal numbers"),
    Bad("this machine in six", "POST", SEND, linked("http://[::ffff:10.0.0.1]/x.png"), 400, "internet"),
    Bad("a name that is none", "POST", SEND, linked("http://nowhere.invalid/x.png"), 400, "cannot be found"),
    Bad("a port where nobody is", "POST", SEND, linked("http://127.0.0.1:9/x.png"), 400),
    Bad("an address with a password", "POST", SEND, linked("http://me:secret@127.0.0.1/x.png"), 400, "password"),
    Bad("a data URL without data", "POST", SEND, linked("data:image/png;base64,"), 400),
    Bad("a data URL of text", "POST", SEND, linked("data:text/plain;base64,aGk="), 400),
    Bad("a data URL of nonsense", "POST", SEND, linked("data:image/png;base64,????"), 400),
    Bad("a data URL of no picture", "POST", SEND, linked("data:image/png;base64,aGk="), 400),
    # --- sending: approvals
    Bad("approving nothing", "POST", SEND,
        {"messages": [{"type": "approval", "approvals": [{"type": "approval", "tool_call_id": "c", "approve": True}]}]},
        400, "No tool call is currently awaiting approval"),
    Bad("approving nothing, the old way", "POST", SEND,
        {"messages": [{"type": "approval", "approve": False, "approval_request_id": f"message-{NOBODY}"}]}, 400,
        "No tool call is currently awaiting approval"),
    Bad("returning nothing", "POST", SEND,
        {"messages": [{"type": "tool_return", "tool_returns": [
            {"type": "tool", "tool_call_id": "c", "status": "success", "tool_return": "4"}]}]},
        400, "No tool call is currently awaiting approval"),
    Bad("half an approval", "POST", SEND,
        {"messages": [{"type": "approval", "approvals": [{"type": "approval", "approve": True}]}]}, 422),
    Bad("an approval after a message", "POST", SEND,
        {"messages": [*said()["messages"], {"type": "approval", "approvals": []}]}, 400),
    Bad("cancelling nothing", "POST", SEND + "/cancel", {}, 409, "No active runs"),
    Bad("cancelling what is no list", "POST", SEND + "/cancel", {"run_ids": "run-1"}, 422),
    # --- lists
    Bad("no limit at all", "GET", SEND + "?limit=0", None, 422),
    Bad("a limit below nothing", "GET", SEND + "?limit=-1", None, 422),
    Bad("a limit too high", "GET", SEND + "?limit=1001", None, 422),
    Bad("a limit in letters", "GET", "/v1/agents/?limit=abc", None, 422),
    Bad("a limit of many digits", "GET", f"/v1/blocks/?limit={10**30}", None, 422),
    Bad("a cursor of nothing", "GET", SEND + f"?after=message-{NOBODY}", None, 404),
    Bad("a cursor of nonsense", "GET", SEND + "?before=%27%3B--", None, 404),
    Bad("a cursor with a NUL", "GET", SEND + "?before=%00", None, 422, "NUL"),
    Bad("a foreign cursor", "GET", "/v1/runs/?after={agent}", None, 404),
    Bad("a cursor of agents", "GET", f"/v1/agents/?after=agent-{NOBODY}", None, 404),
    Bad("a cursor of blocks", "GET", "/v1/blocks/?before=x", None, 404),
    Bad("a cursor of tools", "GET", "/v1/tools/?after=x", None, 404),
    Bad("a cursor of steps", "GET", "/v1/steps/?after=x", None, 404),
    Bad("a cursor in a run", "GET", "/v1/runs/{run}/messages?after=x", None, 404),
    Bad("an unknown order", "GET", SEND + "?order=up", None, 422),
    Bad("an unknown type to list", "GET", SEND + "?include_return_message_types=memo", None, 422),
    Bad("an unknown status", "GET", "/v1/runs/?statuses=happy", None, 422),
    Bad("an unknown key to sort by", "GET", "/v1/agents/?sort_by=colour", None, 422),
    Bad("an unknown relation", "GET", AGENT + "?include=agent.dreams", None, 422),
    Bad("a date that is none", "GET", "/v1/steps/?start_date=yesterday", None, 422),
    Bad("a date outside the calendar", "GET", "/v1/steps/?end_date=9999-12-31T23:59:59-14:00", None, 422),
    Bad("a truth that is none", "GET", "/v1/runs/?active=perhaps", None, 422),
    # --- agents
    Bad("an agent without a model", "POST", "/v1/agents/", {"name": "Ada"}, 400, "provider/model"),
    Bad("a model that names no provider", "POST", "/v1/agents/", {"model": "large"}, 400, "provider/model"),
    Bad("a model that nobody has", "POST", "/v1/agents/", {"model": "scripted/none"}, 404),
    Bad("a model that cannot talk", "POST", "/v1/agents/", {"model": "other/embedder"}, 400),
    Bad("an embedding that nobody has", "POST", "/v1/agents/", agent(embedding="other/none"), 404),
    Bad("an embedding that talks", "POST", "/v1/agents/", agent(embedding="other/large"), 400),
    Bad("an unknown type of agent", "POST", "/v1/agents/", agent(agent_type="oracle"), 422),
    Bad("a name that is a list", "POST", "/v1/agents/", agent(name=["Ada"]), 422),
    Bad("tags that are none", "POST", "/v1/agents/", agent(tags=[1]), 422),
    Bad("too many tags", "POST", "/v1/agents/", agent(tags=[str(n) for n in range(1001)]), 422),
    Bad("an unknown tool by id", "POST", "/v1/agents/", agent(tool_ids=[f"tool-{NOBODY}"]), 400, f"tool-{NOBODY}"),
    Bad("an unknown tool by name", "POST", "/v1/agents/", agent(tools=["fly"]), 400, "fly"),
    Bad("two blocks of one label", "POST", "/v1/agents/",
        agent(memory_blocks=[{"label": "human", "value": ""}, {"label": "human", "value": ""}]), 400, "human"),
    Bad("a block without a label", "POST", "/v1/agents/", agent(memory_blocks=[{"value": ""}]), 422, "label"),
    Bad("a block without a value", "POST", "/v1/agents/", agent(memory_blocks=[{"label": "human"}]), 422, "value"),
    Bad("an unknown rule", "POST", "/v1/agents/", rules({"type": "pray", "tool_name": "a"}), 422),
    Bad("a rule without a tool", "POST", "/v1/agents/", rules({"type": "exit_loop"}), 422, "tool_name"),
    Bad("a rule without children", "POST", "/v1/agents/",
        rules({"type": "constrain_child_tools", "tool_name": "a"}), 422, "children"),
    Bad("a rule that allows no use", "POST", "/v1/agents/",
        rules({"type": "max_count_per_step", "tool_name": "a", "max_count_limit": 0}), 422),
    Bad("settings of an unknown provider", "POST", "/v1/agents/", agent(model_settings={"provider_type": "acme"}), 422),
    Bad("a temperature too high", "POST", "/v1/agents/",
        agent(model_settings={"provider_type": "openai", "temperature": 9}), 422, "temperature"),
    Bad("no room for an answer", "POST", "/v1/agents/",
        agent(model_settings={"provider_type": "openai", "max_output_tokens": 0}), 422),
    Bad("a window below nothing", "POST", "/v1/agents/", agent(context_window_limit=-1), 422),
    Bad("an unknown time zone", "POST", "/v1/agents/", agent(timezone="Europe/Atlantis"), 400, "Europe/Atlantis"),
    Bad("a time zone outside", "POST", "/v1/agents/", agent(timezone="../../etc/passwd"), 400),
    Bad("secrets that are no texts", "POST", "/v1/agents/", agent(secrets={"K": 1}), 422),
    Bad("a first message without role", "POST", "/v1/agents/", agent(initial_message_sequence=[{"content": "a"}]), 422),
    Bad("an empty first message", "POST", "/v1/agents/",
        agent(initial_message_sequence=[{"role": "user", "content": ""}]), 400),
    Bad("a bad share of the window", "POST", "/v1/agents/",
        agent(compaction_settings={"sliding_window_percentage": 2}), 422),
    Bad("an answer of no form", "POST", "/v1/agents/", agent(response_format={"type": "poem"}), 422),
    Bad("messages of somebody else", "PATCH", AGENT, {"message_ids": [f"message-{NOBODY}"]}, 400),
    Bad("a change to an unknown model", "PATCH", AGENT, {"model": "scripted/none"}, 404),
    Bad("a change to an unknown tool", "PATCH", AGENT, {"tool_ids": [f"tool-{NOBODY}"]}, 400),
    Bad("a change to two labels", "PATCH", AGENT, {"block_ids": ["{block}", "{other}"]}, 400),
    Bad("a change to an unknown zone", "PATCH", AGENT, {"timezone": "Mars"}, 400),
    Bad("a change of a wrong type", "PATCH", AGENT, {"tool_rules": {"type": "exit_loop"}}, 422),
    Bad("an approval without a word", "PATCH", AGENT + "/tools/approval/fly", {}, 422),
    Bad("approval of an unknown tool", "PATCH", AGENT + "/tools/approval/fly", {"requires_approval": True}, 404),
    # --- blocks and tools
    Bad("a block of nothing", "POST", "/v1/blocks/", {}, 422, "label"),
    Bad("an empty label", "POST", "/v1/blocks/", {"label": "", "value": ""}, 422),
    Bad("a value that is a number", "POST", "/v1/blocks/", {"label": "a", "value": 7}, 422),
    Bad("a limit below zero", "POST", "/v1/blocks/", {"label": "a", "value": "", "limit": -1}, 422),
    Bad("metadata that is a list", "POST", "/v1/blocks/", {"label": "a", "value": "", "metadata": []}, 422),
    Bad("a label that is taken", "PATCH", "/v1/blocks/{third}", {"label": "human"}, 409, "human"),
    Bad("a second block of a label", "PATCH", AGENT + "/core-memory/blocks/attach/{other}", None, 409, "human"),
    Bad("counts of blocks in letters", "GET", "/v1/blocks/?connected_to_agents_count_gt=many", None, 422),
    Bad("a tool of nothing", "POST", "/v1/tools/", {}, 422, "source_code"),
    Bad("a source that is empty", "POST", "/v1/tools/", source(""), 400),
    Bad("a source that is no Python", "POST", "/v1/tools/", source("def f(:"), 400),
    Bad("a source without a function", "POST", "/v1/tools/", source("x = 1"), 400),
    Bad("a function without words", "POST", "/v1/tools/", source("def f(x: str):\n    return x\n"), 400, "docstring"),
    Bad("an argument without a type", "POST", "/v1/tools/", source(GOOD.format(name="f").replace(": str", "")), 400),
    Bad("a name too long", "POST", "/v1/tools/", source(GOOD.format(name="f" * 49)), 400, "48"),
    Bad("a built-in's name", "POST", "/v1/tools/", source(GOOD.format(name="memory_insert")), 409, "memory_insert"),
    Bad("a source nested without end", "POST", "/v1/tools/", source("x = " + "(" * 5000 + ")" * 5000), 400),
    Bad("no room for a result", "POST", "/v1/tools/", source(GOOD.format(name="f"), return_char_limit=0), 422),
    Bad("too much room for a result", "PUT", "/v1/tools/",
        source(GOOD.format(name="f"), return_char_limit=1_000_001), 422),
    Bad("a schema without a name", "POST", "/v1/tools/", source("x = 1", json_schema={"parameters": {}}), 400),
    Bad("changing a built-in", "PATCH", "/v1/tools/{builtin}", {"description": "mine"}, 409),
    Bad("deleting a built-in", "DELETE", "/v1/tools/{builtin}", None, 409),
    Bad("a new source that is none", "PATCH", TOOL, {"source_code": "def f(:"}, 400),
    Bad("an unknown feedback", "PATCH", "/v1/steps/{step}/feedback", {"feedback": "meh"}, 422),
]  # fmt: skip


@pytest.fixture(scope="module")
def things() -> dict[str, str]:
    """The ids of things that exist, once they have been made."""
    return {}


async def made(stage: Stage, things: dict[str, str]) -> dict[str, str]:
    """An agent with a block, a tool, a run and a step, another block of the same label, and a built-in tool."""
    key = stage.running.base_url
    if things.get("url") == key:
        return things
    tool = await stage.call("PUT", "/v1/tools/", source(GOOD.format(name="say_it_back")))
    blocks = [
        (await stage.call("POST", "/v1/blocks/", {"label": label, "value": ""}))["id"]
        for label in ("human", "human", "third")
    ]
    agent_id = await stage.agent(block_ids=[blocks[0], blocks[2]], tool_ids=[tool["id"]])
    run_id = (await stage.send(agent_id, "hi", Say("Hello.")))["messages"][0]["run_id"]
    steps = (await stage.get(f"/v1/runs/{run_id}/steps")).json
    builtin = (await stage.get("/v1/tools/", name="memory_insert")).json
    things |= {
        "url": key, "agent": agent_id, "AGENT": agent_id.upper(), "block": blocks[0], "other": blocks[1],
        "third": blocks[2], "tool": tool["id"], "run": run_id, "step": steps[0]["id"], "builtin": builtin[0]["id"],
    }  # fmt: skip
    return things


async def rows(stage: Stage) -> dict[str, int]:
    """How many rows each table has."""
    store = stage.running.store
    assert isinstance(store, SqlStore)

    def count(conn: Connection) -> dict[str, int]:
        return {
            table.name: int(conn.scalar(select(func.count()).select_from(table)) or 0)
            for table in metadata.sorted_tables
        }

    return await store.db.read(count)


def filled(value: Any, things: Mapping[str, str]) -> Any:
    """The value with the ids of existing things in their places."""
    if isinstance(value, str):
        return things[value[1:-1]] if value[1:-1] in things and value[:1] == "{" else value
    if isinstance(value, list):
        return [filled(item, things) for item in value]
    return {key: filled(item, things) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name.replace(" ", "_"))
async def test_a_malformed_request(stage: Stage, things: dict[str, str], bad: Bad) -> None:
    """It gets the status that is specified, says what to fix, and leaves nothing behind."""
    known = await made(stage, things)
    before = await rows(stage)
    raw = isinstance(bad.body, bytes)
    answer = await stage.call(
        bad.method, bad.path.format_map(known), None if raw else filled(bad.body, known),
        content=bad.body if raw else None, headers=bad.headers,
    )  # fmt: skip
    assert answer.status == bad.status, answer.json
    detail = answer["detail"]
    assert isinstance(detail, str)
    assert detail
    assert bad.words in detail
    assert len(detail) < 4000
    assert "Traceback" not in detail
    assert await rows(stage) == before


def test_the_table_is_long_enough() -> None:
    """Every row is a case of its own."""
    assert len({bad.name for bad in TABLE}) == len(TABLE) >= 70


async def test_pending_work_survives_bad_requests(stage: Stage, things: dict[str, str]) -> None:
    """After all of them the agent of the table answers as before."""
    known = await made(stage, things)
    answer = await stage.send(known["agent"], "still there?", Say("Yes."))
    assert answer.types == ["assistant_message"]
    assert len(await stage.history(known["agent"])) == 4
