"""The line before a context, and what becomes of the runs of a worker that is gone, on both databases."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
from making import a_run, a_step, at, ended, make_agent, said, take_turn

from perdure.domain.errors import Busy, Fenced, NotFound
from perdure.domain.frames import Lease, Waiting
from perdure.domain.messages import Usage
from perdure.domain.ports import Accepted, Page, RunQuery, StepCommit
from perdure.domain.records import Run
from perdure.store import SqlStore, open_store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def agent_id(store: SqlStore) -> str:
    """An agent that nobody talks to yet."""
    return (await make_agent(store)).agent.id


@pytest.fixture
async def stores(url: str) -> AsyncIterator[list[SqlStore]]:
    """As many processes as the database serves: two on PostgreSQL; on SQLite one, that does two things at once."""
    one = await open_store(url, pool_size=3)
    another = one if one.exclusive else await open_store(url, pool_size=3)
    yield [one, another]
    await one.close()
    await another.close()


async def begin(store: SqlStore, agent_id: str, **fields) -> Run:
    run = a_run(agent_id, **fields)
    await store.runs.accept(run, b"{}")
    return run


async def wait(store: SqlStore, agent_id: str, *, limit: int = 100, **fields) -> Run:
    """A run at the end of the line."""
    run = a_run(agent_id, status="created", **fields)
    await store.runs.enqueue(run, b'{"input": "Hi"}', f'{{"order of": "{run.id}"}}'.encode(), limit=limit)
    return run


def started(run: Run, **fields) -> Run:
    return msgspec.structs.replace(run, status="running", **fields)


# --- the line -----------------------------------------------------------------------------------------------------


async def test_a_waiting_run_starts_when_its_context_is_free(store: SqlStore, agent_id: str):
    """It is told the same facts as one that is accepted, holds the context from then on, and can end."""
    holder = await begin(store, agent_id)
    waiting = await wait(store, agent_id, worker="w")
    assert (await store.runs.get(waiting.id)).status == "created"
    assert await store.runs.promote(started(waiting)) is None
    finishing = StepCommit(run=holder, messages=[said("Hi")], step=a_step(holder), finished=ended(holder))
    saved = await store.runs.commit(finishing)
    running = started(waiting, metadata={"input": "Hi"})
    assert await store.runs.promote(running) == Accepted(1, 1, saved.last_sequence)
    assert await store.runs.get(waiting.id) == running
    with pytest.raises(Busy) as busy:
        await begin(store, agent_id)
    assert busy.value.run_id == waiting.id
    await store.runs.end(ended(running))
    await begin(store, agent_id)


async def test_it_waits_even_for_a_free_context(store: SqlStore, agent_id: str):
    """And while it waits, nobody else is accepted except those who go before all."""
    waiting = await wait(store, agent_id)
    with pytest.raises(Busy) as busy:
        await begin(store, agent_id)
    assert busy.value.run_id == waiting.id
    urgent = a_run(agent_id)
    assert isinstance(await store.runs.accept(urgent, b"{}", ahead=True), Accepted)
    with pytest.raises(Busy) as busy:
        await store.runs.accept(a_run(agent_id), b"{}", ahead=True)
    assert busy.value.run_id == urgent.id
    assert await store.runs.promote(started(waiting)) is None
    await store.runs.end(ended(urgent))
    assert await store.runs.promote(started(waiting))


async def test_first_come_first_served(store: SqlStore, agent_id: str):
    """Each waits for those before it, also when one of them leaves the line."""
    one, two, three = [await wait(store, agent_id) for _ in range(3)]
    assert await store.runs.promote(started(three)) is None
    assert await store.runs.promote(started(two)) is None
    await store.runs.end(ended(one, status="cancelled"))
    assert await store.runs.promote(started(two))
    await store.runs.end(ended(started(two)))
    assert await store.runs.promote(started(three))


async def test_a_run_that_waits_no_more_is_not_started(store: SqlStore, agent_id: str):
    """Cancelled, taken over, started already, or deleted with its agent."""
    cancelled, taken, done = [await wait(store, agent_id) for _ in range(3)]
    await store.runs.end(ended(cancelled, status="cancelled", stop_reason="cancelled"))
    assert (await store.runs.get(cancelled.id)).status == "cancelled"
    with pytest.raises(Fenced):
        await store.runs.promote(started(cancelled))
    adopted = [waiting.run for waiting in await store.runs.adopt("heir", None)]
    with pytest.raises(Fenced):
        await store.runs.promote(started(taken))
    with pytest.raises(Fenced):
        await store.runs.end(ended(taken, status="cancelled"))
    assert await store.runs.promote(started(adopted[0]))
    with pytest.raises(Fenced):
        await store.runs.promote(started(adopted[0]))
    await store.agents.delete(agent_id)
    with pytest.raises(Fenced):
        await store.runs.promote(started(done))


async def test_a_waiting_run_cannot_write(store: SqlStore, agent_id: str):
    """It does not hold the context."""
    waiting = await wait(store, agent_id)
    for over in (None, ended(waiting)):
        with pytest.raises(Fenced):
            await store.runs.commit(
                StepCommit(run=waiting, messages=[said("Hi")], step=a_step(waiting), finished=over)
            )


async def test_a_line_has_an_end(store: SqlStore, agent_id: str):
    """Beyond the limit callers are told who is in the way; other contexts have lines of their own."""
    first = await wait(store, agent_id, limit=2)
    await wait(store, agent_id, limit=2)
    with pytest.raises(Busy) as busy:
        await wait(store, agent_id, limit=2)
    assert busy.value.run_id == first.id
    await wait(store, (await make_agent(store, "Bob")).agent.id, limit=2)
    urgent = a_run(agent_id)
    await store.runs.accept(urgent, b"{}", ahead=True)
    with pytest.raises(Busy) as busy:
        await wait(store, agent_id, limit=2)
    assert busy.value.run_id == urgent.id
    with pytest.raises(Busy):
        await wait(store, (await make_agent(store, "Eve")).agent.id, limit=0)


async def test_of_many_at_once_no_more_than_the_limit_wait(stores: list[SqlStore]):
    """The line's length is counted exactly, whoever joins it."""
    agent_id = (await make_agent(stores[0])).agent.id
    outcomes = await asyncio.gather(
        *(wait(stores[n % 2], agent_id, limit=5) for n in range(12)), return_exceptions=True
    )  # fmt: skip
    assert [type(outcome) for outcome in outcomes].count(Run) == 5
    assert [type(outcome) for outcome in outcomes].count(Busy) == 7


async def test_who_waits_needs_an_existing_context_of_its_agent(store: SqlStore, agent_id: str):
    """As whoever is accepted."""
    for wrong in ({"context_id": "conv-x"}, {"agent_id": "agent-x", "context_id": agent_id}):
        run = msgspec.structs.replace(a_run(agent_id, status="created"), **wrong)
        with pytest.raises(NotFound, match=r"^Agent not found$"):
            await store.runs.enqueue(run, b"{}", b"{}", limit=5)


async def test_an_agent_may_be_deleted_while_others_join_its_line(stores: list[SqlStore]):
    """They wait and go with it, or hear that it is gone."""
    agent_id = (await make_agent(stores[0])).agent.id

    async def join() -> None:
        for _ in range(4):
            await wait(stores[0], agent_id)

    outcomes = await asyncio.gather(join(), stores[1].agents.delete(agent_id), join(), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes if outcome is not None} <= {NotFound}
    assert await stores[0].runs.find(RunQuery(), Page()) == []


async def test_processes_that_race_start_one_run_at_a_time_and_in_order(stores: list[SqlStore]):
    """Everybody tries all the time, others try to get in between, and still the line is kept."""
    agent_id = (await make_agent(stores[0])).agent.id
    line = [await wait(stores[n % 2], agent_id) for n in range(8)]
    under_way: list[str] = []
    served: list[str] = []

    async def serve(store: SqlStore, run: Run) -> None:
        while await store.runs.promote(started(run)) is None:
            await asyncio.sleep(0)
        under_way.append(run.id)
        assert under_way == [run.id]
        served.append(run.id)
        under_way.remove(run.id)
        await store.runs.end(ended(started(run)))

    async def intrude(store: SqlStore) -> None:
        while len(served) < len(line):
            with contextlib.suppress(Busy):
                await store.runs.accept(a_run(agent_id), b"{}")
                assert len(served) == len(line)

    await asyncio.gather(*(serve(stores[n % 2], run) for n, run in enumerate(line)), *map(intrude, stores))
    assert served == [run.id for run in line]


async def test_one_run_promoted_twice_at_once_starts_once(stores: list[SqlStore]):
    """The loser is fenced off."""
    agent_id = (await make_agent(stores[0])).agent.id
    for _ in range(10):
        run = await wait(stores[0], agent_id)
        outcomes = await asyncio.gather(
            *(store.runs.promote(started(run)) for store in stores), return_exceptions=True
        )  # fmt: skip
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Accepted", "Fenced"]
        await stores[0].runs.end(ended(started(run)))


async def test_going_before_all_and_being_next_at_the_same_moment(stores: list[SqlStore]):
    """One of the two has the context, and the other hears of it."""
    agent_id = (await make_agent(stores[0])).agent.id
    for _ in range(10):
        waiting, urgent = await wait(stores[0], agent_id), a_run(agent_id)
        accepted, promoted = await asyncio.gather(
            stores[0].runs.accept(urgent, b"{}", ahead=True), stores[1].runs.promote(started(waiting)),
            return_exceptions=True,
        )  # fmt: skip
        if isinstance(accepted, Busy):
            assert (accepted.run_id, type(promoted)) == (waiting.id, Accepted)
        else:
            assert (type(accepted), promoted) == (Accepted, None)
            await stores[0].runs.end(ended(urgent))
            assert await stores[0].runs.promote(started(waiting))
        await stores[0].runs.end(ended(started(waiting)))


# --- leases -------------------------------------------------------------------------------------------------------


async def test_open_runs_are_leases_with_the_beat_of_their_worker(store: SqlStore):
    """Oldest first; one beat counts for all runs of a worker."""
    agents = [(await make_agent(store, str(n))).agent.id for n in range(3)]
    waiting = await wait(store, agents[0], worker="w1")
    over = await take_turn(store, agents[1])
    running = await begin(store, agents[1], worker="w1")
    silent = await begin(store, agents[2], worker="w2")
    await store.runs.beat("w1", at(1))
    await store.runs.beat("w1", at(2))
    assert await store.runs.leases() == [
        Lease(waiting.id, "created", "w1", at(2)), Lease(running.id, "running", "w1", at(2)),
        Lease(silent.id, "running", "w2", None),
    ]  # fmt: skip
    assert over.id not in {lease.run_id for lease in await store.runs.leases()}


async def test_workers_that_went_long_ago_are_forgotten(store: SqlStore):
    """After a day, when the next one comes."""
    await store.runs.beat("old", at(0))
    await store.runs.beat("new", at(60 * 23))
    await begin(store, (await make_agent(store, "a")).agent.id, worker="old")
    assert (await store.runs.leases())[0].beat_at == at(0)
    await store.runs.beat("newer", at(60 * 24 + 1))
    assert (await store.runs.leases())[0].beat_at is None


async def test_runs_of_silent_workers_are_ended_and_their_contexts_free(store: SqlStore, agent_id: str):
    """The epoch grows, so that the old worker is fenced off; who has beaten since, or is another worker now, lives."""
    others = [(await make_agent(store, str(n))).agent.id for n in range(3)]
    dead = await begin(store, agent_id, worker="dead", metadata={"run_type": "x"}, usage=Usage(1, 2, 3))
    living = await begin(store, others[0], worker="living")
    never = await begin(store, others[1], worker="never beaten")
    waiting = await wait(store, others[2], worker="dead")
    for worker in ("dead", "living"):
        await store.runs.beat(worker, at(1))
    seen = await store.runs.leases()
    await store.runs.beat("living", at(2))
    strangers = [msgspec.structs.replace(lease, worker="somebody else") for lease in seen]
    assert await store.runs.interrupt([], "x") == 0
    assert await store.runs.interrupt(strangers, "x") == 0
    assert await store.runs.interrupt(seen, "The server stopped.") == 2
    assert await store.runs.interrupt(seen, "The server stopped.") == 0
    after = await store.runs.get(dead.id)
    assert (after.status, after.stop_reason, after.epoch, after.usage) == ("failed", "error", 2, Usage(1, 2, 3))
    assert after.completed_at is not None
    assert (after.metadata["run_type"], after.metadata["error"]["message"]) == ("x", "The server stopped.")
    assert (await store.runs.get(never.id)).status == "failed"
    assert await store.runs.get(living.id) == living
    assert await store.runs.get(waiting.id) == waiting
    with pytest.raises(Fenced):
        await store.runs.end(ended(dead))
    await begin(store, agent_id)


async def test_only_runs_that_were_looked_at_are_ended(store: SqlStore, agent_id: str):
    """What the same worker took since is for the next look."""
    await begin(store, agent_id, worker="w")
    seen = await store.runs.leases()
    later = await begin(store, (await make_agent(store, "Bob")).agent.id, worker="w")
    assert await store.runs.interrupt(seen, "x") == 1
    assert await store.runs.get(later.id) == later


async def test_a_start_ends_everything_that_was_under_way(store: SqlStore):
    """Where nobody else can be at work, beats do not matter; two hundred runs at once are no trouble."""
    await store.runs.beat("w", at(10**6))
    agents = [(await make_agent(store, str(n))).agent.id for n in range(200)]
    await asyncio.gather(*(begin(store, agent_id, worker="w") for agent_id in agents))
    assert await store.runs.interrupt(None, "The server stopped.") == 200
    assert await store.runs.leases() == []


async def test_waiting_runs_are_adopted_with_their_orders(store: SqlStore, agent_id: str):
    """Oldest first, from silent workers or from everybody; they keep their places."""
    one, two, three = [await wait(store, agent_id, worker=worker) for worker in ("dead", "living", "dead")]
    running = await begin(store, (await make_agent(store, "Bob")).agent.id, worker="dead")
    await store.runs.beat("living", at(1))
    seen = await store.runs.leases()
    await store.runs.beat("living", at(2))
    adopted = await store.runs.adopt("heir", seen)
    assert adopted == [
        Waiting(msgspec.structs.replace(run, worker="heir", epoch=2), f'{{"order of": "{run.id}"}}'.encode())
        for run in (one, three)
    ]
    assert await store.runs.adopt("heir", seen) == []
    assert await store.runs.get(running.id) == running
    everybody = await store.runs.adopt("last", None)
    assert [(waiting.run.id, waiting.run.epoch) for waiting in everybody] == [(one.id, 3), (two.id, 2), (three.id, 3)]
    assert [lease.worker for lease in await store.runs.leases()] == ["last", "last", "last", "dead"]
    assert await store.runs.promote(started(everybody[1].run)) is None
    assert await store.runs.promote(started(everybody[0].run))


async def test_processes_that_adopt_at_once_share_what_there_is(stores: list[SqlStore]):
    """Every waiting run has exactly one heir, and is ended at most once."""
    agents = [(await make_agent(stores[0], str(n))).agent.id for n in range(20)]
    lost = [await wait(stores[0], agent_id, worker="dead") for agent_id in agents[:10]]
    for agent_id in agents[10:]:
        await begin(stores[0], agent_id, worker="dead")
    seen = await stores[0].runs.leases()
    shares = await asyncio.gather(*(store.runs.adopt(f"heir {n}", seen) for n, store in enumerate(stores * 2)))
    assert sorted(waiting.run.id for share in shares for waiting in share) == sorted(run.id for run in lost)
    counts = await asyncio.gather(*(store.runs.interrupt(seen, "gone") for store in stores * 2))
    assert sum(counts) == 10
