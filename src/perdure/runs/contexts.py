"""Contexts kept in memory between runs, so that a turn over a long history reads nothing it already knows.

A kept context is used only if the accepting transaction confirms it: same agent version, same revision, same newest
message. So another process, an API call or a compaction that changed anything makes it be read again.
"""

from collections import OrderedDict

import msgspec

from perdure.domain.messages import Image, Message, Text
from perdure.domain.ports import Accepted, Committed, Contexts, StepCommit
from perdure.domain.records import Context
from perdure.memory.window import repair

MESSAGE_OVERHEAD = 600
"""Rough bytes of a message's own structs, beside its text."""


class ContextCache:
    """The most recently used contexts, up to `limit` bytes (estimated)."""

    def __init__(self, contexts: Contexts, limit: int = 64 * 2**20):
        self._contexts, self._limit = contexts, limit
        self._kept: OrderedDict[str, tuple[Context, int]] = OrderedDict()
        self._size = 0

    async def get(self, context_id: str, accepted: Accepted) -> Context:
        """The context as the accepting transaction saw it. Raises NotFound."""
        kept = self._kept.get(context_id)
        if kept and _is_current(kept[0], accepted):
            self._kept.move_to_end(context_id)
            return kept[0]
        context = await self._contexts.load(context_id)
        messages = [*context.messages[:1], *repair(context.messages[1:])]
        context = msgspec.structs.replace(context, messages=messages)
        self._keep(context, sum(map(weight, messages)))
        return context

    def advance(self, context: Context, commit: StepCommit, committed: Committed) -> Context:
        """The context after a committed step, kept so that the next run need not read it."""
        if commit.system_message:
            context.messages[0] = commit.system_message
        context.messages.extend(commit.messages)
        after = msgspec.structs.replace(
            context, last_sequence=committed.last_sequence,
            compiled_version=commit.compiled_version or context.compiled_version,
        )  # fmt: skip
        _, size = self._kept.get(context.id, (context, 0))
        self._keep(after, size + sum(map(weight, commit.messages)))
        return after

    def forget(self, context_id: str) -> None:
        """Drop a context whose state is uncertain."""
        _, size = self._kept.pop(context_id, (None, 0))
        self._size -= size

    def _keep(self, context: Context, size: int) -> None:
        self.forget(context.id)
        self._kept[context.id] = (context, size)
        self._size += size
        while self._size > self._limit and len(self._kept) > 1:
            self.forget(next(iter(self._kept)))


def _is_current(context: Context, accepted: Accepted) -> bool:
    return (context.agent_version, context.revision, context.last_sequence) == (
        accepted.agent_version, accepted.revision, accepted.last_sequence
    )  # fmt: skip


def weight(message: Message) -> int:
    """Estimated bytes a message takes in memory, its encoded form beside it."""
    size = MESSAGE_OVERHEAD
    for part in message.content:
        size += 2 * len(part.text) if isinstance(part, Text) else 0
        size += 2 * len(part.data) if isinstance(part, Image) else 0
    size += sum(2 * len(call.arguments) for call in message.tool_calls)
    return size + sum(2 * len(ret.content) for ret in message.tool_returns)
