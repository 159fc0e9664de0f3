"""Providers of the Chat Completions dialect: OpenAI, vLLM, Ollama, LM Studio, llama.cpp, OpenRouter and their like."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import ClientError, ClientResponse

from perdure.domain.errors import ModelBadRequest, ModelError, ModelTimeout
from perdure.domain.ports import Model, ModelRequest, Piece
from perdure.domain.records import ModelInfo
from perdure.models.chat_events import is_whole
from perdure.models.chat_request import Dialect, Encoder, is_reasoner
from perdure.models.chat_stream import Reading
from perdure.models.http import Client, Sleep
from perdure.models.sse import Splitter

WINDOWS: Mapping[str, int] = {
    "gpt-4.1": 1_047_576, "gpt-4o": 128_000, "gpt-4-turbo": 128_000, "gpt-4": 8_192, "gpt-3.5": 16_385,
    "gpt-5": 400_000, "o1": 200_000, "o3": 200_000, "o4": 200_000, "chatgpt-4o": 128_000,
}  # fmt: skip
"""Context windows by family, for servers that do not tell; the longest matching name counts."""
EPILOGUE = 5.0
"""Seconds for what may follow an answer."""
UNKNOWN_WINDOW = 32_000
LARGEST_WINDOW = 2**31
WINDOW_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length", "loaded_context_length")
META_KEYS = ("n_ctx", "n_ctx_train")
OUTPUTS: Mapping[str, int] = {"gpt-4o": 16_384, "gpt-4.1": 32_768, "gpt-5": 128_000, "o1": 100_000, "o3": 100_000,
                              "o4": 100_000, "gpt-4": 8_192, "gpt-3.5": 4_096}  # fmt: skip
EMBEDDING_DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536,
    "nomic-embed-text": 768, "mxbai-embed-large": 1024, "all-minilm": 384, "bge-m3": 1024,
}  # fmt: skip
EMBEDDING_WORDS = ("embed", "bge-", "minilm", "e5-", "gte-")
OTHER_WORDS = (
    "whisper", "tts", "dall-e", "moderation", "davinci", "babbage", "realtime", "transcribe", "image", "sora",
)  # fmt: skip
"""Names of what OpenAI's list holds that neither chats nor embeds."""


class OpenAIProvider:
    """One server of the dialect. `official`: OpenAI's own service and its rules."""

    def __init__(
        self, name: str, base_url: str, api_key: str | None, *, provider_type: str = "openai",
        endpoint_type: str = "openai", official: bool = False, headers: Mapping[str, str] | None = None,
        idle: float = 600.0, sleep: Sleep = asyncio.sleep,
    ):
        self.name, self.provider_type, self._endpoint_type = name, provider_type, endpoint_type
        key = "".join((api_key or "").split())  # pasted with a line end, it is no header
        sent = dict(headers or {}) | ({"authorization": f"Bearer {key}"} if key else {})
        self.client = Client(name, base_url, sent, idle=idle, sleep=sleep)
        self.encoder = Encoder()
        self.dialect = Dialect(official=official)

    async def list_models(self) -> list[ModelInfo]:
        """What `GET /models` shows. Raises a ModelError."""
        body = await self.client.get("/models")
        try:
            listed = msgspec.json.decode(body)
            rows = (listed["data"] or []) if isinstance(listed, dict) else listed
            if not isinstance(rows, list):
                raise ValueError("there is no list of models in it")
            return [self._info(row) for row in rows if self._is_offered(row)]
        except (ValueError, RecursionError, KeyError) as error:
            raise ModelError(f"{self.name} did not list its models in the form of this API.", str(error)) from error

    def _is_offered(self, row: Any) -> bool:
        """Whether an entry is a model for us. Only the official list is known to mix in others under telling names."""
        name = row.get("id") if isinstance(row, dict) else None
        return isinstance(name, str) and bool(name) and not (self.dialect.official and _is_other(name))

    def _info(self, row: Mapping[str, Any]) -> ModelInfo:
        model = row["id"]
        embeds = any(word in model.lower() for word in EMBEDDING_WORDS)
        return ModelInfo(
            handle=f"{self.name}/{model}", name=model, provider_name=self.name, provider_type=self.provider_type,
            endpoint_type=self._endpoint_type, endpoint=self.client.base_url, context_window=_window(model, row),
            max_output_tokens=None if embeds else _longest(OUTPUTS, model),
            kind="embedding" if embeds else "llm",
            embedding_dim=(_longest(EMBEDDING_DIMENSIONS, model) or 1536) if embeds else None, display_name=model,
        )  # fmt: skip

    def open(self, info: ModelInfo) -> Model:
        """The model behind an entry."""
        return ChatModel(self, info)

    async def close(self) -> None:
        """Give the connections back."""
        await self.client.close()


class ChatModel:
    """One model of a server of this dialect."""

    def __init__(self, provider: OpenAIProvider, info: ModelInfo):
        self._provider, self.info = provider, info

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """Pieces, then the answer. A server that refuses `stream_options` is asked without from then on."""
        provider, begun = self._provider, False
        try:
            async with aclosing(self._stream(request)) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
            return
        except ModelBadRequest as error:
            if begun or not provider.dialect.stream_usage or "stream_options" not in error.detail:
                raise
        provider.dialect = replace(provider.dialect, stream_usage=False)
        async with aclosing(self._stream(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _stream(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        provider = self._provider
        body = provider.encoder.body(request, provider.dialect)
        hides = provider.dialect.official and is_reasoner(request.model)
        reading = Reading(provider.name, len(body), hides=hides)
        splitter, silence = Splitter(), Silence(provider.name, provider.client.idle)
        async with provider.client.post("/chat/completions", body) as response:
            chunk = await self._first(response)
            if not is_stream(chunk):
                for piece in reading.read(chunk):
                    yield piece
                reading.over = True
            while chunk and not reading.over:
                for data in splitter.feed(chunk):
                    for piece in reading.read(data):
                        yield piece
                if reading.over or silence.is_final(reading):
                    break
                chunk = await (self._epilogue(response) if reading.finished else response.content.readany())
            for data in filter(is_whole, splitter.close()):
                for piece in reading.read(data):
                    yield piece
            await provider.client.drain(response)
            answer = reading.answer(splitter.stray)
        yield answer

    async def _first(self, response: ClientResponse) -> bytes:
        """The first bytes of a stream, or all of an answer that is none: the bytes tell better than the headers."""
        client = self._provider.client
        chunk = await response.content.readany()
        if is_stream(chunk) and not (chunk.isspace() and response.content_type.endswith("json")):
            return chunk
        async with asyncio.timeout(client.idle):
            return (chunk + await client.whole(response)).strip()

    async def _epilogue(self, response: ClientResponse) -> bytes:
        """More of a stream whose answer is whole: the count of its tokens, which is not worth a long wait, nor an error
        if the line drops instead.
        """
        try:
            async with asyncio.timeout(min(EPILOGUE, self._provider.client.idle)):
                return await response.content.readany()
        except (TimeoutError, ClientError):
            return b""


class Silence:
    """How long nothing has been said: a stream of comments counts as one that is silent."""

    def __init__(self, name: str, idle: float):
        self._name, self._idle, self._now = name, idle, asyncio.get_running_loop().time
        self._said, self._since = (0, False), self._now()

    def is_final(self, reading: Reading) -> bool:
        """Whether nothing more need be waited for after a whole answer. Raises ModelTimeout after `idle` seconds of
        silence before its end.
        """
        said, now = (reading.kept, reading.finished), self._now()
        if said != self._said:
            self._said, self._since = said, now
        elif reading.finished:
            return now - self._since > EPILOGUE
        elif now - self._since > self._idle:
            raise ModelTimeout(f"{self._name} keeps the line open and says nothing. Send again.")
        return False


def is_stream(body: bytes) -> bool:
    """Whether this begins a stream of events, not an answer in one piece or a web page."""
    return body.lstrip()[:1] not in (b"{", b"<")


def _window(model: str, row: Mapping[str, Any]) -> int:
    """The context window a server tells, or that of the family."""
    meta = row.get("meta")
    told = [row.get(key) for key in WINDOW_KEYS]
    told += [meta.get(key) for key in META_KEYS] if isinstance(meta, dict) else []
    known = _longest(WINDOWS, model) or UNKNOWN_WINDOW
    return next((n for n in told if type(n) is int and 0 < n < LARGEST_WINDOW), known)


def _longest(table: Mapping[str, int], model: str) -> int | None:
    """The entry of the longest name that `model` begins with."""
    names = [name for name in table if model.rpartition("/")[2].startswith(name)]
    return table[max(names, key=len)] if names else None


def _is_other(model: str) -> bool:
    return any(word in model.lower() for word in OTHER_WORDS)
