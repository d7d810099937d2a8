"""Faults planted in the stored tables of a finished run: an altered summary.parquet or verify.parquet is told."""

import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.runs.folder import RunFolder
from adadecode.runs.result import read_result
from adadecode.runs.table_checks import summary_lines
from tests.planting import GOLDEN, OURS, W1, edit_json, edit_table


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"speedup_geomean": lambda x: 9.9},
            "in speedup_geomean; first demo-math vanilla: speedup_geomean is stored as 9.9",
        ),
        ({"speedup_total": lambda x: 9.9}, "in speedup_total; first "),
        ({"n": lambda x: 13}, "in n; first demo-math vanilla: n is stored as 13 and recomputed as 12"),
        ({"tokens_per_s": lambda x: 2 * x}, "in tokens_per_s; first "),
        ({"num_correct": lambda x: 12}, "in num_correct; first demo-math vanilla: num_correct is stored as 12"),
        (
            {"num_parity_exact": lambda x: x and 11},
            "summary.parquet: 2 rows are not what the samples give, in num_parity",
        ),
        ({"method": lambda x: x + "!"}, "summary.parquet: it has 3 rows, and not those of the 3 that the samples give"),
    ],
)
def test_an_altered_summary_is_told_by_column_and_value(run, cli, columns, said):
    edit_table(run / "summary.parquet", **columns)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert said in result.stdout


def test_intervals_of_a_summary_may_be_those_of_another_version(run, cli):
    edit_table(run / "summary.parquet", speedup_geomean_low=lambda x: 0.5, speedup_geomean_high=lambda x: None)
    table = pq.read_table(run / "summary.parquet")
    pq.write_table(table.drop_columns(["consistency", "lossy", "num_tpot"]), run / "summary.parquet")
    assert cli("verify", run).exit_code == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"baseline": lambda x: OURS, "speedup_geomean": lambda x: 9.9},
            "in baseline, speedup_geomean; first demo-math vanilla: baseline is stored as adadecode and recomputed as",
        ),
        (
            {"baseline": lambda x: None, "speedup_geomean": lambda x: 9.9},
            "in baseline, speedup_geomean; first demo-math vanilla: baseline is stored as None",
        ),
        (
            {"speedup_geomean_low": lambda x: 9.9, "speedup_geomean_high": lambda x: 10.0},
            "the speedup of demo-math adadecode is 1.4008444327672704, outside of its interval from 9.9 to 10.0",
        ),
        ({"speedup_geomean_high": lambda x: math.nan}, "outside of its interval from "),
        ({"num_prompts": lambda x: 60}, "in num_prompts; first demo-math vanilla: num_prompts is stored as 60"),
    ],
)
def test_a_headline_of_an_older_version_cannot_be_forged_by_its_baseline_or_interval(run, cli, columns, said):
    edit_table(run / "summary.parquet", **columns)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert said in result.stdout


def test_the_one_baseline_of_an_older_version_may_be_the_other_vanilla(run, cli):
    edit_table(run / "summary.parquet", baseline=lambda x: W1, speedup_geomean=lambda x: 1.0)
    edit_table(run / "summary.parquet", speedup_geomean_low=lambda x: None, speedup_geomean_high=lambda x: None)
    assert cli("verify", run).exit_code == 0


@pytest.mark.parametrize("name", ["baseline", "baseline_total", "num_engines", "num_prompts", "speedup_geomean"])
def test_a_summary_of_this_version_is_compared_in_its_baselines_too(run, name):
    found = read_result(run).summary
    assert summary_lines(found, found) == []
    altered = {"baseline": W1, "baseline_total": W1, "speedup_geomean": 1.01}.get(name, 7)
    rows = [row | {name: altered} for row in found.to_pylist()]
    (line,) = summary_lines(pa.Table.from_pylist(rows, schema=found.schema), found)
    assert f"in {name}; first demo-math" in line


def test_an_altered_verify_table_is_told(run, cli):
    edit_table(run / "verify.parquet", parity=lambda parity: "mismatch")
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "verify.parquet: 24 rows are not what the samples give, in parity; first demo-math demo-math-000 " in (
        result.stdout
    )
    (run / "verify.parquet").write_bytes(b"PAR1")
    assert "verify.parquet: it cannot be read (" in cli("verify", run).stdout


@pytest.mark.parametrize("names", [("summary",), ("verify",), ("summary", "verify")])
def test_a_complete_run_without_its_tables_is_told(run, cli, names):
    for name in names:
        (run / f"{name}.parquet").unlink()
    for command in ("verify", "report"):
        result = cli(command, run)
        assert result.exit_code == 3
        for name in names:
            assert f"{name}.parquet: it is missing, though run.json says complete" in result.stdout


def closed_now(run: Path) -> None:
    """Closes `run` again, with tables of the present version."""
    result, folder = read_result(run), RunFolder(run)
    folder.write_table("verify.parquet", result.verify)
    folder.write_table("summary.parquet", result.summary)


@pytest.mark.parametrize(
    ("table", "name"), [("summary", "baseline_total"), ("summary", "speedup_geomean_low"), ("verify", "method_margin")]
)
def test_a_column_missing_in_a_table_of_this_version_is_told(run, cli, table, name):
    closed_now(run)
    assert cli("verify", run).exit_code == 0
    file = run / f"{table}.parquet"
    pq.write_table(pq.read_table(file).drop_columns([name]), file)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"{table}.parquet: it has no column {name}" in result.stdout


def test_an_interval_of_this_version_that_is_removed_or_widened_is_told(run, cli):
    closed_now(run)
    edit_table(run / "summary.parquet", speedup_geomean_low=lambda _: 1e-9, speedup_geomean_high=lambda _: 1e9)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "in speedup_geomean_low, speedup_geomean_high; first demo-math " in result.stdout
    found = read_result(run).summary
    drawn = pa.Table.from_pylist(
        [row | {"speedup_geomean_low": 0.5, "speedup_geomean_high": 2.0} for row in found.to_pylist()], found.schema
    )
    (line,) = summary_lines(found, drawn)
    assert "3 rows are not what the samples give, in speedup_geomean_low, speedup_geomean_high; first " in line
    assert summary_lines(found, drawn, 2) == [], "an older version may have drawn them in another way"


def test_a_table_that_names_no_schema_version_is_told(run, cli):
    file = run / "summary.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "summary.parquet: it names no schema version, as tables of runs do" in result.stdout


@pytest.mark.parametrize("status", ["incomplete", ["x"], "done", None, {"a": 1}], ids=str)
def test_a_status_that_was_edited_keeps_no_table_from_being_compared(run, cli, status):
    edit_json(run / "run.json", lambda content: content.update(status=status))
    known = status == "incomplete"
    result = cli("verify", run)
    assert result.exit_code == (0 if known else 3)
    assert ("run.json: its status is " in result.stdout) is not known
    edit_table(run / "summary.parquet", e2e_p50_s=lambda value: value / 2)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "summary.parquet: 3 rows are not what the samples give, in e2e_p50_s; first demo-math " in result.stdout


def test_tables_of_before_are_no_contradiction_when_a_late_worker_has_committed_the_rest(run, cli):
    shutil.copy(GOLDEN.parent / "interrupted" / "summary.parquet", run)
    shutil.copy(GOLDEN.parent / "interrupted" / "verify.parquet", run)
    edit_json(run / "run.json", lambda content: content.update(status="incomplete"))
    assert cli("verify", run).exit_code == 0
