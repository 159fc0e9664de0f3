"""The loop (behaviour spec §1.3): ask the model, run what it calls, commit the step, continue or stop.

It knows ports only. What it makes leaves through `emit`; what ends it early is an exception, recorded by `runs`.
"""

import msgspec

from perdure.agent.ask import ask
from perdure.agent.calls import Calls
from perdure.agent.turn import Emit, Ports, Turn
from perdure.domain.errors import StaleBlock
from perdure.domain.events import RunEnded, StepCommitted
from perdure.domain.ids import new_id
from perdure.domain.messages import Message
from perdure.domain.ports import Answer, StepCommit
from perdure.domain.records import Run, Step

STATUS = {"max_tokens_exceeded": "failed", "invalid_tool_call": "failed", "cancelled": "cancelled"}
RETRIES_ON_STALE_BLOCKS = 5


async def run_turn(turn: Turn, ports: Ports, emit: Emit) -> RunEnded:
    """Carry a request to its end. Raises a ModelError, Fenced; what was committed before stays."""
    for number in range(1, turn.options.max_steps + 1):
        step_id, message_id = new_id("step"), new_id("message")
        answer = await ask(turn, step_id, message_id, emit)
        said = _message(turn, step_id, message_id, answer, ports)
        stop = _stop_reason(answer, last=number == turn.options.max_steps)
        made = await _act_and_commit(turn, said, answer, stop, ports)
        emit(StepCommitted(step_id, made))
        if stop:
            return RunEnded(stop, turn.usage, turn.step_count, turn.context_tokens)
    raise AssertionError("max_steps is at least 1, so the last step has a stop reason")


def _stop_reason(answer: Answer, *, last: bool) -> str | None:
    """Why the loop ends after this answer; None to go on (spec §1.4)."""
    if answer.tool_calls:
        return "max_steps" if last else None
    return "max_tokens_exceeded" if answer.finish == "length" else "end_turn"


async def _act_and_commit(
    turn: Turn, said: Message, answer: Answer, stop: str | None, ports: Ports
) -> tuple[Message, ...]:
    """Run the calls and save the step; if a block changed meanwhile, edit its present text instead."""
    calls = Calls(turn, said, ports)
    for _ in range(RETRIES_ON_STALE_BLOCKS):
        returned = await calls.run()
        made = (said, returned) if returned else (said,)
        try:
            await ports.commit(turn, _commit(turn, made, answer, stop, calls, ports))
        except StaleBlock:
            turn.blocks = (await ports.store.agents.get(turn.agent.id)).blocks
            continue
        turn.new, turn.blocks = [], calls.blocks_after()
        return made
    raise StaleBlock("The memory blocks of this step kept changing while it was saved. Send the message again.")


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
        id=said.step_id or "", run_id=turn.run.id, agent_id=turn.agent.id, created_at=now, stop_reason=stop,
        provider_name=info.provider_name, model=info.name, model_handle=info.handle, model_endpoint=info.endpoint,
        context_window_limit=info.context_window, usage=answer.usage, request_id=answer.request_id,
    )  # fmt: skip


def _finished(turn: Turn, stop: str, ports: Ports) -> Run:
    now = ports.clock.now()
    return msgspec.structs.replace(
        turn.run, status=STATUS.get(stop, "completed"), stop_reason=stop, completed_at=now, usage=turn.usage,
        total_duration_ns=int((now - turn.run.created_at).total_seconds() * 1e9),
    )  # fmt: skip
