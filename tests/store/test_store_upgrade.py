"""A database of the first version, with rows in it, under the present program."""

import shutil
from pathlib import Path

import msgspec
import pytest
from making import a_run, a_step, an_agent, at, ended, make_agent, said
from postgres import TestServer
from sqlalchemy import Connection, text

from perdure.domain.errors import Busy
from perdure.domain.frames import Batch, Frames, Lease
from perdure.domain.ports import MessageQuery, Page, StepCommit
from perdure.domain.records import Run
from perdure.store import open_store
from perdure.store.codec import encode, micros
from perdure.store.upgrade import FOLDER

pytestmark = pytest.mark.anyio

OLD_RUN = """
    INSERT INTO runs (id, tenant_id, agent_id, context_id, status, stop_reason, background, created_at, completed_at,
                      heartbeat_at, epoch, request, body)
    VALUES (:id, 'org-00000000-0000-4000-8000-000000000000', :agent, :agent, :status, :stop_reason, false, :created_at,
            :completed_at, :created_at, 1, '{"input": "Hi"}', :body)"""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path):
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'old.db'}"
        return
    server: TestServer = request.getfixturevalue("postgres")
    made = server.create(template="template0")
    yield made
    server.drop(made)


def first_version(folder: Path) -> Path:
    """The migrations as they were before anything was added."""
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__", "000[2-9]_*", "00[1-9]*_*"))
    return folder


def insert_run(conn: Connection, run: Run) -> None:
    """A run as the first version stored it: unknown to it were the fields that have their defaults here."""
    over = micros(run.completed_at) if run.completed_at else None
    conn.execute(
        text(OLD_RUN),
        {"id": run.id, "agent": run.agent_id, "status": run.status, "stop_reason": run.stop_reason,
         "created_at": micros(run.created_at), "completed_at": over, "body": encode(run)},
    )  # fmt: skip


async def test_what_the_first_version_stored_survives(empty_url: str, tmp_path: Path):
    """Runs, messages, the numbers given; runs that it left open hold their contexts until they are ended."""
    old = await open_store(empty_url, migrations=first_version(tmp_path / "first"))
    agents = [(await make_agent(old, name)).agent.id for name in ("Ada", "Bob", "Eve")]
    over = ended(a_run(agents[0], metadata={"input": "Grüße"}))
    left, begun = a_run(agents[1]), a_run(agents[2], status="created")
    for run in (over, left, begun, ended(a_run(agents[0]), minutes=2)):
        await old.db.write(insert_run, run)
    await old.db.write(lambda conn: conn.execute(text("DELETE FROM runs WHERE sequence = 4")) and None)
    await old.close()

    store = await open_store(empty_url)
    assert await store.runs.get(over.id) == over
    assert await store.runs.leases() == [Lease(left.id, "running", "", None), Lease(begun.id, "running", "", None)]
    for agent_id in agents[1:]:
        with pytest.raises(Busy):
            await store.runs.accept(a_run(agent_id), b"{}")
    assert await store.runs.adopt("w", None) == []
    assert await store.runs.interrupt(await store.runs.leases(), "The server stopped.") == 2
    assert (await store.runs.get(begun.id)).status == "failed"
    assert await store.runs.with_request(agents[1], b'{"input": "Hi"}', at(0)) is not None

    run = a_run(agents[1], streamed=True, otids=("a",), worker="w")
    await store.runs.accept(run, b"{}")
    assert await store.log.append([Batch(run.id, 1, Frames(1, 1, b"x"))]) == set()
    step = StepCommit(run=run, messages=[said("Hi")], step=a_step(run), finished=ended(run), frames=Frames(2, 1, b"y"))
    await store.runs.commit(step)
    numbers = await store.db.read(lambda conn: list(conn.scalars(text("SELECT sequence FROM runs ORDER BY sequence"))))
    assert numbers == [1, 2, 3, 5]
    assert len(await store.messages.find(MessageQuery(), Page())) == 4
    with pytest.raises(Exception, match="heartbeat_at"):
        await store.db.read(lambda conn: conn.scalar(text("SELECT heartbeat_at FROM runs")))
    await store.close()


def test_fields_that_the_first_version_did_not_know_have_defaults():
    """Its bodies are read as they are."""
    run = a_run(an_agent().id)
    known = {"id", "agent_id", "context_id", "created_at", "status", "epoch"}
    body = {key: value for key, value in msgspec.to_builtins(run).items() if key in known}
    assert msgspec.convert(body, Run) == run
