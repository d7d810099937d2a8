"""`tasks`: the data sets there are."""

import click
from rich.table import Table

from adadecode.cli.console import console


@click.command("tasks")
def tasks_command() -> None:
    """List the data sets."""
    from adadecode.tasks import TASKS

    table = Table("task", "what", "source", "demo heads")
    for name, task in TASKS.items():
        table.add_row(name, task.description, task.source, task.domain or "-")
    console().print(table)
