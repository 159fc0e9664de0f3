"""What is measured: the scripted model, the bare proxy of it, and Perdure, whole or with one part changed."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import free_port, postgres, process

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("PERDURE_SHARED", ROOT.parent / "shared"))
MODEL = "openai/gpt-4o-mini"
ASYNCIO, NO_LOG = "asyncio", "no-log"
"""What `variant.py` can do: another event loop, no run log of foreground streams."""


@dataclass(frozen=True)
class Server:
    """A running server; `target` is the shared harness's adapter, `start` makes a command for another like it."""

    target: str
    label: str
    base: str
    pids: dict[str, int]
    start: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """What is different about it; empty for nothing."""
        return self.label.partition(", ")[2]


@contextmanager
def running(databases: Sequence[str], variants: Sequence[str], data: Path) -> Iterator[list[Server]]:
    """All servers at once, so that what is compared is measured within the same minutes; idle ones cost nothing."""
    with ExitStack() as stack:
        port = free_port()
        mock = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(SHARED / "bench/mock.py"), "--port", str(port)]
        servers = [Server("mock", "mock", mock, {"server": stack.enter_context(process(command, f"{mock}/stats"))})]
        for loop in ("uvloop", ASYNCIO)[: 2 if ASYNCIO in variants else 1]:
            servers.append(stack.enter_context(_proxy(mock, loop, data)))
        for database in databases:
            servers += stack.enter_context(_perdure(mock, database, variants, data))
        yield servers


@contextmanager
def _proxy(mock: str, loop: str, data: Path) -> Iterator[Server]:
    port, label = free_port(), "proxy" if loop == "uvloop" else f"proxy, {loop}"
    base = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "uvicorn", "proxy:app", "--port", str(port), "--log-level", "warning",
               "--loop", loop, "--http", "httptools"]  # fmt: skip
    env = {"PYTHONPATH": str(SHARED / "bench/servers"), "MOCK_URL": f"{mock}/v1", "PROXY_CLIENT": "aiohttp",
           "PROXY_DB": str(data / f"proxy-{loop}.db")}  # fmt: skip
    with process(command, f"{base}/v1/health/", **env) as pid:
        yield Server("proxy", label, base, {"server": pid})


@contextmanager
def _perdure(mock: str, database: str, variants: Sequence[str], data: Path) -> Iterator[list[Server]]:
    """Perdure on one database, and beside it, on databases of their own, the variants to compare it with."""
    found = []
    env = {"OPENAI_BASE_URL": f"{mock}/v1", "OPENAI_API_KEY": "x", "PERDURE_DISCOVER": "false"}
    with ExitStack() as stack:
        for variant in (None, *variants):
            label = f"perdure {database}" + (f", {variant}" if variant else "")
            more, pids = [], {}
            if database == "postgres":
                url, pids["db"] = stack.enter_context(postgres())
                more = ["--database-url", url]
            port = free_port()
            base = f"http://127.0.0.1:{port}"
            start = [sys.executable, *(["-m", "perdure"] if variant is None else [_variant(), variant]), "serve", *more]
            command = [*start, "--port", str(port), "--data-dir", str(data / label)]
            pids["server"] = stack.enter_context(process(command, f"{base}/v1/health/", **env))
            found.append(Server("letta", label, base, pids, start, env))
        yield found


def _variant() -> str:
    return str(Path(__file__).parent / "variant.py")
