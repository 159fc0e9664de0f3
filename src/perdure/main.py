"""The command line: `perdure serve`, `perdure doctor`, `perdure version`.

Everything that takes time to import is imported by the command that needs it. `program` joins the parts, `serving` has
the socket and the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import perdure
from perdure.domain.errors import PerdureError

if TYPE_CHECKING:
    import socket

    from perdure.program import Program
    from perdure.serving import Server
    from perdure.settings import Settings

MISUSE = 2
"""Exit code when a setting must change before it can work; 1 is for what broke."""

Command = TypeVar("Command", bound=Callable[..., Any])


def with_settings(command: Command) -> Command:
    """The options that every command that reads settings has."""
    options = (
        click.option("--host", help="Address to listen on (127.0.0.1)."),
        click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on (8283); 0 takes a free one."),
        click.option("--data-dir", type=click.Path(path_type=Path), help="Data directory (~/.perdure)."),
        click.option("--database-url", help="sqlite:////path/file.db or postgresql://user:password@host/database."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(perdure.__version__, prog_name="perdure")
def cli() -> None:
    """A server for stateful LLM agents that speaks the Letta REST API.

    Settings come from flags, PERDURE_* variables and perdure.toml, in this order.
    """


@cli.command()
@with_settings
def serve(**flags: Any) -> None:
    """Start the server."""
    with told_in_words():
        from perdure import logs, settings
        from perdure.serving import bind

        chosen = settings.read(flags)
        for sentence in settings.unknown_variables():
            click.echo(f"perdure: {sentence}", err=True)
        refuse_open_door(chosen)
        with contextlib.closing(bind(chosen.host, chosen.port)) as bound:
            human = chosen.log_format == "text" or (chosen.log_format == "auto" and sys.stderr.isatty())
            logs.set_up(chosen.log_level, human=human, secrets=chosen.secrets())
            gc.disable()  # until all is imported: collecting meanwhile finds nothing and takes a tenth of the start
            run(serve_on(bound, chosen, human=human))


@cli.command()
@with_settings
@click.option("--chat", is_flag=True, help="Also ask each provider's first model for one token.")
def doctor(chat: bool, **flags: Any) -> None:
    """Check that the server can work here, and say what to fix."""
    with told_in_words():
        from perdure import settings
        from perdure.doctor import examine

        sys.exit(run(examine(settings.read(flags), chat=chat, tell=click.echo)))


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(perdure.__version__)


@contextlib.contextmanager
def told_in_words() -> Iterator[None]:
    """Errors we foresee end the program with their text and an exit code, not with a traceback."""
    try:
        yield
    except PerdureError as error:
        from perdure.settings import SettingsError

        for line in str(error).splitlines():
            click.echo(f"perdure: {line}", err=True)
        sys.exit(MISUSE if isinstance(error, SettingsError) else 1)


def refuse_open_door(settings: Settings) -> None:
    """Without a password the server is for this machine only. Raises SettingsError."""
    from perdure.serving import is_loopback
    from perdure.settings import SettingsError

    if settings.password is None and not is_loopback(settings.host):
        raise SettingsError(
            f"Listening on {settings.host} would let other machines in, and there is no password. "
            "Set PERDURE_SERVER_PASSWORD (or LETTA_SERVER_PASSWORD), or listen on 127.0.0.1."
        )


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run on uvloop where there is one."""
    try:
        from uvloop import new_event_loop
    except ImportError:  # Windows has none
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(work)


async def serve_on(bound: socket.socket, settings: Settings, *, human: bool) -> None:
    """The server, from its first part to its last."""
    from perdure.program import assembled, providers_of
    from perdure.serving import Server, stopped_by_signals

    providers = await providers_of(settings, bound.getsockname()[1])
    async with assembled(settings, providers) as program:
        gc.freeze()  # what is here now stays: later collections need not look at it
        gc.enable()
        server = Server(program.app, program.executor.drain, settings.drain_seconds)
        with stopped_by_signals(server):
            greeting = asyncio.create_task(greet(server, bound, settings, program, human=human))
            await server.serve(sockets=[bound])
            greeting.cancel()


async def greet(server: Server, bound: socket.socket, settings: Settings, program: Program, *, human: bool) -> None:
    """Say where the server is as soon as it answers, and which models there are as soon as that is known."""
    import structlog

    from perdure import greeting
    from perdure.serving import url_of

    url, log = url_of(bound), structlog.get_logger()
    await server.ready.wait()
    if human:
        click.echo(greeting.where(url, settings))
    else:
        log.info("listening", url=url, version=perdure.__version__)
    models = [info.handle for info in await program.models.list()]
    if human:
        click.echo(greeting.what_next(url, settings, models))
    else:
        log.info("models found", handles=models)
