"""What the HTTP layer is given by the composition root; nothing here is made on import."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from starlette.requests import Request

from perdure.domain.clock import Clock
from perdure.domain.messages import Image
from perdure.domain.ports import Models, Store, Toolbox
from perdure.runs.executor import Executor

FetchImage = Callable[[str], Awaitable[Image]]
"""Fetches an image by URL through the egress guard. Raises Invalid with the reason if it may not or cannot."""

CheckCallback = Callable[[str], None]
"""Refuses a URL that no callback can go to, before a run is made for it. Raises Invalid, Unavailable."""


@dataclass(frozen=True)
class Deps:
    """The collaborators of all routes."""

    store: Store
    models: Models
    toolbox: Toolbox
    executor: Executor
    clock: Clock
    fetch_image: FetchImage
    check_callback: CheckCallback
    password: str | None = None
    ping_seconds: float = 20.0
    """How long a stream may be silent before a ping says that it lives."""
    stream_retention: timedelta = timedelta(hours=3)
    """How long after its end the stream of a background run can be read again."""


def deps_of(request: Request) -> Deps:
    """The collaborators that the application of this request was made with."""
    deps: Deps = request.app.state.deps
    return deps
