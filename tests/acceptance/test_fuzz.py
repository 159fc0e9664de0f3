"""What /openapi.json describes, tried with thousands of odd values: schemathesis against a running server.

The values are made from the description and the same in every run. Half of the requests are given what they need to
be carried out, so that they get past the look-ups.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance

from perdure.domain.ports import ModelRequest
from perdure.testing import Call, Running, Say, server

pytestmark = pytest.mark.anyio

EXAMPLES = 8
MADE = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


SOURCE = 'def say_it(x: str) -> str:\n    """Say.\n\n    Args:\n        x (str): words\n    """\n    return x\n'


def talkative(request: ModelRequest) -> Say:
    """Calls a tool now and then, so that there are all kinds of messages."""
    insert = Call("memory_insert", {"label": "human", "new_string": "x"})
    return Say("Hello.", think="Hm.") if request.messages[-1].role == "tool" else Say("Wait.", calls=[insert])


async def prepared(running: Running) -> dict[str, str]:
    """The ids of things that exist."""
    async with aiohttp.ClientSession(running.base_url) as http:

        async def post(path: str, body: Any) -> Any:
            async with http.post(path, json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

        block = await post("/v1/blocks/", {"label": "human", "value": ""})
        tool = await post("/v1/tools/", {"source_code": SOURCE.replace("say_it", "known_tool")})
        agent = await post("/v1/agents/", {"model": running.handle, "block_ids": [block["id"]]})
        talk = await post(f"/v1/conversations/?agent_id={agent['id']}", {"summary": "known"})
        message = (await post(f"/v1/agents/{agent['id']}/messages", {"input": "hi"}))["messages"][0]
    return {
        "agent_id": agent["id"], "block_id": block["id"], "tool_id": tool["id"], "block_label": "human",
        "tool_name": "memory_insert", "run_id": message["run_id"], "step_id": message["step_id"],
        "message_id": message["id"], "model": running.handle, "conversation_id": talk["id"],
    }  # fmt: skip


IN_THE_WAY = (
    "before", "after", "embedding", "embedding_config", "folder_ids", "source_ids", "identifier_keys", "tools",
    "tool_ids", "timezone", "override_model", "llm_config", "background", "client_tools", "message_ids", "otid",
)  # fmt: skip
"""Fields whose odd values mean 4xx and nothing else."""


def likely(case: Any, known: dict[str, str]) -> None:
    """Give the request what it needs to be carried out; everything else in it stays as odd as it is."""
    case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
    case.query = {name: value for name, value in (case.query or {}).items() if name not in IN_THE_WAY}
    if case.operation.label == "POST /v1/conversations/":
        case.query["agent_id"] = known["agent_id"]
    if not isinstance(case.body, dict):
        return
    body = {name: value for name, value in case.body.items() if name not in IN_THE_WAY}
    if "source_code" in body:
        body["source_code"] = SOURCE
    if case.operation.label == "POST /v1/agents/" or (body.get("model") and "/conversations/" in case.operation.path):
        body["model"] = known["model"]
    if "/messages" in case.operation.path and (body.get("input") is None) == (body.get("messages") is None):
        body = {**body, "input": "hi", "messages": None}
    if body.get("stream_tokens") or body.get("include_pings") is False:
        body["streaming"] = True
    case.body = body


def problems(base_url: str, known: dict[str, str]) -> Iterator[str]:
    """What is wrong with any answer: a status of 500 or more, or a 2xx that is not as described."""
    described = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    operations = []
    for result in described.get_all_operations():
        assert isinstance(result, Ok), result
        operations.append(result.ok())
    operations.sort(key=lambda operation: operation.method == "delete")  # what exists is deleted at the end
    for operation in operations:
        for mended in (False, True):
            yield from _tried(operation, known if mended else None)


def _tried(operation: Any, known: dict[str, str] | None) -> Iterator[str]:
    found: list[str] = []

    @MADE
    @given(operation.as_strategy())
    def once(case: Any) -> None:
        if known:
            likely(case, known)
        response = case.call()
        if response.status_code >= 500 and response.status_code != 501:
            found.append(f"{response.status_code} {case.as_curl_command()}")
        elif response.status_code < 300 and "event-stream" not in response.headers["content-type"][0]:
            try:
                case.validate_response(response, checks=[response_schema_conformance])
            except (Failure, FailureGroup) as failure:
                found.append(f"{failure} {case.as_curl_command()}")

    once()
    yield from found


async def test_no_request_breaks_the_server() -> None:
    """Nothing that the description allows gets a 5xx, and every answer has the described form."""
    async with server(script=talkative) as running:
        known = await prepared(running)
        found = await asyncio.to_thread(lambda: list(problems(running.base_url, known)))
        assert found == []
