"""The table over all cells of a sweep: every row, every digit."""

import io

import pytest
from rich.console import Console

from adadecode.evaluation.sweep import join_cells
from adadecode.evaluation.sweep_table import sweep_table


def test_the_table_shows_every_cell_with_parity_and_consistency(summaries):
    console = Console(file=io.StringIO(), width=120)
    console.print(sweep_table(join_cells(summaries)))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "adaptive demo vanilla 2 0.6 baseline - 8.00 - -" in lines
    assert "demo adadecode 2 1.2 2.00x (no interval, n=2) 75.0% 8.00 2/2 1.000" in lines
    assert "demo adadecode-unverified 2 1.2 2.00x (no interval, n=2) - 8.00 1/2 0.667" in lines
    assert "(lossy)" in lines


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_keeps_every_digit_in_its_width(summaries, width):
    long = {"without-verification": summaries["lossy"]}
    console = Console(file=io.StringIO(), width=width)
    console.print(sweep_table(join_cells(long)))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
