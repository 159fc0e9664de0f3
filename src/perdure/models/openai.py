"""Providers of the Chat Completions dialect: OpenAI, vLLM, Ollama, LM Studio, llama.cpp, OpenRouter and their like."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from perdure.domain.errors import ModelBadRequest, ModelError
from perdure.domain.ports import Model, ModelRequest, Piece
from perdure.domain.records import ModelInfo
from perdure.models.chat_request import Dialect, Encoder, is_reasoner
from perdure.models.chat_stream import Reading
from perdure.models.http import Client, Sleep
from perdure.models.listening import Listening

WINDOWS: Mapping[str, int] = {
    "gpt-4.1": 1_047_576, "gpt-4o": 128_000, "gpt-4-turbo": 128_000, "gpt-4": 8_192, "gpt-3.5": 16_385,
    "gpt-5": 400_000, "o1": 200_000, "o3": 200_000, "o4": 200_000, "chatgpt-4o": 128_000,
}  # fmt: skip
"""Context windows by family, for servers that do not tell; the longest matching name counts."""
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
        provider = self._provider
        while True:
            dialect = provider.dialect
            body = provider.encoder.body(request, dialect)
            hides = dialect.official and is_reasoner(request.model)
            listening = Listening(provider.client, Reading(provider.name, len(body), hides=hides))
            call = listening.to("/chat/completions", body)
            del body  # of a long history it is large; from here on only what sends it holds it
            try:
                async with call:
                    while pieces := await listening.more():
                        for piece in pieces:
                            yield piece
                    answer = await listening.answer()
                yield answer
                return
            except ModelBadRequest as error:
                if listening.begun or not dialect.stream_usage or "stream_options" not in error.detail:
                    raise
            provider.dialect = replace(provider.dialect, stream_usage=False)


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
