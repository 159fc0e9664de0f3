"""A summary takes the place of the oldest part of a context. A statement of `runs.py`: it belongs to a step's commit.

What leaves the context stays in the history, and the summary keeps the ids of what it stands for, so that it can be
expanded again.
"""

import msgspec
from sqlalchemy import Connection, update

from perdure.domain.errors import Invalid
from perdure.domain.messages import Message
from perdure.domain.ports import StepCommit
from perdure.store import inheritance
from perdure.store.messages import insert_messages
from perdure.store.schema import contexts, messages


def shorten(conn: Connection, tenant: str, commit: StepCommit, summary: Message) -> int:
    """Put the summary in the place of everything before `commit.kept_from`; answers its number.

    Raises Invalid if the context is not the one that was summarised.
    """
    run = commit.run
    standing = conn.execute(inheritance.PLACES, {"tenant": tenant, "ids": [run.context_id]})
    places = {row.id: row.place for row in standing}
    if commit.kept_from is not None and commit.kept_from not in places:
        raise _changed(run.context_id)
    kept_at = None if commit.kept_from is None else places[commit.kept_from]
    evicted = [key for key, place in places.items() if place and (kept_at is None or place < kept_at)]
    if not evicted:
        raise _changed(run.context_id)
    inheritance.leave(conn, tenant, run.context_id, kept_at)
    number = insert_messages(
        conn, tenant, [msgspec.structs.replace(summary, stands_for=tuple(evicted))],
        agent_id=run.agent_id, context_id=run.context_id, conversation_id=run.conversation_id,
    )  # fmt: skip
    # It stands where the last of them stood: behind the system message, before all that is kept.
    conn.execute(update(messages).where(messages.c.id == summary.id).values(position=places[evicted[-1]]))
    conn.execute(update(contexts).where(contexts.c.id == run.context_id).values(revision=contexts.c.revision + 1))
    return number


def _changed(context_id: str) -> Invalid:
    return Invalid(f"The context {context_id} has changed since it was summarised. Compact it again.")
