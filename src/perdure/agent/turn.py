"""What one request asks of the loop, and what the loop has made of it so far."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from perdure.agent.rules import Choice, History
from perdure.domain.clock import Clock
from perdure.domain.events import Event
from perdure.domain.messages import Message, Usage
from perdure.domain.ports import Model, SearchHit, StepCommit, Store, Toolbox
from perdure.domain.records import DEFAULT_MAX_STEPS, Agent, Block, Context, Run

Emit = Callable[[Event], None]
"""Takes an event at once; whoever reads slowly is not waited for."""


@dataclass(frozen=True)
class Options:
    """The parts of a request that steer the loop (spec §2)."""

    max_steps: int = DEFAULT_MAX_STEPS
    override_system: str | None = None
    client_skills: Sequence[Mapping[str, str]] = ()
    deltas: bool = False
    """Whether anybody wants fragments; without, the loop does not make them."""


@dataclass
class Turn:
    """One request on its way through the loop. `new` is the input until the first step has saved it."""

    run: Run
    context: Context
    options: Options
    model: Model
    new: list[Message]
    blocks: tuple[Block, ...]
    system: str
    since: int
    """Where in the context this request's messages begin."""
    recompiled: Message | None = None
    """The rewritten system message, saved with the first step."""
    usage: Usage = field(default_factory=Usage)
    step_count: int = 0
    context_tokens: int | None = None
    garbled: dict[str, str] = field(default_factory=dict)
    """Arguments that were no JSON object, by call id (★S10)."""
    misfilled: dict[str, str] = field(default_factory=dict)
    """What is wrong with the arguments that a rule prefills, by call id (spec §8.4)."""
    cancelled: bool = False
    """Asked to stop while a step was being saved: the loop ends after it."""
    history: History = field(default_factory=History)
    choice: Choice = field(default_factory=lambda: Choice((), forced=False))
    """The tools that may be called in this step."""

    @property
    def agent(self) -> Agent:
        """The agent as it was when the run began."""
        return self.context.agent


@dataclass(frozen=True)
class Ports:
    """What the loop uses of the outside world."""

    store: Store
    toolbox: Toolbox
    clock: Clock
    commit: Callable[[Turn, StepCommit], Awaitable[None]]
    """Saves a step, tells it, and brings the turn's context up to date. Raises Fenced, StaleBlock."""


@dataclass(frozen=True)
class Scene:
    """What a tool sees while it runs (port `Scene`)."""

    agent: Agent
    blocks: tuple[Block, ...]
    now: datetime
    store: Store = field(repr=False)

    async def search_messages(
        self, query: str | None, *, roles: Sequence[str] | None, start: datetime | None, end: datetime | None,
        limit: int,
    ) -> list[SearchHit]:
        """Full-text search in this agent's history."""
        return await self.store.messages.search(
            self.agent.id, query, roles=roles, start=start, end=end, limit=limit
        )
