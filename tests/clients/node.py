"""The npm package, played by one Node process (`player.mjs`) for all stories; they talk in lines of JSON."""

import asyncio
import functools
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clients.sdk import Json, Options, Refused, Sdk

HERE = Path(__file__).parent
PACKAGE = "@letta-ai/letta-client"
OLDEST = 20
LONGEST_LINE = 2**24


def version() -> str:
    """The version of the npm package that package.json asks for."""
    asked: str = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"][PACKAGE]
    return asked


@functools.cache
def missing() -> str | None:
    """Why the npm package cannot be played here, and what to do; None if it can."""
    if not shutil.which("node"):
        return f"Node.js is not on PATH: install version {OLDEST} or newer, and npm, then run `make clients`"
    release = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(release.removeprefix("v").split(".")[0]) < OLDEST:
        return f"Node.js is {release}: install version {OLDEST} or newer, then run `make clients`"
    installed = HERE / "node_modules" / PACKAGE / "package.json"
    if not installed.exists():
        npm = "" if shutil.which("npm") else ", and npm is not on PATH"
        return f"{PACKAGE} {version()} is not installed{npm}: `make clients` installs it, or says why it cannot"
    found = json.loads(installed.read_text(encoding="utf-8"))["version"]
    return None if found == version() else f"{PACKAGE} is {found}, not {version()}: run `make clients`"


class Node:
    """The process. Starts with the first call."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._calls: dict[int, asyncio.Queue[Json]] = {}
        self._number = 0

    async def start(self) -> None:
        """Start it, unless it runs."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                "node", str(HERE / "player.mjs"), cwd=HERE, env={"PATH": os.environ["PATH"]}, limit=LONGEST_LINE,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            self._listening = asyncio.create_task(self._listen(self._process))

    async def stop(self) -> None:
        """Let it end, if it runs."""
        if self._process is None or self._process.stdin is None or self._listening is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 2)
        except TimeoutError:  # a story that failed left a stream open
            self._process.kill()
            await self._process.wait()
        await self._listening

    async def play(self, call: dict[str, Json]) -> AsyncIterator[Json]:
        """What happens in one call, until it is over."""
        assert self._process, "start it first"
        assert self._process.stdin
        self._number += 1
        number = self._number
        events = self._calls[number] = asyncio.Queue()
        self._process.stdin.write(json.dumps({"id": number, **call}).encode() + b"\n")
        try:
            while "answer" not in (event := await events.get()) and "error" not in event:
                yield event
            yield event
        finally:
            del self._calls[number]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        async for line in process.stdout:
            event = json.loads(line)
            if waiting := self._calls.get(event.pop("id")):
                waiting.put_nowait(event)
        for waiting in self._calls.values():
            waiting.put_nowait({"error": {"kind": "NodeEnded", "status": None, "body": None, "text": "Node ended"}})


class NodeSdk(Sdk):
    """`@letta-ai/letta-client` of npm."""

    def __init__(self, options: Options, node: Node):
        super().__init__(options)
        self._node = node

    def another(self, **options: Any) -> "NodeSdk":
        """The same with other options."""
        return NodeSdk(replace(self.options, **options), self._node)

    async def call(self, method: str, *ids: str, **fields: Json) -> Json:
        """One answer."""
        return [event async for event in self._events("answer", method, ids, fields)][-1]["answer"]

    async def all(self, method: str, *ids: str, **fields: Json) -> list[Json]:
        """All elements."""
        return [event["item"] async for event in self._events("pages", method, ids, fields) if "item" in event]

    async def stream(self, method: str, *ids: str, take: int | None = None, **fields: Json) -> AsyncIterator[Json]:
        """The chunks of a stream."""
        async for event in self._events("stream", method, ids, fields, take):
            if "item" in event:
                yield event["item"]

    async def _events(
        self, read: str, method: str, ids: tuple[str, ...], fields: dict[str, Json], take: int | None = None
    ) -> AsyncIterator[Json]:
        extra = fields.pop("extra", {})
        body = fields | extra
        args = [*ids, body] if body else [*ids]
        async for event in self._node.play(
            {"client": self._client(), "method": method, "args": args, "read": read, "take": take}
        ):
            if "sent" in event:
                self.attempts.begin(event["sent"])
            elif "ended" in event:
                self.attempts.end(event["ended"])
            elif "error" in event:
                raise Refused(**event["error"])
            else:
                yield event

    def _client(self) -> dict[str, Json]:
        chosen: dict[str, Json] = {"baseURL": self.options.base_url}
        if self.options.timeout is not None:
            chosen["timeout"] = round(self.options.timeout * 1000)
        if self.options.max_retries is not None:
            chosen["maxRetries"] = self.options.max_retries
        return chosen
