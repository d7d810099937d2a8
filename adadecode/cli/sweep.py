"""`sweep`: many evaluations, one table."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from adadecode.cli.console import console, resume_command, say, say_on_stderr
from adadecode.cli.evaluate import evaluate, report_result
from adadecode.cli.options import settings_options, some_text, split
from adadecode.errors import EXIT_INCOMPLETE, UsageError
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import EvalConfig


def grid(kind: Callable[[str], Any], wanted: str) -> Callable[..., Any]:
    """A callback for one flag of the grid, a text or several: the values in each. Raises UsageError."""

    def parse(_: click.Context, parameter: click.Parameter, given: str | Sequence[str] | None) -> tuple[Any, ...]:
        try:
            if isinstance(given, str):
                return split(kind, given, wanted)
            return tuple(split(kind, text, wanted) for text in given or ())
        except click.BadParameter as error:
            raise UsageError(f"{parameter.opts[0]} {error.message}") from None

    return parse


WHOLE = (int, "whole numbers with commas, such as 4,8,12")
DECIMAL = (float, "numbers with commas, such as 0.5,0.75")


@click.command("sweep")
@settings_options(EvalConfig, leave_out=("gamma", "exits", "max_drafts"))
@click.option(
    "--gammas",
    callback=grid(*DECIMAL),
    help="Gammas with commas.  [default: the policy's]",
)
@click.option(
    "--exits",
    "exit_sets",
    multiple=True,
    callback=grid(*WHOLE),
    help="Exit layers, such as 4,8,12; repeat for more cells.",
)
@click.option("--max-drafts", callback=grid(*WHOLE), help="Numbers with commas.  [default: the policy's]")
@click.option("--tasks", callback=grid(str, "names with commas"), help="Tasks with commas.  [default: --task]")
@click.option(
    "--out", callback=some_text, default="results/sweep", show_default=True, help="Folder, or s3:// or gs:// URL."
)
def sweep_command(
    config_file: Path | None,
    gammas: tuple[float, ...],
    exit_sets: tuple[tuple[int, ...], ...],
    max_drafts: tuple[int, ...],
    tasks: tuple[str, ...],
    out: str,
    **flags: Any,
) -> None:
    """Evaluate a grid of settings, or the `cells` that --config names; rerun to finish it.

    One run folder per cell under --out, and sweep.parquet over all of them.
    """
    from adadecode.evaluation.sweep import Grid, check_draft_models, check_heads_exist, plan_cells, write_sweep
    from adadecode.evaluation.sweep_table import sweep_table
    from adadecode.runs.storage import join, open_storage

    open_storage(out)  # a mistake in --out is told before anything else
    cells = plan_cells(config_file, Grid(tasks, gammas, exit_sets, max_drafts), flags)
    check_heads_exist(cells)
    check_draft_models(cells)
    codes, summaries = [], {}
    with StopRequest(max(cell.config.grace_s for cell in cells), say_on_stderr) as stop:
        for idx, cell in enumerate(cells):
            say(f"cell {idx + 1}/{len(cells)}: {cell.name}")
            result = evaluate(cell.config, join(out, cell.name), stop)
            codes.append(report_result(result, resume_command()))
            summaries[cell.name] = result.summary
            if stop.is_made and idx + 1 < len(cells):
                say_on_stderr(f"{len(cells) - idx - 1} cells were not begun; go on with: {resume_command()}")
                sys.exit(max(EXIT_INCOMPLETE, *codes))
    console().print(sweep_table(write_sweep(out, summaries)))
    say(f"sweep: {out}")
    sys.exit(max(codes))
