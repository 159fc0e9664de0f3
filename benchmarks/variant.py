"""Perdure with one part left out, to see what that part costs: `python variant.py asyncio|no-log serve …`."""

import functools
import sys


def main() -> None:
    variant = sys.argv.pop(1)
    if variant == "asyncio":
        sys.modules["uvloop"] = None  # type: ignore[assignment]  # as where there is none
    elif variant == "no-log":
        from perdure import program

        program.Executor = functools.partial(program.Executor, log_foreground=False)  # type: ignore[misc, assignment]
    else:
        raise SystemExit(f"There is no variant {variant!r}.")
    from perdure.main import cli

    cli()


if __name__ == "__main__":
    main()
