"""The models that can be used now (api-surface §1, models)."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from perdure.api.deps import deps_of
from perdure.api.schemas.models import EmbeddingModel, Model
from perdure.api.views import embedding_model_view, model_view, reply

router = APIRouter(tags=["models"])


@router.get("/v1/models/", response_model=list[Model])
async def list_models(
    request: Request,
    provider_category: Annotated[list[str] | None, Query()] = None,
    provider_name: str | None = None,
    provider_type: str | None = None,
) -> Response:
    """Every model that a configured provider offers; a provider that is down is left out."""
    found = await deps_of(request).models.list("llm")
    if provider_category and "base" not in provider_category:
        found = []
    return reply(
        [
            model_view(info)
            for info in found
            if provider_name in (None, info.provider_name) and provider_type in (None, info.provider_type)
        ]
    )


@router.get("/v1/models/embedding", response_model=list[EmbeddingModel])
async def list_embedding_models(request: Request) -> Response:
    """Every embedding model that a configured provider offers."""
    return reply([embedding_model_view(info) for info in await deps_of(request).models.list("embedding")])
