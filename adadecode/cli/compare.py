"""`compare`: two runs, or two sweeps, from their tables alone."""

import sys

import click

from adadecode.cli.console import console, say, say_on_stderr
from adadecode.cli.options import some_text
from adadecode.errors import EXIT_FAILED, EXIT_INCOMPLETE, EXIT_MISMATCH, EXIT_OK, EXIT_REGRESSION

WORST_FIRST = (EXIT_MISMATCH, EXIT_REGRESSION, EXIT_INCOMPLETE, EXIT_FAILED)


@click.command("compare")
@click.argument("a", callback=some_text)
@click.argument("b", callback=some_text)
@click.option(
    "--fail-if-slower", metavar="P%", callback=some_text, help="Exit code 5 where a method is surely slower by more."
)
@click.option(
    "--fail-if-acceptance-drops",
    metavar="P%",
    callback=some_text,
    help="Exit code 5 where an acceptance rate is surely lower by more percentage points.",
)
@click.option(
    "--over-vanilla",
    is_flag=True,
    help="Let --fail-if-slower judge speedups over vanilla of the same run, in which a slower machine does not count.",
)
@click.option(
    "--detail", is_flag=True, help="Show rates and times of each run too, and how far workers and repeats are apart."
)
@click.option("--markdown", "as_markdown", is_flag=True, help="Print Markdown, as for a pull request.")
def compare_command(
    a: str,
    b: str,
    fail_if_slower: str | None,
    fail_if_acceptance_drops: str | None,
    over_vanilla: bool,
    detail: bool,
    as_markdown: bool,
) -> None:
    """Compare run B with run A, or sweep B with sweep A: speeds, acceptance, scores, outputs, provenance, all paired.

    Exit code 5: a limit is passed, and the 95 % interval supports it. Exit code 3: parity is broken in one of the two.
    """
    from adadecode.comparison.gates import Limits, share_of
    from adadecode.comparison.result import Comparison, compare_runs
    from adadecode.comparison.sweeps import match
    from adadecode.comparison.tables import comparison_lines, comparison_table, detail_tables, markdown, side_lines

    flags = {"--fail-if-slower": fail_if_slower, "--fail-if-acceptance-drops": fail_if_acceptance_drops}
    slower, drops = (None if text is None else share_of(flag, text) for flag, text in flags.items())
    limits = Limits(slower, drops, over_vanilla)

    def show(comparison: Comparison, cell: str | None) -> None:
        if as_markdown:
            click.echo(markdown(comparison, detail, cell))
            return
        for line in side_lines(comparison) if cell is None else [f"cell {cell}", *side_lines(comparison)]:
            say(line)
        console().print(comparison_table(comparison))
        for table in detail_tables(comparison) if detail else []:
            console().print(table)
        for line in [*comparison_lines(comparison), *(comparison.spread if detail else [])]:
            say(line)

    matched, codes = match(a, b), [EXIT_OK]
    for cell, location_a, location_b in matched.pairs:
        comparison = compare_runs(location_a, location_b, limits)
        show(comparison, cell)
        for line in comparison.problem_lines():
            say_on_stderr(line if cell is None else f"cell {cell}: {line}")
        codes.append(comparison.exit_code)
    for line in matched.lines:
        say(f"- {line}" if as_markdown else line)
    sys.exit(next((code for code in WORST_FIRST if code in codes), EXIT_OK))
