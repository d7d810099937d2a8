"""`compare`: two runs, or two sweeps, from their tables alone."""

import sys
from pathlib import Path

import click

from adadecode.cli.console import console, say, say_on_stderr
from adadecode.cli.options import some_path, some_text
from adadecode.cli.pages import write_page
from adadecode.errors import worst_code


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
@click.option("--html", metavar="FILE", callback=some_path, help="Write a page of it too: one file, no network needed.")
def compare_command(
    a: str,
    b: str,
    fail_if_slower: str | None,
    fail_if_acceptance_drops: str | None,
    over_vanilla: bool,
    detail: bool,
    as_markdown: bool,
    html: Path | None,
) -> None:
    """Compare run B with run A, or sweep B with sweep A: speeds, acceptance, scores, outputs, provenance, all paired.

    Exit code 5: a limit is passed, and the 95 % interval supports it. Exit code 3: parity is broken in one of the two.
    """
    from adadecode.comparison.gates import Limits, share_of
    from adadecode.comparison.result import Comparison, compare_runs
    from adadecode.comparison.sweeps import match
    from adadecode.comparison.tables import (
        comparison_lines,
        comparison_table,
        detail_table,
        markdown,
        rates_table,
        side_lines,
    )
    from adadecode.page.comparison import Compared, comparison_page

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
        if detail:
            console().print(rates_table(comparison))
        if detail and any(change.latencies for change in comparison.changes):
            console().print(detail_table(comparison))
        for line in [*comparison_lines(comparison), *(comparison.spread if detail else [])]:
            say(line)

    matched, compared = match(a, b), list[Compared]()
    for cell, location_a, location_b in matched.pairs:
        comparison = compare_runs(location_a, location_b, limits)
        show(comparison, cell)
        for line in comparison.problem_lines():
            say_on_stderr(line if cell is None else f"cell {cell}: {line}")
        compared.append(Compared(cell, comparison))
    for line in matched.lines:
        say(f"- {line}" if as_markdown else line)
    if html is not None:
        told = write_page(comparison_page(compared, matched.lines), html, "--html")
        (say_on_stderr if as_markdown else say)(told)
    sys.exit(worst_code(one.comparison.exit_code for one in compared))
