"""What the acceptance stories are told with: a client of a running server, and the cast that plays its model.

Everything goes over a real loopback socket; only the model is made up. A story names its model's turns with `play`,
sends with `send` or `stream`, and looks at what came back in plain JSON.
"""

import json as encoding
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from yarl import URL

from perdure.domain.ports import ModelRequest
from perdure.testing import Running, Say

Json = Any
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""


class Cast:
    """Plays the turns of whichever story is running. Given to the server once, as its script."""

    def __init__(self) -> None:
        self._turns: deque[Say] = deque()
        self._reply: Callable[[ModelRequest], Say] | None = None
        self.requests: list[ModelRequest] = []

    def __call__(self, request: ModelRequest) -> Say:
        """The next turn."""
        self.requests.append(request)
        if self._reply:
            return self._reply(request)
        assert self._turns, f"the story has no turn left for {request.messages[-1]!r}"
        return self._turns.popleft()

    def play(self, *turns: Say) -> None:
        """Add turns."""
        self._turns.extend(turns)

    def improvise(self, reply: Callable[[ModelRequest], Say]) -> None:
        """From now on let this function answer every request of the story."""
        self._reply = reply

    def left(self) -> int:
        """How many turns were not played."""
        return len(self._turns)

    def clear(self) -> None:
        """Forget a story that is over."""
        self._turns.clear()
        self.requests.clear()
        self._reply = None


@dataclass(frozen=True)
class Reply:
    """An answer, its body decoded if it is JSON."""

    status: int
    json: Json
    headers: Mapping[str, str]

    def __getitem__(self, key: str) -> Json:
        return self.json[key]

    @property
    def types(self) -> list[str]:
        """The message types of an answer to a message."""
        return types_of(self.json["messages"])

    @property
    def stop(self) -> str:
        """The stop reason of an answer to a message."""
        reason: str = self.json["stop_reason"]["stop_reason"]
        return reason


def types_of(messages: Sequence[Json]) -> list[str]:
    """The message types, in order."""
    return [message["message_type"] for message in messages]


class Frames:
    """The frames of a stream: data frames decoded, `[DONE]` and named events as they are."""

    def __init__(self, text: str):
        self.text = text
        self.names = [line[7:] for line in text.split("\n") if line.startswith("event: ")]
        data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
        self.done = data[-1:] == ["[DONE]"]
        self.data: list[Json] = [encoding.loads(line) for line in data if line != "[DONE]"]

    @property
    def types(self) -> list[str]:
        """The message types of all frames."""
        return types_of(self.data)

    def of(self, message_type: str) -> list[Json]:
        """The frames of one type."""
        return [frame for frame in self.data if frame["message_type"] == message_type]


class Stage:
    """A client of the server, with shorthands for what stories do all the time."""

    def __init__(self, running: Running, http: aiohttp.ClientSession, cast: Cast):
        self.running, self.http, self.cast = running, http, cast

    @property
    def requests(self) -> list[ModelRequest]:
        """What the model was asked in this story, in order."""
        return self.cast.requests

    def play(self, *turns: Say) -> None:
        """Add turns to the model's script."""
        self.cast.play(*turns)

    async def call(
        self, method: str, path: str, json: Json = None, *, content: bytes | None = None,
        headers: Mapping[str, str] | None = None, **params: Any,
    ) -> Reply:  # fmt: skip
        """One request. `content` is sent as it is; `path` is not encoded again."""
        url = URL(self.running.base_url + path, encoded=True)
        url = url.update_query(params) if params else url
        body: dict[str, Any] = {"json": json} if content is None and json is not None else {"data": content}
        sent = {"Content-Type": "application/json"} if content is not None else {}
        async with self.http.request(method, url, headers={**sent, **(headers or {})}, **body) as answer:
            text = await answer.text()
            kind = answer.headers.get("content-type", "")
            return Reply(answer.status, encoding.loads(text) if "json" in kind else text, answer.headers)

    async def get(self, path: str, **params: Any) -> Reply:
        """GET."""
        return await self.call("GET", path, **params)

    async def agent(self, **fields: Json) -> str:
        """The id of a new agent with the base tools and whatever else is given."""
        made = await self.call("POST", "/v1/agents/", {"model": self.running.handle, **fields})
        assert made.status == 200, made.json
        agent_id: str = made["id"]
        return agent_id

    async def send(self, agent_id: str, said: str | Mapping[str, Json], *turns: Say, **fields: Json) -> Reply:
        """Send a text, or a whole body, having told the model what it answers."""
        self.play(*turns)
        body = {"input": said} if isinstance(said, str) else dict(said)
        return await self.call("POST", f"/v1/agents/{agent_id}/messages", body | fields)

    async def stream(self, agent_id: str, said: str, *turns: Say, **fields: Json) -> Frames:
        """Send a text and read the whole stream that answers it."""
        answer = await self.send(agent_id, said, *turns, streaming=True, **fields)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), answer.json
        return Frames(answer.json)

    async def history(self, agent_id: str, **params: Any) -> list[Json]:
        """The agent's messages as they are listed, without system messages, oldest first."""
        listed = await self.get(f"/v1/agents/{agent_id}/messages", **params)
        assert listed.status == 200, listed.json
        return [message for message in listed.json if message["message_type"] != "system_message"]

    async def runs(self, agent_id: str) -> list[Json]:
        """The agent's runs, newest first."""
        return list((await self.get("/v1/runs/", agent_id=agent_id)).json)

    async def block(self, agent_id: str, label: str) -> str:
        """The value of an agent's block."""
        value: str = (await self.get(f"/v1/agents/{agent_id}/core-memory/blocks/{label}"))["value"]
        return value

    async def context(self, agent_id: str) -> list[str]:
        """The ids of the messages in the agent's context."""
        ids: list[str] = (await self.get(f"/v1/agents/{agent_id}"))["message_ids"]
        return ids
