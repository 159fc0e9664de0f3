"""Units of work on database threads: what is shared, what fails, what is cut off."""

import asyncio
import threading
from typing import Any

import psycopg
import pytest
from making import a_block, a_run, make_agent, said, take_turn
from postgres import TestServer
from sqlalchemy import Connection, text

from perdure.domain.errors import Invalid, Unavailable
from perdure.domain.ports import Accepted, BlockQuery, Page
from perdure.store import SqlStore, open_store
from perdure.store.blocks import create
from perdure.store.database import Database

pytestmark = pytest.mark.anyio


async def labels(store: SqlStore) -> list[str]:
    return [block.label for block in await store.blocks.find(BlockQuery(), Page(limit=1000, ascending=True))]


class Gate:
    """A job that keeps a thread busy until it is opened."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def wait(self, _: Connection) -> None:
        self.entered.set()
        assert self.opened.wait(10)


async def keep_busy(db: Database, threads: int = 1) -> tuple[Gate, list[asyncio.Task[None]]]:
    """Occupy the writing threads, so that what follows must wait."""
    gate = Gate()
    tasks = []
    for _ in range(threads):
        gate.entered.clear()
        tasks.append(asyncio.create_task(db.write(gate.wait)))
        await asyncio.to_thread(gate.entered.wait, 10)
    return gate, tasks


def threads_of(store: SqlStore) -> int:
    return 1 if store.exclusive else 4


async def test_what_waits_together_is_committed_together(store: SqlStore):
    """SQLite: one durable commit for all who waited for the one before. PostgreSQL: a transaction each."""
    gate, busy = await keep_busy(store.db, threads_of(store))
    with store.db.tally() as tally:
        waiting = [asyncio.create_task(store.blocks.create(a_block(str(n)))) for n in range(20)]
        await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(*busy, *waiting)
    assert len(await labels(store)) == 20
    assert tally.transactions == (1 if store.exclusive else 20)


async def test_a_failing_unit_takes_nothing_with_it_but_its_own(store: SqlStore):
    """In a shared transaction each unit has its own savepoint; errors go to those who caused them."""

    def half(conn: Connection, label: str) -> None:
        create(conn, store.tenant, a_block(label))
        raise Invalid("changed my mind")

    def broken(conn: Connection) -> None:
        conn.execute(text("SELECT * FROM nowhere"))

    gate, busy = await keep_busy(store.db, threads_of(store))
    waiting = [
        asyncio.create_task(work)
        for work in (
            store.blocks.create(a_block("one", minutes=1)), store.db.write(half, "lost"), store.db.write(broken),
            store.blocks.create(a_block("two", minutes=2)),
        )
    ]  # fmt: skip
    await asyncio.sleep(0)
    gate.opened.set()
    outcomes = await asyncio.gather(*busy, *waiting, return_exceptions=True)
    assert await labels(store) == ["one", "two"]
    assert isinstance(outcomes[-3], Invalid)
    assert "nowhere" in str(outcomes[-2])
    with pytest.raises(Invalid, match="changed my mind"):
        await store.db.write(half, "alone")
    assert await labels(store) == ["one", "two"]


async def test_a_caller_that_gives_up_harms_nobody(store: SqlStore):
    """Cancelled while it waits: not done. Cancelled while it runs: done, and the thread goes on to the next."""
    gate, busy = await keep_busy(store.db, threads_of(store))
    queued = asyncio.create_task(store.blocks.create(a_block("queued")))
    await asyncio.sleep(0)
    queued.cancel()
    busy[0].cancel()
    await asyncio.sleep(0)
    gate.opened.set()
    await asyncio.gather(queued, *busy, return_exceptions=True)
    await store.blocks.create(a_block("next"))
    assert await labels(store) == ["next"]


async def test_closing_finishes_what_is_queued(url: str):
    """And refuses what comes later, in words; closing twice is closing."""
    store = await open_store(url, pool_size=2)
    queued = [asyncio.create_task(store.blocks.create(a_block(str(n)))) for n in range(30)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*queued)
    await store.close()
    with pytest.raises(Unavailable, match="shutting down"):
        await store.blocks.create(a_block())
    with pytest.raises(Unavailable, match="shutting down"):
        await store.agents.count()
    again = await open_store(url)
    assert len(await labels(again)) == 30
    await again.close()


async def test_reads_see_one_moment(store: SqlStore):
    """Two statements of a read agree, whatever is written between them."""
    gate = Gate()

    def count_twice(conn: Connection) -> tuple[Any, Any]:
        count = text("SELECT count(*) FROM blocks")
        first = conn.scalar(count)
        gate.wait(conn)
        return first, conn.scalar(count)

    reading = asyncio.create_task(store.db.read(count_twice))
    await asyncio.to_thread(gate.entered.wait, 10)
    await store.blocks.create(a_block())
    gate.opened.set()
    assert await reading == (0, 0)


async def test_reads_cannot_write(store: SqlStore):
    """A mistake in our code shows at once, not as a lost lock."""
    with pytest.raises(Exception, match=r"readonly|read-only"):
        await store.db.read(create, store.tenant, a_block())


async def test_a_full_disk_refuses_in_words_and_the_next_write_works(tmp_path):
    """Everyone in the failed commit is told; nothing of it is saved; reading goes on."""
    store = await open_store(f"sqlite:///{tmp_path / 'p.db'}")

    def limit(conn: Connection, pages: int) -> None:
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await store.db.write(limit, 1)
    huge = [store.blocks.create(a_block("small")), store.blocks.create(a_block("big", "x" * 10_000_000))]
    outcomes = await asyncio.gather(*huge, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert "full" in str(outcomes[1])
    assert await labels(store) == []
    await store.db.write(limit, 2**30)
    await store.blocks.create(a_block("fits"))
    assert await labels(store) == ["fits"]
    await store.close()


# --- PostgreSQL only ---------------------------------------------------------------------------------------------


async def test_cut_connections_are_made_anew(postgres: TestServer, postgres_url: str):
    """A restart of the server costs its clients nothing but time."""
    store = await open_store(postgres_url, pool_size=2)
    agent_id = (await make_agent(store)).agent.id
    assert postgres.cut_connections() > 0
    await take_turn(store, agent_id, said("Hi"))
    assert postgres.cut_connections() > 0
    assert len((await store.contexts.load(agent_id)).messages) == 2
    await store.close()


async def test_a_unit_that_is_cut_before_its_commit_is_done_again(postgres_url: str):
    """Until COMMIT the server has kept nothing. If the new connection is cut too, that is trouble, told in words."""
    store = await open_store(postgres_url, pool_size=1)
    await store.agents.count()
    tries: list[int] = []

    def cut(conn: Connection, times: int) -> None:
        tries.append(len(tries))
        create(conn, store.tenant, a_block(f"try {len(tries)}"))
        if len(tries) <= times:
            conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await store.db.write(cut, 1)
    assert (tries, await labels(store)) == ([0, 1], ["try 2"])
    tries.clear()
    with pytest.raises(Unavailable, match="Nothing was saved"):
        await store.db.write(cut, 9)
    assert await labels(store) == ["try 2"]
    await store.close()


async def test_units_that_deadlock_are_done_again(postgres_url: str):
    """The server ends one of them; it starts over by itself."""
    store = await open_store(postgres_url, pool_size=2)
    one, two = await store.blocks.create(a_block("1")), await store.blocks.create(a_block("2"))
    both_hold_one, tries = threading.Barrier(2), []

    def touch(conn: Connection, first: str, second: str) -> None:
        touched = text("UPDATE blocks SET version = version + 1 WHERE id = :id")
        conn.execute(touched, {"id": first})
        tries.append(first)
        if len(tries) <= 2:
            both_hold_one.wait(10)
        conn.execute(touched, {"id": second})

    await asyncio.gather(store.db.write(touch, one.id, two.id), store.db.write(touch, two.id, one.id))
    assert len(tries) >= 3
    assert await store.db.read(lambda conn: conn.scalar(text("SELECT sum(version) FROM blocks"))) == 6
    await store.close()


async def test_an_accepted_run_is_told_what_was_true_after_the_wait(postgres_url: str):
    """Another process changes the context while the run is being accepted: the answer is from after that change."""
    store = await open_store(postgres_url, pool_size=2)
    agent_id = (await make_agent(store)).agent.id
    with psycopg.connect(postgres_url) as other:
        other.execute("UPDATE contexts SET revision = 5 WHERE id = %s", [agent_id])
        other.execute("UPDATE agents SET version = 7 WHERE id = %s", [agent_id])
        accepting = asyncio.create_task(store.runs.accept(a_run(agent_id), b"{}"))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'INSERT%%'"
        with psycopg.connect(postgres_url, autocommit=True) as watch:
            for _ in range(500):
                if (watch.execute(waiting).fetchone() or [0])[0]:
                    break
                await asyncio.sleep(0.01)
        other.commit()
    accepted = await accepting
    assert isinstance(accepted, Accepted)
    assert (accepted.agent_version, accepted.revision) == (7, 5)
    await store.close()
