"""A run's page and everything else that tells its numbers agree; a run that is not as it should be has a page too."""

import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from adadecode.page.build import report_page
from adadecode.page.figures import latency_texts
from adadecode.report.stats import percentiles
from adadecode.report.tables import speedup_text
from tests.folders import undo_shard
from tests.pages import data_of, lead_of, table_of, text_of
from tests.planting import OURS, Row, close_again, each, edit_json, plant
from tests.queries import asked_of_duckdb

GOLDEN = Path(__file__).parents[2] / "golden"
SCORED = GOLDEN / "run-schema-4"  # nine prompts with scores
PUBLISHED = Path(__file__).parents[3] / "results" / "reference"


@pytest.fixture(scope="module")
def page() -> str:
    return report_page(SCORED).html


def test_the_stored_summary_a_query_of_the_rows_the_terminal_and_the_page_say_the_same(cli, page):
    stored = {row["method"]: row for row in pq.read_table(SCORED / "summary.parquet").to_pylist()}
    asked = {row["method"]: row for row in asked_of_duckdb(SCORED)}
    shown = {row["method"]: row for row in table_of(page, "All figures")}
    drawn = {value["method"]: value for value in data_of(page)["charts"]["speedups"]["data"]["values"]}
    printed = " ".join(cli("report", SCORED).stdout.split())
    assert stored.keys() == asked.keys() == shown.keys()
    for method, row in stored.items():
        query, cells = asked[method], shown[method]
        for name in ("n", "tokens_per_s", "ttft_p50_s", "acceptance_rate", "speedup_geomean"):
            assert query[name] == (None if row[name] is None else pytest.approx(row[name])), (method, name)
        five = {
            "n": str(query["n"]),
            "tokens/s": f"{query['tokens_per_s']:.1f}",
            "acceptance": "-" if query["acceptance_rate"] is None else f"{query['acceptance_rate']:.1%}",
            "speedup (95 % interval)": speedup_text(row),
            "parity": "-" if method == "vanilla" else f"{query['num_parity_exact']}/{query['num_parity_checked']}",
        }
        assert {name: cells[name] for name in five} == five
        assert f" {method} {' '.join(five.values())} " in printed
        assert cells["TTFT ms p50"] == f"{1000 * query['ttft_p50_s']:.1f}"
        if method != row["baseline"]:
            assert five["speedup (95 % interval)"].startswith(f"{query['speedup_geomean']:.2f}x (")
            assert drawn[method]["speedup"] == pytest.approx(query["speedup_geomean"])
    assert f"{asked[OURS]['speedup_geomean']:.2f}x" in lead_of(page)


def test_percentiles_have_their_number_and_p99_only_from_a_hundred_values_on(page):
    stored = {row["method"]: row for row in pq.read_table(SCORED / "summary.parquet").to_pylist()}
    rows = table_of(page, "Percentiles of times; p99 is shown from 100 values on")
    assert len(rows) == 3 * len(stored)
    for row in rows:
        of, n = {"TTFT": ("ttft", "n"), "TPOT": ("tpot", "num_tpot"), "e2e": ("e2e", "n")}[row["time"]]
        figures = stored[row["method"]]
        assert row["n"] == str(figures[n])
        assert row["p50, ms"] == f"{1000 * figures[f'{of}_p50_s']:.2f}"
        assert row["p90, ms"] == f"{1000 * figures[f'{of}_p90_s']:.2f}"
        assert row["p99, ms"] == "n < 100"
    assert latency_texts(percentiles(np.arange(101) / 1000)) == ("101", "50.00", "90.00", "99.00")


def test_scores_stand_there_by_metric(page):
    scores = pq.read_table(SCORED / "scores.parquet").to_pylist()
    rows = table_of(page, "Mean scores")
    assert {row["metric"] for row in rows} == {row["metric"] for row in scores}
    for row in rows:
        of = [s["score"] for s in scores if (s["metric"], s["method"]) == (row["metric"], row["method"])]
        assert (row["n"], row["mean score"]) == (str(len(of)), f"{sum(of) / len(of):.3f}")


def test_the_command_stands_there_as_it_was_typed(run):
    typed = "adadecode eval --task jsonl --data-file '<b> & \"x\".jsonl'"
    edit_json(run / "run.json", lambda content: content["starts"][0].update(command=typed))
    html = report_page(run).html
    assert f" {typed} " in text_of(html.replace("</pre>", " </pre>"))
    assert "<b> &" not in html.split("<body>")[1].split("<script")[0]


def test_workers_that_are_apart_are_told_and_one_alone_is_not(run):
    assert "Between workers and repeats" not in text_of(report_page(run).html)

    def second_worker(rows: list[Row]) -> None:
        for row in rows:
            if row["sample_id"] in sorted({row["sample_id"] for row in rows})[:2]:
                row["worker_id"] = "other"

    plant(run, second_worker, fits=False)
    rows = [row for file in (run / "samples").iterdir() for row in pq.ParquetFile(file).read().to_pylist()]
    logs = [
        [math.log(r["tpot_s"]) for r in rows if r["method"] == OURS and (r["worker_id"] == "other") is is_other]
        for is_other in (True, False)
    ]
    within = math.sqrt(sum(np.var(of) * len(of) for of in logs) / 3)  # five values less two means
    (shown,) = [row for row in table_of(report_page(run).html, "Variation") if row["method"] == OURS]
    assert (shown["between"], shown["in"], shown["how many"]) == ("workers", "TPOT", "2")
    assert shown["within one"] == f"{within:.1%}"


def broken(run: Path) -> None:
    plant(
        run, each(OURS, output_token_ids=lambda row: [*row["output_token_ids"][:-1], row["output_token_ids"][-1] + 1])
    )
    close_again(run)


def failed(run: Path) -> None:
    gone = (
        "output_token_ids",
        "output_text",
        "draft_depths",
        "rejected",
        "exits",
        "drafted_per_exit",
        "accepted_per_exit",
    )
    gone += ("ttft_s", "e2e_s", "decode_s", "tpot_s", "step_gaps_s", "num_rounds", "num_drafted", "num_accepted")
    gone += ("layers_per_token", "parity", "logits_equal", "logits_digest", "output_len")

    def fail(rows: list[Row]) -> None:
        for row in rows:
            error = {"status": "error", "error_type": "RuntimeError", "error_message": "no\nmemory <b>"}
            row |= error | dict.fromkeys(gone) | {"finish_reason": "error"}

    plant(run, fail, fits=False)


def nothing_done(run: Path) -> None:
    undo_shard(run, 0)
    for name in ("summary", "verify"):
        (run / f"{name}.parquet").unlink()
    edit_json(run / "run.json", lambda content: content.update(status="running"))


@pytest.mark.parametrize(("wrong", "code"), [(broken, 3), (nothing_done, 4), (failed, None), (lambda run: None, 0)])
def test_the_exit_code_is_that_of_report_and_the_page_is_written_and_says_why(cli, run, wrong, code):
    """Every sample failed: whatever `report` says of rows that were made like that."""
    wrong(run)
    printed = cli("report", run)
    result = cli("report", run, "--html")
    assert result.exit_code == printed.exit_code == (printed.exit_code if code is None else code)
    assert result.stderr.endswith(printed.stderr)
    html = (run / "report.html").read_text(encoding="utf-8")
    for line in result.stderr.splitlines():
        assert line in text_of(html).split("Charts")[0]
    assert (wrong in (failed, nothing_done)) == ("No speedup was measured" in lead_of(html))


def test_an_interrupted_run_of_the_first_version_has_a_page():
    page = report_page(GOLDEN / "run-0.1.0" / "interrupted")
    assert page.exit_code == 4
    assert "planned rows are missing" in text_of(page.html)


def test_a_run_without_a_plan_a_certification_and_no_run_are_one_line(run, usage_error, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copy(run / "run.json", tmp_path / "empty" / "run.json")
    assert "plan.parquet cannot be read" in usage_error("report", tmp_path / "empty", "--html")
    assert "is not a run folder" in usage_error("report", tmp_path / "none", "--html")
    edit_json(run / "run.json", lambda content: content.update(kind="certify"))
    assert "this is a certification; drop --html" in usage_error("report", run, "--html")
    assert not list(tmp_path.rglob("report.html"))


@pytest.mark.parametrize("name", ["smollm2-gsm8k", "methods-gsm8k", "gpu/eval-demo"])
def test_a_run_that_was_published_without_its_rows_has_a_page_of_its_summary(cli, tmp_path, name):
    folder = PUBLISHED / name
    result = cli("report", folder, "--html", "--out", tmp_path / "page.html")
    assert result.exit_code == cli("report", folder).exit_code == 0
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    rows = pq.read_table(folder / "summary.parquet").to_pylist()
    assert len(table_of(html, "All figures")) == len(rows)
    assert "nothing was recomputed" in text_of(html)
    assert 'id="samples"' not in html
    ours = [row for row in rows if row["method"] == OURS and row.get("category") is None]
    assert all(f"{row['speedup_geomean']:.2f}x on {row['task']}" in lead_of(html) for row in ours[:3])
