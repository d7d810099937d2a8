"""Rows for other tools: the same numbers as in the tables, under the names that vLLM and AIPerf give them."""

import csv
import io
import json

import duckdb
import pandas as pd
import polars as pl
import pytest

from adadecode.report.acceptance import accepted_per_round, speculative_decoding
from adadecode.runs.folder import read_samples
from tests.planting import each, plant

DRAFTED = {"draft_depths": [8, 8, 2, 4, 8, 2, 8], "num_rounds": 3, "num_drafted": 5, "num_accepted": 3, "lossy": False}


def lines(result) -> list:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_what_a_round_accepted_stands_between_the_tokens_that_the_whole_model_gave():
    assert accepted_per_round(DRAFTED["draft_depths"]) == [0, 2, 1]
    assert accepted_per_round([8]) == []


def test_acceptance_by_hand_under_the_names_of_vllm():
    assert speculative_decoding(DRAFTED, 4) == {
        "mean_acceptance_length": 2.0,  # 6 tokens of 3 rounds
        "draft_acceptance_rate": 0.6,
        "acceptance_histogram": [1, 1, 1, 0, 0],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 3,
        "num_draft_tokens": 5,
        "num_spec_tokens": 4,
        "num_accepted_tokens_per_pos": [2, 1, 0, 0],
        "per_step_accepted": [0, 2, 1],
    }


@pytest.mark.parametrize("changed", [{"lossy": True}, {"draft_depths": None}, {"num_drafted": None}, {"num_rounds": 4}])
def test_rows_without_verified_rounds_have_no_acceptance(changed):
    assert speculative_decoding(DRAFTED | changed, 4) is None


def test_an_output_of_one_token_has_no_step():
    one = speculative_decoding(DRAFTED | {"draft_depths": [8], "num_rounds": 0, "num_drafted": 0, "num_accepted": 0}, 2)
    assert (one["acceptance_histogram"], one["num_spec_steps"], one["mean_acceptance_length"]) == ([0, 0, 0], 0, 1.0)


@pytest.mark.parametrize("most_drafts", [10**30, 10**9, -1])
def test_a_limit_that_no_run_can_have_is_no_length_of_the_histogram(most_drafts):
    found = speculative_decoding(DRAFTED, most_drafts)
    assert (found["acceptance_histogram"], found["num_spec_tokens"]) == ([1, 1, 1], None)


def test_json_lines_hold_every_row_and_its_acceptance(cli, run):
    found, rows = lines(cli("export", run, "--json")), read_samples(run).to_pylist()
    assert len(found) == len(rows) == 36
    for line, row in zip(found, rows, strict=True):
        record = line.pop("speculative_decoding")
        row["started_at"] = row["started_at"].isoformat()
        assert line == row
        assert (record is None) == (row["method"] != "adadecode")
        if record is not None:
            assert sum(record["acceptance_histogram"]) == record["num_spec_steps"] == row["num_rounds"]
            assert sum(record["num_accepted_tokens_per_pos"]) == row["num_accepted"]
            later = row["output_len"] - 1
            assert record["mean_acceptance_length"] == pytest.approx(later / row["num_rounds"])


def test_a_csv_is_read_by_pandas_with_the_same_numbers(cli, run, tmp_path):
    out = tmp_path / "rows.csv"
    result = cli("export", run, "--csv", "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"36 rows: {out}\n")
    found, rows = pd.read_csv(out), read_samples(run).to_pandas()
    assert found["e2e_s"].tolist() == rows["e2e_s"].tolist()
    assert found["output_token_ids"].map(json.loads).tolist() == rows["output_token_ids"].map(list).tolist()
    for table in (pl.read_csv(out).to_arrow(), duckdb.read_csv(str(out)).to_arrow_table()):
        assert table["e2e_s"].to_pylist() == rows["e2e_s"].tolist()
        assert table["output_text"].to_pylist() == rows["output_text"].tolist()
    ours = found[found["method"] == "adadecode"]
    assert ours["draft_acceptance_rate"].tolist() == pytest.approx(
        (ours["num_accepted"] / ours["num_drafted"]).tolist()
    )


def test_json_lines_are_read_by_polars_and_duckdb_with_their_nested_columns(cli, run, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert cli("export", run, "--json", "--method", "adadecode", "--out", out).exit_code == 0
    rows = [row for row in read_samples(run).to_pylist() if row["method"] == "adadecode"]
    for table in (pl.read_ndjson(out).to_arrow(), duckdb.read_json(str(out)).to_arrow_table()):
        for name in ("e2e_s", "output_token_ids", "output_text", "drafted_per_exit"):
            assert table[name].to_pylist() == [row[name] for row in rows]
        accepted = [record["acceptance_histogram"] for record in table["speculative_decoding"].to_pylist()]
        assert [sum(histogram) for histogram in accepted] == [row["num_rounds"] for row in rows]


def test_aiperfs_records_are_of_one_method(cli, run):
    found = lines(cli("export", run, "--aiperf"))
    rows = read_samples(run).to_pylist()
    ours = [row for row in rows if row["method"] == "adadecode"]
    assert len(found) == len(ours) == 12
    for idx, (line, row) in enumerate(zip(found, ours, strict=True)):
        assert line["error"] is None
        assert line["metadata"]["session_num"] == idx
        assert line["metadata"]["conversation_id"] == f"demo-math/{row['sample_id']}"
        took_ns = line["metadata"]["request_end_ns"] - line["metadata"]["request_start_ns"]
        assert took_ns == pytest.approx(1e9 * row["e2e_s"], abs=1)
        metrics = {name: metric["value"] for name, metric in line["metrics"].items()}
        assert metrics["request_latency"] == pytest.approx(1000 * row["e2e_s"])
        assert metrics["inter_token_latency"] == pytest.approx(1000 * row["tpot_s"])
        assert sum(metrics["inter_chunk_latency"]) == pytest.approx(1000 * row["decode_s"], rel=1e-4)
        assert metrics["output_sequence_length"] == row["output_len"]
        accepted = line["spec_decode_acceptance"]
        assert sum(accepted["acceptance_histogram"].values()) == accepted["num_spec_steps"] == row["num_rounds"]
        assert sum(int(n) * count for n, count in accepted["acceptance_histogram"].items()) == row["num_accepted"]
    others = lines(cli("export", run, "--aiperf", "--method", "vanilla"))
    assert len(others) == 12
    assert not any("spec_decode_acceptance" in line for line in others)


def test_a_failed_row_is_a_record_with_its_error(cli, run):
    def fail(rows):
        row = next(row for row in rows if row["method"] == "adadecode")
        kept = ("run_id", "task", "sample_id", "method", "repeat", "shard", "worker_id", "attempt", "started_at")
        row.update({name: value if name in kept else None for name, value in row.items()})
        row.update(status="error", error_type="OutOfMemoryError", error_message="gone")

    plant(run, fail)
    first = lines(cli("export", run, "--aiperf"))[0]
    assert first["error"] == {"code": None, "type": "OutOfMemoryError", "message": "gone"}
    assert first["metrics"] == {}
    assert lines(cli("export", run, "--json", "--method", "adadecode"))[0]["speculative_decoding"] is None


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@x", "\tx", "\r=1", "\n=1", "\uff1d1"])
def test_text_of_a_model_is_nothing_that_a_spreadsheet_computes(cli, run, text):
    plant(run, each("adadecode", output_text=lambda row: text))
    result = cli("export", run, "--csv", "--method", "adadecode")
    (head, *rows) = csv.reader(io.StringIO(result.stdout, newline=""))
    assert {row[head.index("output_text")] for row in rows} == {f"'{text}"}
    assert all(float(row[head.index("e2e_s")]) > 0 for row in rows)


def test_hostile_text_and_times_are_valid_json_on_a_line_each(cli, run):
    text = "<script>\x1b[31m\u202e\u2028\n\r\"'" + "x" * 100_000
    plant(run, each(output_text=lambda row: text, e2e_s=lambda row: float("inf"), tpot_s=lambda row: float("nan")))
    found = lines(cli("export", run, "--json"))
    assert len(found) == 36
    assert {line["output_text"] for line in found} == {text}
    assert {(line["e2e_s"], line["tpot_s"]) for line in found} == {(None, None)}
    assert "request_latency" not in lines(cli("export", run, "--aiperf"))[0]["metrics"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "export with no form: give one of --csv, --json and --aiperf"),
        (["--csv", "--json"], "export with --csv --json: give one of"),
        (["--csv", "--method", "medusa"], "--method medusa: the run's methods are vanilla, vanilla-w1, adadecode"),
    ],
)
def test_what_cannot_be_exported_is_one_line(usage_error, run, flags, said):
    assert said in usage_error("export", run, *flags)


def test_a_file_that_cannot_be_written_is_one_line(usage_error, run, tmp_path):
    assert "cannot be written: " in usage_error("export", run, "--csv", "--out", tmp_path / "none" / "x.csv")
    assert "is not a run folder" in usage_error("export", tmp_path, "--csv", "--out", tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
