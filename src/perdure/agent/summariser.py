"""Asks a model to say what a part of a conversation was about (behaviour spec §1.7).

Which model, with which request, and with how much of the conversation; what becomes of the answer is decided in
`compaction`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import msgspec

from perdure.agent.ask import schema_of
from perdure.domain.errors import ContextOverflow, Invalid, ModelEmptyResponse, ModelError, NotFound, Unavailable
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, Usage, text_of
from perdure.domain.ports import Answer, Model, ModelRequest, Models, Piece
from perdure.domain.records import Agent, Context, ModelInfo
from perdure.memory.compact import BY_ITSELF, PROMPT, SELF_PROMPT, CompactionSettings, Mode, clipped, transcripts
from perdure.memory.tokens import Correction, estimate, of_message
from perdure.memory.window import repair, return_char_cap

ANSWER_SHARE, ANSWER_TOKENS = 0.25, 8_000
"""Of a summariser's window, what is left for its answer: this share, or this many tokens if that is less."""
ACKNOWLEDGE = "Confirm that you will answer with the summary and nothing else."
ACKNOWLEDGED = "Understood. I will answer with the summary and nothing else."
LIGHT: Mapping[str, Sequence[str]] = {
    "openai": ("gpt-4.1-mini", "gpt-4o-mini"),
    "anthropic": ("claude-haiku-4-5", "claude-haiku-4-5-20251001", "claude-3-5-haiku-latest"),
    "google_ai": ("gemini-2.5-flash", "gemini-2.0-flash"),
    "openrouter": ("openai/gpt-4.1-mini", "openai/gpt-4o-mini"),
}
"""Light models by the name of their provider; the first one that it has is asked."""
FORMS = ("response_format", "response_schema")
"""Settings that a summary, which is prose, is not bound to."""


@dataclass
class Work:
    """One compaction under way. `usage` and `calls` tell what it has cost."""

    context: Context
    settings: CompactionSettings
    trigger: str
    window: int
    """Tokens of the window that the context must fit in."""
    correction: Correction = field(default_factory=Correction)
    run_id: str | None = None
    step_id: str | None = None
    fewer: bool = False
    """Whether fewer messages are the aim, as the endpoints promise; then a short summary may take more tokens."""
    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    info: ModelInfo | None = None
    """The model that was asked last."""
    _measured: WeakKeyDictionary[Message, int] = field(default_factory=WeakKeyDictionary)

    @property
    def agent(self) -> Agent:
        """Whose context it is."""
        return self.context.agent

    @property
    def fixed(self) -> int:
        """Corrected tokens of what goes with every request: the tools."""
        return self.correction(fixed_tokens(self.context))

    def sizes(self, messages: Sequence[Message]) -> list[int]:
        """The corrected tokens of each message; each is measured once."""
        for message in messages:
            if message not in self._measured:
                self._measured[message] = of_message(message, self.cap)
        return [self.correction(self._measured[message]) for message in messages]

    @property
    def cap(self) -> int:
        """Characters of a tool result that the model sees."""
        return return_char_cap(self.window)


def fixed_tokens(context: Context) -> int:
    """Estimated tokens of the tools that a model is told of with every request."""
    return estimate(msgspec.json.encode([schema_of(tool) for tool in context.tools]).decode())


class Summariser:
    """Gets summaries from models."""

    def __init__(self, models: Models):
        self._models = models

    async def summary(self, work: Work, mode: Mode, evicted: Sequence[Message]) -> str:
        """What a model says of these messages, clipped. Raises NotFound, Invalid (the model named), a ModelError."""
        if mode in BY_ITSELF:
            model = self._models.open(work.agent.model, work.window)
            requests = [_self_request(work, model.info, evicted)]
        else:
            model = await self._model(work)
            requests = await asyncio.to_thread(_requests, work, model.info, evicted)
        overflow = ContextOverflow("The summariser's window is too small for any part of the conversation.")
        for request in requests:
            try:
                return clipped(await _words(work, model, request), work.settings.clip_chars)
            except ContextOverflow as error:
                overflow = error
        raise overflow

    async def _model(self, work: Work) -> Model:
        """The model that the settings name, else a light one of the agent's provider, else the agent's own."""
        handle, named = work.agent.model, work.settings.model
        info = await self._light(handle) if named is None else None
        if named is not None and named != handle:
            info = await self._models.find(named)
            if info.kind != "llm":
                raise Invalid(f"{named} is an embedding model. Name one that talks; GET /v1/models/ lists them.")
        return self._models.open(info.handle, info.context_window) if info else self._models.open(handle, work.window)

    async def _light(self, handle: str) -> ModelInfo | None:
        provider = handle.partition("/")[0]
        for name in LIGHT.get(provider, ()):
            if handle == f"{provider}/{name}":
                return None
            try:
                return await self._models.find(f"{provider}/{name}")
            except (NotFound, Unavailable):  # then the agent's own will do
                continue
        return None


async def _words(work: Work, model: Model, request: ModelRequest) -> str:
    """The words of the answer. An empty one is asked for once more (★S13)."""
    work.info = model.info
    for last in (False, True):
        try:
            answer = await _answer(model, request)
            work.usage, work.calls = work.usage + answer.usage, work.calls + 1
            if words := text_of(answer.content).strip():
                return words
        except ModelEmptyResponse:
            if last:
                raise
    raise ModelEmptyResponse("The model answered the request for a summary without words. Try another model.")


async def _answer(model: Model, request: ModelRequest) -> Answer:
    # Every model is an async generator in fact; closing it is what aborts the call when the run is cancelled.
    async with aclosing(cast(AsyncGenerator[Piece, None], model.stream(request))) as pieces:
        async for piece in pieces:
            if isinstance(piece, Answer):
                return piece
    raise ModelError("The model's stream ended without an answer. Send the request again.")


def _self_request(work: Work, info: ModelInfo, evicted: Sequence[Message]) -> ModelRequest:
    """The agent's own request, up to the cut, with the prompt as a user turn: its provider has most of it cached."""
    context = work.context
    return ModelRequest(
        model=info.name, system=text_of(context.messages[0].content), timezone=context.agent.timezone,
        messages=[*repair(evicted), _said(work, "user", work.settings.prompt or SELF_PROMPT)],
        tools=[schema_of(tool) for tool in context.tools], tool_choice="none", settings=_own_settings(context.agent),
        return_char_cap=work.cap,
    )  # fmt: skip


def _requests(work: Work, info: ModelInfo, evicted: Sequence[Message]) -> list[ModelRequest]:
    """The requests to try, each with a shorter transcript."""
    agent, settings = work.agent, work.settings
    prompt, mine = settings.prompt or PROMPT, info.handle == agent.model
    room = info.context_window - min(ANSWER_TOKENS, int(info.context_window * ANSWER_SHARE)) - estimate(prompt)
    budget = max(int(room / (work.correction.factor if mine else 1.0)), 1)
    opening = [_said(work, "user", ACKNOWLEDGE), _said(work, "assistant", ACKNOWLEDGED)]
    given = {key: value for key, value in (settings.model_settings or {}).items() if value is not None}
    return [
        ModelRequest(
            model=info.name, system=prompt, timezone=agent.timezone,
            messages=[*(opening if settings.prompt_acknowledgement else ()), _said(work, "user", draft)],
            settings=(_own_settings(agent) if mine else {}) | given,
        )
        for draft in transcripts(evicted, budget, work.cap)
    ]  # fmt: skip


def _own_settings(agent: Agent) -> dict[str, Any]:
    return {key: value for key, value in agent.model_settings.items() if key not in FORMS}


def _said(work: Work, role: Any, text: str) -> Message:
    """A message that is sent and never stored."""
    now = work.context.messages[-1].created_at
    return Message(id=new_id("message"), role=role, created_at=now, content=(Text(text),))
