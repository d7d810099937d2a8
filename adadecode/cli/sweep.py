"""`sweep`: many evaluations, one table."""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adadecode.cli.console import console, resume_command, say, say_on_stderr
from adadecode.cli.evaluate import evaluate, report_result
from adadecode.cli.options import settings_options, some_text, split
from adadecode.cli.watch import Watcher
from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, AdaDecodeError, StoppedError, UsageError
from adadecode.evaluation.cells import MOST_CELLS
from adadecode.evaluation.stop import StopRequest
from adadecode.settings import EvalConfig

if TYPE_CHECKING:
    from adadecode.evaluation.cells import Cell


def values(kind: Callable[[str], Any], wanted: str) -> Callable[..., Any]:
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
    callback=values(*DECIMAL),
    help="Gammas with commas.  [default: the policy's]",
)
@click.option(
    "--exits",
    "exit_sets",
    multiple=True,
    callback=values(*WHOLE),
    help="Exit layers, such as 4,8,12; repeat for more cells.",
)
@click.option("--max-drafts", callback=values(*WHOLE), help="Numbers with commas.  [default: the policy's]")
@click.option("--tasks", callback=values(str, "names with commas"), help="Tasks with commas.  [default: --task]")
@click.option("--dry-run", is_flag=True, help="Show the cells and what there is of each; decode nothing.")
@click.option("--yes", is_flag=True, help=f"More than {MOST_CELLS:,} cells are meant.")
@click.option(
    "--out", callback=some_text, default="results/sweep", show_default=True, help="Folder, or s3:// or gs:// URL."
)
def sweep_command(
    config_file: Path | None,
    gammas: tuple[float, ...],
    exit_sets: tuple[tuple[int, ...], ...],
    max_drafts: tuple[int, ...],
    tasks: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    out: str,
    **flags: Any,
) -> None:
    """Evaluate a grid of settings, or the `cells` and the `grid` that --config has; rerun to finish it.

    One run folder per cell under --out, and sweep.parquet over all of them. A cell that fails leaves the others to run.
    """
    from adadecode.evaluation.cells import Grid, plan_cells
    from adadecode.evaluation.sweep import check_draft_models, check_heads_exist, state_of
    from adadecode.runs.storage import open_storage

    open_storage(out)  # a mistake in --out is told before anything else
    grid = Grid(tasks, gammas, exit_sets, max_drafts)
    cells = plan_cells(config_file, grid, flags, are_meant=yes or dry_run)
    check_heads_exist(cells)
    check_draft_models(cells)
    states = [state_of(cell, out) for cell in cells]
    if dry_run:
        show_cells(cells, states)
        return
    sys.exit(run_cells(cells, out))


def show_cells(cells: "list[Cell]", states: list[str]) -> None:
    """Prints what a sweep would do: a line for each cell, and one for all."""
    from adadecode.evaluation.cells import varying

    for idx, (cell, state, settings) in enumerate(zip(cells, states, varying(cells), strict=True)):
        config = cell.config
        methods = f"task {config.task}, methods {','.join(config.methods)}"
        say(f"cell {idx + 1}/{len(cells)}: {cell.name}: {state}; {methods}{settings and f'; {settings}'}")
    counts = Counter(state.partition(",")[0] for state in states)
    say(
        f"{len(cells):,} cells: {', '.join(f'{count} {state}' for state, count in counts.items())}; nothing was decoded"
    )


def run_cells(cells: "list[Cell]", out: str) -> int:
    """Evaluates `cells`, and prints and writes the table over all; returns the worst exit code.

    A cell that fails is told, and the others run; the error of the only one is raised. No more are begun after a signal.
    """
    from adadecode.evaluation.shelf import ModelShelf
    from adadecode.evaluation.sweep import by_model, write_sweep
    from adadecode.evaluation.sweep_table import sweep_table
    from adadecode.runs.storage import join

    codes, summaries, models = dict[str, int](), dict[str, Any](), ModelShelf()
    with StopRequest(max(cell.config.grace_s for cell in cells), say_on_stderr) as stop:
        for idx, cell in enumerate(by_model(cells)):
            say(f"cell {idx + 1}/{len(cells)}: {cell.name}")
            watcher = Watcher()
            try:
                result = evaluate(cell.config, join(out, cell.name), stop, watcher, models)
                codes[cell.name] = report_result(result, resume_command())
            except StoppedError:
                raise
            except AdaDecodeError as error:
                if len(cells) == 1:
                    raise
                codes[cell.name] = error.exit_code
                say_on_stderr(f"adadecode: cell {cell.name} failed: {error}")
            except Exception:
                codes[cell.name] = EXIT_FAILED
                say_on_stderr(f"adadecode: cell {cell.name} failed:")
                traceback.print_exc()
            if watcher.closed is not None:
                summaries[cell.name] = watcher.closed.summary
            if stop.is_made and idx + 1 < len(cells):
                say_on_stderr(f"{len(cells) - idx - 1} cells were not begun; go on with: {resume_command()}")
                return max(EXIT_INCOMPLETE, *codes.values())
    if summaries:
        in_order = {cell.name: summaries[cell.name] for cell in cells if cell.name in summaries}
        console().print(sweep_table(write_sweep(out, in_order)))
    if failed := [cell.name for cell in cells if codes[cell.name]]:
        say_on_stderr(f"{len(failed)} of {len(cells)} cells did not end well: {', '.join(failed)}")
    say(f"sweep: {out}")
    return max(codes.values())
