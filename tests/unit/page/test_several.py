"""Several runs on one page and a comparison as a page: their figures are those of the runs and of `compare`."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from adadecode.comparison.gates import Limits
from adadecode.comparison.result import compare_runs
from adadecode.comparison.tables import MARKDOWN_HEADS, comparison_rows
from adadecode.page import comparison
from adadecode.page.build import report_page
from adadecode.report.tables import speedup_text
from adadecode.runs.result import read_result
from tests.browser import CHROMIUM, browser
from tests.pages import data_of, lead_of, table_of, text_of
from tests.planting import OURS, Row, close_again, edit_json, plant, slowed

PUBLISHED = Path(__file__).parents[3] / "results" / "reference" / "smollm2-gsm8k"
HOSTILE = "<img src=x onerror=alert(1)>\u202e\x1b[31m"


def jitter(idx: int) -> float:
    return math.exp((0.02, -0.02)[idx % 2])


def changed(rows: list[Row]) -> None:
    """Another last token in all outputs of the first sample, and a hostile name in place of it."""
    first = rows[0]["sample_id"]
    for row in rows:
        if row["sample_id"] == first:
            row["output_token_ids"] = [*row["output_token_ids"][:-1], row["output_token_ids"][-1] + 1]


@pytest.fixture
def other(run) -> Path:
    """The run some 20 % slower, with one prompt's outputs changed, and other settings and versions."""
    folder = run.parent / "other"
    run.rename(folder)
    plant(folder, slowed(lambda idx: 1.2 * jitter(idx)))
    plant(folder, changed)
    close_again(folder)
    edit_json(folder / "run.json", lambda content: content["provenance"]["packages"].update(torch="<i>1.0</i>"))
    return folder


def page_of(cli, tmp_path, *arguments, exit_code=0) -> str:
    out = tmp_path / "page.html"
    result = cli("report", *arguments, "--html", "--out", out)
    assert result.exit_code == exit_code, result.output
    assert str(out) in result.stdout
    return out.read_text(encoding="utf-8")


def test_runs_stand_beside_each_other_with_what_differs_and_how_far_they_are_apart(cli, made, other, tmp_path):
    html = page_of(cli, tmp_path, made, other, PUBLISHED)
    shown = table_of(html, "All figures")
    for name, folder in (("run", made), ("other", other)):
        rows = {row["method"]: row for row in read_result(folder).summary.to_pylist()}
        of_run = {row["method"]: row for row in shown if row["run"] == name}
        assert of_run.keys() == rows.keys()
        for method, row in rows.items():
            assert of_run[method]["tokens/s"] == f"{row['tokens_per_s']:.1f}"
            assert of_run[method]["speedup (95 % interval)"] == speedup_text(row)
        assert f"{name} {rows[OURS]['speedup_geomean']:.2f}x (no interval, n = 5)" in lead_of(html)
        assert f"{name} 5/5, logits 5/5" in lead_of(html)
    assert {value["run"] for value in data_of(html)["charts"]["rates"]["data"]["values"]} == {
        "run",
        "other",
        PUBLISHED.name,
    }
    differs = {row["what"]: row for row in table_of(html, "What differs")}
    assert differs["provenance.packages.torch"]["other"] == "<i>1.0</i>"
    assert "<i>" not in html.split("<body>")[1].split("<script")[0]
    # between runs: five prompts, two runs, so the residuals have 10 - 2 - 4 degrees of freedom
    (spread,) = [row for row in table_of(html, "Variation") if row["method"] == OURS]
    times = [
        {
            (r["sample_id"]): r["e2e_s"]
            for f in sorted((folder / "samples").iterdir())
            for r in pq.ParquetFile(f).read().to_pylist()
            if r["method"] == OURS
        }
        for folder in (made, other)
    ]
    ratio = np.log([times[1][name] / times[0][name] for name in times[0]])
    within = ratio.var(ddof=1) / 2
    between = math.sqrt(max(0.0, (5 * ratio.mean() ** 2 / 2 - within) / 5))
    assert (spread["how many"], spread["apart by"], spread["within one"]) == (
        "2",
        f"{between:.1%}",
        f"{math.sqrt(within):.1%}",
    )
    assert between == pytest.approx(math.log(1.2) / math.sqrt(2), rel=0.05)


def test_without_html_runs_are_printed_in_turn_and_the_worst_exit_code_is_returned(
    cli, usage_error, made, other, tmp_path
):
    plant(other, lambda rows: changed([row for row in rows if row["method"] == OURS]))
    result = cli("report", made, other)
    assert result.exit_code == cli("report", other).exit_code == 3
    headings = [line for line in result.stdout.splitlines() if line.startswith("== ")]
    assert headings == [f"== {made}", f"== {other}"]
    assert cli("report", made, made).stdout.count("parity 5/5, logits 5/5") == 2
    refused = cli("report", made, tmp_path / "none")
    assert (refused.exit_code, refused.stdout) == (2, "")
    page = page_of(cli, tmp_path, made, other, exit_code=3)
    assert "other: parity broken on 1 of 10 checked outputs" in text_of(page).split("Charts")[0]
    assert "is given twice" in usage_error("report", made, made, "--html", "--out", tmp_path / "x.html")


def test_a_folder_of_runs_is_one_page_and_is_refused_among_runs(cli, usage_error, made, other, tmp_path):
    for name in ("x", "y"):
        shutil.copytree(made, tmp_path / "all" / name)
    page = page_of(cli, tmp_path, tmp_path / "all")
    assert {row["run"] for row in table_of(page, "All figures")} == {"x", "y"}
    assert "No difference in settings" in text_of(page)
    assert "nothing differs in settings, hashes, versions or machines" in lead_of(page)
    assert "holds runs and is none" in usage_error("report", made, tmp_path / "all", "--html", "--out", tmp_path / "p")


def test_of_many_runs_the_sentence_names_the_first():
    named = ["demo-gsm8k", "gsm8k-bf16", "gsm8k-fp32", "methods-gsm8k", "smollm2-gsm8k"]
    page = report_page(*(PUBLISHED.parent / name for name in named))
    assert "and 1 more runs; no run breaks parity; what differs: config." in lead_of(page.html)
    assert {row["run"] for row in table_of(page.html, "All figures")} == set(named)


def test_a_comparison_is_a_page_with_the_figures_that_it_prints(cli, made, other, tmp_path):
    file = tmp_path / "compared.html"
    result = cli("compare", made, other, "--html", file)
    assert result.exit_code == 0, result.stderr
    assert f"page: {file}" in result.stdout
    html, found = file.read_text(encoding="utf-8"), compare_runs(str(made), str(other), Limits())
    rows = [tuple(row.values()) for row in table_of(html, "What changed")]
    assert rows == [tuple(row) for row in comparison_rows(found, repeat_task=True)]
    assert list(table_of(html, "What changed")[0]) == list(MARKDOWN_HEADS)
    (ours,) = [change for change in found.changes if change.method == OURS]
    assert ours.speed is not None
    assert ours.speed.value == pytest.approx(1 / 1.2, rel=0.02)
    lead = lead_of(html)
    assert lead.startswith(
        f"Speed of {OURS} in B by A's: {ours.speed.value:.2f}x on jsonl (no interval, n = 5); parity A 5/5"
    )
    assert "B 5/5, logits" in lead
    assert "15 pairs of rows, 3 outputs differ" in lead
    assert "provenance.packages.torch" in lead
    drawn = {value["method"]: value["ratio"] for value in data_of(html)["charts"]["speed"]["data"]["values"]}
    assert drawn == {change.method: change.speed.value for change in found.changes if change.speed is not None}
    (row,) = table_of(html, "3 of 15 outputs differ")
    assert set(row["methods"].split(", ")) == {"vanilla", "vanilla-w1", OURS}
    assert found.outputs is not None
    (one,) = found.outputs.divergences
    assert one.at is not None
    assert row["differs at position"] == str(one.at)
    a, b = (of[one.at - one.start] for of in one.ids)
    assert f'<span class="tok diff"> w{a}</span>' in html  # as the model's tokenizer has it
    assert f'<span class="tok diff">{b} </span>' in html  # whose stored text is of other tokens


def test_no_text_of_a_compared_run_is_markup_and_rows_without_another_are_counted(
    cli, made, run, tmp_path, monkeypatch
):
    def alter(rows: list[Row]) -> None:
        changed(rows)
        last = rows[-1]["sample_id"]
        for row in rows:
            if row["sample_id"] == last:
                row["prompt_token_ids"] = [*row["prompt_token_ids"][:-1], 7]

    plant(run, alter, fits=False)
    monkeypatch.setattr(comparison, "fitting", lambda run, rows: lambda ids: HOSTILE * len(ids))
    edit_json(run / "run.json", lambda content: content["provenance"].update(platform=HOSTILE))
    file = tmp_path / "compared.html"
    cli("compare", made, run, "--html", file, "--markdown")
    html = file.read_text(encoding="utf-8")
    shown = html.split("<body>")[1].split("<script")[0]
    assert "<img" not in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;\\u202e\\x1b[31m" in shown
    counted = table_of(html, "Rows without another")
    assert {(row["rows that are"], row["rows"]) for row in counted} == {("of another prompt", "1")}
    assert {row["method"] for row in counted} == {"vanilla", "vanilla-w1", OURS}
    assert "3 rows are not compared" in lead_of(html)


def test_sweeps_and_published_runs_have_a_page_of_their_comparison(cli, made, other, tmp_path):
    for folder, names in (("a", {"x": made, "y": made, "z": made}), ("b", {"x": made, "y": other})):
        for name, run in names.items():
            shutil.copytree(run, tmp_path / folder / name)
    file = tmp_path / "compared.html"
    assert cli("compare", tmp_path / "a", tmp_path / "b", "--html", file, "--markdown").exit_code == 0
    html = file.read_text(encoding="utf-8")
    assert {row["cell"] for row in table_of(html, "What changed")} == {"x", "y"}
    assert lead_of(html).startswith("2 cells; speed in B by A's: least 0.8")
    assert "1 of 3 cells only in A, first z" in text_of(html)
    assert cli("compare", PUBLISHED, PUBLISHED, "--html", file).exit_code == 0
    html = file.read_text(encoding="utf-8")
    assert "summaries alone are compared" in lead_of(html)
    assert "cannot be written" in cli("compare", made, made, "--html", tmp_path / "no" / "x.html").stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser_both_draw_all_their_charts_and_say_nothing(cli, made, other, tmp_path):
    page_of(cli, tmp_path, made, other, PUBLISHED)
    cli("compare", made, other, "--html", tmp_path / "compared.html")
    with browser() as tab:
        for name in ("page.html", "compared.html"):
            for width in (1280, 390):
                tab.open(tmp_path / name, width)
                over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
                assert tab.evaluate(over) == 0, (name, width)
                charts = tab.evaluate("document.querySelectorAll('.chart').length")
                assert charts == tab.evaluate("document.querySelectorAll('.chart svg').length") >= 3
        assert [message["params"] for message in tab.messages] == []
