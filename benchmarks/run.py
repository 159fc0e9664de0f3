"""Perdure beside a bare proxy of the model, in one run on one machine: `make bench`.

Workloads W1, W2 and its kin, W5, W6 and W7 are those of the shared harness (`../shared/bench`), W4 (`history`) and the
cost of the run log (`streams`) our own. Figures are told as CPU of the server's process tree and as a ratio to the
proxy of the same run: the machine is noisy, ratios hold.
"""

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from history import history
from processes import free_port
from report import facts, table
from servers import ASYNCIO, MODEL, NO_LOG, SHARED, Server, running
from streams import log_cost

WORKLOADS = ("W1", "W1s", "W2", "W2lat", "W2hold", "log", "W4", "W5", "W6", "W7")
STREAMS = ("W2", "W2lat", "W2hold")
"""Workloads that the proxy and another event loop take part in; of the others the proxy has W1."""


@dataclass(frozen=True)
class Plan:
    """How long and how many."""

    seconds: float
    concurrency: str
    streams: str
    wait_quiet: float


def takes_part(server: Server, workload: str) -> bool:
    """Whether a workload says something about a server."""
    if server.target == "mock":
        return workload in ("W2lat", "W2hold")
    if server.variant == ASYNCIO:
        return workload in STREAMS
    if server.target == "proxy":
        return workload in (*STREAMS, "W1")
    return workload == "log" or server.variant != NO_LOG


def measure(server: Server, workload: str, plan: Plan, data: Path) -> list[dict[str, Any]]:
    """The rows of one workload on one server."""
    if workload == "W4":
        return asyncio.run(history(server))
    if workload == "log":
        return asyncio.run(log_cost(server, plan.seconds))
    if workload in ("W6", "W7"):
        return _another(server, workload, data)
    words = ["run", server.target, "--label", server.label, "--base-url", server.base, "--only", workload,
             "--dur", str(plan.seconds), "--conc", plan.concurrency, "--streams", plan.streams, "--model", MODEL,
             "--wait-quiet", str(plan.wait_quiet)]  # fmt: skip
    words += [word for name, pid in server.pids.items() for word in ("--pid", f"{name}={pid}")]
    if workload == "W2hold":  # a context takes one turn at a time: every stream has an agent of its own
        words += ["--pool-size", str(max(map(int, plan.streams.split(","))))]
    rows = shared(words)
    _add_database_slopes(rows)
    return rows


def _another(server: Server, workload: str, data: Path) -> list[dict[str, Any]]:
    """W6, the start of another server like this one; or W7, its end by SIGKILL amid a run, and what comes after."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(dir=data) as folder:
        command = shlex.join([*server.start, "--port", str(port), "--data-dir", folder])
        if workload == "W6":
            words = ["cold", "--label", server.label, "--cmd", command, "--health", f"{base}/v1/health/"]
        else:
            words = ["crash", "letta", "--label", server.label, "--base-url", base, "--cmd", command, "--model", MODEL]
        return shared(words, **server.env)


def shared(words: Sequence[str], **env: str) -> list[dict[str, Any]]:
    """Run the shared harness; its rows."""
    with tempfile.NamedTemporaryFile("r", suffix=".jsonl") as out:
        command = [sys.executable, str(SHARED / "bench/bench.py"), *words, "--out", out.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **env})
        return [json.loads(line) for line in out.read().splitlines()]


def _add_database_slopes(rows: Sequence[dict[str, Any]]) -> None:
    """The harness tells the slope of the server's CPU only; a database that holds the log has one, too."""
    cost = {row["case"]: row["cpu_ms_per_turn_db"] for row in rows if "cpu_ms_per_turn_db" in row}
    for row in rows:
        clients = row["case"].removeprefix("slope ")
        if f"n=300 {clients}" in cost:
            row["cpu_us_per_chunk_db"] = (cost[f"n=300 {clients}"] - cost[f"n=10 {clients}"]) * 1e3 / 290


def kept(rows: list[dict[str, Any]], path: str | None) -> list[dict[str, Any]]:
    """The rows, appended to a file as soon as they are there: a long run may be broken off."""
    if path:
        with open(path, "a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", default="sqlite,postgres")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, in the order they shall run")
    parser.add_argument("--loops", action="store_true", help="streams on asyncio's own loop as well as on uvloop")
    parser.add_argument("--seconds", type=float, default=6, help="length of each level of W1 and W2")
    parser.add_argument("--concurrency", default="1,16,64")
    parser.add_argument("--streams", default="100,300,1000", help="how many W2hold holds")
    parser.add_argument("--wait-quiet", type=float, default=0, help="seconds to wait for the rest of the machine")
    parser.add_argument("--out", help="append the raw rows to this file")
    arguments = parser.parse_args()
    if not SHARED.exists():
        print(f"{SHARED} is not here: the mock, the proxy and the harness are kept beside the repository.")
        return 2
    plan = Plan(arguments.seconds, arguments.concurrency, arguments.streams, arguments.wait_quiet)
    workloads = arguments.only.split(",")
    variants = [ASYNCIO] * arguments.loops + [NO_LOG] * ("log" in workloads)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        data = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        servers = stack.enter_context(running(arguments.databases.split(","), variants, data))
        for workload in workloads:
            for server in servers:
                if takes_part(server, workload):
                    rows += kept(measure(server, workload, plan, data), arguments.out)
    print(table(rows), facts(rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
