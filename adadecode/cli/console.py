"""Where lines and tables go: a terminal, or a log that is no terminal."""

import click
from rich.console import Console

PLAIN_WIDTH = 120  # rich assumes 80 columns in a job log, too few for the tables


def console() -> Console:
    """A terminal's console, or a plain one wide enough for the tables."""
    found = Console()
    return found if found.is_terminal else Console(width=PLAIN_WIDTH)


def say_on_stderr(line: str) -> None:
    """Prints `line` on stderr."""
    click.echo(line, err=True)
