"""What /openapi.json describes, tried with thousands of odd values: schemathesis against a running server.

The values are made from the description and the same in every run. Half of the requests name things that exist, so
that they get past the look-ups.
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

EXAMPLES = 12
MADE = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


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
        agent = await post("/v1/agents/", {"model": running.handle, "block_ids": [block["id"]]})
        message = (await post(f"/v1/agents/{agent['id']}/messages", {"input": "hi"}))["messages"][0]
    return {
        "agent_id": agent["id"], "block_id": block["id"], "tool_id": agent["tools"][0]["id"], "block_label": "human",
        "tool_name": "memory_insert", "run_id": message["run_id"], "step_id": message["step_id"],
        "message_id": message["id"],
    }  # fmt: skip


def problems(base_url: str, known: dict[str, str]) -> Iterator[str]:
    """What is wrong with any answer: a status of 500 or more, or a 2xx that is not as described."""
    described = schemathesis.openapi.from_url(f"{base_url}/openapi.json")
    for result in described.get_all_operations():
        assert isinstance(result, Ok), result
        operation = result.ok()
        for names in ({}, known):
            yield from _tried(operation, names)


def _tried(operation: Any, known: dict[str, str]) -> Iterator[str]:
    found: list[str] = []

    @MADE
    @given(operation.as_strategy())
    def once(case: Any) -> None:
        case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
        response = case.call()
        if response.status_code >= 500 and response.status_code != 501:
            found.append(f"{response.status_code} {case.as_curl_command()}")
        elif response.status_code < 300:
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
