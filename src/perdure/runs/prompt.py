"""The system text that a run is asked with, and the rewritten system message if the stored one is out of date (★S5)."""

import msgspec

from perdure.domain.messages import Message, Text, text_of
from perdure.domain.records import Context
from perdure.memory.prompt import compile_system


def system_of(context: Context) -> tuple[str, Message | None]:
    """The text in force; and message 0 rewritten, if its text changed.

    Recompiled with the time and counts of the last compilation, so that it differs only if something real did.
    """
    stored = context.messages[0]
    if context.compiled_version == context.agent_version:
        return text_of(stored.content), None
    text = compile_system(
        context.agent, context.blocks, context.tools, compiled_at=context.compiled_at,
        hidden_count=context.hidden_count, conversation_id=context.conversation_id,
    )  # fmt: skip
    if text == text_of(stored.content):
        return text, None
    return text, msgspec.structs.replace(stored, content=(Text(text),))
