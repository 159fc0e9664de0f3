"""Messages: what was said, in the order it was saved (port `Messages`)."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)

from perdure.domain.errors import NotFound
from perdure.domain.messages import Image, Message, Stored, decode
from perdure.domain.ports import MessageQuery, Page, SearchHit
from perdure.store.codec import encode, micros
from perdure.store.database import Database
from perdure.store.inheritance import history, shared_with
from perdure.store.schema import WORD_RULES, message_images, messages
from perdure.store.words import query_words, searchable

INSERT_MESSAGES = insert(messages).returning(messages.c.sequence_id)
"""One statement for all messages of a step."""

REWRITE = (
    update(messages)
    .where(
        messages.c.tenant_id == bindparam("tenant"), messages.c.id == bindparam("message"),
        messages.c.context_id == bindparam("context"),
    )
    .values(body=bindparam("new_body"))
)  # fmt: skip
"""Replace the system message of a context, the only message that ever changes."""

IN_CONTEXT = (
    select(messages.c.body)
    .where(messages.c.tenant_id == bindparam("tenant"), messages.c.context_id == bindparam("context_id"))
    .where(messages.c.in_context)
    .order_by(func.coalesce(messages.c.position, messages.c.sequence_id))
)
"""The messages of a context, in the order the model sees them."""


class SqlMessages:
    """The messages of one tenant."""

    def __init__(self, db: Database, tenant: str):
        self._db, self._tenant = db, tenant

    async def find(self, query: MessageQuery, page: Page) -> list[Stored]:
        """A page: ascending the oldest `limit`, descending the newest, newest first (spec §9.3).

        `after` means greater and `before` smaller numbers in both orders. Raises NotFound for an unknown cursor.
        """
        return await self._db.read(_find, self._tenant, query, page)

    async def get(self, message_id: str) -> Stored:
        """One message. Raises NotFound."""
        return await self._db.read(_get, self._tenant, message_id)

    async def image(self, file_id: str) -> Image | None:
        """The image that some stored message shows under this file id (★S18)."""
        return await self._db.read(_image, self._tenant, file_id)

    async def search(
        self, agent_id: str, query: str | None, *, roles: Sequence[str] | None, start: datetime | None,
        end: datetime | None, limit: int,
    ) -> list[SearchHit]:
        """Messages with any of the query's words, best first; newest first without a query. Dates are inclusive."""
        return await self._db.read(_search, self._tenant, agent_id, query or "", roles, start, end, limit)


def insert_messages(
    conn: Connection, tenant: str, spoken: Sequence[Message], *, agent_id: str, context_id: str,
    conversation_id: str | None, system_first: bool = False,
) -> int:
    """Append to a context; answers the newest number given, 0 for no messages. `system_first`: number 0 opens it."""
    if not spoken:
        return 0
    rows = [
        {
            "id": message.id, "tenant_id": tenant, "agent_id": agent_id, "context_id": context_id,
            "conversation_id": conversation_id, "run_id": message.run_id, "step_id": message.step_id,
            "group_id": message.group_id, "role": message.role, "created_at": micros(message.created_at),
            "is_err": bool(message.is_err), "in_context": True, "position": None, "body": encode(message),
            "search_text": searchable(message),
        }
        for message in spoken
    ]  # fmt: skip
    if system_first:
        rows[0]["position"] = 0
    newest: int = max(conn.scalars(INSERT_MESSAGES, rows))
    shown = [
        {"tenant_id": tenant, "file_id": file_id, "message_id": message.id}
        for message in spoken
        for file_id in {image.file_id for image in images_of(message)}
    ]
    if shown:
        conn.execute(insert(message_images), shown)
    return newest


def images_of(message: Message) -> Iterator[Image]:
    """All images of a message, those in tool results too."""
    for part in message.content:
        if isinstance(part, Image):
            yield part
    for returned in (*message.tool_returns, *(a.returned for a in message.approvals if a.returned)):
        if not isinstance(returned.content, str):
            yield from (part for part in returned.content if isinstance(part, Image))


def _find(conn: Connection, tenant: str, query: MessageQuery, page: Page) -> list[Stored]:
    number = messages.c.sequence_id
    wanted: Select[Any] = select(number, messages.c.body).where(*_conditions(conn, tenant, query))
    if page.after is not None:
        wanted = wanted.where(number > _number_of(conn, tenant, query, page.after))
    if page.before is not None:
        wanted = wanted.where(number < _number_of(conn, tenant, query, page.before))
    wanted = wanted.order_by(number.asc() if page.ascending else number.desc()).limit(max(page.limit, 0))
    return [Stored(sequence_id, decode(body)) for sequence_id, body in conn.execute(wanted)]


def _conditions(conn: Connection, tenant: str, query: MessageQuery) -> list[ColumnElement[bool]]:
    c = messages.c
    found = [c.tenant_id == tenant]
    exact = ((c.agent_id, query.agent_id), (c.run_id, query.run_id), (c.step_id, query.step_id),
             (c.group_id, query.group_id))  # fmt: skip
    found += [column == value for column, value in exact if value is not None]
    if query.conversation_id is not None:
        found.append(_of_conversation(conn, tenant, query.conversation_id))
    if not query.include_err:
        found.append(~c.is_err)
    return found


def _of_conversation(conn: Connection, tenant: str, conversation_id: str) -> ColumnElement[bool]:
    """Messages of one conversation; of a fork also those that it shares with the conversation it came from."""
    if conversation_id == "default":
        return messages.c.conversation_id.is_(None)
    if not shared_with(conn, conversation_id):
        return messages.c.conversation_id == conversation_id
    return messages.c.sequence_id.in_(history(tenant, [conversation_id]))


def _number_of(conn: Connection, tenant: str, query: MessageQuery, cursor: str) -> int:
    found = select(messages.c.sequence_id).where(messages.c.tenant_id == tenant, messages.c.id == cursor)
    if query.agent_id is not None:
        found = found.where(messages.c.agent_id == query.agent_id)
    if query.conversation_id is not None:
        found = found.where(_of_conversation(conn, tenant, query.conversation_id))
    number: int | None = conn.scalar(found)
    if number is None:
        raise NotFound(f"Message not found: {cursor}. A cursor must be the id of a message of this list.")
    return number


def _get(conn: Connection, tenant: str, message_id: str) -> Stored:
    query = select(messages.c.sequence_id, messages.c.body)
    row = conn.execute(query.where(messages.c.tenant_id == tenant, messages.c.id == message_id)).one_or_none()
    if row is None:
        raise NotFound(f"Message not found: {message_id}")
    return Stored(row.sequence_id, decode(row.body))


def _image(conn: Connection, tenant: str, file_id: str) -> Image | None:
    showing = (
        select(messages.c.body)
        .join(message_images, message_images.c.message_id == messages.c.id)
        .where(message_images.c.tenant_id == tenant, message_images.c.file_id == file_id)
        .limit(1)
    )
    body = conn.scalar(showing)
    if body is None:
        return None
    return next((image for image in images_of(decode(body)) if image.file_id == file_id), None)


def _search(
    conn: Connection, tenant: str, agent_id: str, query: str, roles: Sequence[str] | None, start: datetime | None,
    end: datetime | None, limit: int,
) -> list[SearchHit]:
    c = messages.c
    wanted = select(c.sequence_id, c.body).where(
        c.tenant_id == tenant, c.agent_id == agent_id, c.search_text.is_not(None)
    )
    if roles is not None:
        wanted = wanted.where(c.role.in_(roles))
    if start is not None:
        wanted = wanted.where(c.created_at >= micros(start))
    if end is not None:
        wanted = wanted.where(c.created_at <= micros(end))
    if query.strip():
        sought = query_words(query)
        if not sought:
            return []
        wanted = _matching(conn, wanted, agent_id, sought)
    found = conn.execute(wanted.order_by(c.sequence_id.desc()).limit(max(limit, 0)))
    return [SearchHit(decode(body), sequence_id, rank) for rank, (sequence_id, body) in enumerate(found, 1)]


def _matching(conn: Connection, wanted: "Select[Any]", agent_id: str, sought: Sequence[str]) -> "Select[Any]":
    """The search with any of the words, best first."""
    if conn.dialect.name == "sqlite":
        # The agent is a word of the index too, so that only its messages are ranked; its own weight is 0.
        pattern = f'agent_id : "{agent_id}" AND search_text : ({" OR ".join(sought_word(w) for w in sought)})'
        hits = text("SELECT rowid AS hit, bm25(message_words, 0.0, 1.0) AS score FROM message_words(:pattern)")
        found = hits.bindparams(pattern=pattern.replace("\0", "")).columns(
            literal_column("hit"), literal_column("score")
        )
        ranked = found.subquery("found")
        return wanted.join(ranked, ranked.c.hit == messages.c.sequence_id).order_by(ranked.c.score)
    rules: ColumnElement[str] = literal_column(f"'{WORD_RULES}'")
    document, terms = func.to_tsvector(rules, messages.c.search_text), func.to_tsquery(rules, " | ".join(sought))
    matches = and_(messages.c.search_text != "", document.op("@@")(terms))
    return wanted.where(matches).order_by(func.ts_rank_cd(document, terms).desc())


def sought_word(word: str) -> str:
    """A word as FTS5 takes it: in quotes, so that AND, OR and NEAR are words too."""
    return f'"{word}"'
