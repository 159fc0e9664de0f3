"""The HTTP application: all routers in one place, one description of the API, inside the shell.

Given its collaborators by `main`; nothing is made on import but the routes.
"""

from collections.abc import Collection, Iterable, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

import perdure
from perdure.api import (
    agent_blocks,
    agent_tools,
    agents,
    blocks,
    compaction,
    conversation_messages,
    conversations,
    health,
    later,
    messages,
    models,
    runs,
    sending,
    steps,
    streams,
    tools,
)
from perdure.api.deps import Deps
from perdure.api.errors import response_for
from perdure.api.hot import Hot
from perdure.api.shell import MAX_BODY, Shell
from perdure.domain.errors import PerdureError


def routers() -> Sequence[APIRouter]:
    """Every router, fixed paths before those with parameters."""
    return [
        health.router,
        agents.router,
        agent_blocks.router,
        agent_tools.router,
        sending.router,
        compaction.router,
        conversations.router,
        conversation_messages.router,
        blocks.router,
        tools.router,
        models.router,
        runs.router,
        streams.router,
        steps.router,
        messages.router,
        later.routes(),
    ]


def create_app(deps: Deps, *, max_body: int = MAX_BODY, hosts: Collection[str] = ()) -> ASGIApp:
    """The ASGI application over these collaborators. `max_body` in bytes; `hosts`: names it is reached by."""
    app = FastAPI(
        title="Perdure",
        version=perdure.__version__,
        summary="Stateful LLM agents over the Letta REST API.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.deps = deps
    included = routers()
    for router in included:
        app.include_router(router)
    for kind in (PerdureError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _told)
    hot = Hot(app, "POST", sending.SEND_PATH, sending.send_hot)
    return Shell(hot, roots_of(included), deps.password, max_body, hosts)


async def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 404 and error.detail == "Not Found":
        error = HTTPException(404, f"There is no {request.method} {request.url.path}. See /openapi.json for what is.")
    return response_for(error)


def roots_of(included: Iterable[APIRouter]) -> list[str]:
    """The paths that are declared with a slash at their end."""
    routes = [route for router in included for route in router.routes]
    return [route.path for route in routes if isinstance(route, Route) and route.path.endswith("/")]
