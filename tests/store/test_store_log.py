"""The run log on both databases: what is saved is read again, whole and in order, and only its owner writes."""

import asyncio
import threading
from collections.abc import AsyncIterator
from itertools import count

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import a_run, at, ended, make_agent, take_turn
from sqlalchemy import Connection, LargeBinary, func, insert, literal, select, text

from perdure.domain.frames import Batch, Frames
from perdure.domain.records import Run
from perdure.store import SqlStore, leases, open_store
from perdure.store.codec import encode, micros
from perdure.store.schema import run_frames, run_otids, runs

pytestmark = pytest.mark.anyio
SHARED = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def begin(store: SqlStore, name: str = "Ada", **fields) -> Run:
    run = a_run((await make_agent(store, name)).agent.id, streamed=True, **fields)
    await store.runs.accept(run, b"{}")
    return run


def frames(first: int, *data: bytes) -> Frames:
    return Frames(first, len(data), b"".join(data))


async def append(store: SqlStore, run: Run, *batches: Frames) -> set[str]:
    return await store.log.append([Batch(run.id, run.epoch, batch) for batch in batches])


async def logged(store: SqlStore, run: Run, after: int = 0, limit: int = 10**9) -> list[Frames]:
    return await store.log.read(run.id, after, limit)


async def rows(store: SqlStore, table=run_frames) -> int:
    return await store.db.read(lambda conn: conn.scalar(select(func.count()).select_from(table)))


@pytest.fixture
async def run(store: SqlStore) -> AsyncIterator[Run]:
    """A run under way."""
    return await begin(store)


async def test_an_empty_log(store: SqlStore, run: Run):
    """Nothing saved, nothing read; nothing to save is nothing done; an unknown run has none."""
    assert await store.log.append([]) == set()
    assert await logged(store, run) == []
    assert await store.log.read("run-x", 0, 100) == []
    assert await store.log.prune(at(10**6)) == 0


async def test_many_runs_are_saved_by_one_statement(store: SqlStore):
    """One transaction for all, and each reads its own."""
    many = [await begin(store, str(n)) for n in range(30)]
    with store.db.tally() as tally:
        refused = await store.log.append([Batch(run.id, 1, frames(1, run.id.encode())) for run in many])
    assert refused == set()
    assert (len(tally.statements), tally.transactions) == (1, 1)
    for run in many:
        assert await logged(store, run) == [Frames(1, 1, run.id.encode())]


async def test_bytes_are_kept_as_they_are(store: SqlStore, run: Run):
    """Any bytes, and 10 MB of them in one frame."""
    odd, huge = bytes(range(256)) + b"\\x00\xff\0", b"\0x" * 5_000_000
    assert await append(store, run, Frames(1, 3, odd), Frames(4, 1, huge), Frames(5, 1, b"")) == set()
    assert await logged(store, run) == [Frames(1, 3, odd), Frames(4, 1, huge), Frames(5, 1, b"")]


async def test_a_reader_gets_about_as_much_as_it_asks_for(store: SqlStore, run: Run):
    """Batches as they were saved, at least one however small the limit, none beyond the one that reaches it."""
    saved = [frames(1, b"a" * 10, b"b" * 10), frames(3, b"c" * 10), frames(4, b"d" * 1000), frames(5, b"e")]
    await append(store, run, *saved)
    assert await logged(store, run, 0, 1) == saved[:1]
    assert await logged(store, run, 0, 0) == saved[:1]
    assert await logged(store, run, 1, 30) == saved[:2]
    assert await logged(store, run, 2, 11) == saved[1:3]
    assert await logged(store, run, 4, 1) == saved[3:]
    assert await logged(store, run, 5, 1) == []
    assert await logged(store, run, 10**12, 1) == []


async def test_a_very_long_log_is_read_to_its_end(store: SqlStore, run: Run):
    """However many batches a reading weighs at once."""
    await append(store, run, *(frames(n, b"%d;" % n) for n in range(1, 4502)))
    seen, after = [], 0
    while portion := await logged(store, run, after):
        seen += portion
        after = portion[-1].last
    assert b"".join(batch.data for batch in seen) == b"".join(b"%d;" % n for n in range(1, 4502))


sizes = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=5), min_size=1, max_size=12)


@SHARED
@given(batches=sizes, cuts=st.lists(st.integers(1, 120), min_size=1), start=st.integers(0, 8))
async def test_reads_join_without_a_gap(store: SqlStore, batches, cuts, start):
    """For any batches, any start and any limits, what is read one after another is exactly the rest of the log."""
    run, number, whole = await begin(store), count(1), {}
    for batch in batches:
        made = {next(number): b"<%d:" % size + b"." * size + b">" for size in batch}
        whole |= made
        assert await append(store, run, Frames(min(made), len(made), b"".join(made.values()))) == set()
    after, seen, limits = start, {}, iter(cuts * 100)
    while portion := await logged(store, run, after, next(limits)):
        for batch in portion:
            assert batch.first <= after + 1 <= batch.last
            assert batch.data == b"".join(whole[n] for n in range(batch.first, batch.last + 1))
            seen |= {n: whole[n] for n in range(after + 1, batch.last + 1)}
            after = batch.last
    assert seen == {n: data for n, data in whole.items() if n > start}
    await store.runs.end(ended(run))


# --- who may write ------------------------------------------------------------------------------------------------


async def test_only_the_owner_of_an_open_run_writes(store: SqlStore, run: Run):
    """Others refuse, and those that come with them are saved all the same."""
    over = await take_turn(store, (await make_agent(store, "Bob")).agent.id)
    newer = msgspec.structs.replace(run, epoch=2)
    other = await begin(store, "Eve")
    refused = await store.log.append(
        [
            Batch(over.id, 1, frames(1, b"late")), Batch("run-x", 1, frames(1, b"nobody's")),
            Batch(newer.id, 2, frames(1, b"usurped")), Batch(other.id, 1, frames(1, b"good")),
        ]
    )  # fmt: skip
    assert refused == {over.id, "run-x", run.id}
    assert await rows(store) == 1
    assert await logged(store, other) == [Frames(1, 1, b"good")]


async def test_a_waiting_run_tells_its_readers_that_it_waits(store: SqlStore, run: Run):
    """It is open and has an owner, so it has a log."""
    waiting = a_run(run.agent_id, status="created", streamed=True)
    await store.runs.enqueue(waiting, b"{}", b"{}", limit=5)
    assert await append(store, waiting, frames(1, b"ping")) == set()
    [adopted] = await store.runs.adopt("heir", None)
    assert await append(store, waiting, frames(2, b"zombie")) == {waiting.id}
    assert await append(store, adopted.run, frames(2, b"on with it")) == set()
    assert [batch.data for batch in await logged(store, waiting)] == [b"ping", b"on with it"]


async def test_a_worker_that_was_given_up_adds_nothing(store: SqlStore, run: Run):
    """What it saved before stays readable; what it wants to save after is refused, again and again."""
    await append(store, run, frames(1, b"before"))
    assert await store.runs.interrupt(None, "gone") == 1
    for _ in range(2):
        assert await append(store, run, frames(2, b"after")) == {run.id}
    assert await append(store, run, frames(1, b"before")) == {run.id}
    assert await logged(store, run) == [Frames(1, 1, b"before")]


async def test_who_is_just_being_given_up_is_refused(postgres_url: str):
    """Saving waits for whoever is about to end the run, and finds it ended."""
    store = await open_store(postgres_url, pool_size=3)
    run, ending, go = await begin(store), threading.Event(), threading.Event()

    def give_up(conn: Connection) -> None:
        assert leases.interrupt(conn, store.tenant, None, "gone", at(1)) == 1
        ending.set()
        assert go.wait(10)

    def waiting(conn: Connection) -> bool:
        return bool(conn.scalar(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")))

    giving_up = asyncio.create_task(store.db.write(give_up))
    await asyncio.to_thread(ending.wait)
    saving = asyncio.create_task(append(store, run, frames(1, b"late")))
    while not saving.done() and not await store.db.read(waiting):
        await asyncio.sleep(0)
    go.set()
    await giving_up
    assert await saving == {run.id}
    assert await logged(store, run) == []
    await store.close()


async def test_saving_and_being_given_up_at_the_same_time(store: SqlStore):
    """Whatever the order turns out to be: what was not refused is there, and what was refused is not."""
    many = [await begin(store, str(n)) for n in range(20)]

    async def write(run: Run) -> int:
        for number in range(1, 200):
            if await append(store, run, frames(number, b"x")):
                return number - 1
        return 199

    writing = asyncio.gather(*map(write, many))
    while not await rows(store):
        await asyncio.sleep(0)
    while await store.runs.interrupt(None, "gone"):
        pass
    for run, saved in zip(many, await writing, strict=True):
        assert len(await logged(store, run)) == saved


async def test_frames_of_an_unknown_fate_may_come_again(store: SqlStore, run: Run):
    """A worker that was not told whether its frames were saved brings them again, with those that came after."""
    await append(store, run, frames(1, b"one;"), frames(2, b"two;"))
    assert await append(store, run, frames(2, b"two;")) == set()
    assert await append(store, run, frames(2, b"two;", b"three;")) == set()
    assert await logged(store, run) == [Frames(1, 1, b"one;"), Frames(2, 2, b"two;three;")]
    assert await logged(store, run, 2) == [Frames(2, 2, b"two;three;")]


async def test_a_number_that_is_taken_is_refused_without_harm_to_others(store: SqlStore, run: Run):
    """A frame never changes: neither another text under its number, nor less of it."""
    other = await begin(store, "Bob")
    await append(store, run, frames(1, b"one;", b"two;"))
    for clash in (frames(1, b"uno;"), frames(1, b"one;"), frames(1, b"")):
        batches = [Batch(run.id, 1, clash), Batch(other.id, 1, frames(1, b"mine;"))]
        assert await store.log.append(batches) == {run.id}
    assert await logged(store, run) == [Frames(1, 2, b"one;two;")]
    assert await logged(store, other) == [Frames(1, 1, b"mine;")]


async def test_tenants_do_not_see_or_touch_each_others_logs(store: SqlStore, run: Run):
    """Neither reading nor writing nor pruning."""
    other = store.scoped("org-11111111-1111-4111-8111-111111111111")
    await append(store, run, frames(1, b"secret"))
    assert await other.log.append([Batch(run.id, 1, frames(2, b"forged"))]) == {run.id}
    assert await other.log.read(run.id, 0, 100) == []
    await store.runs.end(ended(run))
    assert await other.log.prune(at(10**6)) == 0
    assert await logged(store, run) == [Frames(1, 1, b"secret")]


# --- how frames leave ---------------------------------------------------------------------------------------------


async def test_frames_are_kept_for_a_time_after_the_end(store: SqlStore):
    """Pruned are runs that ended before, however many; not those under way, nor those that ended later."""
    running = await begin(store, "running")
    await append(store, running, frames(1, b"r"))
    over = []
    for n in range(120):
        run = await begin(store, str(n))
        await append(store, run, frames(1, b"a"), frames(2, b"b"))
        await store.runs.end(ended(run, minutes=n))
        over.append(run)
    assert await store.log.prune(at(100)) == 100
    assert await store.log.prune(at(100)) == 0
    assert await logged(store, over[99]) == []
    assert len(await logged(store, over[100])) == 2
    assert len(await logged(store, running)) == 1
    assert (await store.runs.get(over[0].id)).status == "completed"
    assert await store.log.prune(at(10**6)) == 20
    assert await rows(store) == 1


async def test_pruning_goes_through_the_whole_log(store: SqlStore, run: Run):
    """Portion by portion, whatever stays in between; one that ended early may have a late number."""
    rest = {"tenant_id": store.tenant, "agent_id": run.agent_id, "context_id": run.context_id, "status": "completed",
            "background": False, "created_at": 0, "epoch": 1, "request": "", "body": encode(run)}  # fmt: skip
    old = [{**rest, "id": f"run-{n}", "completed_at": micros(at(-n))} for n in range(1, 1300)]

    def fill(conn: Connection) -> None:
        conn.execute(insert(runs), old)
        copied = select(runs.c.sequence, literal(1), runs.c.tenant_id, literal(1), literal(b"x", LargeBinary))
        conn.execute(insert(run_frames).from_select(["run_sequence", "first", "tenant_id", "count", "data"], copied))

    await store.db.write(fill)
    assert await store.log.prune(at(-1000)) == 299
    assert await store.log.prune(at(0)) == 1000
    assert await rows(store) == 1


async def test_a_deleted_run_or_agent_takes_its_log_along(store: SqlStore, run: Run):
    """And what was noted of its input."""
    other = await begin(store, "Bob", otids=("x",))
    await append(store, run, frames(1, b"a"))
    await append(store, other, frames(1, b"b"))
    await store.runs.delete(run.id)
    assert (await rows(store), await rows(store, run_otids)) == (1, 1)
    assert await append(store, run, frames(2, b"late")) == {run.id}
    await store.agents.delete(other.agent_id)
    assert (await rows(store), await rows(store, run_otids)) == (0, 0)
    assert await append(store, other, frames(2, b"late")) == {other.id}
