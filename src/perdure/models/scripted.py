"""A model that plays a script: public, for tests of anything that talks to models.

A script is a list of turns, one per model call. The model records the requests it was given and can tell whether
all of its turns were played. A function form answers each request as it likes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from perdure.domain.errors import ModelEmptyResponse, ModelError
from perdure.domain.messages import OmittedReasoning, Part, Reasoning, RedactedReasoning, Text, ToolCall, Usage
from perdure.domain.ports import Answer, CallPiece, HiddenPiece, ModelRequest, Piece, ReasoningPiece, TextPiece
from perdure.domain.records import ModelInfo

INFO = ModelInfo(
    handle="scripted/model", name="model", provider_name="scripted", provider_type="openai", endpoint_type="openai",
    context_window=128_000, max_output_tokens=16_384,
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A tool call of a script; `raw` replaces the JSON of the arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None
    id: str | None = None

    def encoded(self) -> str:
        """The arguments as a model would write them."""
        return self.raw if self.raw is not None else msgspec.json.encode(self.arguments).decode()


@dataclass(frozen=True)
class Say:
    """One model call: thoughts, words in chunks, calls, and what goes wrong.

    `gate` is awaited before the first piece; `hang` never answers; `fail` is raised before the first piece,
    `break_off` after the last fragment instead of an answer.
    """

    text: str | Sequence[str] = ""
    think: str | Sequence[str] = ""
    calls: Sequence[Call] = ()
    usage: Usage = field(default_factory=lambda: Usage(10, 5, 15))
    finish: str = "stop"
    sealed: str | None = None
    omitted: bool = False
    gate: asyncio.Event | None = None
    hang: bool = False
    fail: ModelError | None = None
    break_off: ModelError | None = None


Reply = Callable[[ModelRequest], Say]


class ScriptedModel:
    """Plays turns in order, or asks a function for each one."""

    def __init__(self, script: Sequence[Say] | Reply = (), info: ModelInfo = INFO):
        self.info = info
        self.requests: list[ModelRequest] = []
        self._reply = script if callable(script) else None
        self._turns = [] if callable(script) else list(script)
        self._made = 0

    def play(self, *turns: Say) -> None:
        """Add turns to the script."""
        self._turns.extend(turns)

    def assert_done(self) -> None:
        """Raises AssertionError if turns were not played."""
        assert not self._turns, f"{len(self._turns)} turns of the script were not played: {self._turns!r}"

    async def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """The pieces of the next turn, then its answer."""
        self.requests.append(request)
        turn = self._next(request)
        if turn.gate:
            await turn.gate.wait()
        if turn.hang:
            await asyncio.Event().wait()
        if turn.fail:
            raise turn.fail
        calls = [self._named(call) for call in turn.calls]
        for piece in _pieces(turn, calls):
            yield piece
        if turn.break_off:
            raise turn.break_off
        yield _answer(turn, calls)

    def _next(self, request: ModelRequest) -> Say:
        if self._reply:
            return self._reply(request)
        assert self._turns, f"the script has no turn for request {len(self.requests)}"
        return self._turns.pop(0)

    def _named(self, call: Call) -> ToolCall:
        self._made += 1
        return ToolCall(call.id or f"call_{self._made}", call.name, call.encoded())


def _pieces(turn: Say, calls: Sequence[ToolCall]) -> Sequence[Piece]:
    pieces: list[Piece] = []
    if turn.omitted or turn.sealed is not None:
        pieces.append(HiddenPiece(turn.sealed))
    pieces += [ReasoningPiece(chunk) for chunk in _chunks(turn.think)]
    pieces += [TextPiece(chunk) for chunk in _chunks(turn.text)]
    for call in calls:
        pieces += [CallPiece(call.id, call.name, None), CallPiece(call.id, None, call.arguments)]
    return pieces


def _chunks(text: str | Sequence[str]) -> Sequence[str]:
    return ([text] if text else []) if isinstance(text, str) else text


def _answer(turn: Say, calls: Sequence[ToolCall]) -> Answer:
    content: list[Part] = []
    if turn.omitted:
        content.append(OmittedReasoning())
    if turn.sealed is not None:
        content.append(RedactedReasoning(turn.sealed))
    if think := "".join(turn.think):
        content.append(Reasoning(think))
    if text := "".join(turn.text):
        content.append(Text(text))
    if not content and not calls:
        raise ModelEmptyResponse("The script's turn has neither words nor calls.")
    finish = "tool_calls" if calls else turn.finish
    return Answer(content=tuple(content), tool_calls=tuple(calls), finish=finish, usage=turn.usage, request_id="req")


class ScriptedProvider:
    """Offers scripted models; `scripted/model` unless others are given."""

    def __init__(self, *models: ScriptedModel, name: str = "scripted"):
        self.name, self.provider_type = name, "openai"
        self.models = {model.info.name: model for model in models or (ScriptedModel(),)}

    @property
    def model(self) -> ScriptedModel:
        """The first model."""
        return next(iter(self.models.values()))

    async def list_models(self) -> list[ModelInfo]:
        """The models of this provider."""
        return [model.info for model in self.models.values()]

    def open(self, info: ModelInfo) -> ScriptedModel:
        """The model of this name, with the window that the agent gives it."""
        model = self.models[info.name]
        model.info = info
        return model

    async def close(self) -> None:
        """Nothing to give back."""
