"""The toolbox of the server: what it offers, and how a call becomes a result (port `Toolbox`, spec §1.6).

Joins the names of `catalogue` with functions of `memory`, `patch`, `omni` and `recall`. Knows no store and no loop:
edits leave as data. Python tools of the user (issue D) are not run by this version.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.domain.errors import ToolError
from perdure.domain.messages import ToolCall, ToolReturn
from perdure.domain.ports import BlockEdit, Outcome, Scene
from perdure.domain.records import Tool
from perdure.tools.arguments import checked
from perdure.tools.catalogue import BUILTINS
from perdure.tools.draft import Draft
from perdure.tools.memory import (
    core_memory_append,
    core_memory_replace,
    memory_finish_edits,
    memory_insert,
    memory_replace,
    memory_rethink,
)
from perdure.tools.omni import memory
from perdure.tools.patch import memory_apply_patch
from perdure.tools.recall import conversation_search
from perdure.tools.results import as_text, clip, failure

MEMORY_TOOLS: Mapping[str, Callable[..., str | None]] = {
    "core_memory_append": core_memory_append,
    "core_memory_replace": core_memory_replace,
    "memory_insert": memory_insert,
    "memory_replace": memory_replace,
    "memory_rethink": memory_rethink,
    "memory_finish_edits": memory_finish_edits,
    "memory_apply_patch": memory_apply_patch,
    "memory": memory,
}
SENT = "Sent message successfully."

_log = logging.getLogger(__name__)


class ServerToolbox:
    """Runs the tools this server has; anything else gets a result that says why it did not run."""

    def builtin(self) -> Sequence[Tool]:
        """The built-in tools, always with the same ids and dates."""
        return [builtin.record() for builtin in BUILTINS.values()]

    async def call(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], scene: Scene) -> Outcome:
        """Run one call. Never raises for what the tool does; cancelling the task does stop it."""
        try:
            value, edits = await _run(tool, arguments, scene)
            text = clip(as_text(value), tool.return_char_limit)
        except ToolError as error:
            return _failed(tool, call, error)
        except Exception as error:  # our own mistake must reach the model as a failed call, not end the run
            _log.exception("built-in tool %s failed", tool.name)
            return _failed(tool, call, error)
        return Outcome(result=ToolReturn(call.id, text, "success", tool.name), edits=edits)


async def _run(tool: Tool, arguments: dict[str, Any], scene: Scene) -> tuple[Any, tuple[BlockEdit, ...]]:
    """The tool's value and its edits. Raises ToolError."""
    if tool.name not in BUILTINS or tool.tool_type == "custom":
        raise ToolError(_cannot_run(tool))
    given = checked(tool.name, BUILTINS[tool.name].parameters, arguments)
    if tool.name in MEMORY_TOOLS:
        draft = Draft(scene.blocks, scene.now)
        value = MEMORY_TOOLS[tool.name](draft, **given)
        return value, draft.edits()
    if tool.name == "conversation_search":
        return await conversation_search(scene, **given), ()
    if tool.name == "send_message":
        return SENT, ()
    raise ToolError(f"{tool.name} is not available in this version of Perdure. Go on without it.")


def _cannot_run(tool: Tool) -> str:
    if tool.tool_type == "custom":
        return (
            f"{tool.name} was not run: this version of Perdure does not execute custom Python tools yet. "
            "Go on without it, and tell the user."
        )
    return f"{tool.name} ({tool.tool_type}) is not available in this version of Perdure. Go on without it."


def _failed(tool: Tool, call: ToolCall, error: Exception) -> Outcome:
    """A failed call. Built-in tools have no stdout; sandboxed ones have both streams (spec §3.2)."""
    text = failure(tool.name, error)
    stdout = () if tool.tool_type == "custom" else None
    return Outcome(result=ToolReturn(call.id, text, "error", tool.name, stdout=stdout, stderr=(text,)))
