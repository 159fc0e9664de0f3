"""Puts a summary in the place of the oldest part of a context (behaviour spec §1.7).

One core for every occasion: on request, after a step, on overflow. It stores nothing: what it answers is for the
caller to commit. What is evicted is decided in `memory.compact`; `summariser` asks the model.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import msgspec

from perdure.agent.summariser import Summariser, Work
from perdure.domain.clock import Clock, local_time
from perdure.domain.errors import ContextOverflow, Invalid, ModelBadRequest, ModelEmptyResponse, ModelError
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.domain.ports import Models
from perdure.memory.compact import BY_ITSELF, FALLBACKS, Mode, Stats, choose_cut, packed
from perdure.memory.prompt import compile_system
from perdure.memory.tokens import PER_MESSAGE, estimate

THRESHOLD = 0.9
"""The part of the window above which a context is too long (spec §1.7)."""
SHORT = 500
"""Tokens, envelope and all, by which a summary may be longer than a few short messages for the sake of their number."""
NOTHING = "There is nothing to compact: the context holds no message that a summary could stand for."
ONE_FOR_ONE = (
    "There is nothing to compact: a summary would only take the place of a single message. "
    "Go on talking, or reset the messages."
)
NO_GAIN = (
    "The context would not become shorter: the summary is as long as what it would stand for. Nothing was changed. "
    "Name a smaller clip_chars, a prompt that asks for less, or mode 'all'."
)
MENDABLE = (ModelBadRequest, ModelEmptyResponse, ContextOverflow, Invalid)
"""What another way of compacting may mend; a provider that is busy or refuses the key is not asked again."""


class Compacted(msgspec.Struct, frozen=True, kw_only=True):
    """A context made shorter: [`system`, `summary`, *`kept`]. `words` is the summary without its envelope."""

    system: Message
    compiled_at: datetime
    hidden_count: int
    summary: Message
    words: str
    kept: Sequence[Message]
    stats: Stats

    @property
    def messages(self) -> list[Message]:
        """The messages of the context."""
        return [self.system, self.summary, *self.kept]


class Compactor:
    """Makes contexts shorter."""

    def __init__(self, models: Models, clock: Clock):
        self._summariser, self._clock = Summariser(models), clock

    async def compact(self, work: Work) -> Compacted:
        """The context with a summary in the place of its oldest part: strictly fewer tokens behind the system message
        (or strictly fewer messages, if that is the aim), or one error.

        Tries the ways of `FALLBACKS` until the result is below the threshold, no way twice. Raises Invalid (nothing to
        compact, no gain), NotFound (the summariser), a ModelError.
        """
        done: Compacted | None = None
        problem: Exception = Invalid(NOTHING)
        tried: set[tuple[bool, int, int]] = set()
        for mode in FALLBACKS[work.settings.mode]:
            messages = done.messages if done else work.context.messages
            cut = await asyncio.to_thread(_cut, work, messages, mode)
            attempt = (mode in BY_ITSELF, cut or 0, len(messages))
            if cut is None or attempt in tried:
                continue
            tried.add(attempt)
            try:
                done = await self._shortened(work, mode, messages, cut)
            except MENDABLE as error:
                problem = error
                if mode == "sliding_window" and isinstance(error, ContextOverflow):
                    break
            except ModelError:
                if done is None:
                    raise
                break
            if done and (not done.kept or done.stats.context_tokens_after < THRESHOLD * work.window):
                break
        if done is None:
            raise problem
        return done

    async def _shortened(self, work: Work, mode: Mode, messages: Sequence[Message], cut: int) -> Compacted:
        """The context cut there. Raises Invalid if nothing is gained, where that is certain before a model is paid."""
        if work.fewer and len(messages) - cut + 2 >= len(work.context.messages):
            raise Invalid(ONE_FOR_ONE)
        words = await self._summariser.summary(work, mode, messages[1:cut])
        return await asyncio.to_thread(_assembled, work, words, messages[cut:], self._clock.now())


def _cut(work: Work, messages: Sequence[Message], mode: Mode) -> int | None:
    share = work.settings.sliding_window_percentage
    return choose_cut(messages, mode, share=share, window=work.window, sizes=work.sizes(messages), fixed=work.fixed)


def _assembled(work: Work, words: str, kept: Sequence[Message], now: datetime) -> Compacted:
    """The new context. Raises Invalid if nothing is gained."""
    context = work.context
    hidden = context.hidden_count + len(context.messages) - 1 - len(kept)
    text = compile_system(
        context.agent, context.blocks, context.tools, compiled_at=now, hidden_count=hidden,
        conversation_id=context.conversation_id,
    )  # fmt: skip
    system = msgspec.structs.replace(context.messages[0], content=(Text(text),))
    note = partial(packed, words, hidden, local_time(now, work.agent.timezone))
    stats = _stats(work, system, note, kept)
    summary = Message(
        id=new_id("message"), role="summary", created_at=now, content=(Text(note(stats)),), agent_id=work.agent.id,
        conversation_id=context.conversation_id, run_id=work.run_id, step_id=work.step_id,
    )  # fmt: skip
    _check_gain(work, summary, kept)
    return Compacted(
        system=system, compiled_at=now, hidden_count=hidden, words=words, kept=kept, stats=stats, summary=summary
    )


def _stats(work: Work, system: Message, note: Callable[[Stats], str], kept: Sequence[Message]) -> Stats:
    before = work.context.messages
    tokens = work.fixed + sum(work.sizes(before))
    stats = Stats(
        trigger=work.trigger, context_tokens_before=tokens, context_tokens_after=tokens, context_window=work.window,
        messages_count_before=len(before), messages_count_after=2 + len(kept),
    )  # fmt: skip
    after = sum(work.sizes([system, *kept])) + work.correction(PER_MESSAGE + estimate(note(stats)))
    return msgspec.structs.replace(stats, context_tokens_after=work.fixed + after)


def _check_gain(work: Work, summary: Message, kept: Sequence[Message]) -> None:
    """Refuse a summary that is longer than what it stands for.

    The system message is left out of this: what was changed in it meanwhile is no fault of the summary.
    """
    gone = sum(work.sizes(work.context.messages[1:])) - sum(work.sizes(kept))
    if sum(work.sizes([summary])) >= gone + (SHORT if work.fewer else 0):
        raise Invalid(NO_GAIN)
