"""The drafts that were rejected: kept by the engine, stored in the rows, checked against the rows' counts."""

import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adadecode.report.schema import SAMPLES
from tests.planting import OURS, Row, plant


@pytest.fixture(scope="module")
def made(tiny, cli, tmp_path_factory) -> Path:
    """A finished run of five samples with vanilla and AdaDecode, which rejects drafts of the tiny model, early too."""
    out = tmp_path_factory.mktemp("rejected") / "run"
    flags = tiny.flags(methods="vanilla,adadecode", reject=0.01, shard_size=5)
    result = cli("eval", *flags, "--ngram", "0.2", "--local", "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def rows_of(run: Path, method: str = OURS) -> list[Row]:
    rows = [row for file in sorted((run / "samples").iterdir()) for row in pq.ParquetFile(file).read().to_pylist()]
    return [row for row in rows if row["method"] == method]


def test_the_rows_hold_each_draft_that_was_not_accepted(made):
    rows = rows_of(made)
    assert sum(len(row["rejected"]) for row in rows) >= 5, "the test needs some"
    for row in rows:
        assert len(row["rejected"]) == row["num_drafted"] - row["num_accepted"]
        of_exit = [sum(draft["exit"] == exit_layer for draft in row["rejected"]) for exit_layer in row["exits"]]
        missed = [a - b for a, b in zip(row["drafted_per_exit"], row["accepted_per_exit"], strict=True)]
        assert of_exit == missed
    assert {row["rejected"] for row in rows_of(made, "vanilla")} == {None}


def test_the_draft_at_which_a_round_ended_was_another_token_than_the_outputs(made):
    """Unless the output ended there, the whole model's token stands where the first draft it refuted would have."""
    num_seen = 0
    for row in rows_of(made):
        given = [at for at, depth in enumerate(row["draft_depths"]) if depth == max(row["draft_depths"])]
        for round_idx, at in enumerate(given[1:-1]):
            here = [d for d in row["rejected"] if (d["round_idx"], d["position"]) == (round_idx, at)]
            if here:
                num_seen += 1
                assert here[-1]["token_id"] != row["output_token_ids"][at]
    assert num_seen


def test_a_good_run_is_verified(made, cli):
    assert cli("verify", made).exit_code == 0


def changed(rejected: list[Row], **values: int) -> list[Row]:
    return [rejected[0] | values, *rejected[1:]]


FAULTS = {
    "one fewer": (lambda r: r[1:], "rejected are not num_drafted - num_accepted"),
    "of another exit": (lambda r: changed(r, exit=3), "rejected are not drafted_per_exit - accepted_per_exit"),
    "a negative token": (lambda r: changed(r, token_id=-5), "rejected has negative token ids"),
    "a round past the last": (
        lambda r: changed(r, round_idx=99),
        "rejected has rounds that are not the row's, in order",
    ),
    "a negative round": (lambda r: changed(r, round_idx=-1), "rejected has rounds that are not the row's, in order"),
    "before its round": (lambda r: changed(r, position=0), "rejected has positions outside of their rounds"),
    "past the output": (lambda r: changed(r, position=5000), "rejected has positions outside of their rounds"),
    "none at all": (lambda r: None, "rejected is missing in rows of a schema version that has it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_what_was_rejected_is_found(run, cli, name):
    change, line = FAULTS[name]

    def alter(rows: list[Row]) -> None:
        row = next(row for row in rows if row["method"] == OURS and row["rejected"])
        row["rejected"] = change(row["rejected"])

    plant(run, alter)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"{line}: 1 " in result.stdout, result.stdout


def test_a_method_that_drafts_nothing_has_none(run, cli):
    def alter(rows: list[Row]) -> None:
        next(row for row in rows if row["method"] == "vanilla")["rejected"] = []

    plant(run, alter)
    assert "rejected is there, but there are no counts of drafts: 1 rows" in cli("verify", run).stdout


def test_a_part_of_a_rejected_draft_that_is_missing_is_one_clear_line(run, usage_error):
    def alter(rows: list[Row]) -> None:
        row = next(row for row in rows if row["method"] == OURS and row["rejected"])
        row["rejected"] = changed(row["rejected"], exit=None)

    plant(run, alter, fits=False)
    assert "column rejected has lists in which a value is missing" in usage_error("verify", run)


def test_a_run_of_the_version_before_is_verified_and_has_null(run, cli):
    """Schema version 4: the same rows without the column."""
    for file in sorted((run / "commits").iterdir()):
        commit = json.loads(file.read_text())
        data = run / commit["file"]
        table = pq.ParquetFile(data).read().drop_columns(["rejected"])
        facts = {**(table.schema.metadata or {}), b"schema_version": b"4"}
        pq.write_table(table.replace_schema_metadata(facts), data)
        file.write_text(json.dumps(commit | {"sha256": hashlib.sha256(data.read_bytes()).hexdigest()}))
    assert "rejected" in SAMPLES.names
    assert cli("verify", run).exit_code == 0
    lines = cli("export", run, "--json").stdout.splitlines()
    assert {str(json.loads(line)["rejected"]) for line in lines} == {"None"}
