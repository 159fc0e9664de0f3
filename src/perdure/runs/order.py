"""What a caller orders: a run on one context, with its input, its options and how it wants to be told.

An order is plain data, so that one that has to wait its turn survives a restart of the server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from perdure.agent.turn import Options
from perdure.domain.events import Event
from perdure.domain.messages import Message
from perdure.domain.records import Run

OnBusy = Literal["reject", "enqueue", "interrupt"]


@dataclass(frozen=True)
class View:
    """How a run is told frame by frame. `types` restricts content frames, empty: all (spec §4.4)."""

    tokens: bool = False
    pings: bool = True
    types: tuple[str, ...] = ()
    numbered: bool = False
    """Frames carry their numbers, and readers get them only once they are saved: such a stream can be resumed."""


@dataclass(frozen=True)
class Order:
    """A request for a run, checked and translated; `request` is its raw JSON, kept with the run."""

    agent_id: str
    messages: Sequence[Message]
    request: bytes
    options: Options = field(default_factory=Options)
    view: View | None = None
    """None: nobody reads frames."""
    conversation_id: str | None = None
    override_model: str | None = None
    background: bool = False
    run_type: str = "send_message"
    request_config: dict[str, Any] = field(default_factory=dict)
    callback_url: str | None = None
    otids: tuple[str, ...] = ()
    """The caller's own ids of the messages, if all of them have one: then a repeat of the request is known by them."""
    retry: bool = False
    """Whether the caller says that it sends this not for the first time."""
    on_busy: OnBusy = "reject"

    @property
    def context_id(self) -> str:
        """The context the run works on: the conversation, or the agent's default one."""
        return self.conversation_id or self.agent_id


class Rendering(Protocol):
    """Makes frames of one run's events. The frames of an event depend on the event and the first number only."""

    last_frame: bytes
    """What every stream ends with."""

    def frames(self, event: Event, number: int) -> list[bytes]:
        """What one event adds to the stream, the first frame numbered `number`."""

    def closing(self, run: Run, number: int) -> list[bytes]:
        """The terminal frames of a run that has ended, as its record tells it."""


Renderings = Callable[[str, View], Rendering]
"""Makes the rendering for a run id and a view."""
