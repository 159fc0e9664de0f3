"""Whether the server lives, and whether it can work (api-surface §1, health)."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

import perdure
from perdure.api.deps import deps_of
from perdure.api.views import reply
from perdure.domain.ports import Page, ToolQuery

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server's state and version."""

    status: str
    version: str


@router.get("/v1/health/", response_model=Health)
async def health() -> Response:
    """Answers as long as the process does."""
    return reply({"status": "ok", "version": perdure.__version__})


@router.get("/v1/ready/", response_model=Health)
async def ready(request: Request) -> Response:
    """Answers once the database does. An error otherwise."""
    await deps_of(request).store.tools.find(ToolQuery(), Page(limit=1))
    return reply({"status": "ok", "version": perdure.__version__})
