"""Single stored messages (api-surface §1, messages). Histories are in `sending`."""

from fastapi import APIRouter, Request, Response

from perdure.api.deps import deps_of
from perdure.api.params import MessageId
from perdure.api.schemas.messages import LettaMessage
from perdure.api.views import reply
from perdure.api.wire import listed

router = APIRouter(tags=["messages"])


@router.get("/v1/messages/{message_id}", response_model=list[LettaMessage])
async def retrieve_message(request: Request, message_id: MessageId) -> Response:
    """The wire messages of one stored message, in natural order (★S70)."""
    stored = await deps_of(request).store.messages.get(message_id)
    return reply(listed([stored.message]))
