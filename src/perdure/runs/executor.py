"""The one executor of all entry points: accept a run, carry it out, record how it ended (behaviour spec §12.1).

Above it are the renderings in `api`, below it the loop in `agent`. It knows nothing of HTTP.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import structlog

from perdure.agent.loop import run_turn
from perdure.agent.turn import Ports, Turn
from perdure.domain.clock import Clock
from perdure.domain.errors import (
    Conflict,
    ContextOverflow,
    Fenced,
    Invalid,
    ModelEmptyResponse,
    ModelError,
    NotFound,
    NotImplementedYet,
    PerdureError,
    Unavailable,
)
from perdure.domain.events import RunEnded, RunStarted
from perdure.domain.ids import new_id
from perdure.domain.messages import Message, Text, Usage, text_of
from perdure.domain.ports import Accepted, Model, Models, Page, RunQuery, StepCommit, Store, Toolbox
from perdure.domain.records import Context, Run, Step, ended
from perdure.memory.prompt import compile_system
from perdure.runs.channel import Channel
from perdure.runs.contexts import ContextCache
from perdure.runs.order import Order

log = structlog.get_logger()

BEAT = timedelta(seconds=5)
"""How often leases are renewed."""
LEGACY = ("memgpt_agent", "memgpt_v2_agent", "split_thread_agent", "voice_convo_agent", "voice_sleeptime_agent")
"""Agent types whose answers are tool calls (spec §1.8); run on the current loop they would seem to say nothing."""
LEASE = timedelta(seconds=30)
"""A run whose worker has not been heard of for this long is ended by another one."""
OUSTED = "The run was ended from outside: its agent was deleted, or another process took it over. Read the run's state."


class Ongoing:
    """A run under way in this process."""

    def __init__(self, run: Run):
        self.run, self.channel = run, Channel()
        self.task: asyncio.Task[None] | None = None
        self.ending = False

    def cancel(self) -> None:
        """Stop the work, unless it is ending: how a run ended must be recorded and told whoever else cancels it."""
        # Not at once: a task that is cancelled before its first step never gets to record anything.
        asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.task and not self.ending:
            self.ending = True
            self.task.cancel()


class Executor:
    """Starts runs and sees them through."""

    def __init__(self, store: Store, models: Models, toolbox: Toolbox, clock: Clock, beat: timedelta = BEAT):
        self._store, self._models, self._clock, self._beat_every = store, models, clock, beat
        self._contexts = ContextCache(store.contexts)
        self._ports = Ports(store, toolbox, clock, self._commit)
        self._ongoing: dict[str, Ongoing] = {}
        self._unrecorded: dict[str, tuple[Run, Step | None]] = {}
        self._pulse: asyncio.Task[None] | None = None

    async def start(self, order: Order) -> Ongoing:
        """Accept a run and begin it; when this returns, the request is durable.

        Raises NotFound (agent, model), Busy, Invalid, Unavailable; nothing is stored then.
        """
        override = await self._override(order)
        run = Run(
            id=new_id("run"), agent_id=order.agent_id, context_id=order.context_id, created_at=self._clock.now(),
            conversation_id=order.conversation_id, background=order.background,
            metadata={"run_type": order.run_type}, request_config=order.request_config,
        )  # fmt: skip
        accepted = await self._store.runs.accept(with_input(run, order), order.request)
        ongoing = self._ongoing[run.id] = Ongoing(run)
        ongoing.channel.emit(RunStarted(run.id))
        self._pulse = self._pulse or asyncio.create_task(self._beat())
        ongoing.task = asyncio.create_task(self._carry_out(ongoing, order, accepted, override))
        return ongoing

    async def _override(self, order: Order) -> Model | None:
        """The model this one request asks for; its own window applies (spec §2)."""
        if order.override_model is None:
            return None
        info = await self._models.find(order.override_model)
        if info.kind != "llm":
            raise Invalid(f"{info.handle} is an embedding model. Name a model that talks; GET /v1/models/ lists them.")
        return self._models.open(info.handle, info.context_window)

    async def _carry_out(self, ongoing: Ongoing, order: Order, accepted: Accepted, override: Model | None) -> None:
        """Run the loop; whatever happens, the run ends in the database and readers get exactly one `RunEnded`."""
        turn: Turn | None = None
        try:
            context = await self._contexts.get(order.context_id, accepted)
            turn = self._turn(ongoing.run, context, order, override)
            closing = await run_turn(turn, self._ports, ongoing.channel.emit)
        except asyncio.CancelledError:
            closing = await self._fail(ongoing, order, turn, None, "cancelled")
        except Fenced:
            closing = await self._fail(ongoing, order, turn, Conflict(OUSTED), "error")
        except Exception as error:  # every failure of a run is recorded and told, not only those we foresee
            if not isinstance(error, PerdureError):
                log.error("run failed", run_id=ongoing.run.id, exc_info=error)
            closing = await self._fail(ongoing, order, turn, error, stop_reason_of(error))
        finally:
            self._ongoing.pop(ongoing.run.id, None)
        ongoing.channel.emit(closing)

    def _turn(self, run: Run, context: Context, order: Order, override: Model | None) -> Turn:
        if context.agent.agent_type in LEGACY:
            raise NotImplementedYet(
                f"Agents of type {context.agent.agent_type} need the older loop, which this version does not have. "
                "Create the agent as letta_v1_agent."
            )
        handle, window = context.agent.model, int(context.agent.llm.get("context_window") or 0)
        system, recompiled = _system(context)
        stamped = [
            msgspec.structs.replace(m, run_id=run.id, agent_id=run.agent_id, conversation_id=run.conversation_id)
            for m in order.messages
        ]
        return Turn(
            run=run, context=context, options=order.options, model=override or self._models.open(handle, window),
            new=stamped, blocks=context.blocks, system=system, recompiled=recompiled, since=len(context.messages),
        )  # fmt: skip

    async def _commit(self, turn: Turn, commit: StepCommit) -> None:
        """Save a step, then note in the cache what the context has become."""
        saving = asyncio.ensure_future(self._store.runs.commit(commit))
        try:
            committed = await asyncio.shield(saving)
        except asyncio.CancelledError:
            # What is on its way to the database is saved or not as a whole; the cancel counts from there on, so that
            # the answer, the run and the history say the same.
            turn.cancelled = True
            committed = await saving
        turn.context = self._contexts.advance(turn.context, commit, committed)

    async def _fail(
        self, ongoing: Ongoing, order: Order, turn: Turn | None, error: Exception | None, stop: str
    ) -> RunEnded:
        """End the run in the database, with the step that failed, and make the closing event."""
        ongoing.ending, run = True, ongoing.run
        usage = turn.usage if turn else Usage()
        steps = turn.step_count if turn else 0
        metadata = dict(run.metadata)
        if error is not None:
            metadata["error"] = describe(error)
        if turn is None or turn.new:  # no step has saved the input
            metadata["rejected_input"] = words_of(order)
        self._contexts.forget(run.context_id)
        await self._end(self._ended(run, stop, usage, metadata), _failed_step(turn, error, stop, self._clock.now()))
        return RunEnded(stop, usage, steps, turn.context_tokens if turn else None, error)

    def _ended(self, run: Run, stop: str, usage: Usage, metadata: dict[str, Any]) -> Run:
        """The run as it is recorded when it did not reach its own end."""
        status = "cancelled" if stop == "cancelled" else "failed"
        return ended(run, status, stop, self._clock.now(), usage, metadata=metadata)

    async def _end(self, run: Run, step: Step | None) -> None:
        """Record how a run ended. If the database is away, the pulse tries again: the context is taken until then."""
        try:
            await self._store.runs.end(run, step)
        except Fenced:
            log.info("a run was ended by another worker, or deleted with its agent", run_id=run.id)
        except Exception as error:  # whatever it is, readers must be told that the run is over
            log.error("could not record how a run ended", run_id=run.id, exc_info=error)
            if isinstance(error, Unavailable):
                self._unrecorded[run.id] = (run, step)

    async def cancel(self, agent_id: str, run_ids: Sequence[str] | None = None) -> dict[str, str]:
        """Cancel these runs of an agent, or all that are under way; answers `cancelled` or `failed` for each.

        A run that has ended stays as it is and counts as cancelled; an unknown one as failed (spec §6.4). Raises
        NotFound, and Conflict if there is nothing to cancel.
        """
        if run_ids is None:
            active = RunQuery(agent_ids=(agent_id,), statuses=("created", "running"))
            run_ids = [run.id for run in await self._store.runs.find(active, Page(limit=1000))]
        if not run_ids:
            await self._store.agents.get(agent_id)
            raise Conflict("No active runs to cancel. Runs that have ended need no cancelling.")
        return {run_id: await self._cancel(agent_id, run_id) for run_id in dict.fromkeys(run_ids)}

    async def _cancel(self, agent_id: str, run_id: str) -> str:
        """Stop a run of this process and wait until that is recorded."""
        ongoing = self._ongoing.get(run_id)
        if ongoing and ongoing.task and ongoing.run.agent_id == agent_id:
            ongoing.cancel()
            await asyncio.wait([ongoing.task])
            return "cancelled"
        try:
            run = await self._store.runs.get(run_id)
        except NotFound:
            return "failed"
        if run.agent_id != agent_id:
            return "failed"
        if run.completed_at is None:  # another process works on it, or did before it died: its next write is refused
            await self._end(self._ended(run, "cancelled", run.usage, run.metadata), None)
        return "cancelled"

    async def recover(self) -> int:
        """End runs that a dead worker left open; answers how many. Their requests stay readable in their rows."""
        # Of an exclusive database every open run is a dead one, even if the clock has been set back since.
        older_than = datetime.max.replace(tzinfo=UTC) if self._store.exclusive else self._clock.now() - LEASE
        return await self._store.runs.interrupt(
            older_than, "The server stopped while this run was under way. Send the message again."
        )

    async def drain(self, seconds: float) -> None:
        """Let runs finish for so long, then cancel the rest and wait until each is recorded."""
        begun = list(self._ongoing.values())
        tasks = [ongoing.task for ongoing in begun if ongoing.task]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
            for ongoing in begun:
                ongoing.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._pulse:
            self._pulse.cancel()
            self._pulse = None

    async def _beat(self) -> None:
        """Renew the leases of this process's runs while it has any, and record ends that could not be recorded."""
        while self._ongoing or self._unrecorded:
            await asyncio.sleep(self._beat_every.total_seconds())
            for run_id in list(self._unrecorded):
                await self._end(*self._unrecorded.pop(run_id))
            try:
                await self._store.runs.beat(list(self._ongoing), self._clock.now())
            except PerdureError as error:  # the next beat may come through; until then the leases last
                log.warning("could not renew the leases of runs", reason=str(error))
        self._pulse = None


def words_of(order: Order) -> list[str]:
    """The text of each message of a request."""
    return [text_of(message.content) for message in order.messages]


def with_input(run: Run, order: Order) -> Run:
    """The run as it is accepted: whoever finds it after a crash can read in its metadata what was asked."""
    return msgspec.structs.replace(run, metadata={**run.metadata, "input": words_of(order)})


def stop_reason_of(error: Exception) -> str:
    """The stop reason an error ends a run with (spec §1.5)."""
    if isinstance(error, ModelEmptyResponse):
        return "invalid_llm_response"
    if isinstance(error, ContextOverflow):
        return "error"
    return "llm_api_error" if isinstance(error, ModelError) else "error"


def describe(error: Exception) -> dict[str, str]:
    """An error as a run's metadata shows it (★S23)."""
    kind = error.error_type if isinstance(error, ModelError) else "internal_error"
    detail = error.detail if isinstance(error, ModelError) else type(error).__name__
    return {"error_type": kind, "message": str(error), "detail": detail}


def _failed_step(turn: Turn | None, error: Exception | None, stop: str, now: datetime) -> Step | None:
    """A row for the model call that failed, so that lists of steps show it."""
    if turn is None or not isinstance(error, ModelError):
        return None
    info = turn.model.info
    return Step(
        id=new_id("step"), run_id=turn.run.id, agent_id=turn.run.agent_id, created_at=now, status="failed",
        stop_reason=stop, provider_name=info.provider_name, model=info.name, model_handle=info.handle,
        model_endpoint=info.endpoint, context_window_limit=info.context_window, error_type=error.error_type,
        error_data=dict(describe(error)),
    )  # fmt: skip


def _system(context: Context) -> tuple[str, Message | None]:
    """The system text in force, and the rewritten message 0 if the stored one is out of date (★S5).

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
