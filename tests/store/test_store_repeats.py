"""Requests that come twice, and callbacks of runs that ended, on both databases."""

import asyncio
from datetime import timedelta

import msgspec
import pytest
from making import a_run, a_step, at, ended, make_agent, take_turn
from sqlalchemy import Connection, insert

from perdure.domain.ports import StepCommit
from perdure.domain.records import Run
from perdure.store import SqlStore
from perdure.store.codec import encode
from perdure.store.schema import runs

pytestmark = pytest.mark.anyio
LONG_AGO = at(-(10**6))


@pytest.fixture
async def agent_id(store: SqlStore) -> str:
    """An agent that nobody talks to yet."""
    return (await make_agent(store)).agent.id


async def begin(store: SqlStore, agent_id: str, request: bytes = b"{}", **fields) -> Run:
    run = a_run(agent_id, **fields)
    await store.runs.accept(run, request)
    return run


async def turn(store: SqlStore, agent_id: str, request: bytes = b"{}", minutes: float = 0, **fields) -> Run:
    """A run that is over a minute after it was accepted."""
    run = await begin(store, agent_id, request, minutes=minutes, **fields)
    over = ended(run, minutes=minutes + 1)
    await store.runs.end(over)
    return over


# --- by otid ------------------------------------------------------------------------------------------------------


async def test_a_run_is_found_by_any_otid_of_its_input(store: SqlStore, agent_id: str):
    """In its own context, if it was accepted since; the newest, if there are several."""
    run = await turn(store, agent_id, otids=("a", "b", "a"))
    for otid in ("a", "b"):
        assert await store.runs.with_otid(agent_id, otid, LONG_AGO) == run
    assert await store.runs.with_otid(agent_id, "c", LONG_AGO) is None
    assert await store.runs.with_otid("agent-x", "a", LONG_AGO) is None
    assert await store.runs.with_otid(agent_id, "a", at(0)) is None
    later = await begin(store, agent_id, minutes=5, otids=("a",))
    assert await store.runs.with_otid(agent_id, "a", LONG_AGO) == later
    assert await store.runs.with_otid(agent_id, "b", LONG_AGO) == run
    other = store.scoped("org-11111111-1111-4111-8111-111111111111")
    assert await other.runs.with_otid(agent_id, "a", LONG_AGO) is None


async def test_a_waiting_run_is_found_by_its_otid_too(store: SqlStore, agent_id: str):
    """Asking twice does not mean waiting twice."""
    run = a_run(agent_id, status="created", otids=("a",))
    await store.runs.enqueue(run, b"{}", b"{}", limit=5)
    assert await store.runs.with_otid(agent_id, "a", LONG_AGO) == run


@pytest.mark.parametrize("otid", ["", "\0", "ß" * 70, "x" * 100_000, "\ud800", "a\nb", "sha256:" + "0" * 64])
async def test_any_text_may_be_an_otid(store: SqlStore, agent_id: str, otid: str):
    """What no index could hold is known by a digest; what merely looks alike is not mixed up."""
    run = await begin(store, agent_id, otids=(otid, "\0\0", otid + "."))
    found = await store.runs.with_otid(agent_id, otid, LONG_AGO)
    assert found is not None
    assert found.id == run.id
    assert await store.runs.with_otid(agent_id, otid + "!", LONG_AGO) is None


async def test_without_otids_accepting_costs_one_statement(store: SqlStore, agent_id: str):
    """And with them one more, in the same transaction."""
    with store.db.tally() as tally:
        await begin(store, agent_id)
    assert (len(tally.statements), tally.transactions) == (1, 1)
    bob = (await make_agent(store, "Bob")).agent.id
    with store.db.tally() as tally:
        await begin(store, bob, otids=("a", "b"))
    assert (len(tally.statements), tally.transactions) == (2, 1)


# --- by request ---------------------------------------------------------------------------------------------------


async def test_a_run_is_found_by_its_very_request(store: SqlStore, agent_id: str):
    """While it waits, while it runs, and for a time after its end; byte by byte and in its own context only."""
    body = '{"input": "Grüße 🙂 \0"}'.encode() + b"\xff"
    waiting = a_run(agent_id, status="created")
    await store.runs.enqueue(waiting, body, b"{}", limit=5)
    assert await store.runs.with_request(agent_id, body, at(100)) == waiting
    running = msgspec.structs.replace(waiting, status="running")
    await store.runs.promote(running)
    assert await store.runs.with_request(agent_id, body, at(100)) == running
    over = ended(running, minutes=10)
    await store.runs.end(over)
    assert await store.runs.with_request(agent_id, body, at(9)) == over
    assert await store.runs.with_request(agent_id, body, at(10)) is None
    assert await store.runs.with_request(agent_id, body + b" ", LONG_AGO) is None
    bob = (await make_agent(store, "Bob")).agent.id
    assert await store.runs.with_request(bob, body, LONG_AGO) is None
    assert await store.runs.with_request("agent-x", body, LONG_AGO) is None
    other = store.scoped("org-11111111-1111-4111-8111-111111111111")
    assert await other.runs.with_request(agent_id, body, LONG_AGO) is None


async def test_the_newest_of_equal_requests_counts(store: SqlStore, agent_id: str):
    """An open one is newer than those that are over."""
    first = await turn(store, agent_id, b"same")
    second = await turn(store, agent_id, b"same", minutes=5)
    assert first != second
    assert await store.runs.with_request(agent_id, b"same", LONG_AGO) == second
    third = await begin(store, agent_id, b"same", minutes=10)
    assert await store.runs.with_request(agent_id, b"same", LONG_AGO) == third


async def test_both_are_found_without_looking_through_an_agents_past(store: SqlStore, agent_id: str):
    """With twenty thousand runs of one agent it is a matter of milliseconds; SQLite shows its plan."""
    run = await begin(store, agent_id, b"now", otids=("a",))
    rest = {"tenant_id": store.tenant, "agent_id": agent_id, "context_id": agent_id, "status": "completed",
            "background": False, "epoch": 1, "body": encode(run)}  # fmt: skip
    past = [
        {**rest, "id": f"run-{n}", "created_at": n, "completed_at": n, "request": f"request {n}"}
        for n in range(20_000)
    ]
    await store.db.write(lambda conn: conn.execute(insert(runs), past) and None)
    loop = asyncio.get_running_loop()
    for search in (store.runs.with_request(agent_id, b"none", at(0)), store.runs.with_otid(agent_id, "none", at(0))):
        begun = loop.time()
        assert await search is None
        assert loop.time() - begun < 0.1
    if not store.exclusive:
        return
    with store.db.tally() as tally:
        await store.runs.with_request(agent_id, b"none", at(0))
        await store.runs.leases()
        await store.runs.due_callbacks(at(0), at(1), 5)

    def plans(conn: Connection) -> list[str]:
        steps = []
        for statement in tally.statements:
            row = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("x",) * statement.count("?"))
            steps += [str(step[-1]) for step in row]
        return steps

    assert [step for step in await store.db.read(plans) if step.startswith("SCAN runs")] == []


# --- callbacks ----------------------------------------------------------------------------------------------------


async def by_commit(store: SqlStore, run: Run) -> None:
    await store.runs.commit(StepCommit(run=run, messages=[], step=a_step(run), finished=ended(run)))


async def by_end(store: SqlStore, run: Run) -> None:
    await store.runs.end(ended(run, status="failed"))


async def by_interrupt(store: SqlStore, run: Run) -> None:
    await store.runs.interrupt(None, "gone")


@pytest.mark.parametrize("how", [by_commit, by_end, by_interrupt])
async def test_however_a_run_ends_its_callback_is_due(store: SqlStore, agent_id: str, how):
    """Not before; and a run without one never calls."""
    run = await begin(store, agent_id, callback_url="http://x/", worker="w")
    quiet = await begin(store, (await make_agent(store, "Bob")).agent.id)
    forever = at(10**7)
    assert await store.runs.due_callbacks(forever, forever, 5) == []
    await how(store, run)
    assert await store.runs.due_callbacks(LONG_AGO, at(1), 5) == []
    assert await store.runs.due_callbacks(forever, forever, 5) == [await store.runs.get(run.id)]
    assert quiet.id != run.id


async def test_a_claimed_callback_comes_again_only_if_nobody_settles_it(store: SqlStore, agent_id: str):
    """Its outcome is written into the run, and when it is tried again; `None` is the end of it."""
    run = await turn(store, agent_id, callback_url="http://x/")
    assert await store.runs.due_callbacks(at(1), at(2), 5) == [run]
    assert await store.runs.due_callbacks(at(1.5), at(2), 5) == []
    assert await store.runs.due_callbacks(at(2), at(3), 5) == [run]

    def tried(before: Run) -> Run:
        return msgspec.structs.replace(before, callback_error="no answer", callback_tries=before.callback_tries + 1)

    await store.runs.settle_callback(run.id, tried, at(10))
    [again] = await store.runs.due_callbacks(at(10), at(11), 5)
    assert (again.callback_error, again.callback_tries, again.status) == ("no answer", 1, "completed")
    await store.runs.settle_callback(run.id, tried, None)
    assert await store.runs.due_callbacks(at(10**7), at(11), 5) == []
    assert (await store.runs.get(run.id)).callback_tries == 2
    await store.runs.settle_callback("run-x", tried, None)


async def test_callbacks_are_claimed_by_one_each_the_longest_due_first(store: SqlStore):
    """However many ask at once."""
    over = []
    for n in range(12):
        state = await make_agent(store, str(n))
        over.append(await turn(store, state.agent.id, minutes=20 - n, callback_url="http://x/"))
    await take_turn(store, over[0].agent_id, minutes=100)
    [longest] = await store.runs.due_callbacks(at(60), at(60) + timedelta(hours=1), 1)
    assert longest == over[-1]
    shares = await asyncio.gather(*(store.runs.due_callbacks(at(60), at(120), 3) for _ in range(6)))
    claimed = [run.id for share in shares for run in share]
    assert sorted(claimed) == sorted(run.id for run in over[:-1])
