"""What a turn costs the database: statements and transactions, literally (issue A, "Shows")."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from acceptance.stage import Stage

from perdure.store import SqlStore
from perdure.store.database import Tally
from perdure.testing import Call, Say

pytestmark = pytest.mark.anyio

INSERT = Call("memory_insert", {"label": "human", "new_string": "Bo"})
SEARCH = Call("conversation_search", {"query": "zebra"})


@contextmanager
def counted(stage: Stage) -> Iterator[Tally]:
    """Counts what is sent to the database meanwhile."""
    store = stage.running.store
    assert isinstance(store, SqlStore)
    with store.db.tally() as tally:
        yield tally


def verbs(tally: Tally) -> list[str]:
    """The statements by their first word and their table."""
    return [statement.split()[0] for statement in tally.statements]


async def warm(stage: Stage) -> str:
    """An agent that has spoken once, so that its context is kept in memory."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    await stage.send(agent, "hi", Say("Hello."))
    return agent


async def test_a_plain_turn(stage: Stage) -> None:
    """Four statements in two transactions: accept the run; end it, add its step, add its messages."""
    agent = await warm(stage)
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say("Hello."))
    assert (len(tally.statements), tally.transactions) == (4, 2), tally.statements
    assert verbs(tally) == ["INSERT", "UPDATE", "INSERT", "INSERT"]


async def test_a_streamed_turn(stage: Stage) -> None:
    """A stream costs the same, and one more to save its frames with the end of the run."""
    agent = await warm(stage)
    with counted(stage) as tally:
        await stage.stream(agent, "hi", Say(["Hel", "lo"]), stream_tokens=True)
    assert (len(tally.statements), tally.transactions) == (5, 2), tally.statements


async def test_the_first_turn(stage: Stage) -> None:
    """A context that is not in memory is read once, in a transaction of its own."""
    agent = await stage.agent(memory_blocks=[{"label": "human", "value": ""}])
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say("Hello."))
    assert (len(tally.statements), tally.transactions) == (8, 3), tally.statements


async def test_a_tool_step(stage: Stage) -> None:
    """A step with a tool that reads nothing costs two statements in one transaction more: its step, its messages."""
    agent = await warm(stage)
    failing = Call("memory_insert", {"label": "nobody", "new_string": "Bo"})
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say(calls=[failing]), Say("Sorry."))
    assert (len(tally.statements), tally.transactions) == (6, 3), tally.statements


async def test_a_memory_step(stage: Stage) -> None:
    """Changing a block costs further statements in that same transaction, and none in the step after it."""
    agent = await warm(stage)
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say(calls=[INSERT]), Say("Noted."))
    assert (len(tally.statements), tally.transactions) == (9, 3), tally.statements


async def test_a_searching_step(stage: Stage) -> None:
    """Searching history is one more transaction that only reads."""
    agent = await warm(stage)
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say(calls=[SEARCH]), Say("Nothing."))
    assert (len(tally.statements), tally.transactions) == (7, 4), tally.statements


async def test_a_long_history_costs_the_same(stage: Stage) -> None:
    """With a thousand stored messages a turn has the same statements, and reads none of them."""
    agent = await warm(stage)
    said = [{"role": role, "content": "word"} for _ in range(500) for role in ("user", "assistant")]
    await stage.send(agent, {"messages": said}, Say("Hello."))
    with counted(stage) as tally:
        await stage.send(agent, "hi", Say("Hello."))
    assert (len(tally.statements), tally.transactions) == (4, 2)
    assert len(stage.requests[-1].messages) == 1004


async def test_a_refusal_costs_nothing_stored(stage: Stage) -> None:
    """What is refused by its form does not reach the database at all."""
    agent = await warm(stage)
    with counted(stage) as tally:
        await stage.send(agent, {"messages": []})
        await stage.send(agent, "")
    assert (tally.statements, tally.transactions) == ([], 0)
