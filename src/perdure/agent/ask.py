"""One model call: build the neutral request, relay the fragments, hand back the whole answer (spec §1.2, §4.4)."""

import json
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

import msgspec

from perdure.agent.rules import allow_parallel, choose, prefill_problem, prefilled
from perdure.agent.turn import Emit, Turn
from perdure.domain.errors import ModelEmptyResponse, ModelError
from perdure.domain.events import HiddenReasoning, ReasoningDelta, TextDelta, ToolCallDelta
from perdure.domain.messages import ToolCall
from perdure.domain.ports import (
    Answer,
    CallPiece,
    HiddenPiece,
    ModelRequest,
    Piece,
    ReasoningPiece,
    TextPiece,
    ToolSchema,
)
from perdure.domain.records import Tool
from perdure.memory.prompt import available_skills
from perdure.memory.window import for_model, return_char_cap

LOOP_WORDS = ("request_heartbeat", "thinking")
"""Argument names of the older loops; a current tool never gets them (spec §1.6)."""


async def ask(turn: Turn, step_id: str, message_id: str, emit: Emit) -> Answer:
    """The model's answer, its calls cleaned. An empty one is asked for once more (★S13)."""
    request = compile_request(turn)
    relay = Relay(step_id, message_id, emit, _parallel(turn))
    try:
        answer = await _listen(turn, request, relay)
    except ModelEmptyResponse:
        if relay.has_shown:  # thoughts: a reader would see two answers in one message
            raise
        answer = await _listen(turn, request, relay)
    turn.step_count += 1
    turn.usage += answer.usage
    turn.context_tokens = answer.usage.total_tokens
    calls = _distinct(answer.tool_calls) if _parallel(turn) else answer.tool_calls[:1]
    return msgspec.structs.replace(answer, tool_calls=tuple(_prefilled(_clean(call, turn), turn) for call in calls))


def compile_request(turn: Turn) -> ModelRequest:
    """The request for the next step, from the context and what this turn added."""
    agent, attached = turn.agent, turn.context.tools
    turn.choice = choose(agent.tool_rules, [tool.name for tool in attached], turn.history)
    tools = [schema_of(tool) for tool in attached if tool.name in turn.choice.names]
    return ModelRequest(
        model=turn.model.info.name,
        system=_system(turn),
        messages=for_model(turn.context.messages, turn.new, turn.since if _autoclears(turn) else 1),
        tools=tools,
        tool_choice=turn.choice.tool_choice,
        parallel_tool_calls=_parallel(turn) and allow_parallel(agent.tool_rules) if tools else None,
        settings=agent.model_settings | ({"response_format": agent.response_format} if agent.response_format else {}),
        timezone=agent.timezone,
        return_char_cap=return_char_cap(turn.model.info.context_window),
    )


def _system(turn: Turn) -> str:
    """The caller's own text, or the compiled one with the skills of this request and why no tool is offered (★S54)."""
    if turn.options.override_system is not None:
        return turn.options.override_system
    skills = available_skills(turn.blocks, turn.options.client_skills)
    barred = f"You have no tools now. {turn.choice.why}" if turn.choice.why and not turn.choice.names else ""
    return "\n\n".join(text for text in (turn.system, skills, barred) if text)


def _autoclears(turn: Turn) -> bool:
    return turn.agent.message_buffer_autoclear or turn.agent.agent_type == "workflow_agent"


def _parallel(turn: Turn) -> bool:
    """The setting in force (spec §1.2, tool_choice), not the one that is read back (★S81)."""
    return bool(turn.agent.llm.get("parallel_tool_calls"))


def _distinct(calls: Sequence[ToolCall]) -> list[ToolCall]:
    """Of several calls with one id the first (spec §1.2), so that each call has exactly one return."""
    first: dict[str, ToolCall] = {}
    for call in calls:
        first.setdefault(call.id, call)
    return list(first.values())


def schema_of(tool: Tool) -> ToolSchema:
    """A tool as the model is told of it."""
    schema = tool.json_schema
    parameters = schema.get("parameters") or {"type": "object", "properties": {}}
    return ToolSchema(tool.name, schema.get("description") or tool.description or "", parameters)


async def _listen(turn: Turn, request: ModelRequest, relay: "Relay") -> Answer:
    # Every model is an async generator in fact; closing it is what aborts the call when the run is cancelled.
    stream = cast(AsyncGenerator[Piece, None], turn.model.stream(request))
    async with aclosing(stream) as pieces:
        async for piece in pieces:
            if isinstance(piece, Answer):
                return piece
            if turn.options.deltas:
                relay(piece)
    raise ModelError("The model's stream ended without an answer. Send the message again.")


class Relay:
    """Turns a model's pieces into events of one message, counting its parts as they change (spec §0.4)."""

    def __init__(self, step_id: str, message_id: str, emit: Emit, parallel: bool):
        self._step_id, self._message_id, self._emit, self._parallel = step_id, message_id, emit, parallel
        self._part, self._kind = -1, ""
        self._first_call: str | None = None

    def __call__(self, piece: TextPiece | ReasoningPiece | HiddenPiece | CallPiece) -> None:
        """Pass one piece on."""
        if isinstance(piece, TextPiece):
            self._emit(TextDelta(self._message_id, self._step_id, self._count("text"), piece.text))
        elif isinstance(piece, ReasoningPiece):
            part = self._count("reasoning")
            self._emit(ReasoningDelta(self._message_id, self._step_id, part, piece.text, piece.signature))
        elif isinstance(piece, HiddenPiece):
            self._emit(HiddenReasoning(self._message_id, self._step_id, self._count("hidden"), piece.data))
        elif self._shown(piece):
            part = self._count("call")
            self._emit(ToolCallDelta(self._message_id, self._step_id, part, piece.id, piece.name, piece.arguments))

    @property
    def has_shown(self) -> bool:
        """Whether any fragment was passed on."""
        return self._part >= 0

    def _count(self, kind: str) -> int:
        if kind != self._kind:
            self._kind, self._part = kind, self._part + 1
        return self._part

    def _shown(self, piece: CallPiece) -> bool:
        """With parallel calls off only the first call exists (spec §1.2)."""
        self._first_call = self._first_call or piece.id
        return self._parallel or piece.id == self._first_call


def _clean(call: ToolCall, turn: Turn) -> ToolCall:
    """The call as it is stored: an object's JSON text, without the older loops' words (spec §1.6).

    What is no object at all is kept aside for the error result and shown as `{}` (★S10): history goes back to the
    provider with every request, so nothing may stand in it that a strict parser refuses.
    """
    arguments = decode_arguments(call.arguments)
    if arguments is None:
        turn.garbled[call.id] = call.arguments
        return ToolCall(call.id, call.name, "{}")
    kept = {key: value for key, value in arguments.items() if key not in LOOP_WORDS}
    if len(kept) == len(arguments) and _is_object(call.arguments):
        return call
    return ToolCall(call.id, call.name, _whole(json.dumps(kept, ensure_ascii=False)))


def _whole(text: str) -> str:
    """The text with half surrogate pairs, which no wire takes, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _prefilled(call: ToolCall, turn: Turn) -> ToolCall:
    """The call with the arguments its rules give it; a misfit is noted and the model's own are kept (spec §8.4)."""
    given = prefilled(turn.agent.tool_rules, call.name, turn.history)
    tool = next((tool for tool in turn.context.tools if tool.name == call.name), None)
    if not given or tool is None:
        return call
    if problem := prefill_problem(given, schema_of(tool).parameters):
        turn.misfilled[call.id] = problem
        return call
    return ToolCall(call.id, call.name, json.dumps((decode_arguments(call.arguments) or {}) | given))


def _is_object(text: str) -> bool:
    """Whether the text is one strict JSON object and nothing else, so that it can be kept to the letter."""
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False


def _finite(digits: str) -> float:
    """The number, also of the words NaN and Infinity. Raises ValueError for one that JSON does not have."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is no JSON")
    return number


_FORGIVING = json.JSONDecoder(strict=False, parse_constant=_finite, parse_float=_finite)
"""Takes line ends within strings, as small models write them, but no NaN and nothing infinite."""


def decode_arguments(text: str) -> dict[str, Any] | None:
    """The object in a call's arguments, forgiving what models do (spec §1.6); None if there is none."""
    text = text.strip() or "{}"
    try:
        value, _ = _FORGIVING.raw_decode(text)
        if isinstance(value, str):
            value = _FORGIVING.decode(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
