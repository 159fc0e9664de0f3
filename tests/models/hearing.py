"""Asking a model and hearing it out."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from perdure.domain.errors import ModelError
from perdure.domain.messages import Message, Role, Text
from perdure.domain.ports import Answer, CallPiece, Model, ModelRequest, Piece, ReasoningPiece, TextPiece
from perdure.domain.records import ModelInfo
from perdure.models.openai import OpenAIProvider

KEY = "sk-a-key-that-nobody-may-see"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
INFO = ModelInfo(
    handle="twin/m", name="m", provider_name="twin", provider_type="openai", endpoint_type="openai"
)  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """All pieces of one answer: the fragments, and the whole that came last."""

    fragments: Sequence[Piece]
    answer: Answer

    @property
    def text(self) -> str:
        """The words, as they were streamed."""
        return "".join(piece.text for piece in self.fragments if isinstance(piece, TextPiece))

    @property
    def thoughts(self) -> str:
        """The thoughts, as they were streamed."""
        return "".join(piece.text for piece in self.fragments if isinstance(piece, ReasoningPiece))

    @property
    def calls(self) -> list[tuple[str, str, str]]:
        """Id, name and arguments of each call, put together from its fragments."""
        told: dict[str, tuple[str, str]] = {}
        for piece in self.fragments:
            if isinstance(piece, CallPiece):
                name, arguments = told.get(piece.id, ("", ""))
                told[piece.id] = (name + (piece.name or ""), arguments + (piece.arguments or ""))
        return [(id, *said) for id, said in told.items()]


class Pauses:
    """A sleep that takes no time and keeps how long it was asked for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def message(role: Role = "user", text: str = "", **fields: Any) -> Message:
    """A stored message; `text` becomes its content."""
    given = {"content": (Text(text),)} if text else {}
    return Message(**{"id": "message-1", "role": role, "created_at": AT, **given, **fields})


def asking(*messages: Message, **fields: Any) -> ModelRequest:
    """A request of these messages, or of a greeting."""
    return ModelRequest(**{"model": "m", "system": "", "messages": messages or [message(text="Hi")], **fields})


def pieces_of(model: Model, request: ModelRequest | None = None) -> AsyncGenerator[Piece, None]:
    """The stream of a model, which is a generator in fact, so that it can be closed."""
    return cast(AsyncGenerator[Piece, None], model.stream(request or asking()))


async def hear(model: Model | OpenAIProvider, request: ModelRequest | None = None) -> Heard:
    """Everything a model says to a request."""
    model = model.open(INFO) if isinstance(model, OpenAIProvider) else model
    async with aclosing(pieces_of(model, request)) as stream:
        said = [piece async for piece in stream]
    *fragments, answer = said
    assert isinstance(answer, Answer)
    assert not any(isinstance(piece, Answer) for piece in fragments)
    return Heard(fragments, answer)


async def fails(model: Model | OpenAIProvider, request: ModelRequest | None = None) -> ModelError:
    """The error that a request ends with."""
    with pytest.raises(ModelError) as raised:
        await hear(model, request)
    return raised.value
