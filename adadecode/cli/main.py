"""The group of commands: one-line errors, and the commands themselves from their files.

Heavy imports wait for the command that needs them.
"""

from collections.abc import Sequence
from typing import Any

import click

from adadecode.cli.certify import certify_command
from adadecode.cli.compare import compare_command
from adadecode.cli.console import escape_what_cannot_be_shown, model_notes_on_stderr, say_on_stderr
from adadecode.cli.doctor import doctor_command
from adadecode.cli.evaluate import eval_command, plan_command, report_command
from adadecode.cli.export import export_command
from adadecode.cli.generate import bench_command, generate_command
from adadecode.cli.heads import train_heads_command, tune_command
from adadecode.cli.jobs import jobs_command
from adadecode.cli.score import score_command
from adadecode.cli.submit import submit_command
from adadecode.cli.sweep import sweep_command
from adadecode.cli.tasks import tasks_command
from adadecode.cli.verify import verify_command
from adadecode.errors import AdaDecodeError, UsageError
from adadecode.files import keep_others_from_writing
from adadecode.printable import is_unicode, printable, without_password
from adadecode.version import __version__


class OneLineErrors(click.Group):
    """Turns an AdaDecodeError into one line on stderr and its documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            check_arguments(ctx.args)
            with model_notes_on_stderr():
                return super().invoke(ctx)
        except AdaDecodeError as error:
            say_on_stderr(f"adadecode: {without_password(str(error))}")
            ctx.exit(error.exit_code)
        except click.ClickException as error:
            said = without_password(error.message)
            vars(error)["message"] = printable(said)  # final, but it may quote what was typed as it is
            raise

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """What click does, help and its own errors included, on streams that can show every text."""
        escape_what_cannot_be_shown()
        keep_others_from_writing()
        return super().main(*arguments, **settings)


def check_arguments(arguments: Sequence[str]) -> None:
    """Raises UsageError when one of `arguments` is no text: the locale lacks its characters, or has another encoding."""
    for argument in arguments:
        if not is_unicode(argument):
            raise UsageError(
                f"{argument!r} is no text in this locale's encoding: give UTF-8, and set PYTHONUTF8=1 where the locale "
                "has none, such as LC_ALL=C"
            )


@click.group(cls=OneLineErrors)
@click.version_option(__version__, package_name="adadecode")
def main() -> None:
    """Lossless early-exit decoding, evaluated over whole data sets on Ray.

    Exit codes: 0 ok, 1 the run failed, 2 usage, 3 parity mismatch or contradictory tables, 4 planned rows missing,
    5 a limit of `compare` passed.
    """


for command in (
    eval_command,
    plan_command,
    doctor_command,
    sweep_command,
    certify_command,
    generate_command,
    bench_command,
    train_heads_command,
    tune_command,
    report_command,
    verify_command,
    compare_command,
    export_command,
    score_command,
    tasks_command,
    submit_command,
    jobs_command,
):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="adadecode")
