"""The ports: what the loop and the API need from the outside world, as protocols (architecture.md, layers).

Each has at least two real implementations: the store on SQLite and on PostgreSQL, models over HTTP and scripted,
tools built in and (issue D) sandboxed.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from perdure.domain.conversations import Conversations, SystemText
from perdure.domain.frames import Frames, Lease, Log, Waiting
from perdure.domain.messages import Image, Message, Part, Stored, ToolCall, ToolReturn, Usage
from perdure.domain.queries import (
    AgentQuery as AgentQuery,
)
from perdure.domain.queries import (
    BlockQuery as BlockQuery,
)
from perdure.domain.queries import (
    MessageQuery as MessageQuery,
)
from perdure.domain.queries import (
    Page as Page,
)
from perdure.domain.queries import (
    RunQuery as RunQuery,
)
from perdure.domain.queries import (
    StepQuery as StepQuery,
)
from perdure.domain.queries import (
    ToolQuery as ToolQuery,
)
from perdure.domain.records import Agent, AgentState, Block, Context, ModelInfo, Run, Step, Tool

# --- models ------------------------------------------------------------------------------------------------------


class ToolSchema(msgspec.Struct, frozen=True):
    """A tool as the model is told of it. `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model in neutral words. `messages` excludes the system message."""

    model: str
    system: str
    messages: Sequence[Message]
    tools: Sequence[ToolSchema] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or the name of the one tool to call."""
    parallel_tool_calls: bool | None = None
    settings: Mapping[str, Any] = {}
    """max_output_tokens, temperature, reasoning, response_format, … as in the agent's model settings."""
    timezone: str = "UTC"
    return_char_cap: int = 1_000_000
    """Tool results longer than this are cut in the prompt (spec §1.6, layer c)."""


class TextPiece(msgspec.Struct, frozen=True):
    """A fragment of the answer."""

    text: str


class ReasoningPiece(msgspec.Struct, frozen=True):
    """A fragment of the thoughts."""

    text: str
    signature: str | None = None


class HiddenPiece(msgspec.Struct, frozen=True):
    """Sealed (`data`) or omitted (None) thoughts."""

    data: str | None


class CallPiece(msgspec.Struct, frozen=True):
    """A fragment of a tool call; `id` is on every fragment, `name` on the first."""

    id: str
    name: str | None
    arguments: str | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, once, after the last fragment. `finish` ∈ stop, tool_calls, length, content_filter."""

    content: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...]
    finish: str
    usage: Usage
    request_id: str | None = None


Piece = TextPiece | ReasoningPiece | HiddenPiece | CallPiece | Answer


class Model(Protocol):
    """One model of one provider."""

    info: ModelInfo

    def stream(self, request: ModelRequest) -> AsyncIterator[Piece]:
        """Fragments, then exactly one `Answer`. Raises a ModelError; closing the iterator aborts the call."""


class Provider(Protocol):
    """A place that offers models."""

    name: str
    provider_type: str

    async def list_models(self) -> list[ModelInfo]:
        """What is really there now. Raises a ModelError if the provider cannot be reached."""

    def open(self, info: ModelInfo) -> Model:
        """The model behind an entry of `list_models`."""

    async def close(self) -> None:
        """Give back connections."""


class Models(Protocol):
    """All models of all configured providers."""

    async def find(self, handle: str) -> ModelInfo:
        """The entry with this handle. Raises NotFound, Invalid (no provider in it), Unavailable."""

    async def list(self, kind: str = "llm") -> list[ModelInfo]:
        """Everything reachable now, `llm` or `embedding`; a provider that is down is left out."""

    def open(self, handle: str, context_window: int) -> Model:
        """The model to call for a stored handle; makes no request. Raises NotFound if its provider is gone."""


# --- tools -------------------------------------------------------------------------------------------------------


class BlockEdit(msgspec.Struct, frozen=True, kw_only=True):
    """What a memory tool wants done, as data; the loop saves it with the tool's result.

    `block` is the block as it shall be. `base_version` is the version it was made from, 0 for a new block.
    """

    block: Block
    base_version: int
    detach: bool = False


class SearchHit(msgspec.Struct, frozen=True):
    """A stored message that a search found; `rank` counts from 1."""

    message: Message
    sequence_id: int
    rank: int


class Scene(Protocol):
    """What a tool may see and use while it runs."""

    @property
    def agent(self) -> Agent:
        """The agent whose turn it is."""

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its blocks, with the edits of earlier calls of this step."""

    @property
    def now(self) -> datetime:
        """The moment of the call, in UTC."""

    async def search_messages(
        self, query: str | None, *, roles: Sequence[str] | None, start: datetime | None, end: datetime | None,
        limit: int,
    ) -> list[SearchHit]:
        """Full-text search in this agent's history, best first; newest first if `query` is blank or None."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of running a tool."""

    result: ToolReturn
    edits: tuple[BlockEdit, ...] = ()


class Toolbox(Protocol):
    """Runs tools."""

    def builtin(self) -> Sequence[Tool]:
        """The tools that every server has, to be present in the store."""

    async def call(self, tool: Tool, call: ToolCall, arguments: dict[str, Any], scene: Scene) -> Outcome:
        """Run one tool. Never raises for what the tool does: a failure is a result with status `error`."""


# --- store -------------------------------------------------------------------------------------------------------


class Accepted(msgspec.Struct, frozen=True):
    """What the accepting transaction says of the context, to tell whether a cached one is still true."""

    agent_version: int
    revision: int
    last_sequence: int


class StepCommit(msgspec.Struct, frozen=True, kw_only=True):
    """One step's transaction (spec §1.3). `messages`: on the first step the input comes first.

    `system_message` is the rewritten message 0 if the context was recompiled (with `compiled_version`).
    `finished` is the run as it ends, if it ends with this step.
    """

    run: Run
    messages: Sequence[Message]
    step: Step
    edits: Sequence[BlockEdit] = ()
    system_message: Message | None = None
    compiled_version: int | None = None
    hidden_count: int | None = None
    compiled_at: datetime | None = None
    finished: Run | None = None
    frames: Frames | None = None
    """What goes into the run's log with this step."""
    summary: Message | None = None
    """A compaction: takes the place, in the context, of all that stands between the system message and `kept_from`."""
    kept_from: str | None = None
    """The id of the first message that stays behind the summary; None: none stays."""


class Committed(msgspec.Struct, frozen=True):
    """What saving gave: the newest sequence number, and the agent's version if edits changed it."""

    last_sequence: int
    agent_version: int | None = None


class Agents(Protocol):
    """Agents with their relations. All raise NotFound("Agent not found") for an unknown id."""

    async def create(
        self, agent: Agent, *, blocks: Sequence[Block], block_ids: Sequence[str], tool_ids: Sequence[str],
        messages: Sequence[Message],
    ) -> AgentState:
        """Store the agent, its own new blocks, its links (unknown block ids are ignored) and its first context.

        Raises Invalid for an unknown tool id or two blocks of one label.
        """

    async def get(self, agent_id: str) -> AgentState:
        """The agent with blocks, tools, message ids and the outcome of its last run."""

    async def find(self, query: AgentQuery, page: Page, sort_by: str = "created_at") -> list[AgentState]:
        """A page of agents; `sort_by` ∈ created_at, updated_at, last_run_completion."""

    async def count(self) -> int:
        """How many agents there are."""

    async def update(
        self, agent_id: str, change: Callable[[Agent], Agent], *, block_ids: Sequence[str] | None = None,
        tool_ids: Sequence[str] | None = None, message_ids: Sequence[str] | None = None,
    ) -> AgentState:
        """Apply a pure change in one transaction, and replace links where given."""

    async def delete(self, agent_id: str) -> None:
        """Remove the agent with its messages, runs, steps; blocks attached to it stay."""

    async def attach_block(self, agent_id: str, block_id: str) -> AgentState:
        """Attach; no change if attached. Raises NotFound, Conflict (another block of that label)."""

    async def detach_block(self, agent_id: str, block_id: str) -> AgentState:
        """Detach. Raises NotFound if the block is not attached."""

    async def attach_tool(self, agent_id: str, tool_id: str, change: Callable[[Agent, Tool], Agent]) -> AgentState:
        """Attach a tool and apply `change` (approval rule). Raises NotFound."""

    async def detach_tool(self, agent_id: str, tool_id: str) -> AgentState:
        """Detach a tool; no change if it is not attached. Raises NotFound for an unknown tool."""


class Blocks(Protocol):
    """Memory blocks. Raise NotFound for unknown ids."""

    async def create(self, block: Block) -> Block:
        """Store a block that belongs to no agent yet."""

    async def get(self, block_id: str) -> Block:
        """One block."""

    async def find(self, query: BlockQuery, page: Page) -> list[Block]:
        """A page of blocks."""

    async def update(self, block_id: str, change: Callable[[Block], Block]) -> Block:
        """Apply a pure change; agents that have the block are marked for recompiling if it matters to them."""

    async def delete(self, block_id: str) -> None:
        """Remove the block from everywhere."""


class Tools(Protocol):
    """Tools. Names are unique. Raise NotFound for unknown ids."""

    async def save(self, tool: Tool) -> Tool:
        """Insert, or update the one of the same name (its id and created_at stay)."""

    async def get(self, tool_id: str) -> Tool:
        """One tool."""

    async def find(self, query: ToolQuery, page: Page) -> list[Tool]:
        """A page of tools."""

    async def update(self, tool_id: str, change: Callable[[Tool], Tool]) -> Tool:
        """Apply a pure change. Raises Conflict if the new name is taken."""

    async def delete(self, tool_id: str) -> None:
        """Remove the tool, detaching it everywhere."""


class Messages(Protocol):
    """History. Cursors are message ids; an unknown one raises NotFound."""

    async def find(self, query: MessageQuery, page: Page) -> list[Stored]:
        """A page, in the page's order. `after`/`before` mean greater/smaller sequence here (spec §9.3)."""

    async def get(self, message_id: str) -> Stored:
        """One message."""

    async def image(self, file_id: str) -> Image | None:
        """The image that some stored message shows under this file id (★S18)."""

    async def search(
        self, agent_id: str, query: str | None, *, roles: Sequence[str] | None, start: datetime | None,
        end: datetime | None, limit: int,
    ) -> list[SearchHit]:
        """Full-text search, best first; newest first without a query. Dates are inclusive."""


class Contexts(Protocol):
    """What runs work on."""

    async def load(self, context_id: str) -> Context:
        """Everything of a context. Raises NotFound."""

    async def blocks(self, context_id: str) -> tuple[Block, ...]:
        """The blocks in sight there: the agent's, with those that the conversation has for itself in their places."""

    async def recompile(
        self, context_id: str, system: SystemText, now: datetime, *, dry_run: bool = False
    ) -> str:
        """Write the system message anew, with the present time and count; answers its text.

        With `dry_run` nothing is stored. Raises NotFound, Invalid (no system message), Busy while a run holds it.
        """

    async def reset(
        self, context_id: str, system_message: Message, messages: Sequence[Message], *, compiled_version: int,
        compiled_at: datetime, hidden_count: int,
    ) -> None:
        """Context = [the rewritten system message, `messages`]; history is kept. Raises Busy while a run holds it."""


class Runs(Protocol):
    """Runs and their steps. A run holds its context while it is `running`; while it is `created` it waits its turn."""

    async def accept(self, run: Run, request: bytes, *, ahead: bool = False) -> Accepted:
        """Take the context and make the run durable with its request, in one transaction. Raises NotFound, Busy.

        Busy also while others wait for the context, unless `ahead`: then it goes before them.
        """

    async def enqueue(self, run: Run, request: bytes, order: bytes, *, limit: int) -> None:
        """Make a run durable that waits for its context, with its order. Raises NotFound, Busy (`limit` wait already).

        It waits even if the context is free by now: `promote` starts it.
        """

    async def promote(self, run: Run) -> Accepted | None:
        """Start a waiting run; None while the context is taken or others wait before it. Raises Fenced if it ended."""

    async def adopt(self, worker: str, leases: Sequence[Lease] | None) -> list[Waiting]:
        """Take over waiting runs, oldest first, each with a higher epoch, from workers silent since these leases were
        seen; None: from everybody.
        """

    async def commit(self, commit: StepCommit) -> Committed:
        """Store one step. Raises Fenced (nothing written), StaleBlock (nothing written)."""

    async def end(self, run: Run, step: Step | None = None, frames: Frames | None = None) -> None:
        """End a run outside a step (failure, cancel), with the failed step if there is one. Raises Fenced."""

    async def get(self, run_id: str) -> Run:
        """One run."""

    async def find(self, query: RunQuery, page: Page) -> list[Run]:
        """A page of runs; cursors follow the requested order."""

    async def with_otid(self, context_id: str, otid: str, since: datetime) -> Run | None:
        """The newest run of the context, accepted after `since`, whose input has this otid."""

    async def with_request(self, context_id: str, request: bytes, since: datetime) -> Run | None:
        """The newest run of the context with this very request that is open or ended after `since`."""

    async def delete(self, run_id: str) -> None:
        """Forget a run, its steps and its log; its messages stay."""

    async def get_step(self, step_id: str) -> Step:
        """One step."""

    async def find_steps(self, query: StepQuery, page: Page) -> list[Step]:
        """A page of steps."""

    async def update_step(self, step_id: str, change: Callable[[Step], Step]) -> Step:
        """Apply a pure change (feedback, tags)."""

    async def leases(self) -> list[Lease]:
        """All open runs, oldest first."""

    async def interrupt(self, leases: Sequence[Lease] | None, reason: str) -> int:
        """End running runs of workers silent since these leases were seen (None: all): status failed, stop reason
        error, with `reason`, a higher epoch. Answers how many.
        """

    async def beat(self, worker: str, now: datetime) -> None:
        """Renew the leases of all runs of a worker."""

    async def due_callbacks(self, now: datetime, again_at: datetime, limit: int) -> list[Run]:
        """Ended runs whose callback is due; each is due again at `again_at`, should nobody settle it before."""

    async def settle_callback(self, run_id: str, change: Callable[[Run], Run], again_at: datetime | None) -> None:
        """Record what came of a callback, and when it is due again (None: never). Nothing if the run is gone."""


class Store(Protocol):
    """The database of one tenant."""

    @property
    def agents(self) -> Agents:
        """Agents with their relations."""

    @property
    def blocks(self) -> Blocks:
        """Memory blocks."""

    @property
    def tools(self) -> Tools:
        """Tools."""

    @property
    def messages(self) -> Messages:
        """History."""

    @property
    def contexts(self) -> Contexts:
        """What runs work on."""

    @property
    def conversations(self) -> Conversations:
        """Further contexts of agents."""

    @property
    def runs(self) -> Runs:
        """Runs and their steps."""

    @property
    def log(self) -> Log:
        """The frames that runs told their readers."""

    exclusive: bool
    """Whether no other process can work on this database (SQLite): then every open run at start is a dead one."""

    async def close(self) -> None:
        """Finish what is under way and give everything back."""
