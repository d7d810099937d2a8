import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from adadecode.methods import METHODS
from adadecode.report.detail import detail_table, latencies, spread_lines, times_table
from adadecode.report.parity import recompute_parity
from adadecode.report.schema import SUMMARY
from adadecode.report.stats import geomean_speedup
from adadecode.report.summary import summarise
from adadecode.report.tables import mismatch_lines, provenance_lines, summary_table


@pytest.fixture
def rendered(samples_table):
    """The summary table of some samples rows as plain text lines."""

    def render(*rows):
        console = Console(file=io.StringIO(), width=120)
        console.print(summary_table(summarise(samples_table(*rows))))
        return console.file.getvalue().splitlines()

    return render


def line_of(lines, method):
    return next(line.split() for line in lines if method in line.split())


def test_summary_table_shows_the_numbers_in_their_units(rendered, row):
    lines = rendered(
        row("vanilla", "s0", e2e_s=4.5, correct=True),
        row("vanilla", "s1", e2e_s=8.5, correct=True),
        row("adadecode", "s0", num_drafted=3, num_accepted=2, num_rounds=1, correct=True),
        row("adadecode", "s1", num_drafted=1, num_accepted=1, num_rounds=1, correct=False),
    )
    # speedups 4.5 / 2.5 and 8.5 / 2.5
    expected = "adadecode 2 1.2 75.0% 2.47x (no interval, n=2) 2/2 1/2"
    assert line_of(lines, "adadecode") == expected.split()
    expected = "demo vanilla 2 0.5 - baseline - 2/2"
    assert line_of(lines, "vanilla") == expected.split()


def test_an_interval_stands_beside_the_number_of_prompts_it_rests_on(rendered, row):
    times = {"vanilla": [4.0 + i for i in range(9)], "adadecode": [2.0] * 9}
    rows = [row(method, f"s{i}", e2e_s=times[method][i]) for i in range(9) for method in times]
    found = geomean_speedup(range(9), *times.values())
    assert found is not None
    assert f"{found.value:.2f}x ({found.low:.2f}-{found.high:.2f}, n=9)" in " ".join(rendered(*rows))


def test_failed_samples_have_a_column_where_there_are_any(rendered, row, error_row):
    lines = rendered(row("vanilla"), row("adadecode"), error_row("adadecode", "s1"), error_row("adadecode", "s2"))
    assert line_of(lines, "method")[:4] == ["task", "method", "n", "errors"]
    assert line_of(lines, "vanilla")[:4] == ["demo", "vanilla", "1", "0"]
    assert line_of(lines, "adadecode")[:3] == ["adadecode", "1", "2"]
    lines = rendered(row("vanilla"), row("adadecode"))
    assert {"errors", "correct"}.isdisjoint(line_of(lines, "method"))


@pytest.mark.parametrize(
    "task", ["gsm[8k]", "a-data-set-with-a-name-as-long-as-a-line-of-a-terminal-and-then-some-more"]
)
@pytest.mark.parametrize("num_errors", [0, 12345])
def test_every_method_fits_eighty_columns_with_every_figure_in_full(samples_table, row, error_row, task, num_errors):
    samples = samples_table(
        *(row(m, f"s{i}", task=task, e2e_s=2.0 + i, num_drafted=9, correct=True) for i in range(120) for m in METHODS)
    )
    summary = summarise(samples).to_pylist()
    summary = pa.Table.from_pylist([of | {"num_errors": num_errors} for of in summary], schema=SUMMARY)
    found = latencies(summary, samples)
    for table in (summary_table(summary), detail_table(summary), times_table(found)):
        console = Console(file=io.StringIO(), width=80)
        console.print(table)
        text = console.file.getvalue()
        assert task in text.replace("\n", "").replace(" ", "") or task[:6] in text
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= 80


def test_what_stands_behind_detail_has_the_other_figures_and_p99_from_a_hundred_values_on(samples_table, row):
    def shown(num_rows):
        samples = samples_table(*(row("vanilla", f"s{i}", ttft_s=0.001 * i, e2e_s=2.0) for i in range(1, num_rows + 1)))
        summary, console = summarise(samples), Console(file=io.StringIO(), width=80)
        console.print(detail_table(summary), times_table(latencies(summary, samples)))
        console.print(times_table(latencies(summary, None)))  # as of one that was published without its rows
        return [line.split() for line in console.file.getvalue().splitlines()]

    lines = shown(100)
    assert lines[3] == ["demo", "vanilla", "1.0", "8.00", "1.00", "0", "0", "1.00x"]
    of_rows, of_summary = (line for line in lines if "ttft" in line)
    assert of_rows == ["demo", "vanilla", "ttft", "100", "50.50", "90.10", "99.01"]
    assert of_summary == [*of_rows[:-1], "-"]
    assert next(line for line in shown(99) if "ttft" in line)[3:] == ["99", "50.00", "89.20", "-"]


def test_mismatch_lines_name_both_tokens_and_margins(samples_table, row):
    stored = {"parity": "near_tie", "first_diff_idx": 1, "vanilla_margin": 0.25, "method_margin": 0.125}
    verify = recompute_parity(
        samples_table(
            row("vanilla", "s0"),
            row("adadecode", "s0"),
            row("vanilla-w1", "s0", output_token_ids=[5, 9, 7], **stored),
            row("vanilla", "s1"),
            row("adadecode", "s1", output_token_ids=[5, 6], parity="mismatch", first_diff_idx=2),
            row("vanilla", "s2"),
            row("adadecode", "s2", finish_reason="eos", parity="mismatch"),
        )
    )
    assert mismatch_lines(verify) == [
        "demo/s0 vanilla-w1 repeat 0: near_tie at output position 1: "
        "vanilla token 6 (margin 0.25), vanilla-w1 token 9 (margin 0.125)",
        "demo/s1 adadecode repeat 0: mismatch at output position 2: "
        "vanilla token 7 (margin not recorded), adadecode ended (margin not recorded)",
        "demo/s2 adadecode repeat 0: mismatch, equal token ids, "
        "but the finish reason differs or a stored claim contradicts the outputs",
    ]


def test_a_lossy_method_is_marked_and_has_one_line_in_all(rendered, samples_table, row):
    rows = [
        *(row("vanilla", f"s{i}") for i in range(3)),
        row("adadecode-unverified", "s0"),
        row("adadecode-unverified", "s1", output_token_ids=[5, 9, 7], parity="mismatch", first_diff_idx=1),
        row("adadecode-unverified", "s2", output_token_ids=[9, 9, 9], parity="near_tie", first_diff_idx=0),
    ]
    assert mismatch_lines(recompute_parity(samples_table(*rows))) == [
        "adadecode-unverified: 2 of 3 outputs differ from vanilla's (lossy by design); "
        "0.556 of an output's tokens are vanilla's"
    ]
    lines = rendered(*rows)
    (idx,) = (idx for idx, line in enumerate(lines) if "adadecode-unverified" in line)
    assert lines[idx + 1].split() == ["(lossy)"]
    assert "1/3" in lines[idx].split()


def test_a_lossy_method_that_was_not_compared_says_so_without_a_share(samples_table, row):
    (line,) = mismatch_lines(recompute_parity(samples_table(row("adadecode-unverified"))))
    assert line == "adadecode-unverified: 0 of 0 outputs differ from vanilla's (lossy by design)"


def test_pairs_that_were_not_compared_have_no_mismatch_line(samples_table, row):
    assert mismatch_lines(recompute_parity(samples_table(row("adadecode")))) == []


def test_provenance_lines_flatten_what_is_there():
    run = {
        "run_id": "r1",
        "fingerprint": "ab12",
        "status": "complete",
        "config": {"model": "demo", "heads": None, "methods": ["vanilla", "adadecode"], "decode": {"gamma": 0.75}},
        "provenance": {"packages": {"torch": "2.9"}, "git_dirty": False},
        "unknown": 1,
    }
    assert provenance_lines(run) == [
        "run_id: r1",
        "status: complete",
        "fingerprint: ab12",
        "config.model: demo",
        "config.methods: vanilla,adadecode",
        "config.decode: gamma=0.75",
        "provenance.packages: torch=2.9",
        "provenance.git_dirty: False",
    ]


@pytest.mark.parametrize("run", [{}, {"config": None, "provenance": "lost"}])
def test_provenance_lines_of_a_damaged_run_are_empty(run):
    assert provenance_lines(run) == []


def test_workers_and_repeats_that_are_apart_are_told(row, samples_table):
    drawn = np.random.default_rng(0)
    rows = [
        row(
            "vanilla",
            f"s{n:02d}",
            repeat=repeat,
            worker_id=f"w{n % 2}",
            ttft_s=0.1,
            e2e_s=(2.0 + n % 2) * float(np.exp(0.01 * drawn.normal())),
        )
        for n in range(20)
        for repeat in (0, 1)
    ]
    lines = spread_lines(samples_table(*rows))
    assert len(lines) == 1
    assert lines[0].startswith("vanilla on demo varies in TPOT by 3")
    assert "% between 2 workers (0." in lines[0]
    assert "p < 0.001" in lines[0]
    assert "% between 2 repeats (" in lines[0]
    assert spread_lines(samples_table(row("vanilla"))) == []
