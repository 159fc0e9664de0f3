"""`perdure serve` without the run log of foreground streams, to measure what the log costs. For benchmarks only."""

from functools import partial

from perdure import program
from perdure.main import cli

program.Executor = partial(program.Executor, log_foreground=False)  # type: ignore[assignment,misc]
cli()
