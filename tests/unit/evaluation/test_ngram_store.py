"""From `train-heads` to `eval`: the store it leaves beside the heads drafts, and changes nothing but drafts."""

import itertools
import json
import re
from pathlib import Path

import pytest

from adadecode.model.ngram_store import STORE
from adadecode.runs.folder import read_run, read_samples
from tests.folders import write_prompts

# many that differ in their first word alone, so that outputs have much in common
PROMPTS = [f"w{first} w{second} w20 w30 w40 w50" for first, second in itertools.product((10, 11, 12), (60, 61, 62, 63))]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl", PROMPTS)


@pytest.fixture(scope="module")
def heads(tiny, prompts, cli, tmp_path_factory) -> Path:
    """Heads that nobody trained, beside a store."""
    out = tmp_path_factory.mktemp("trained") / "heads"
    flags = {"model": tiny.model, "task": "jsonl", "data-file": prompts, "dtype": "float32", "threads": 1}
    flags |= {"kind": "original", "exits": "1,2", "max-new-tokens": 16, "out": out}
    result = cli("train-heads", *(part for name, value in flags.items() for part in (f"--{name}", value)))
    assert result.exit_code == 0, result.stderr
    assert re.search(r"n-gram store: [1-9]\d* contexts to \d tokens, 0\.\d\d MB; proposes ", result.stdout)
    return out


def evaluate(tiny, cli, heads: Path, prompts: Path, out: Path, *more: str, **changed: object) -> list[dict]:
    """The rows of adadecode; vanilla's tokens and bits were compared with them."""
    flags = tiny.flags(heads=heads, data_file=prompts, methods="vanilla,adadecode", ngram=0.2, gamma=0.99, **changed)
    result = cli("eval", "--local", *flags, *more, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "parity 12/12, logits 12/12" in result.stdout
    return [row for row in read_samples(out).to_pylist() if row["method"] == "adadecode"]


def test_the_store_of_a_training_drafts_and_changes_no_token(tiny, prompts, cli, heads, tmp_path):
    with_it = evaluate(tiny, cli, heads, prompts, tmp_path / "with")
    without = evaluate(tiny, cli, heads, prompts, tmp_path / "without", "--no-ngram-store")
    for name in ("sample_id", "output_token_ids", "logits_digest"):
        assert [row[name] for row in with_it] == [row[name] for row in without], name
    accepted = [sum(row["accepted_per_exit"][0] for row in rows) for rows in (with_it, without)]
    assert accepted[0] > accepted[1], accepted
    runs = [read_run(tmp_path / name) for name in ("with", "without")]
    assert runs[0]["fingerprint"] != runs[1]["fingerprint"]
    assert [run["config"]["decode"]["ngram_store"] for run in runs] == [True, False]
    assert cli("verify", tmp_path / "with").exit_code == cli("verify", tmp_path / "without").exit_code == 0


def test_a_run_knows_its_store(tiny, prompts, cli, heads, tmp_path):
    """Another store is another run: the folder of the first is refused."""
    evaluate(tiny, cli, heads, prompts, tmp_path / "run")
    (worker,) = read_run(tmp_path / "run")["workers"]
    raw = (heads / STORE).read_bytes()
    (heads / STORE).unlink()
    try:
        flags = tiny.flags(heads=heads, data_file=prompts, methods="vanilla,adadecode", ngram=0.2, gamma=0.99)
        result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
        assert result.exit_code == 2
        assert "the model, heads or data behind the same settings changed" in result.stderr
        evaluate(tiny, cli, heads, prompts, tmp_path / "another")
        (other,) = read_run(tmp_path / "another")["workers"]
        assert worker["heads_hash"] != other["heads_hash"]
    finally:
        (heads / STORE).write_bytes(raw)


def test_a_damaged_store_is_one_line(tiny, prompts, usage_error, heads, tmp_path):
    raw = (heads / STORE).read_bytes()
    (heads / STORE).write_bytes(raw[:-3])
    try:
        flags = tiny.flags(heads=heads, data_file=prompts, methods="vanilla,adadecode")
        line = usage_error("eval", "--local", *flags, "--out", tmp_path / "run")
    finally:
        (heads / STORE).write_bytes(raw)
    assert f"{STORE} is damaged; delete {STORE} to draft without, or make it again with `adadecode train-heads`" in line


def test_the_run_json_of_a_version_that_knew_no_store_repeats_its_run(tiny, prompts, cli, heads, tmp_path):
    """Its fingerprint is as it was, and its policy, a file that may be gone, is not looked up."""
    evaluate(tiny, cli, heads, prompts, tmp_path / "run")
    run = read_run(tmp_path / "run")
    del run["config"]["decode"]["ngram_store"]
    run["config"]["decode"]["policy"] = "gone.yaml"
    (tmp_path / "run.json").write_text(json.dumps(run))
    plain = cli("eval", "--config", tmp_path / "run.json", "--out", tmp_path / "again", "--limit", 2)
    assert plain.exit_code == 0, plain.stderr
    assert read_run(tmp_path / "again")["config"]["decode"]["ngram_store"] is True
