"""`python -m perdure` is the command line."""

from perdure.main import cli

if __name__ == "__main__":
    cli()
