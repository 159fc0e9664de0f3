"""The tool calls of one step: run them, collect their returns in call order and their edits as data (spec §1.6).

`run` may be called again when a block changed before the edits were saved: only calls that made edits run again,
and those have no effect but their edits.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from perdure.agent.ask import decode_arguments
from perdure.agent.rules import History, used_up, violation
from perdure.agent.turn import Ports, Scene, Turn
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, ToolCall, ToolReturn, text_of
from perdure.domain.ports import BlockEdit, Outcome
from perdure.domain.records import Block, Tool


class Calls:
    """All calls of one assistant message."""

    def __init__(self, turn: Turn, said: Message, ports: Ports):
        self._turn, self._said, self._ports = turn, said, ports
        self._tools = {tool.name: tool for tool in turn.context.tools}
        self._outcomes: dict[str, Outcome] = {}
        self._refused: set[str] = set()
        self._blocks = turn.blocks
        self.edits: list[BlockEdit] = []

    async def run(self) -> tuple[Message, ...]:
        """The tool message with all returns; nothing if nothing was called."""
        self._blocks, self.edits = self._turn.blocks, []
        self._outcomes = {key: outcome for key, outcome in self._outcomes.items() if not outcome.edits}
        waiting = [call for call in self._said.tool_calls if call.id not in self._outcomes]
        await asyncio.gather(*(self._one(call) for call in waiting if self._side_by_side(call)))
        for call in waiting:
            if not self._side_by_side(call):
                await self._one(call)
        return self._message([self._outcomes[call.id].result for call in self._said.tool_calls])

    def blocks_after(self) -> tuple[Block, ...]:
        """The agent's blocks once the edits are saved."""
        return self._blocks

    def executed(self) -> list[str]:
        """The names of the tools that ran, in call order; refused calls are not among them."""
        return [call.name for call in self._said.tool_calls if call.id not in self._refused]

    def history_after(self) -> History:
        """What the request has called once this step is saved."""
        history = History(list(self._turn.history.names), self._turn.history.last_result)
        for call in self._said.tool_calls:
            if call.id not in self._refused:
                history.add(call.name, plain_result(self._outcomes[call.id].result))
        return history

    def _side_by_side(self, call: ToolCall) -> bool:
        tool = self._tools.get(call.name)
        return bool(tool and tool.enable_parallel_execution)

    async def _one(self, call: ToolCall) -> None:
        refusal = self._refusal(call)
        if refusal:
            self._refused.add(call.id)
            outcome = Outcome(result=ToolReturn(call.id, refusal, "error", call.name))
        else:
            tool, arguments = self._tools[call.name], decode_arguments(call.arguments) or {}
            scene = Scene(self._turn.agent, self._blocks, self._ports.clock.now(), self._ports.store)
            outcome = await self._ports.toolbox.call(tool, call, arguments, scene)
        self._outcomes[call.id] = outcome
        self._apply(outcome.edits)

    def _refusal(self, call: ToolCall) -> str | None:
        """Why a call is not run at all; the text goes back to the model."""
        tool = self._tools.get(call.name)
        if tool is None:
            return f"Tool not found: {call.name}. Your tools are: {', '.join(self._tools) or 'none'}."
        if call.id in self._turn.misfilled:
            return self._turn.misfilled[call.id]
        if problem := violation(self._turn.choice, call.name) or self._over_limit(call):
            return problem
        if call.id in self._turn.garbled:
            raw = self._turn.garbled[call.id]
            return f"The arguments of {call.name} are not a JSON object: {raw[:200]!r}. Call it again with one."
        if _needs_approval(self._turn.agent.tool_rules, tool):
            return f"{call.name} needs a person's approval, which this version of the server cannot ask for."
        return None

    def _over_limit(self, call: ToolCall) -> str | None:
        """Why a call is one too many, counting those of its tool before it in this batch."""
        before = self._said.tool_calls[: self._said.tool_calls.index(call)]
        uses = sum(earlier.name == call.name and earlier.id not in self._refused for earlier in before)
        return used_up(self._turn.agent.tool_rules, call.name, self._turn.history.names.count(call.name) + uses)

    def _apply(self, edits: Sequence[BlockEdit]) -> None:
        """Let later calls of this step see the edit; several edits of one block become one."""
        for edit in edits:
            at = next((i for i, e in enumerate(self.edits) if e.block.id == edit.block.id), None)
            if at is None:
                self.edits.append(edit)
            else:
                edit = self.edits[at] = msgspec.structs.replace(edit, base_version=self.edits[at].base_version)
            others = tuple(b for b in self._blocks if b.id != edit.block.id)
            after = msgspec.structs.replace(edit.block, version=edit.base_version + 1)
            self._blocks = others if edit.detach else (*others, after)

    def _message(self, returns: Sequence[ToolReturn]) -> tuple[Message, ...]:
        if not returns:
            return ()
        said = self._said
        return (
            Message(
                id=new_id("message"), role="tool", created_at=self._ports.clock.now(), tool_returns=tuple(returns),
                agent_id=said.agent_id, conversation_id=said.conversation_id, run_id=said.run_id,
                step_id=said.step_id, model=said.model,
            ),
        )  # fmt: skip


def plain_result(ret: ToolReturn) -> str:
    """A result's words, as conditional rules compare them."""
    return ret.content if isinstance(ret.content, str) else text_of(ret.content)


def _needs_approval(rules: Sequence[dict[str, object]], tool: Tool) -> bool:
    return any(rule["type"] == "requires_approval" and rule["tool_name"] == tool.name for rule in rules)
