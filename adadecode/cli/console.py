"""Where lines and tables go: a terminal, or a log that is no terminal."""

import contextlib
import io
import logging
import os
import shlex
import sys
from collections.abc import Generator

from rich.console import Console

from adadecode.printable import printable

PLAIN_WIDTH = 120  # rich assumes 80 columns in a job log, too few for the tables


def console() -> Console:
    """A terminal's console, one as wide as COLUMNS says, or a plain one wide enough for the tables."""
    found = Console()
    return found if found.is_terminal or os.environ.get("COLUMNS", "").isdigit() else Console(width=PLAIN_WIDTH)


def say(line: str) -> None:
    """Prints `line` on stdout, as one line whatever is in it."""
    print(printable(line), flush=True)


def say_on_stderr(line: str) -> None:
    """Prints `line` on stderr, as one line whatever is in it."""
    print(printable(line), file=sys.stderr, flush=True)


def resume_command() -> str:
    """The command that this process was started with, as a user would type it."""
    started = getattr(sys.modules["__main__"], "__spec__", None)  # set by `python -m` alone
    is_module = started is not None and started.name == "adadecode.__main__"
    return f"{'python -m adadecode' if is_module else 'adadecode'} {shlex.join(sys.argv[1:])}"


def escape_what_cannot_be_shown() -> None:
    """Has stdout and stderr write a character that their encoding lacks as its escape, where they would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class StderrHandler(logging.Handler):
    """Prints what is logged on stderr, as the program's lines are printed there."""

    def emit(self, record: logging.LogRecord) -> None:
        say_on_stderr(f"adadecode: {record.getMessage()}")


@contextlib.contextmanager
def model_notes_on_stderr() -> Generator[None]:
    """While it lasts, what is odd about a model that this process loads is printed on stderr."""
    logger, handler = logging.getLogger("adadecode.model"), StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
