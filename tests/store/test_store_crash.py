"""Nothing acknowledged is lost: a process is killed in the middle of its work, and another one looks."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from making import a_run
from sqlalchemy import Connection, func, select

from perdure.domain.errors import Busy
from perdure.domain.ports import MessageQuery, Page
from perdure.store import open_store
from perdure.store.schema import messages, runs

pytestmark = pytest.mark.anyio
HERE = Path(__file__).parent

ACCEPT_ONE = """
agent_id = (await make_agent(store)).agent.id
run = a_run(agent_id)
await store.runs.accept(run, b'{"input": "Remember me \\xf0\\x9f\\x99\\x82"}')
print(agent_id, run.id, flush=True)
await asyncio.sleep(60)
"""
FRAMES_WITHOUT_END = """
from perdure.domain.frames import Batch, Frames
runs = []
for n in range(8):
    run = a_run((await make_agent(store, str(n))).agent.id, streamed=True)
    await store.runs.accept(run, b"{}")
    runs.append(run)
for number in range(1, 1_000_000):
    await store.log.append([Batch(run.id, 1, Frames(number, 1, b"frame %d of %s;" % (number, run.id.encode())))
                            for run in runs])
    for run in runs:
        print(run.id, number, flush=True)
"""
TURNS_WITHOUT_END = """
agents = [(await make_agent(store, str(n))).agent.id for n in range(8)]
async def turns(agent_id):
    for n in range(100_000):
        run = await take_turn(store, agent_id, said("question"), said("answer", role="assistant"), minutes=n)
        print(agent_id, run.id, flush=True)
await asyncio.gather(*map(turns, agents))
"""


def killed_after(lines: int, url: str, story: str) -> list[list[str]]:
    """Run a story in another process, kill it after so many lines of output; answers all it has printed."""
    body = "\n".join(f"    {line}" for line in story.strip().splitlines())
    script = (
        f"import asyncio, sys\nsys.path.insert(0, {str(HERE)!r})\nfrom making import *\n"
        f"from perdure.store import open_store\nasync def main():\n    store = await open_store({url!r}, pool_size=4)\n"
        f"{body}\nasyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        seen = [process.stdout.readline().split() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        return seen + [line.split() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]


async def test_an_accepted_request_survives_the_death_of_its_process(url: str):
    """The user's words are in the run, the context is held until the run is ended, then it is free."""
    [[agent_id, run_id]] = killed_after(1, url, ACCEPT_ONE)
    store = await open_store(url)
    with pytest.raises(Busy, match=run_id):
        await store.runs.accept(a_run(agent_id), b"{}")
    request = await store.db.read(lambda conn: conn.scalar(runs.select().with_only_columns(runs.c.request)))
    assert request == '{"input": "Remember me 🙂"}'
    assert await store.runs.interrupt(None, "The server stopped.") == 1
    await store.runs.accept(a_run(agent_id), b"{}")
    await store.close()


async def test_every_acknowledged_turn_is_there_whole(url: str):
    """Killed in the middle of many turns at once: what was reported is stored, and no half of anything else."""
    reported = killed_after(60, url, TURNS_WITHOUT_END)
    store = await open_store(url)
    for _, run_id in reported:
        assert (await store.runs.get(run_id)).status == "completed"
        found = await store.messages.find(MessageQuery(run_id=run_id), Page(ascending=True))
        assert [stored.message.role for stored in found] == ["user", "assistant"]

    def counts(conn: Connection) -> tuple[int, int]:  # in one snapshot: a server may still end what it was doing
        completed = select(func.count()).select_from(runs).where(runs.c.status == "completed")
        return conn.scalar(completed) or 0, conn.scalar(select(func.count()).select_from(messages)) or 0

    over, spoken = await store.db.read(counts)
    assert over >= len(reported)
    assert spoken == 8 + 2 * over
    await store.close()


async def test_every_frame_that_was_reported_saved_is_there(url: str):
    """Killed in the middle of saving: each run's log is whole up to what was reported at least, and without a gap."""
    saved: dict[str, int] = {}
    for run_id, number in killed_after(400, url, FRAMES_WITHOUT_END):
        saved[run_id] = int(number)
    store = await open_store(url)
    for run_id, last in saved.items():
        batches = await store.log.read(run_id, 0, 10**9)
        assert [batch.first for batch in batches] == list(range(1, len(batches) + 1))
        assert [batch.data for batch in batches] == [
            b"frame %d of %s;" % (n, run_id.encode()) for n in range(1, len(batches) + 1)
        ]
        assert len(batches) >= last
    assert await store.runs.interrupt(None, "The server stopped.") == 8
    await store.close()
