"""The loop (behaviour spec §1.3): ask the model, run what it calls, commit the step, continue or stop.

It knows ports only. What it makes leaves through `emit`; what ends it early is an exception, recorded by `runs`.
"""

import asyncio
import json

import msgspec

from perdure.agent.ask import ask
from perdure.agent.calls import Calls
from perdure.agent.rules import is_terminal, outstanding
from perdure.agent.turn import Emit, Ports, Turn
from perdure.domain.clock import local_time
from perdure.domain.errors import Conflict, StaleBlock
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text
from perdure.domain.ports import Answer, StepCommit
from perdure.domain.records import Run, Step, ended

STATUS = {"max_tokens_exceeded": "failed", "invalid_tool_call": "failed"}
TRIES_ON_STALE_BLOCKS = 100
"""Many, because every lost race means that somebody else's edit was saved: dozens of agents may share a block."""


async def run_turn(turn: Turn, ports: Ports, emit: Emit) -> None:
    """Carry a request to its end. Raises a ModelError, Fenced, Conflict; what was committed before stays.

    `emit` gets what passes through; whole messages and the end are told by whoever commits them.
    """
    for number in range(1, turn.options.max_steps + 1):
        step_id, message_id = new_id("step"), new_id("message")
        answer = await ask(turn, step_id, message_id, emit)
        said = _message(turn, step_id, message_id, answer, ports)
        if await _act_and_commit(turn, said, answer, ports, last=number == turn.options.max_steps):
            return
        if turn.cancelled:
            raise asyncio.CancelledError
    raise AssertionError("max_steps is at least 1, so the last step has a stop reason")


async def _act_and_commit(
    turn: Turn, said: Message, answer: Answer, ports: Ports, *, last: bool
) -> str | None:
    """Run the calls and save the step; answers why the loop ends, if it does.

    If a block changed meanwhile, its present text is edited instead.
    """
    calls = Calls(turn, said, ports)
    for _ in range(TRIES_ON_STALE_BLOCKS):
        returned = await calls.run()
        stop = _stop_reason(turn, answer, calls, last=last)
        made = (said, *returned, *_reminder(turn, said, calls, ports, stop))
        try:
            await ports.commit(turn, _commit(turn, made, answer, stop, calls, ports))
        except StaleBlock:
            turn.blocks = await ports.store.contexts.blocks(turn.context.id)
            continue
        turn.new, turn.blocks, turn.history = [], calls.blocks_after(), calls.history_after()
        return stop
    raise Conflict("The memory blocks of this step kept changing while it was saved. Send the message again.")


def _stop_reason(turn: Turn, answer: Answer, calls: Calls, *, last: bool) -> str | None:
    """Why the loop ends after this step; None to go on (spec §1.4)."""
    rules, done = turn.agent.tool_rules, not _outstanding(turn, calls)
    if len(answer.tool_calls) == 1 and answer.tool_calls[0].id in turn.misfilled:
        return "invalid_tool_call"
    if answer.tool_calls and done and any(is_terminal(rules, name) for name in calls.executed()):
        return "tool_rule"
    if not answer.tool_calls and done:
        return "max_tokens_exceeded" if answer.finish == "length" else "end_turn"
    return "max_steps" if last else None


def _outstanding(turn: Turn, calls: Calls) -> list[str]:
    """Tools that must still be called before the turn may end."""
    return outstanding(turn.agent.tool_rules, [tool.name for tool in turn.context.tools], calls.history_after())


def _reminder(turn: Turn, said: Message, calls: Calls, ports: Ports, stop: str | None) -> tuple[Message, ...]:
    """A user message that names the tools still to be called, when a text would have ended the turn."""
    if stop or said.tool_calls:
        return ()
    reason = f"Before you may end your turn, call: {', '.join(_outstanding(turn, calls))}."
    time = local_time(ports.clock.now(), turn.agent.timezone)
    text = json.dumps({"type": "heartbeat", "reason": f"[This is a hidden system message] {reason}", "time": time})
    return (
        Message(
            id=new_id("message"), role="user", created_at=ports.clock.now(), content=(Text(text),),
            agent_id=said.agent_id, conversation_id=said.conversation_id, run_id=said.run_id, step_id=said.step_id,
        ),
    )  # fmt: skip


def _message(turn: Turn, step_id: str, message_id: str, answer: Answer, ports: Ports) -> Message:
    return Message(
        id=message_id, role="assistant", created_at=ports.clock.now(), content=answer.content,
        tool_calls=answer.tool_calls, agent_id=turn.agent.id, conversation_id=turn.context.conversation_id,
        run_id=turn.run.id, step_id=step_id, model=turn.model.info.name,
    )  # fmt: skip


def _commit(
    turn: Turn, made: tuple[Message, ...], answer: Answer, stop: str | None, calls: Calls, ports: Ports
) -> StepCommit:
    context = turn.context
    given = [msgspec.structs.replace(message, step_id=made[0].step_id) for message in turn.new]
    outdated = context.compiled_version != context.agent_version
    return StepCommit(
        run=turn.run, messages=[*given, *made], step=_step(turn, made[0], answer, stop, ports), edits=calls.edits,
        system_message=turn.recompiled if outdated else None,
        compiled_version=context.agent_version if outdated else None,
        finished=_finished(turn, stop, ports) if stop else None,
    )  # fmt: skip


def _step(turn: Turn, said: Message, answer: Answer, stop: str | None, ports: Ports) -> Step:
    info, now = turn.model.info, ports.clock.now()
    return Step(
        id=said.step_id or "", run_id=turn.run.id, agent_id=turn.run.agent_id, created_at=now, stop_reason=stop,
        provider_name=info.provider_name, model=info.name, model_handle=info.handle, model_endpoint=info.endpoint,
        context_window_limit=info.context_window, usage=answer.usage, request_id=answer.request_id,
    )  # fmt: skip


def _finished(turn: Turn, stop: str, ports: Ports) -> Run:
    return ended(
        turn.run, STATUS.get(stop, "completed"), stop, ports.clock.now(), turn.usage, step_count=turn.step_count,
        context_tokens=turn.context_tokens,
    )  # fmt: skip
