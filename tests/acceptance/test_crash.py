"""A server that is killed without warning: what was committed stays, what was asked is not lost, nothing is doubled.

The server is a process of its own, started by its own command; its model is an HTTP twin that falls silent.
"""

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from acceptance.stage import types_of
from acceptance.twin import HANG, Twin, twin

import perdure

pytestmark = pytest.mark.anyio

SETTINGS = {
    "PERDURE_LOG_FORMAT": "json", "PERDURE_DISCOVER": "false", "PERDURE_DEMO": "false", "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": str(Path(perdure.__file__).parents[1]), "PATH": os.environ["PATH"],
    "PERDURE_OPENAI_API_KEY": "unused",
}  # fmt: skip


class Server:
    """A running server process and a client of it."""

    def __init__(self, process: asyncio.subprocess.Process, http: aiohttp.ClientSession):
        self.process, self.http = process, http

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request that succeeds."""
        async with self.http.request(method, path, json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def send(self, agent: str, text: str) -> Any:
        """The answer to a message."""
        return await self.call("POST", f"/v1/agents/{agent}/messages", {"input": text})

    async def history(self, agent: str) -> list[Any]:
        """The agent's messages but the system message."""
        return list(await self.call("GET", f"/v1/agents/{agent}/messages"))[1:]

    async def kill(self) -> None:
        """End the process as a power failure would."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def served(home: Path, model: Twin) -> AsyncIterator[Server]:
    """`perdure serve` on a data directory, with the twin as its only model."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perdure", "serve", "--port", "0", "--data-dir", str(home),
        env=SETTINGS | {"PERDURE_OPENAI_BASE_URL": model.url}, stderr=asyncio.subprocess.PIPE, cwd=home,
    )  # fmt: skip
    assert process.stderr
    try:
        async with asyncio.timeout(15):
            while (line := json.loads(await process.stderr.readline())).get("event") != "listening":
                pass
        async with aiohttp.ClientSession(line["url"]) as http:
            yield Server(process, http)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def killed_in_the_middle(server: Server, model: Twin, agent: str, text: str) -> None:
    """Send, wait until the model has fallen silent, and kill the server."""
    sending = asyncio.create_task(server.send(agent, text))
    await model.fell_silent()
    await server.kill()
    with pytest.raises(aiohttp.ClientError):
        await sending


def request_of(home: Path, run_id: str) -> Any:
    """What the run's row says was asked."""
    with closing(sqlite3.connect(home / "perdure.db")) as database:
        (text,) = database.execute("SELECT request FROM runs WHERE id = ?", [run_id]).fetchone()
        return json.loads(text)


async def test_killed_while_the_model_speaks(tmp_path: Path) -> None:
    """The run is over at once after the restart, with a reason; what was asked is in its row; the agent answers."""
    async with twin() as model:
        async with served(tmp_path, model) as server:
            agent = (await server.call("POST", "/v1/agents/", {"model": "openai/twin"}))["id"]
            model.play({"content": "Hello."}, HANG)
            await server.send(agent, "hi")
            await killed_in_the_middle(server, model, agent, "Remember the zebra.")
        async with served(tmp_path, model) as server:
            run, before = await server.call("GET", f"/v1/runs/?agent_id={agent}")
            assert (run["status"], run["stop_reason"], before["status"]) == ("failed", "error", "completed")
            assert run["metadata"]["error"]["message"] == (
                "The server stopped while this run was under way. Send the message again."
            )
            assert run["completed_at"] is not None
            assert types_of(await server.history(agent)) == ["user_message", "assistant_message"]
            assert request_of(tmp_path, run["id"]) == {"input": "Remember the zebra."}
            assert run["metadata"]["input"] == ["Remember the zebra."]
            model.play({"content": "I do."})
            answer = await server.send(agent, "Remember the zebra.")
            assert answer["messages"][0]["content"] == "I do."
            contents = [message["content"] for message in await server.history(agent)]
            assert contents == ["hi", "Hello.", "Remember the zebra.", "I do."]
            told = [(m["role"], m["content"]) for m in model.asked[-1]["messages"][1:]]
            assert told == [("user", "hi"), ("assistant", "Hello."), ("user", "Remember the zebra.")]


async def test_killed_between_two_steps(tmp_path: Path) -> None:
    """A step that was committed stays, once: its messages and its edit; the next request goes on from there."""
    async with twin() as model:
        async with served(tmp_path, model) as server:
            block = {"label": "human", "value": ""}
            agent = (await server.call("POST", "/v1/agents/", {"model": "openai/twin", "memory_blocks": [block]}))["id"]
            model.play(model.call("memory_insert", {"label": "human", "new_string": "Bo"}), HANG)
            await killed_in_the_middle(server, model, agent, "I am Bo.")
        async with served(tmp_path, model) as server:
            listed = await server.history(agent)
            assert types_of(listed) == ["user_message", "tool_call_message", "tool_return_message"]
            assert (await server.call("GET", f"/v1/agents/{agent}/core-memory/blocks/human"))["value"] == "Bo"
            (run,) = await server.call("GET", f"/v1/runs/?agent_id={agent}")
            steps = await server.call("GET", f"/v1/runs/{run['id']}/steps")
            assert (run["status"], [step["status"] for step in steps]) == ("failed", ["success"])
            model.play({"content": "Bo."})
            await server.send(agent, "Who am I?")
            told = [message["role"] for message in model.asked[-1]["messages"]]
            assert told == ["system", "user", "assistant", "tool", "user"]
            assert "Bo" in model.asked[-1]["messages"][0]["content"]
            listed = await server.history(agent)
            assert len({message["id"] for message in listed}) == len(listed) == 5
