"""An evaluation that draws its tokens: vanilla's tokens by every method of ours, another output in each repeat."""

import json
import shutil
from pathlib import Path

import pytest

from adadecode.runs.folder import read_samples
from adadecode.settings import key_of, key_text
from tests.unit.evaluation.test_local_run import rewrite

OURS = ("vanilla-w1", "adadecode", "ngram")
SETTINGS = {"methods": ",".join(("vanilla", *OURS, "transformers")), "repeats": 2, "temperature": 0.7, "top_p": 0.95}


@pytest.fixture(scope="module")
def drawn(tiny, cli, tmp_path_factory):
    """The folder of a complete run and what it printed; not to be changed."""
    out = tmp_path_factory.mktemp("drawn") / "run"
    return out, cli("eval", "--local", *tiny.flags(**SETTINGS), "--out", out)


def test_every_method_of_ours_gives_vanillas_tokens_and_bits(drawn):
    out, result = drawn
    assert result.exit_code == 0, result.stderr
    rows = read_samples(out).to_pylist()
    assert {row["parity"] for row in rows if row["method"] in OURS} == {"exact"}
    assert all(row["logits_equal"] for row in rows if row["method"] in ("adadecode", "ngram"))


def test_each_repeat_has_an_output_and_a_key_of_its_own(drawn):
    rows = [row for row in read_samples(drawn[0]).to_pylist() if row["method"] == "adadecode"]
    outputs = {(row["sample_id"], tuple(row["output_token_ids"])) for row in rows}
    assert len(outputs) == len(rows)
    for row in rows:
        assert row["sampling_key"] == key_text(key_of(0, row["task"], row["sample_id"], row["repeat"], 0))


def test_what_transformers_draws_claims_no_parity_and_the_table_says_so(drawn):
    out, result = drawn
    rows = [row for row in read_samples(out).to_pylist() if row["method"] == "transformers"]
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["parity"] for row in rows} == {None}
    assert "transformers: drawn by noise of transformers' own" in result.stdout
    assert "temperature 0.7, top-p 0.95" in result.stdout


def test_the_run_verifies_and_is_drawn_again(drawn, cli):
    result = cli("verify", drawn[0], "--recompute", "12")
    assert result.exit_code == 0, result.stdout + result.stderr


def altered(key: str):
    def change(rows: list[dict]) -> list[dict]:
        next(row for row in rows if row["method"] == "adadecode")["sampling_key"] = key
        return rows

    return change


@pytest.mark.parametrize(
    ("key", "line"),
    [("0" * 16, "sampling_key is not that of the seed and the row"), (None, "sampling_key is missing")],
)
def test_a_key_that_is_not_the_rows_is_found(drawn, cli, tmp_path, key, line):
    copied = Path(shutil.copytree(drawn[0], tmp_path / "run"))
    rewrite(copied, 0, altered(key))
    result = cli("verify", copied)
    assert result.exit_code == 3
    assert line in result.stdout + result.stderr


def test_another_temperature_is_another_run(drawn, tiny, cli):
    result = cli("eval", "--local", *tiny.flags(**SETTINGS | {"temperature": 1.0}), "--out", drawn[0])
    assert result.exit_code == 2
    assert json.loads((drawn[0] / "run.json").read_text())["config"]["temperature"] == 0.7
