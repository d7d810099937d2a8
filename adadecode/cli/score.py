"""`score`: what the outputs of a run are worth by their tasks' metrics."""

import sys

import click

from adadecode.cli.console import console, say
from adadecode.cli.options import some_text


@click.command("score")
@click.argument("run", callback=some_text)
def score_command(run: str) -> None:
    """Score a run's outputs by their tasks' metrics and write its scores.parquet; decodes nothing, may be repeated."""
    from adadecode.api import score
    from adadecode.report.scores import scores_table

    scores = score(run)
    console().print(scores_table(scores.table))
    for line in (*scores.notes, *scores.contradictions):
        say(line)
    sys.exit(scores.exit_code)
