"""The command line as its user meets it: real processes, real signals, and refusals in words."""

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from letta_client import AuthenticationError, Letta

import perdure
from perdure.main import cli

SECONDS = 30
"""How long anything here may take on a busy machine."""


def environment(home: Path, **variables: str) -> dict[str, str]:
    """The test's own variables, and none of the developer's that could change what a server finds."""
    foreign = ("OPENAI", "ANTHROPIC", "OLLAMA", "LMSTUDIO", "VLLM", "OPENROUTER", "LLAMACPP", "LETTA", "PERDURE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    ours = {"PERDURE_DATA_DIR": str(home / "data"), "PERDURE_DISCOVER": "false", "PERDURE_LOG_FORMAT": "json"}
    return kept | ours | variables


class Process:
    """A server process: where it is, and what it said."""

    def __init__(self, child: subprocess.Popen[str]):
        self.child = child
        self.said: list[str] = []
        self.url = str(self.await_event("listening")["url"])

    def await_event(self, event: str) -> dict[str, Any]:
        """The next log line with this event."""
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.said.append(line)
            if line.startswith("{") and (found := json.loads(line))["event"] == event:
                return dict(found)
        raise AssertionError(f"the server ended with {self.child.wait()}, having said {self.said}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; answers the exit code."""
        self.child.send_signal(how)
        return self.child.wait(SECONDS)


@contextmanager
def serving(home: Path, *arguments: str, **variables: str) -> Iterator[Process]:
    """A running server, killed at the end if it still runs."""
    command = [sys.executable, "-m", "perdure", "serve", "--port", "0", *arguments]
    with subprocess.Popen(
        command, env=environment(home, **variables), cwd=home, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        try:
            yield Process(child)
        finally:
            child.kill()


def told(home: Path, *arguments: str, **variables: str) -> Result:
    """What a command that ends by itself says."""
    cleared: dict[str, str | None] = dict.fromkeys(set(os.environ) - set(environment(home)))
    return CliRunner().invoke(cli, arguments, env=cleared | environment(home, **variables))


def ended(home: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """The exit code of a process of its own, and what it said: for commands that get far enough to change this one."""
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *arguments], env=environment(home, **variables), cwd=home, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


class SlowModel(BaseHTTPRequestHandler):
    """A model server that says when it is asked, and answers when it is told to."""

    asked, go = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        self._send("application/json", b'{"data": [{"id": "slow"}]}')

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.asked.set()
        self.go.wait(SECONDS)
        piece = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Done."}, "finish_reason": "stop"}]}
        self._send("text/event-stream", f"data: {json.dumps(piece)}\n\ndata: [DONE]\n\n".encode())

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def slow() -> Iterator[tuple[type[SlowModel], str]]:
    """A slow model, and where it is."""

    class OfThisTest(SlowModel):
        asked, go = threading.Event(), threading.Event()

    with ThreadingHTTPServer(("127.0.0.1", 0), OfThisTest) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield OfThisTest, f"http://127.0.0.1:{server.server_port}/v1"
        OfThisTest.go.set()
        server.shutdown()
        serving.join()


class Talk(threading.Thread):
    """A message on its way, and what became of it."""

    def __init__(self, url: str, agent: str):
        super().__init__()
        self._url, self._agent = url, agent
        self.text: str | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        with Letta(base_url=self._url, max_retries=0) as client:
            try:
                self.text = client.agents.messages.create(self._agent, input="Take your time.").messages[-1].content
            except Exception as error:
                self.error = error


def test_it_tells_its_version_and_its_commands(tmp_path: Path) -> None:
    """Three commands."""
    assert told(tmp_path, "version").output == f"{perdure.__version__}\n"
    assert told(tmp_path, "--version").output == f"perdure, version {perdure.__version__}\n"
    shown = told(tmp_path, "--help").output
    assert [word for word in ("serve", "doctor", "version") if word in shown] == ["serve", "doctor", "version"]


def test_a_server_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """The printed address is true although the port was chosen by the system; the data is there on the next start."""
    with serving(tmp_path) as first:
        with Letta(base_url=first.url) as client:
            assert client.health().version == perdure.__version__
            agent = client.agents.create(model="demo/demo", name="Ada")
        assert first.await_event("models found")["handles"] == ["demo/demo"]
        assert first.end() == 0
    with serving(tmp_path) as second, Letta(base_url=second.url) as client:
        assert client.agents.retrieve(agent.id).name == "Ada"
        assert second.end(signal.SIGINT) == 0


def test_a_person_is_told_where_it_is_and_what_to_do_next(tmp_path: Path) -> None:
    """On a terminal there are words instead of JSON; the next steps name a model that is there."""
    command = [sys.executable, "-m", "perdure", "serve", "--port", "0"]
    variables = environment(tmp_path, PERDURE_LOG_FORMAT="text", PERDURE_SERVER_PASSWORD="sesame")
    with subprocess.Popen(command, env=variables, cwd=tmp_path, text=True, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        said = ""
        for line in child.stdout:
            said += line
            if "Ctrl-C" in line:
                break
        child.terminate()
        assert child.wait(SECONDS) == 0
    assert f"Perdure {perdure.__version__} is at http://127.0.0.1:" in said
    assert f"  data      {tmp_path}/data" in said
    assert "  models    demo/demo\n" in said
    assert "-H 'Authorization: Bearer PASSWORD' --json '{\"model\": \"demo/demo\"" in said
    assert "sesame" not in said


def test_a_run_under_way_is_finished_before_the_server_ends(
    tmp_path: Path, slow: tuple[type[SlowModel], str]
) -> None:
    """Its client gets the answer although the server was told to stop meanwhile."""
    model, address = slow
    with serving(tmp_path, OPENAI_BASE_URL=address) as server, Letta(base_url=server.url) as client:
        talk = Talk(server.url, client.agents.create(model="openai/slow").id)
        talk.start()
        assert model.asked.wait(SECONDS)
        server.child.send_signal(signal.SIGTERM)
        await_closed(server.url)
        model.go.set()
        talk.join(SECONDS)
        assert (talk.text, talk.error) == ("Done.", None)
        assert server.child.wait(SECONDS) == 0


def await_closed(url: str) -> None:
    """Until nobody can connect any more."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f"{url} still takes connections")


def test_a_run_that_takes_too_long_is_cancelled_and_recorded(
    tmp_path: Path, slow: tuple[type[SlowModel], str]
) -> None:
    """Stopping is bounded; nothing is left open."""
    model, address = slow
    with serving(tmp_path, OPENAI_BASE_URL=address, PERDURE_DRAIN_SECONDS="0.2") as server:
        with Letta(base_url=server.url) as client:
            agent = client.agents.create(model="openai/slow").id
        talk = Talk(server.url, agent)
        talk.start()
        assert model.asked.wait(SECONDS)
        assert server.end() == 0
        talk.join(SECONDS)
    with serving(tmp_path) as again, Letta(base_url=again.url) as client:
        assert [run.status for run in client.runs.list(agent_id=agent)] == ["cancelled"]


def test_the_runs_of_a_killed_server_are_ended_by_the_next_one(
    tmp_path: Path, slow: tuple[type[SlowModel], str]
) -> None:
    """The agent is free again, and the run says what happened."""
    model, address = slow
    with serving(tmp_path, OPENAI_BASE_URL=address) as server:
        with Letta(base_url=server.url) as client:
            agent = client.agents.create(model="openai/slow").id
        talk = Talk(server.url, agent)
        talk.start()
        assert model.asked.wait(SECONDS)
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        talk.join(SECONDS)
        assert talk.error is not None
    model.go.set()
    with serving(tmp_path, OPENAI_BASE_URL=address) as again, Letta(base_url=again.url) as client:
        [run] = client.runs.list(agent_id=agent)
        assert (run.status, run.stop_reason) == ("failed", "error")
        assert client.agents.messages.create(agent, input="Again.").messages[-1].content == "Done."


def test_the_end_of_the_terminal_is_heeded_unless_it_is_to_be_ignored(tmp_path: Path) -> None:
    """`nohup perdure serve` survives its terminal."""
    with serving(tmp_path) as server:
        assert server.end(signal.SIGHUP) == 0
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # inherited by the process, as from nohup
    try:
        with serving(tmp_path) as server, Letta(base_url=server.url) as client:
            server.child.send_signal(signal.SIGHUP)
            assert client.health().status == "ok"
            assert server.end() == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_wait(tmp_path: Path, slow: tuple[type[SlowModel], str]) -> None:
    """Whoever presses Ctrl-C twice means it; the run is recorded all the same."""
    model, address = slow
    with serving(tmp_path, OPENAI_BASE_URL=address, PERDURE_DRAIN_SECONDS="600") as server:
        with Letta(base_url=server.url) as client:
            agent = client.agents.create(model="openai/slow").id
        talk = Talk(server.url, agent)
        talk.start()
        assert model.asked.wait(SECONDS)
        server.child.send_signal(signal.SIGINT)
        await_closed(server.url)
        assert server.end(signal.SIGINT) == 0
        talk.join(SECONDS)
    with serving(tmp_path) as again, Letta(base_url=again.url) as client:
        assert [run.status for run in client.runs.list(agent_id=agent)] == ["cancelled"]


def test_two_servers_do_not_share_a_data_directory(tmp_path: Path) -> None:
    """The second one says why it does not start, and leaves the first one alone."""
    with serving(tmp_path) as first:
        code, said = ended(tmp_path, "serve", "--port", "0")
        assert code == 1
        assert said.startswith(f"perdure: Another Perdure is already serving {tmp_path}/data/perdure.db.")
        with Letta(base_url=first.url) as client:
            assert client.health().status == "ok"


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """With what to do."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        refused = told(tmp_path, "serve", "--port", str(other.getsockname()[1]))
    assert refused.exit_code == 2
    assert "is taken, perhaps by another Perdure" in refused.output


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_door_without_a_password_is_refused(host: str, tmp_path: Path) -> None:
    """The message names the setting; nothing is made."""
    refused = told(tmp_path, "serve", "--host", host)
    assert refused.exit_code == 2
    assert "Set PERDURE_SERVER_PASSWORD (or LETTA_SERVER_PASSWORD), or listen on 127.0.0.1." in refused.output
    assert not (tmp_path / "data").exists()


def test_with_a_password_it_may_listen_everywhere_and_asks_for_it(tmp_path: Path) -> None:
    """The SDK's api_key is the password; the printed address is one that this machine can use."""
    with serving(tmp_path, "--host", "0.0.0.0", LETTA_SERVER_PASSWORD="sesame") as server:
        assert server.url.startswith("http://127.0.0.1:")
        with Letta(base_url=server.url, api_key="sesame") as friend, Letta(base_url=server.url) as stranger:
            assert list(friend.agents.list()) == []
            with pytest.raises(AuthenticationError):
                stranger.agents.list()


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["--port", "99999"], {}, "99999 is not in the range"),
        ([], {"PERDURE_LOG_LEVEL": "loud"}, "perdure: The setting 'log_level' is wrong: Input should be 'debug'"),
        ([], {"PERDURE_HOST": "nobody.invalid"}, "perdure: The host 'nobody.invalid' cannot be found"),
        (["--host", "192.0.2.1"], {"PERDURE_SERVER_PASSWORD": "x"}, "Cannot listen on 192.0.2.1 port 8283"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    arguments: list[str], variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    """Exit code 2, a sentence, and no traceback."""
    refused = told(tmp_path, "serve", *arguments, **variables)
    assert refused.exit_code == 2
    assert words in refused.output
    assert "Traceback" not in refused.output
    assert not (tmp_path / "data").exists()


def test_a_slip_in_a_variable_is_told_at_start(tmp_path: Path) -> None:
    """Before anything else, since it may be the reason for what follows."""
    said = told(tmp_path, "serve", "--host", "0.0.0.0", PERDURE_PROT="1").output
    assert said.startswith("perdure: The environment variable PERDURE_PROT is no setting. Did you mean 'PERDURE_PORT'?")


def test_the_doctor_finds_a_new_machine_in_order(tmp_path: Path) -> None:
    """Nothing is made by looking; that there is only the demo is a warning."""
    looked = told(tmp_path, "doctor", "--port", "0", "--chat")
    assert looked.exit_code == 0, looked.output
    assert f"ok    Perdure {perdure.__version__} on Python" in looked.output
    assert f"ok    sqlite:///{tmp_path}/data/perdure.db is empty; the first start makes its tables" in looked.output
    assert "ok    demo/demo answers" in looked.output
    assert "warn  no model but the demo, which is a script" in looked.output
    assert looked.output.endswith("The server can work here.\n")
    assert not (tmp_path / "data").exists()


def test_the_doctor_says_what_to_fix(tmp_path: Path, slow: tuple[type[SlowModel], str]) -> None:
    """Each finding that keeps the server from working comes with what to do; what works is told as well."""
    _, address = slow
    (tmp_path / "data").write_text("a file")
    with closing(socket.create_server(("127.0.0.1", 0))) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    looked = told(
        tmp_path, "doctor", "--host", "0.0.0.0", "--database-url", "postgresql://me:hunter2@127.0.0.1:1/x",
        OPENAI_BASE_URL=nobody, VLLM_API_BASE=address, ANTHROPIC_API_KEY="sk-ant", PERDURE_EGRESS_ALLOW="http://x",
    )  # fmt: skip
    assert looked.exit_code == 1
    for line in (
        f"fix   the data directory {tmp_path}/data cannot be written",
        "fix   0.0.0.0 is reachable from other machines, and there is no password",
        "fix   postgresql://me:***@127.0.0.1:1/x cannot be used: connection failed",
        f"fix   openai cannot be reached at {nobody}.",
        "fix   The setting 'egress_allow' is wrong",
        "warn  anthropic is configured, and this version does not speak its dialect yet",
        "ok    vllm/slow",
    ):
        assert line in looked.output, looked.output
    assert "hunter2" not in looked.output


def test_the_doctor_reads_a_database_without_changing_it(tmp_path: Path) -> None:
    """It tells the schema, also while a server works on it, and a newer one is something to fix."""
    with serving(tmp_path) as server:
        looked = told(tmp_path, "doctor", "--port", server.url.rpartition(":")[2])
        assert "has the current schema" in looked.output
        assert "is taken, perhaps by another Perdure" in looked.output
        assert looked.exit_code == 0
        server.end()
    with closing(sqlite3.connect(tmp_path / "data" / "perdure.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    looked = told(tmp_path, "doctor", "--port", "0")
    assert looked.exit_code == 1
    assert "schema 9999" in looked.output
    code, said = ended(tmp_path, "serve", "--port", "0")
    assert code == 1
    assert said.startswith("perdure: The database has schema 9999")
