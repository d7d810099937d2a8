"""The group of commands: one-line errors, and the commands themselves from their files.

Heavy imports wait for the command that needs them.
"""

from typing import Any

import click

from adadecode.cli.console import model_notes_on_stderr
from adadecode.cli.evaluate import eval_command, plan_command, report_command, verify_command
from adadecode.cli.generate import bench_command, generate_command
from adadecode.cli.heads import train_heads_command, tune_command
from adadecode.cli.submit import submit_command
from adadecode.cli.sweep import sweep_command
from adadecode.cli.tasks import tasks_command
from adadecode.errors import AdaDecodeError
from adadecode.version import __version__


class OneLineErrors(click.Group):
    """Turns an AdaDecodeError into one line on stderr and its documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with model_notes_on_stderr():
                return super().invoke(ctx)
        except AdaDecodeError as error:
            click.echo(f"adadecode: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=OneLineErrors)
@click.version_option(__version__, package_name="adadecode")
def main() -> None:
    """Lossless early-exit decoding, evaluated over whole data sets on Ray.

    Exit codes: 0 ok, 1 the run failed, 2 usage, 3 parity mismatch or contradictory tables, 4 planned rows missing.
    """


for command in (
    eval_command,
    plan_command,
    sweep_command,
    generate_command,
    bench_command,
    train_heads_command,
    tune_command,
    report_command,
    verify_command,
    tasks_command,
    submit_command,
):
    main.add_command(command)
