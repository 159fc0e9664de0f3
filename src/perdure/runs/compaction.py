"""Compaction on request: one run that holds the context, asks for the summary and puts it in place (spec §1.7).

The summary, the shorter context and the end of the run are one transaction; until then the context is as it was.
Neighbours: `agent.compaction`, which makes the summary; `executor`, which holds the context.
"""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec

from perdure.agent.compaction import Compacted, Compactor
from perdure.agent.summariser import Work, fixed_tokens
from perdure.domain.clock import Clock
from perdure.domain.ids import new_id
from perdure.domain.messages import text_of
from perdure.domain.ports import MessageQuery, Models, Page, StepCommit, StepQuery, Store
from perdure.domain.records import Context, Run, Step, ended
from perdure.memory.compact import settings_of, summary_of
from perdure.memory.tokens import Correction, learned_from
from perdure.memory.window import return_char_cap
from perdure.runs.executor import Executor
from perdure.runs.follow import POLL

RUN_TYPE = "compaction"
TRIGGER = "manual"
RECENT_STEPS = 20
"""Steps that are looked at for one that tells how the model counts this context."""
RETRIED = timedelta(minutes=10)
"""How long after its end a compaction answers the caller's own retries of its request (★S61)."""


class Report(msgspec.Struct, frozen=True):
    """What a compaction did, the system message counted in."""

    summary: str
    num_messages_before: int
    num_messages_after: int


class Compactions:
    """Compacts contexts on request."""

    def __init__(self, executor: Executor, store: Store, models: Models, clock: Clock):
        self._executor, self._store, self._clock = executor, store, clock
        self._compactor = Compactor(models, clock)

    async def compact(
        self, agent_id: str, conversation_id: str | None, given: Mapping[str, Any], *, retry: bool = False
    ) -> Report:
        """Compact a context; `given` are settings that go before the agent's own, field by field.

        `retry`: the caller says that it sends this not for the first time; then it gets what came of the first time.
        Raises NotFound, Busy, Invalid (nothing to compact, no gain), Conflict (cancelled), a ModelError; in all these
        cases the context is as it was.
        """
        context_id = conversation_id or agent_id
        request = msgspec.json.encode({"run_type": RUN_TYPE, "compaction_settings": given}, order="sorted")
        if retry and (told := await self._first_time(context_id, request)):
            return told
        run = Run(
            id=new_id("run"), agent_id=agent_id, context_id=context_id, created_at=self._clock.now(),
            conversation_id=conversation_id, metadata={"run_type": RUN_TYPE},
        )  # fmt: skip
        return await self._executor.hold(run, request, lambda held: self._carry_out(held, given))

    async def _first_time(self, context_id: str, request: bytes) -> Report | None:
        """What came of the same request before; None if it failed, or was never made."""
        run = await self._store.runs.with_request(context_id, request, self._clock.now() - RETRIED)
        while run and run.completed_at is None:
            await asyncio.sleep(POLL)
            run = await self._store.runs.get(run.id)
        if run is None or run.status != "completed":
            return None
        made = await self._store.messages.find(MessageQuery(run_id=run.id), Page(limit=1))
        summary, stats = summary_of(text_of(made[0].message.content)) if made else ("", None)
        return Report(summary, stats["messages_count_before"], stats["messages_count_after"]) if stats else None

    async def _carry_out(self, run: Run, given: Mapping[str, Any]) -> Report:
        context = await self._store.contexts.load(run.context_id)
        window = int(context.agent.llm.get("context_window") or 0)
        work = Work(
            context, settings_of(context.agent.compaction_settings, given), TRIGGER, window,
            await self._correction(context, window), run_id=run.id, step_id=new_id("step"), fewer=True,
        )  # fmt: skip
        done = await self._compactor.compact(work)
        saving = asyncio.ensure_future(self._store.runs.commit(self._commit(run, work, done)))
        try:
            await asyncio.shield(saving)
        except asyncio.CancelledError:  # what is on its way to the database is saved or not as a whole
            await saving
        return Report(done.words, done.stats.messages_count_before, done.stats.messages_count_after)

    async def _correction(self, context: Context, window: int) -> Correction:
        """What the provider counted in the last step of this context says of our estimates."""
        if context.agent.message_buffer_autoclear:  # its steps saw their own request only
            return Correction()
        name = str(context.agent.llm.get("model"))
        steps = await self._store.runs.find_steps(
            StepQuery(agent_id=context.agent.id, model=name), Page(limit=RECENT_STEPS)
        )  # fmt: skip
        prompts = {step.id: step.usage.prompt_tokens for step in steps if step.usage.prompt_tokens}
        return await asyncio.to_thread(
            learned_from, context.messages, prompts, fixed_tokens(context), return_char_cap(window)
        )  # fmt: skip

    def _commit(self, run: Run, work: Work, done: Compacted) -> StepCommit:
        info, now, context = work.info, self._clock.now(), work.context
        assert info, "some model has made the summary"
        waits = done.kept and done.kept[-1].role == "approval" and done.kept[-1].tool_calls
        stop = "requires_approval" if waits else "end_turn"  # what the agent does next has not changed
        step = Step(
            id=work.step_id or "", run_id=run.id, agent_id=run.agent_id, created_at=now, stop_reason=stop,
            provider_name=info.provider_name, model=info.name, model_handle=info.handle, model_endpoint=info.endpoint,
            context_window_limit=info.context_window, usage=work.usage,
        )  # fmt: skip
        return StepCommit(
            run=run, messages=[], step=step, system_message=done.system, compiled_version=context.agent_version,
            hidden_count=done.hidden_count, compiled_at=done.compiled_at, summary=done.summary,
            kept_from=done.kept[0].id if done.kept else None,
            finished=ended(
                run, "completed", stop, now, work.usage, step_count=work.calls,
                context_tokens=done.stats.context_tokens_after,
            ),
        )  # fmt: skip
