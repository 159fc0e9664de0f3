"""Endpoints of the API that this version knows and does not have yet: 501 with words instead of a bare 404.

Each row goes when its issue lands.
"""

from fastapi import APIRouter, Request

from perdure.domain.errors import NotImplementedYet

LATER: dict[str, tuple[tuple[str, str], ...]] = {
    "Agent files": (("POST", "/v1/agents/import"), ("GET", "/v1/agents/{agent_id}/export")),
    "Archival memory": (
        ("GET", "/v1/agents/{agent_id}/archival-memory"),
        ("POST", "/v1/agents/{agent_id}/archival-memory"),
        ("GET", "/v1/agents/{agent_id}/archival-memory/search"),
    ),
    "Running tools by hand": (("POST", "/v1/agents/{agent_id}/tools/{tool_name}/run"), ("POST", "/v1/tools/run")),
}


def routes() -> APIRouter:
    """A router that answers every row with 501."""
    router = APIRouter(include_in_schema=False)
    for what, rows in LATER.items():
        for method, path in rows:
            router.add_api_route(path, _refusal(what), methods=[method], response_model=None)
    return router


def _refusal(what: str):  # type: ignore[no-untyped-def]  # FastAPI reads the handler's own annotations
    async def refuse(request: Request) -> None:
        raise NotImplementedYet(
            f"{what}: {request.method} {request.url.path} is not available in this version of Perdure. "
            "See CHANGELOG.md for what is."
        )

    return refuse
