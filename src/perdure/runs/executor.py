"""The one executor of all entry points: accept a run, carry it out, record how it ended (behaviour spec §12.1).

Above it are the renderings in `api`, below it the loop in `agent`. It knows nothing of HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import msgspec
import structlog

from perdure.agent.loop import run_turn
from perdure.agent.turn import Emit, Ports, Turn
from perdure.domain.clock import Clock
from perdure.domain.errors import Conflict, Fenced, Invalid, NotFound, NotImplementedYet, PerdureError, Unavailable
from perdure.domain.events import Event, RunEnded, RunStarted, StepCommitted
from perdure.domain.frames import Frames, Waiting
from perdure.domain.ids import new_id
from perdure.domain.messages import Usage, text_of
from perdure.domain.ports import Accepted, Model, Models, Page, RunQuery, StepCommit, Store, Toolbox
from perdure.domain.records import Context, Run, Step
from perdure.runs.admission import Admission, order_of
from perdure.runs.contexts import ContextCache
from perdure.runs.endings import OUSTED, STOPPING, describe, failed, failed_step, stop_reason_of
from perdure.runs.follow import POLL, Follow, Portion
from perdure.runs.line import Line
from perdure.runs.ongoing import Ongoing, Outcome
from perdure.runs.order import Order, Rendering, Renderings, View
from perdure.runs.outcome import ended_of, recorded
from perdure.runs.press import Press
from perdure.runs.prompt import system_of
from perdure.runs.tape import Tape
from perdure.runs.watch import Watch

log = structlog.get_logger()
T = TypeVar("T")

CANCELLED = "The request was cancelled while it was carried out. Nothing was changed."
AGAIN = timedelta(seconds=1)
"""How long until another try to record an end that the database did not take."""
LEGACY = ("memgpt_agent", "memgpt_v2_agent", "split_thread_agent", "voice_convo_agent", "voice_sleeptime_agent")
"""Agent types whose answers are tool calls (spec §1.8); run on the current loop they would seem to say nothing."""


class Executor:
    """Starts runs and sees them through. `on_callback` is told that a run with a callback has ended."""

    def __init__(
        self, store: Store, models: Models, toolbox: Toolbox, clock: Clock, renderings: Renderings, *,
        again: timedelta = AGAIN, on_callback: Callable[[], None] = lambda: None, log_foreground: bool = True,
    ):  # fmt: skip
        self._store, self._models, self._clock, self._again = store, models, clock, again
        self._renderings, self._on_callback, self._log_foreground = renderings, on_callback, log_foreground
        self._contexts = ContextCache(store.contexts)
        self._ports = Ports(store, toolbox, clock, self._commit)
        self._ongoing: dict[str, Ongoing] = {}
        self._unrecorded: list[tuple[Run, Step | None, Frames | None]] = []
        self._recording: asyncio.Task[None] | None = None
        self._adopting: set[asyncio.Task[None]] = set()
        self._beginning: dict[str, asyncio.Event] = {}
        """Runs that may be saved and have not begun; set once that is known."""
        self._worker = new_id("worker")
        self._press = Press(store.log, self._oust)
        self._line = Line(store.runs)
        self._admission = Admission(store, clock, self._line, self.stop)
        self._follow = Follow(store, self._ongoing.get, self._rendering_of)
        self.watch = Watch(
            store.runs, self._worker, clock, mine=self._ongoing.keys, oust=self._oust, adopt=self._adopt
        )  # fmt: skip

    async def start(self, order: Order, listener: Emit | None = None) -> Ongoing | Run:
        """Accept a run and begin it, or find the one that the same request made; when this returns, it is durable.

        A run that is no longer, or not here, under way is answered as its record. Raises NotFound (agent, model),
        Busy, Invalid, Unavailable; nothing is stored then.
        """
        await self._override(order)
        run = self._new_run(order)
        self._beginning[run.id] = asyncio.Event()
        try:
            return await self._start(order, run, listener)
        finally:
            self._beginning.pop(run.id).set()

    async def _start(self, order: Order, run: Run, listener: Emit | None) -> Ongoing | Run:
        try:
            admitted = await self._admission.admit(order, run)
        except Unavailable:  # perhaps it was saved all the same, and would hold the context for ever
            self._record_later(failed(run, "error", Usage(), self._clock.now()))
            raise
        if isinstance(admitted, Run):
            return self._ongoing.get(admitted.id) or admitted
        ongoing = Ongoing(admitted.run, self._tape_of(admitted.run, order), listener)
        return self._begin(ongoing, order, admitted.accepted)

    def follow(
        self, started: Ongoing | Run, after: int = 0, *, quiet: float | None = None, poll: float = POLL
    ) -> AsyncGenerator[Portion, None]:
        """The run's frames above a number, to its end (see `follow`)."""
        return self._follow(started, after, quiet=quiet, poll=poll)

    async def outcome(self, started: Ongoing | Run) -> Outcome:
        """What came of the run, once it is over."""
        if isinstance(started, Run):
            run = started
            while run.completed_at is None:
                await asyncio.sleep(POLL)
                run = await self._store.runs.get(run.id)
            return await recorded(self._store, run)
        await started.over.wait()
        assert started.ended, "a run that is over has told how it ended"
        if started.tape is None or started.ended.error:
            return Outcome(started.messages, started.ended)
        return await recorded(self._store, await self._store.runs.get(started.run.id))

    async def hold(self, run: Run, request: bytes, work: Callable[[Run], Awaitable[T]]) -> T:
        """Have work done on a context that is no turn, by a run that holds it. `work` commits the end of the run.

        Like a turn it beats, can be cancelled and is drained. Raises NotFound, Busy, Conflict (it was cancelled), and
        what `work` does: the run has failed then.
        """
        run = msgspec.structs.replace(run, worker=self._worker)
        await self._store.runs.accept(run, request)
        ongoing, made = Ongoing(run, None), list[T]()
        self._ongoing[run.id] = ongoing
        ongoing.task = asyncio.create_task(self._held(ongoing, work, made))
        await ongoing.over.wait()
        if made:
            return made[0]
        raise (ongoing.ended.error if ongoing.ended else None) or Conflict(CANCELLED)

    async def _held(self, ongoing: Ongoing, work: Callable[[Run], Awaitable[T]], made: list[T]) -> None:
        try:
            made.append(await work(ongoing.run))
        except asyncio.CancelledError:
            await (self._ousted(ongoing) if ongoing.ousted else self._give_up(ongoing, None, "cancelled"))
        except Fenced:
            await self._ousted(ongoing)
        except Exception as error:  # as for a turn: whatever it is, it is recorded and told
            if not isinstance(error, PerdureError):
                log.error("run failed", run_id=ongoing.run.id, exc_info=error)
            await self._give_up(ongoing, error, stop_reason_of(error))
        finally:
            self._contexts.forget(ongoing.run.context_id)
            self._close(ongoing)

    async def _give_up(self, ongoing: Ongoing, error: Exception | None, stop: str) -> None:
        ongoing.ending = True
        metadata = ongoing.run.metadata | ({"error": describe(error)} if error else {})
        run = failed(ongoing.run, stop, Usage(), self._clock.now(), metadata=metadata)
        await self._end(ongoing, run, None, RunEnded(stop, Usage(), 0, None, error))

    def _new_run(self, order: Order) -> Run:
        streamed = order.view is not None and (order.view.numbered or self._log_foreground)
        return Run(
            id=new_id("run"), agent_id=order.agent_id, context_id=order.context_id, created_at=self._clock.now(),
            conversation_id=order.conversation_id, background=order.background, callback_url=order.callback_url,
            metadata={"run_type": order.run_type, "input": words_of(order)}, request_config=order.request_config,
            input_count=len(order.messages), otids=order.otids, streamed=streamed, worker=self._worker,
        )  # fmt: skip

    def _tape_of(self, run: Run, order: Order, last: int = 0) -> Tape | None:
        if order.view is None:
            return None
        rendering = self._renderings(run.id, order.view)
        tape = Tape(rendering, self._press.more, saved_first=order.view.numbered, last=last)
        if run.streamed:
            self._press.serve(run, tape)
        return tape

    def _rendering_of(self, run: Run) -> Rendering:
        return self._renderings(run.id, View(numbered=run.background))

    def _begin(self, ongoing: Ongoing, order: Order, accepted: Accepted | None, *, again: bool = False) -> Ongoing:
        run = ongoing.run = msgspec.structs.replace(ongoing.run, metadata={"run_type": order.run_type})
        self._ongoing[run.id] = ongoing
        if not again:
            ongoing.emit(RunStarted(run.id))
        ongoing.task = asyncio.create_task(self._carry_out(ongoing, order, accepted))
        return ongoing

    async def _override(self, order: Order) -> Model | None:
        """The model this one request asks for; its own window applies (spec §2)."""
        if order.override_model is None:
            return None
        info = await self._models.find(order.override_model)
        if info.kind != "llm":
            raise Invalid(f"{info.handle} is an embedding model. Name a model that talks; GET /v1/models/ lists them.")
        return self._models.open(info.handle, info.context_window)

    async def _carry_out(self, ongoing: Ongoing, order: Order, accepted: Accepted | None) -> None:
        """Run the loop; whatever happens, the run ends in the database and readers get exactly one end."""
        turn: Turn | None = None
        try:
            accepted = accepted or await self._its_turn(ongoing, order)
            context = await self._contexts.get(order.context_id, accepted)
            turn = self._turn(ongoing.run, context, order, await self._override(order))
            await run_turn(turn, self._ports, ongoing.emit)
        except asyncio.CancelledError:
            if ongoing.parked and ongoing.run.status == "created":
                ongoing.tell([RunEnded("error", Usage(), 0, None, Unavailable(STOPPING.format(ongoing.run.id)))])
            else:
                await (self._ousted(ongoing) if ongoing.ousted else self._fail(ongoing, order, turn, None, "cancelled"))
        except Fenced:
            await self._ousted(ongoing)
        except Exception as error:  # every failure of a run is recorded and told, not only those we foresee
            if not isinstance(error, PerdureError):
                log.error("run failed", run_id=ongoing.run.id, exc_info=error)
            await self._fail(ongoing, order, turn, error, stop_reason_of(error))
        finally:
            self._close(ongoing)

    def _close(self, ongoing: Ongoing) -> None:
        """The run is over: let go of it, and let the next one go."""
        self._ongoing.pop(ongoing.run.id, None)
        if ongoing.tape:
            self._press.forget(ongoing.tape)
        ongoing.over.set()
        self._line.moved(ongoing.run.context_id)
        if ongoing.run.callback_url:
            self._on_callback()

    async def _its_turn(self, ongoing: Ongoing, order: Order) -> Accepted:
        """Wait in the line until the run has its context."""
        running = msgspec.structs.replace(ongoing.run, status="running")
        with_input = {**running.metadata, "input": words_of(order)}

        def started() -> None:
            ongoing.run = running

        return await self._line.turn_of(msgspec.structs.replace(running, metadata=with_input), started)

    def _turn(self, run: Run, context: Context, order: Order, override: Model | None) -> Turn:
        if context.agent.agent_type in LEGACY:
            raise NotImplementedYet(
                f"Agents of type {context.agent.agent_type} need the older loop, which this version does not have. "
                "Create the agent as letta_v1_agent."
            )
        handle, window = context.agent.model, int(context.agent.llm.get("context_window") or 0)
        system, recompiled = system_of(context)
        stamped = [
            msgspec.structs.replace(m, run_id=run.id, agent_id=run.agent_id, conversation_id=run.conversation_id)
            for m in order.messages
        ]
        return Turn(
            run=run, context=context, options=order.options, model=override or self._models.open(handle, window),
            new=stamped, blocks=context.blocks, system=system, recompiled=recompiled, since=len(context.messages),
        )  # fmt: skip

    async def _commit(self, turn: Turn, commit: StepCommit) -> None:
        """Save a step and tell it, then note in the cache what the context has become."""
        made = tuple(message for message in commit.messages[len(turn.new) :] if message.role != "user")
        told: list[Event] = [StepCommitted(commit.step.id, made)]
        if commit.finished:
            stop = commit.finished.stop_reason or "error"
            told.append(RunEnded(stop, turn.usage, turn.step_count, turn.context_tokens))
        async with self._ongoing[turn.run.id].carrying(told) as carried:
            frames = carried.frames if turn.run.streamed else None
            saving = asyncio.ensure_future(self._store.runs.commit(msgspec.structs.replace(commit, frames=frames)))
            try:
                committed = await asyncio.shield(saving)
            except asyncio.CancelledError:
                # What is on its way to the database is saved or not as a whole; the cancel counts from there on, so
                # that the answer, the run and the history say the same.
                turn.cancelled = True
                committed = await saving
        turn.context = self._contexts.advance(turn.context, commit, committed)

    async def _fail(
        self, ongoing: Ongoing, order: Order, turn: Turn | None, error: Exception | None, stop: str
    ) -> None:
        """End the run in the database, with the step that failed, and tell it."""
        ongoing.ending, now = True, self._clock.now()
        usage, steps = (turn.usage, turn.step_count) if turn else (Usage(), 0)
        tokens = turn.context_tokens if turn else None
        metadata = dict(ongoing.run.metadata)
        if error is not None:
            metadata["error"] = describe(error)
        if turn is None or turn.new:  # no step has saved the input
            metadata["rejected_input"] = words_of(order)
        self._contexts.forget(order.context_id)
        run = failed(
            ongoing.run, stop, usage, now, metadata=metadata, step_count=steps, context_tokens=tokens,
            error_kind=type(error).__name__ if error else "",
        )  # fmt: skip
        await self._end(ongoing, run, failed_step(turn, error, stop, now), RunEnded(stop, usage, steps, tokens, error))

    async def _end(self, ongoing: Ongoing, run: Run, step: Step | None, closing: RunEnded) -> None:
        """Record how a run ended, and tell it. If the database is away, it is tried again: the context is taken until
        then.
        """
        frames = None
        try:
            async with ongoing.carrying([closing]) as carried:
                frames = carried.frames if run.streamed else None
                await self._store.runs.end(run, step, frames)
        except Fenced:
            await self._ousted(ongoing)
        except Exception as error:  # whatever it is, readers must be told that the run is over
            log.error("could not record how a run ended", run_id=run.id, exc_info=error)
            self._record_later(run, step, frames)
            ongoing.tell([closing])

    async def _ousted(self, ongoing: Ongoing) -> None:
        """Tell how somebody else has ended the run."""
        ongoing.ending = True
        self._contexts.forget(ongoing.run.context_id)
        log.info("a run was ended from outside", run_id=ongoing.run.id)
        try:
            run = await self._store.runs.get(ongoing.run.id)
        except PerdureError:
            run = ongoing.run
        if run.completed_at is None:
            ongoing.tell([RunEnded("error", Usage(), 0, None, Conflict(OUSTED))])
            return
        rendering = self._rendering_of(run)
        ongoing.cut(ended_of(run), lambda number: rendering.closing(run, number))

    def _record_later(self, run: Run, step: Step | None = None, frames: Frames | None = None) -> None:
        self._unrecorded.append((run, step, frames))
        self._recording = self._recording or asyncio.create_task(self._record())

    async def _record(self) -> None:
        """Record the ends that the database did not take, as soon as it does."""
        while self._unrecorded:
            await asyncio.sleep(self._again.total_seconds())
            waiting, self._unrecorded = self._unrecorded, []
            for run, step, frames in waiting:
                try:
                    await self._store.runs.end(run, step, frames)
                except Fenced:
                    pass
                except Exception as error:  # whatever it is, the context is taken until the end is recorded
                    log.warning("could not record how a run ended", run_id=run.id, reason=str(error))
                    self._unrecorded.append((run, step, frames))
                self._line.moved(run.context_id)
        self._recording = None

    async def cancel(
        self, agent_id: str, run_ids: Sequence[str] | None = None, conversation_id: str | None = None
    ) -> dict[str, str]:
        """Cancel these runs of an agent, or all that are under way or wait, of one conversation if it is named.

        Answers `cancelled` or `failed` for each. A run that has ended stays as it is and counts as cancelled; an
        unknown one as failed (spec §6.4). `default` names the agent's own conversation. Raises NotFound, and
        Conflict if there is nothing to cancel.
        """
        if run_ids is None:
            active = RunQuery(
                agent_ids=(agent_id,), statuses=("created", "running"), conversation_id=conversation_id
            )  # fmt: skip
            run_ids = [run.id for run in await self._store.runs.find(active, Page(limit=1000))]
        if not run_ids:
            await self._store.agents.get(agent_id)
            raise Conflict("No active runs to cancel. Runs that have ended need no cancelling.")
        named = list(dict.fromkeys(run_ids))
        return dict(zip(named, await asyncio.gather(*(self.stop(agent_id, one) for one in named)), strict=True))

    async def stop(self, agent_id: str, run_id: str) -> str:
        """Stop a run and wait until that is recorded; answers `cancelled`, or `failed` if the agent has no such run."""
        if beginning := self._beginning.get(run_id):
            await beginning.wait()
        ongoing = self._ongoing.get(run_id)
        if ongoing and ongoing.run.agent_id == agent_id:
            ongoing.cancel()
            await ongoing.over.wait()
            return "cancelled"
        try:
            run = await self._store.runs.get(run_id)
        except NotFound:
            return "failed"
        if run.agent_id != agent_id:
            return "failed"
        if run.completed_at is None:  # another process works on it, or did before it died: its next write is refused
            try:
                await self._store.runs.end(failed(run, "cancelled", run.usage, self._clock.now()))
            except Fenced:
                log.info("a run ended while it was being cancelled", run_id=run_id)
        return "cancelled"

    async def recover(self) -> None:
        """Of a database that is ours alone, end the runs that were under way when the last process died, and take up
        those that wait. Otherwise the watch does so. Their requests stay readable in their rows.
        """
        if self._store.exclusive:
            await self.watch.take_over(None)
        else:
            await self.watch.look()

    def _adopt(self, waiting: Sequence[Waiting]) -> None:
        for one in waiting:
            task = asyncio.create_task(self._take_up(one))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _take_up(self, waiting: Waiting) -> None:
        """Go on with a run that waited in another process, its frames numbered on."""
        order, last = order_of(waiting.order), 0
        async for frames in self._follow.saved(waiting.run.id, 0):
            last = frames.last
        ongoing = Ongoing(waiting.run, self._tape_of(waiting.run, order, last))
        self._begin(ongoing, order, None, again=last > 0)

    def _oust(self, run_id: str) -> None:
        if ongoing := self._ongoing.get(run_id):
            ongoing.oust()

    async def drain(self, seconds: float) -> None:
        """Let runs finish for so long, then cancel the rest and wait until each is recorded. Those that wait in line
        are left for the next process.
        """
        begun = list(self._ongoing.values())
        for ongoing in begun:
            if ongoing.run.status == "created":
                ongoing.park()
        tasks = [ongoing.task for ongoing in begun if ongoing.task]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
            for ongoing in begun:
                ongoing.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._press.close()
        if self._recording:
            self._recording.cancel()
            self._recording = None


def words_of(order: Order) -> list[str]:
    """The text of each message of a request: whoever finds the run after a crash can read there what was asked."""
    return [text_of(message.content) for message in order.messages]
