"""Which rows are held against which, and what text of others may not do in Markdown."""

import numpy as np
import pytest

from adadecode.comparison.changes import changes
from adadecode.comparison.outputs import compare_outputs
from adadecode.comparison.pairs import compared_columns, left_out_lines, pair_rows
from adadecode.comparison.tables import _code, _table


@pytest.fixture
def paired(samples_table):
    return lambda a, b: pair_rows(*(compared_columns(samples_table(*rows)) for rows in (a, b)))


def test_rows_pair_by_sample_turn_method_and_repeat_in_whatever_order(row, paired):
    rows = [
        row(method, sample, turn=turn, repeat=repeat, e2e_s=1.0 + turn + 2 * repeat)
        for sample in ("s0", "s1")
        for turn in (0, 1)
        for repeat in (0, 1)
        for method in ("vanilla", "adadecode")
    ]
    pairs = paired(rows, rows[::-1])
    assert pairs.a.equals(pairs.b)
    assert pairs.a.num_rows == len(rows)
    assert not pairs.left_out
    assert pairs.prompts.tolist() == [0] * 8 + [1] * 8


def test_rows_without_another_are_counted_by_reason_and_method(row, error_row, paired):
    a = [row("vanilla"), row("adadecode"), row("vanilla", "s1"), row("vanilla", "s2"), row("vanilla", "s3")]
    b = [row("vanilla"), row("vanilla", "s4"), error_row("vanilla", "s1"), row("vanilla", "s2", prompt_token_ids=[9])]
    pairs = paired(a, b)
    assert pairs.a["sample_id"].to_pylist() == ["s0"]
    assert left_out_lines(pairs) == [
        "not compared: 2 rows only in A (adadecode 1, vanilla 1)",
        "not compared: 1 rows only in B (vanilla 1)",
        "not compared: 1 rows an error in one or both (vanilla 1)",
        "not compared: 1 rows of another prompt (vanilla 1)",
    ]


def test_an_output_that_one_limit_cut_is_no_pair_of_one_that_went_on(row, samples_table):
    """s0 ended by itself in both, s1 was cut in A and went on in B, s2 was cut in both at the same length."""
    ends = {"s0": "eos", "s1": "length", "s2": "length"}
    a = [row("vanilla", name, finish_reason=end) for name, end in ends.items()]
    b = [row("vanilla", name, finish_reason=end) for name, end in ends.items()]
    b[1] = row("vanilla", "s1", output_token_ids=[5, 6, 7, 8], num_rounds=3, finish_reason="eos")
    sides = [compared_columns(samples_table(*rows)) for rows in (a, b)]
    assert pair_rows(*sides).a.num_rows == 3
    pairs = pair_rows(*sides, one_limit=False)
    assert pairs.a["sample_id"].to_pylist() == ["s0", "s2"]
    assert left_out_lines(pairs) == ["not compared: 1 rows cut at another max_new_tokens (vanilla 1)"]


def test_a_longer_output_is_not_a_slower_one(row, paired):
    """Twice the tokens in twice the time."""
    longer = row("vanilla", output_token_ids=[5, 6, 7, 8, 9, 10], num_rounds=5, e2e_s=5.0)
    (change,) = changes(paired([row("vanilla", e2e_s=2.5)], [longer]))
    assert change.speed.value == pytest.approx(1.0)


def test_a_speed_over_vanilla_is_of_vanilla_of_the_same_sample_and_run(row, paired):
    """All of B is slower by half on one sample and by 2 on the other; beside vanilla nothing changed."""
    a = [row(m, s, e2e_s=t) for m, t in (("vanilla", 4.0), ("adadecode", 2.0)) for s in ("s0", "s1")]
    b = [
        row(m, s, e2e_s=t * f) for m, t in (("vanilla", 4.0), ("adadecode", 2.0)) for s, f in (("s1", 3.0), ("s0", 1.5))
    ]
    vanilla, ours = changes(paired(a, b))
    assert (vanilla.method, vanilla.over_vanilla) == ("vanilla", None)
    assert vanilla.speed.value == ours.speed.value == pytest.approx(1 / np.sqrt(4.5))
    assert ours.over_vanilla.value == pytest.approx(1.0)


def test_acceptance_and_tokens_per_round_are_of_the_sums(row, paired):
    a = [row("adadecode", f"s{n}", num_drafted=10 * (n + 1), num_accepted=5 * (n + 1)) for n in range(2)]
    b = [row("adadecode", f"s{n}", num_drafted=10, num_accepted=9 * n, num_rounds=1) for n in range(2)]
    (change,) = changes(paired(a, b))
    assert (change.acceptance.before, change.acceptance.after) == (0.5, 0.45)
    assert change.acceptance.change.value == pytest.approx(-0.05)
    assert (change.tokens_per_round.before, change.tokens_per_round.after) == (1.0, 2.0)


def test_a_lossy_method_has_no_acceptance(row, paired):
    rows = [row("adadecode-unverified", num_drafted=4, num_accepted=4)]
    (change,) = changes(paired(rows, rows))
    assert change.acceptance.before is None


def test_the_first_divergence_is_the_end_of_the_shorter_output(row, paired):
    found = compare_outputs(paired([row("vanilla")], [row("vanilla", output_token_ids=[5, 6], num_rounds=1)]))
    (first, second) = found.lines()
    assert [(one.at, one.start, one.ids) for one in found.divergences] == [(2, 0, ((5, 6, 7), (5, 6)))]
    assert first == "outputs: 1 of 1 differ"
    assert second == "demo/s0 repeat 0: differs at output position 2: A token 7, B ended (vanilla)"


def test_many_differences_are_counted_and_the_first_listed(row, paired):
    a = [row("vanilla", f"s{n:02d}") for n in range(14)]
    b = [row("vanilla", f"s{n:02d}", output_token_ids=[5, 6, 8]) for n in range(14)]
    lines = compare_outputs(paired(a, b)).lines()
    assert (lines[0], lines[-1], len(lines)) == ("outputs: 14 of 14 differ", "and 4 more places", 12)


@pytest.mark.parametrize(
    "text", ["a|b", "`x`", "``", "<script>alert(1)</script>", "@all #1", "x\ny", "\x1b[31m", "\u202e"]
)
def test_names_of_others_are_code_on_one_line_of_a_markdown_table(text):
    table = _table(("name", "n"), iter([(text, "1")]), num_names=1)
    assert len(table.split("\n")) == 3
    cell, rest = table.split("\n")[2].removeprefix("|").rsplit("|1|", 1)
    assert rest == ""
    assert cell.replace("\\|", "").count("|") == 0
    fence = cell[: len(cell) - len(cell.lstrip("`"))]
    assert cell.endswith(fence)
    assert fence not in cell[len(fence) : -len(fence)]
    assert _code(text).isprintable()
