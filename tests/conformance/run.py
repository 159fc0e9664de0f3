"""Compare a running Perdure with the transcripts of the retired server: `make conformance`.

Starts the scripted model and a server of its own, runs the shared scenarios, and holds the outcome against
`differences.toml`: a scenario must be ok, or be listed there with its reason; one that is listed and ok is told, so
that the list shrinks. Exit code 0 only if nothing is unexplained.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("PERDURE_SHARED", HERE.parents[2] / "shared"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(command: list[str], health: str, env: dict[str, str]) -> Iterator[None]:
    """A process that answers at `health`, stopped at the end."""
    process = subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL)
    try:
        await_answer(health, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def await_answer(url: str, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} did not answer within {seconds} s")


def run_scenarios(only: list[str], jobs: int) -> list[dict[str, object]]:
    mock_port, port = free_port(), free_port()
    mock, base = f"http://127.0.0.1:{mock_port}", f"http://127.0.0.1:{port}"
    providers = {
        "OPENAI_BASE_URL": f"{mock}/v1", "ANTHROPIC_BASE_URL": mock, "OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "x",
    }
    model = [sys.executable, str(SHARED / "tools/mockllm.py"), "--port", str(mock_port), "--log"]
    with tempfile.TemporaryDirectory() as data, started(model, f"{mock}/v1/models", {}):
        serve = [sys.executable, "-m", "perdure", "serve", "--port", str(port), "--data-dir", data]
        with started(serve, f"{base}/v1/health/", providers):
            check = [
                sys.executable, "conformance.py", "check", "--base-url", base, "--mock-url", mock,
                "--model", "openai/gpt-4o-mini", "--anthropic-model", "anthropic/claude-sonnet-4-5-20250929",
                "--golden", "golden", "--json", "--jobs", str(jobs),
                *(argument for glob in only for argument in ("--only", glob)),
            ]
            done = subprocess.run(check, cwd=SHARED / "conformance", capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise SystemExit(done.stderr)
    return list(json.loads(done.stdout)["scenarios"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="glob of scenario names; repeatable")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--diffs", action="store_true", help="print the difference of every scenario that is not ok")
    arguments = parser.parse_args()
    if not SHARED.exists():
        print(f"{SHARED} is not here: the transcripts are kept beside the repository. Set PERDURE_SHARED.")
        return 2
    explained = tomllib.loads((HERE / "differences.toml").read_text())
    counts: Counter[str] = Counter()
    for result in run_scenarios(arguments.only, arguments.jobs):
        name, ok = str(result["scenario"]), bool(result["ok"])
        reason = explained["differs"].get(name) or explained["later"].get(name)
        state = "ok" if ok else "explained" if reason else "DIFF"
        counts[state] += 1
        print(f"{state:9} {name:34} {'(listed, can go from the list)' if ok and reason else reason or ''}")
        if not ok and (arguments.diffs or not reason):
            print(result.get("diff") or result.get("error") or "")
    print(f"conformance: {counts['ok']} ok, {counts['explained']} explained, {counts['DIFF']} unexplained")
    return 1 if counts["DIFF"] else 0


if __name__ == "__main__":
    sys.exit(main())
