"""Streams over HTTP: the response that pushes frames, and the route that resumes a run (behaviour spec §4.2, §4.7).

What a frame looks like is `sse`'s; where frames come from is `runs`'.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from starlette.types import Receive, Scope, Send

from perdure.api.deps import Deps, deps_of
from perdure.api.params import RunId
from perdure.api.send_schema import Body
from perdure.api.sse import ping, without_ping
from perdure.domain.errors import Gone, Invalid
from perdure.domain.records import Run
from perdure.runs.follow import POLL
from perdure.runs.ongoing import Ongoing

router = APIRouter(tags=["runs"])

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]  # fmt: skip
STALLED = 60.0
"""Seconds that a client may take nothing while there is something for it; then its connection is given up."""


class RunStreamRequest(Body):
    """Where to go on in a run's stream, and how. Everything may be left out (★S31)."""

    starting_after: Annotated[int, Field(ge=0, le=2**53)] = 0
    include_pings: bool | None = True
    poll_interval: Annotated[float | None, Field(ge=0.01, le=60)] = POLL
    batch_size: Annotated[int | None, Field(ge=1)] = 100


@router.post("/v1/runs/{run_id}/stream", response_model=None)
async def resume_run(run_id: RunId, request: Request, body: RunStreamRequest | None = None) -> Response:
    """The frames of a background run after number `starting_after`, then live to its end."""
    return await resume(deps_of(request), await deps_of(request).store.runs.get(run_id), body or RunStreamRequest())


@router.get("/v1/runs/{run_id}/stream", response_model=None)
async def resume_run_by_get(
    run_id: RunId,
    request: Request,
    starting_after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    include_pings: bool = True,
    poll_interval: Annotated[float, Query(ge=0.01, le=60)] = POLL,
    batch_size: Annotated[int, Query(ge=1)] = 100,
) -> Response:
    """The same, for clients that can only get."""
    body = RunStreamRequest(
        starting_after=starting_after, include_pings=include_pings, poll_interval=poll_interval, batch_size=batch_size
    )
    return await resume(deps_of(request), await deps_of(request).store.runs.get(run_id), body)


async def resume(deps: Deps, run: Run, body: RunStreamRequest) -> Response:
    """A stream of a run from a number on. Raises Invalid (not a background run), Gone (its frames are not kept)."""
    if not run.background:
        raise Invalid(
            f"{run.id} is not in background mode, so its stream cannot be resumed. Read its messages, GET "
            f"/v1/runs/{run.id}/messages, and send with background=true where you may need to resume."
        )
    if run.completed_at is not None and deps.clock.now() - run.completed_at > deps.stream_retention:
        raise Gone(
            f"The stream of {run.id} is kept no longer. Read its messages instead: GET /v1/runs/{run.id}/messages."
        )
    return stream_of(
        deps, run, after=body.starting_after, pings=body.include_pings is not False, poll=body.poll_interval or POLL
    )


def stream_of(
    deps: Deps, started: Ongoing | Run, *, after: int = 0, pings: bool = True, poll: float = POLL
) -> Response:
    """The frames of a run after a number, to its end, as a response; with a ping whenever it is quiet."""
    return EventStream(_chunks(deps, started, after, pings, poll))


async def _chunks(
    deps: Deps, started: Ongoing | Run, after: int, pings: bool, poll: float
) -> AsyncGenerator[bytes, None]:
    run = started.run if isinstance(started, Ongoing) else started
    quiet = deps.ping_seconds if pings else None
    async with aclosing(deps.executor.follow(started, after, quiet=quiet, poll=poll)) as portions:
        async for portion in portions:
            if not portion.data:
                yield ping(run.id, deps.clock, portion.last if run.background else None)
            elif chunk := portion.data if pings else without_ping(portion.data):
                yield chunk


class EventStream(Response):
    """Pushes chunks as they come. A client that goes away, or takes nothing for a minute, ends only its own stream."""

    def __init__(self, chunks: AsyncGenerator[bytes, None]):
        super().__init__()
        self._chunks = chunks
        self._sending = 0.0
        """When the chunk that is on its way was handed over; 0 if none is."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the whole stream."""
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        pushing = asyncio.current_task()
        assert pushing
        watching = asyncio.create_task(self._watch(receive, pushing))
        try:
            await self._push(send)
        except asyncio.CancelledError:
            if not watching.done():
                raise
            pushing.uncancel()  # it was the watch that cancelled: the client is gone
        finally:
            watching.cancel()

    async def _push(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                self._sending = loop.time()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                self._sending = 0.0
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive, pushing: "asyncio.Task[object]") -> None:
        """Return, with the push cancelled, once the client is gone or has stalled."""
        while not self._stalled():
            with suppress(TimeoutError):
                async with asyncio.timeout(STALLED / 2):
                    await _left(receive)
                    break
        pushing.cancel()

    def _stalled(self) -> bool:
        return bool(self._sending) and asyncio.get_running_loop().time() - self._sending > STALLED


async def _left(receive: Receive) -> None:
    """Wait until the client has gone; a body that nobody has read comes first."""
    while (await receive())["type"] != "http.disconnect":
        pass
