"""A server of the HTTP layer over a real store and a real socket, and its client; only the models are made up."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import uvicorn
from yarl import URL

from perdure.api.deps import Deps
from perdure.api.sse import renderings
from perdure.domain.clock import SystemClock
from perdure.domain.errors import Invalid, NotFound
from perdure.domain.messages import Image, Text, Usage
from perdure.domain.ports import Answer, ModelRequest
from perdure.domain.records import ModelInfo
from perdure.runs.executor import Executor
from perdure.serving import bind
from perdure.store.open import open_store
from perdure.tools.box import ServerToolbox
from perdure.tools.egress import Egress

GPT = ModelInfo(
    handle="openai/gpt-4o-mini", name="gpt-4o-mini", provider_name="openai", provider_type="openai",
    endpoint_type="openai", endpoint="http://models.test/v1", context_window=128_000, max_output_tokens=16_384,
)  # fmt: skip
CLAUDE = ModelInfo(
    handle="anthropic/claude-sonnet-4-5", name="claude-sonnet-4-5", provider_name="anthropic",
    provider_type="anthropic", endpoint_type="anthropic", context_window=200_000, max_output_tokens=64_000,
)  # fmt: skip
EMBEDDER = ModelInfo(
    handle="openai/text-embedding-3-small", name="text-embedding-3-small", provider_name="openai",
    provider_type="openai", endpoint_type="openai", kind="embedding", embedding_dim=1536,
)  # fmt: skip


class PlainModel:
    """A model that always says the same."""

    def __init__(self, info: ModelInfo):
        self.info = info

    async def stream(self, request: ModelRequest) -> AsyncIterator[Answer]:
        """One answer."""
        usage = Usage(10, 5, 15, cached_input_tokens=4, reasoning_tokens=2)
        yield Answer(content=(Text("Hello."),), tool_calls=(), finish="stop", usage=usage)


class SomeModels:
    """Three models, all reachable."""

    known = {info.handle: info for info in (GPT, CLAUDE, EMBEDDER)}

    async def find(self, handle: str) -> ModelInfo:
        """The model of that handle."""
        if handle not in self.known:
            raise NotFound(f"Model {handle} not found.")
        return self.known[handle]

    async def list(self, kind: str = "llm") -> list[ModelInfo]:
        """All of a kind."""
        return [info for info in self.known.values() if info.kind == kind]

    def open(self, handle: str, context_window: int) -> PlainModel:
        """The plain model."""
        return PlainModel(self.known[handle])


async def no_images(url: str) -> Image:
    """There is no network in tests."""
    raise Invalid(f"{url} cannot be fetched.")


@dataclass
class Reply:
    """An answer, its body decoded."""

    status: int
    json: Any
    headers: Mapping[str, str]

    def __getitem__(self, key: str) -> Any:
        return self.json[key]

    @property
    def detail(self) -> Any:
        """The words of a refusal."""
        return self.json["detail"]


class Client:
    """Calls the server as a plain HTTP client, or with `sdk=True` as a current SDK."""

    def __init__(self, base: str, session: aiohttp.ClientSession):
        self.base, self._session = base, session

    async def call(
        self, method: str, path: str, json: Any = None, *, sdk: bool = False, headers: Mapping[str, str] | None = None,
        content: Any = None, params: Any = None,
    ) -> Reply:
        """One request. `content` is sent as it is; `path` is not re-encoded."""
        sent = {"User-Agent": "curl/8"} | ({"X-Stainless-Package-Version": "1.12.1"} if sdk else {})
        url = URL(self.base + path, encoded=True)
        url = url.update_query(params) if params else url
        body = {"json": json} if json is not None else {"data": content} if content is not None else {}
        async with self._session.request(
            method, url, headers=sent | dict(headers or {}), skip_auto_headers=["Content-Type"], **body
        ) as answer:
            return Reply(answer.status, await answer.json(content_type=None), answer.headers)

    async def get(self, path: str, **options: Any) -> Reply:
        """GET."""
        return await self.call("GET", path, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> Reply:
        """POST."""
        return await self.call("POST", path, json, **options)

    async def patch(self, path: str, json: Any = None, **options: Any) -> Reply:
        """PATCH."""
        return await self.call("PATCH", path, json, **options)

    async def delete(self, path: str, **options: Any) -> Reply:
        """DELETE."""
        return await self.call("DELETE", path, **options)

    async def agent(self, **fields: Any) -> dict[str, Any]:
        """A new agent."""
        made = await self.post("/v1/agents/", {"name": "Ada", "model": "openai/gpt-4o-mini", **fields})
        assert made.status == 200, made.json
        return made.json

    async def block(self, label: str, value: str = "", **fields: Any) -> dict[str, Any]:
        """A new block."""
        made = await self.post("/v1/blocks/", {"label": label, "value": value, **fields})
        assert made.status == 200, made.json
        return made.json

    async def tool(self, name: str, **fields: Any) -> dict[str, Any]:
        """A new custom tool with one argument."""
        doc = '"""Say it back.\n\n    Args:\n        text (str): words\n    """'
        source = f"def {name}(text: str) -> str:\n    {doc}\n    return text\n"
        made = await self.post("/v1/tools/", {"source_code": source, **fields})
        assert made.status == 200, made.json
        return made.json


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The application on a free port; yields its base URL."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server._serve, [listener])
        while not server.started:
            await anyio.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
    listener.close()


@asynccontextmanager
async def made_deps(folder: Path, **changes: Any) -> AsyncIterator[Deps]:
    """The collaborators over a fresh SQLite file, with the built-in tools in it."""
    store = await open_store(f"sqlite:///{folder / 'perdure.db'}", synchronous="NORMAL")
    models, toolbox, clock = SomeModels(), ServerToolbox(), SystemClock()
    for tool in toolbox.builtin():
        await store.tools.save(tool)
    executor = Executor(store, models, toolbox, clock, renderings(clock))
    fields = {
        "store": store, "models": models, "toolbox": toolbox, "executor": executor, "clock": clock,
        "fetch_image": no_images, "check_callback": Egress().check_url,
    }  # fmt: skip
    try:
        yield Deps(**(fields | changes))
    finally:
        await executor.drain(1)
        await store.close()
