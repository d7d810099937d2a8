"""`export`: a run's rows for other tools."""

import sys
from pathlib import Path
from typing import get_args

import click

from adadecode.cli.console import say_on_stderr
from adadecode.cli.options import some_path, some_text
from adadecode.errors import RunFolderError, UsageError
from adadecode.files import whole_file
from adadecode.methods import OURS


@click.command("export")
@click.argument("run", callback=some_text)
@click.option("--csv", is_flag=True, help="A line for each row, lists as JSON.")
@click.option("--json", is_flag=True, help="JSON Lines: a row each, with acceptance as vLLM reports it.")
@click.option("--aiperf", is_flag=True, help="JSON Lines: records as in AIPerf's profile_export.jsonl.")
@click.option(
    "--method",
    callback=some_text,
    help=f"Rows of one method alone.  [default: all; {OURS} for --aiperf, whose file is of one server]",
)
@click.option("--out", callback=some_path, help="File to write.  [default: stdout]")
def export_command(run: str, method: str | None, out: Path | None, **forms: bool) -> None:
    """Write a run's committed rows for other tools, with acceptance per round and position under the usual names."""
    from adadecode.runs.export import ExportForm, export_lines

    wanted = [form for form in get_args(ExportForm) if forms[form]]
    if len(wanted) != 1:
        given = " ".join(f"--{form}" for form in wanted) or "no form"
        raise UsageError(f"export with {given}: give one of --csv, --json and --aiperf")
    (form,) = wanted
    lines = export_lines(run, form, method or (OURS if form == "aiperf" else None))
    if out is None:
        for line in lines:
            sys.stdout.write(line)
        return
    try:
        with whole_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            num_lines = sum(stream.write(line) > 0 for line in lines)
    except OSError as error:
        raise RunFolderError(f"--out {str(out)!r} cannot be written: {error.strerror or error}") from error
    say_on_stderr(f"{num_lines - (form == 'csv')} rows: {out}")
