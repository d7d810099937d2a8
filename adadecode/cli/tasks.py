"""`tasks`: the data sets there are, and the prompts of one."""

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from adadecode.cli.console import console, say
from adadecode.cli.options import settings_options, some_text
from adadecode.errors import UsageError
from adadecode.printable import on_one_line, printable
from adadecode.settings import DataSettings, EvalConfig, build_settings

NUM_SHOWN = 3
WIDTHS = {"what": 24, "metrics": 13}  # of columns that fold, so that sources stay whole


@click.command("tasks")
@click.argument("task", required=False)
@click.option("-n", "--limit", type=int, help=f"How many samples to show.  [default: {NUM_SHOWN}]")
@click.option(
    "--model", callback=some_text, help="Show what this model's chat template makes of them, with token counts."
)
@settings_options(DataSettings, leave_out=("task", "limit"))
def tasks_command(task: str | None, model: str | None, config_file: Path | None, **flags: Any) -> None:
    """List the data sets; with TASK, print the prompts of its first samples as they are decoded."""
    if task is None:
        given = [name for name, value in {**flags, "model": model, "config": config_file}.items() if value is not None]
        if given:
            flag = "--" + given[0].replace("_", "-")
            raise UsageError(f"{flag}: without a task nothing is shown of it; name one, as in `adadecode tasks gsm8k`")
        console().print(tasks_table())
        return
    from adadecode.evaluation.prompts import ShownPrompt, show_prompts

    settings = build_settings(DataSettings, config_file, {**flags, "task": task}, beside=EvalConfig)
    if settings.limit is None:
        settings = settings.model_copy(update={"limit": NUM_SHOWN})

    def heading(shown: ShownPrompt) -> str:
        example = shown.example
        tokens = "" if shown.num_tokens is None else f", {shown.num_tokens} tokens"
        category = "" if example.category is None else f", {example.category}"
        turns = f", {example.num_turns} turns" if example.later_turns else ""
        reference = "" if example.reference is None else f"; reference: {on_one_line(example.reference)}"
        return f"{shown.task} {example.sample_id}, {shown.kind}{tokens}{category}{turns}{reference}"

    for shown in show_prompts(settings, model):
        say(heading(shown))
        for line in printable(shown.text, keep="\n\t").split("\n"):
            print(f"  {line}")
        for later in shown.example.later_turns:
            say(f"then: {later}")


def tasks_table() -> Table:
    """A rich table with a line for each data set; `-` stands for what it has none of."""
    from adadecode.tasks import TASKS

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in ("task", "what", "samples", "metrics", "licence", "source", "demo heads"):
        table.add_column(
            name, justify="right" if name == "samples" else "left", overflow="fold", max_width=WIDTHS.get(name)
        )
    for name, task in TASKS.items():
        size = "-" if task.size is None else f"{task.size:,}"
        cells = (name, task.description, size, ", ".join(task.metrics), task.licence, task.source, task.domain)
        table.add_row(*(cell or "-" for cell in cells))
    return table
