import io

import pytest
from rich.console import Console

from adadecode.evaluation.sweep_table import join_cells, sweep_table
from adadecode.report.schema import SWEEP
from adadecode.report.summary import summarise


@pytest.fixture
def summaries(samples_table, row):
    """Two cells of two prompts: one exact at 2.5 s against 5 s, one lossy."""
    vanilla = [row("vanilla", "s0", e2e_s=5.0), row("vanilla", "s1", e2e_s=5.0)]
    exact = [row("adadecode", sample, num_drafted=4, num_accepted=3) for sample in ("s0", "s1")]
    lossy = [
        row("adadecode-unverified", "s0", num_drafted=4, num_accepted=4),
        row("adadecode-unverified", "s1", output_token_ids=[5, 9, 9], parity="mismatch"),
    ]
    return {"adaptive": summarise(samples_table(*vanilla, *exact)), "lossy": summarise(samples_table(*vanilla, *lossy))}


def test_cells_are_joined_in_their_order_with_their_names(summaries):
    table = join_cells(summaries)
    assert table.schema == SWEEP
    assert table["cell"].to_pylist() == ["adaptive", "adaptive", "lossy", "lossy"]
    assert table.drop_columns("cell").slice(2).equals(summaries["lossy"])


def test_the_table_shows_every_cell_with_parity_and_consistency(summaries):
    console = Console(file=io.StringIO(), width=120)
    console.print(sweep_table(join_cells(summaries)))
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "adaptive demo vanilla 2 0.6 baseline - 8.00 - -" in lines
    assert "demo adadecode 2 1.2 2.00x (no CI) 75.0% 8.00 2/2 1.000" in lines
    assert "demo adadecode-unverified 2 1.2 2.00x (no CI) - 8.00 1/2 0.667" in lines
    assert "(lossy)" in lines


@pytest.mark.parametrize("width", [100, 120])
def test_the_table_keeps_every_digit_in_its_width(summaries, width):
    long = {"without-verification": summaries["lossy"]}
    console = Console(file=io.StringIO(), width=width)
    console.print(sweep_table(join_cells(long)))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_a_sweep_without_rows_is_an_empty_table():
    assert join_cells({}).schema == SWEEP
