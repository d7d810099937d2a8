"""`verify`: whether a run is what it says it is, from its tables, and by decoding some of its rows again."""

import sys

import click

from adadecode.cli.console import say, say_on_stderr
from adadecode.cli.evaluate import print_published, print_result
from adadecode.cli.options import some_text
from adadecode.errors import UsageError, worst_code


@click.command("verify")
@click.argument("run", callback=some_text)
@click.option("--recompute", "num_rows", type=int, help="Rows to draw at random and decode again with the run's model.")
@click.option("--seed", type=int, help="Of that draw, to repeat one.  [default: a new one]")
def verify_command(run: str, num_rows: int | None, seed: int | None) -> None:
    """Audit a run from its tables alone: whether rows, plan, settings and tables contradict each other, and parity.

    With --recompute also from its model, which is loaded, and refused where it is another than the run's.
    """
    from adadecode.api import recompute
    from adadecode.certify.result import is_certification, read_certification
    from adadecode.cli.certify import print_certification
    from adadecode.runs.folder import read_run
    from adadecode.runs.listing import read_published
    from adadecode.runs.result import read_result

    if seed is not None and num_rows is None:
        raise UsageError(f"--seed {seed}: it is of the rows that --recompute draws: give that too")
    facts = read_run(run)
    certified, published = is_certification(facts), None
    if not certified:
        published = read_published(run)
    if num_rows is not None and (certified or published is not None):
        raise UsageError(f"--recompute {num_rows}: {run!r} has no rows that this program decoded; leave it out")
    if certified:
        sys.exit(print_certification(read_certification(run)))
    if published is not None:
        sys.exit(print_published(facts, *published))
    result = read_result(run)
    print_result(result, result.audited())
    if num_rows is None:
        sys.exit(result.exit_code)
    again = recompute(run, num_rows, seed, say=say_on_stderr)
    for line in again.lines():
        say(line)
    sys.exit(worst_code((result.exit_code, again.exit_code)))
