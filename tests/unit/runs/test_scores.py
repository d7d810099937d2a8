"""scores.parquet: made from a run's rows, again without decoding, and held against them."""

import dataclasses
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.report.schema import SCORES
from adadecode.report.scores import mean_scores
from adadecode.runs.scores import score_run
from adadecode.scoring import rouge
from adadecode.scoring.gsm8k import SCORER
from adadecode.scoring.scorer import Scorer
from adadecode.tasks import TASKS
from tests.planting import OURS, VANILLA, each, edit_table, once, plant


def scores_of(run) -> pa.Table:
    return pq.read_table(run / "scores.parquet")


def right_in_two_samples(row) -> str:
    return f"#### {row['reference']}" if row["sample_id"] in ("demo-math-000", "demo-math-001") else "#### none"


def scored_by(monkeypatch, scorer: Scorer | None) -> None:
    monkeypatch.setitem(TASKS, "demo-math", dataclasses.replace(TASKS["demo-math"], scorer=scorer))


def test_every_ok_row_has_a_score_for_each_metric(run, cli):
    plant(run, each(output_text=right_in_two_samples))
    result = cli("score", run)
    assert result.exit_code == 0, result.stderr
    scores = scores_of(run)
    assert scores.schema.equals(SCORES)
    assert scores.num_rows == 6 * 3 * 2 * 2  # samples, methods, repeats, metrics
    assert {(row["scorer"], row["scorer_version"]) for row in scores.to_pylist()} == {("gsm8k", SCORER.version)}
    for row in scores.to_pylist():
        assert row["score"] == float(row["sample_id"] in ("demo-math-000", "demo-math-001")), row
    assert "strict" in result.stdout
    assert "0.333" in result.stdout


def test_scoring_again_gives_the_same_bytes(run, cli):
    cli("score", run)
    before = (run / "scores.parquet").read_bytes()
    result = cli("score", run)
    assert (run / "scores.parquet").read_bytes() == before
    assert "gave before" not in result.stdout


def test_a_stored_score_that_the_same_scorer_does_not_give_is_told(run, cli):
    cli("score", run)
    edit_table(run / "scores.parquet", score=lambda score: 1.0)
    assert (
        "72 scores are not those that the same version of the scorer gave before, first "
        "demo-math/demo-math-000 adadecode repeat 0" in cli("score", run).stdout
    )
    assert set(scores_of(run)["score"].to_pylist()) == {0.0}


def test_error_rows_have_no_scores(run, cli):
    def fail(row):
        row |= dict.fromkeys(("output_text", "output_token_ids", "output_len", "parity", "logits_equal"))
        row |= {"status": "error", "finish_reason": "error", "error_type": "ValueError", "error_message": "no"}

    plant(run, lambda rows: fail(next(row for row in rows if row["method"] == OURS)))
    assert cli("score", run).exit_code == 0
    assert scores_of(run).num_rows == 6 * 3 * 2 * 2 - 2


def test_a_scorer_that_fails_on_a_row_gives_a_null_with_the_reason_and_the_others_go_on(run, cli, monkeypatch):
    def touchy(text: str, reference: str) -> dict[str, float]:
        if reference == "12":
            raise KeyError("twelve\nlines")
        return {"inverse": 1 / (int(reference) - 93), "worst": float("nan")}

    plant(run, each(reference=lambda row: {"demo-math-000": "12", "demo-math-001": "93"}.get(row["sample_id"], "94")))
    scored_by(monkeypatch, Scorer("touchy", 3, ("inverse", "worst"), touchy))
    result = cli("score", run)
    assert result.exit_code == 0
    rows = scores_of(run).to_pylist()
    assert all((row["score"] is None) == (row["reason"] is not None) for row in rows)
    assert {(row["sample_id"], row["reason"]) for row in rows if row["metric"] == "inverse"} == {
        ("demo-math-000", r"KeyError: 'twelve\nlines'"),
        ("demo-math-001", "ZeroDivisionError: division by zero"),
        *((f"demo-math-00{idx}", None) for idx in range(2, 6)),
    }
    assert {row["reason"] for row in rows if row["metric"] == "worst" and row["sample_id"] == "demo-math-002"} == {
        "the score is nan"
    }


def test_a_row_without_a_reference_has_no_score(run, cli):
    plant(run, each(reference=lambda row: None))
    assert cli("score", run).exit_code == 0
    assert set(scores_of(run)["reason"].to_pylist()) == {"the row has no reference"}
    assert scores_of(run)["score"].null_count == 72


def test_verify_and_report_tell_scores_beside_parity(run, cli):
    assert "scores" not in cli("verify", run).stdout, "runs without scores are read as before"
    plant(run, each(output_text=right_in_two_samples), fits=True)
    cli("score", run)
    for command in ("verify", "report"):
        assert "scores demo-math: strict 0.333, flexible 0.333\n" in cli(command, run).stdout


def test_equal_tokens_with_other_scores_are_a_contradiction(run, cli):
    """Texts that are not those of their tokens: what equals vanilla in tokens must equal it in scores."""
    plant(run, once(OURS, output_text="#### 93"))
    plant(run, once(VANILLA, reference="93"))
    result = cli("score", run)
    assert result.exit_code == 3
    said = "a score is not vanilla's, though the tokens are: 2 rows, first demo-math/demo-math-000 adadecode"
    assert said in result.stdout
    verified = cli("verify", run)
    assert verified.exit_code == 3
    assert said in verified.stdout
    assert "scores demo-math: strict 0.000, flexible 0.000 (vanilla, vanilla-w1); strict 0.083" in verified.stdout


def test_an_altered_score_is_found_by_verify(run, cli):
    cli("score", run)
    assert cli("verify", run).exit_code == 0
    table = scores_of(run)
    rows = table.to_pylist()
    next(row for row in rows if row["method"] == OURS)["score"] = None
    pq.write_table(pa.Table.from_pylist([*rows, rows[-1]], schema=SCORES), run / "scores.parquet")
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "scores.parquet: a score is there twice: 1 rows, first demo-math/demo-math-005" in result.stdout
    assert "scores.parquet: a score is not vanilla's, though the tokens are: 1 rows, first demo-math/" in result.stdout


def test_a_table_of_scores_that_cannot_be_read_is_made_again(run, cli):
    (run / "scores.parquet").write_bytes(b"PAR1 and no more")
    assert cli("verify", run).exit_code == 0
    assert cli("score", run).exit_code == 0
    assert scores_of(run).num_rows == 72


def test_what_cannot_be_scored_is_one_line(run, usage_error, tmp_path, monkeypatch):
    assert "is not a run folder" in usage_error("score", tmp_path / "nothing")
    assert "is empty: give one" in usage_error("score", "")
    scored_by(monkeypatch, Scorer("picky", 1, ("x",), lambda text, reference: {}, missing=lambda: "pip install picky"))
    assert usage_error("score", run) == "adadecode: task demo-math: pip install picky"
    scored_by(monkeypatch, None)
    assert usage_error("score", run).endswith("nothing to score, as task demo-math has no scorer")
    shutil.rmtree(run / "commits")
    assert "it has no committed rows" in usage_error("score", run)


def test_a_run_is_scored_in_a_bucket_too(run, location):
    from adadecode.runs.storage import open_storage

    storage = open_storage(location)
    for file in filter(lambda path: path.is_file(), run.rglob("*")):
        storage.create(str(file.relative_to(run)), file.read_bytes())
    assert score_run(location).table.num_rows == 72
    assert "scores.parquet" in storage.list("")


def test_an_evaluation_ends_with_scores(cli, tmp_path):
    out = tmp_path / "run"
    flags = ("--task", "demo-math", "--limit", 2, "--max-new-tokens", 8, "--local", "--threads", 1)
    result = cli("eval", *flags, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "scores demo-math: strict 0.000, flexible 0.000" in result.stdout
    assert scores_of(out).num_rows == 2 * 3 * 2
    before = (out / "scores.parquet").read_bytes()
    (out / "scores.parquet").unlink()
    assert cli("eval", *flags, "--out", out).exit_code == 0, "nothing is left to decode"
    assert (out / "scores.parquet").read_bytes() == before
    assert cli("verify", out).exit_code == 0


def test_an_evaluation_says_which_package_its_scores_lack(cli, tmp_path, monkeypatch):
    scored_by(
        monkeypatch, Scorer("picky", 1, ("x",), lambda text, reference: {"x": 1.0}, missing=lambda: "pip install picky")
    )
    flags = ("--task", "demo-math", "--limit", 1, "--max-new-tokens", 4, "--local", "--threads", 1)
    result = cli("eval", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "demo-math is not scored: pip install picky" in result.stdout
    assert scores_of(tmp_path / "run").num_rows == 0


def test_summaries_are_scored_by_rouge_once_a_task_names_it(run, cli, monkeypatch):
    plant(run, each(output_text=lambda row: "The cat sat.", reference=lambda row: "the cats sit"))
    scored_by(monkeypatch, rouge.SCORER)
    assert cli("score", run).exit_code == 0
    means = {row["metric"]: row["score"] for row in mean_scores(scores_of(run)) if row["method"] == OURS}
    assert means == pytest.approx({"rouge1": 2 / 3, "rouge2": 1 / 2, "rougeL": 2 / 3})


def test_a_task_without_a_scorer_has_no_table(cli, tiny, tmp_path):
    assert cli("eval", "--local", *tiny.flags(limit=1), "--out", tmp_path / "run").exit_code == 0
    assert not (tmp_path / "run" / "scores.parquet").exists()
