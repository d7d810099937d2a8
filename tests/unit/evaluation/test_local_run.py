"""A whole evaluation in this process: a saved model, its heads and a file of prompts, through the command line."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from adadecode.methods import in_turn
from adadecode.report.schema import PLAN, SUMMARY, VERIFY
from adadecode.runs.folder import read_commits, read_run, read_samples
from tests.folders import SPECIAL, save_tiny_heads, save_tiny_model, word_tokenizer, write_prompts

METHODS = ("vanilla", "vanilla-w1", "adadecode", "transformers")
SETTINGS = {"methods": ",".join(METHODS), "repeats": 2}
NUM_PROMPTS, NUM_SHARDS = 5, 3


@pytest.fixture(scope="module")
def finished(tiny, cli, tmp_path_factory) -> tuple[Path, Result]:
    """The folder of a complete run and what it printed; not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, cli("eval", "--local", *tiny.flags(**SETTINGS), "--out", out)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the complete run, to be changed."""
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


@pytest.fixture
def rerun(tiny, cli):
    """The same command again, with `changed` flags, on folder `out`."""
    return lambda out, **changed: cli("eval", "--local", *tiny.flags(**(SETTINGS | changed)), "--out", out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lease, which says who was there last."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.parent.name != "lease"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def data_times(folder: Path) -> dict[str, int]:
    """When each data file and commit was last written."""
    files = [file for part in ("samples", "commits") for file in (folder / part).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in files}


def rewrite(folder: Path, shard_idx: int, change) -> None:
    """Replaces the committed rows of a shard by `change(rows)`, with a digest to match, as a wrong engine would."""
    commit_file = folder / "commits" / f"{shard_idx:05d}.json"
    commit = json.loads(commit_file.read_text())
    file = folder / commit["file"]
    table = pq.ParquetFile(file).read()
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), file)
    commit["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    commit_file.write_text(json.dumps(commit))


def break_token(rows: list[dict], idx: int = 4) -> list[dict]:
    """`rows` with one wrong token at output position `idx` in the first row of adadecode."""
    row = next(row for row in rows if row["method"] == "adadecode")
    row["output_token_ids"][idx] = (row["output_token_ids"][idx] + 1) % 97
    return rows


def test_a_run_has_a_row_per_sample_method_and_repeat(finished):
    out, result = finished
    assert result.exit_code == 0, result.stderr
    samples = read_samples(out)
    keys = {tuple(row.values()) for row in samples.select(["sample_id", "method", "repeat"]).to_pylist()}
    assert samples.num_rows == len(keys) == NUM_PROMPTS * len(METHODS) * 2
    assert {key[0] for key in keys} == {f"{i:05d}" for i in range(NUM_PROMPTS)}
    assert {key[1] for key in keys} == set(METHODS)
    assert set(samples["status"].to_pylist()) == {"ok"}
    assert sorted(read_commits(out)) == list(range(NUM_SHARDS))


def test_every_output_is_exact_and_adadecodes_logits_are_vanillas_bits(finished):
    rows = read_samples(finished[0]).to_pylist()
    for row in rows:
        if row["method"] == "vanilla":
            assert row["parity"] is row["logits_equal"] is row["first_diff_idx"] is None
        else:
            assert row["parity"] == "exact", row
            assert row["first_diff_idx"] is None
    adadecode = [row for row in rows if row["method"] == "adadecode"]
    assert all(row["logits_equal"] for row in adadecode)
    assert sum(row["num_accepted"] for row in adadecode) > 0, "the test needs accepted drafts"
    assert sum(row["num_drafted"] - row["num_accepted"] for row in adadecode) > 0, "and rejected ones"


def test_the_order_of_methods_turns_with_the_sample(finished):
    order = {}
    for row in read_samples(finished[0]).to_pylist():
        order.setdefault((row["shard"], row["sample_id"], row["repeat"]), {})[row["order_idx"]] = row["method"]
    for (shard_idx, sample_id, repeat), by_idx in order.items():
        sample_idx = int(sample_id) - 2 * shard_idx
        expected = in_turn(METHODS, shard_idx + sample_idx + repeat)
        assert tuple(by_idx[i] for i in range(len(METHODS))) == expected
    assert len(order) == NUM_PROMPTS * 2


@pytest.mark.parametrize("num_methods", [1, 2, 3, 4])
def test_every_method_stands_equally_often_in_every_place(num_methods):
    methods = METHODS[:num_methods]
    orders = [in_turn(methods, turn) for turn in range(2 * num_methods)]
    for place in range(num_methods):
        assert sorted(order[place] for order in orders) == sorted(methods * 2)


def test_rows_hold_what_was_measured_and_null_for_the_rest(finished):
    for row in read_samples(finished[0]).to_pylist():
        assert row["prompt_len"] == len(row["prompt_token_ids"])
        assert row["output_len"] == len(row["output_token_ids"]) == 10
        assert row["finish_reason"] == "length"
        assert 0 < row["ttft_s"] < row["e2e_s"]
        assert row["decode_s"] == pytest.approx(row["e2e_s"] - row["ttft_s"])
        assert row["tpot_s"] == pytest.approx(row["decode_s"] / 9)
        assert len(row["step_gaps_s"]) == row["num_rounds"]
        words = [SPECIAL[i] if i < len(SPECIAL) else f"w{i}" for i in row["output_token_ids"]]
        assert row["output_text"] == " ".join(words)
        assert row["correct"] is row["reference"] is row["error_type"] is None
        assert row["width"] == {"vanilla-w1": 1, "transformers": None}.get(row["method"], 8)
        if row["method"] == "adadecode":
            assert row["exits"] == [1, 2]
            assert row["num_accepted"] + row["num_rounds"] == 9
            assert (sum(row["drafted_per_exit"]), sum(row["accepted_per_exit"])) == (
                row["num_drafted"],
                row["num_accepted"],
            )
        else:
            assert row["num_drafted"] is row["num_accepted"] is row["exits"] is row["draft_depths"] is None
            assert row["layers_per_token"] == 4


def test_the_run_file_says_what_was_run_by_what_and_where(finished, tiny):
    run = read_run(finished[0])
    assert run["status"] == "complete"
    assert run["run_id"] == "run"
    assert (run["config"]["model"], run["config"]["decode"]["gamma"]) == (str(tiny.model), 0.02)
    assert run["config"]["methods"] == list(METHODS)
    provenance = run["provenance"]
    assert {"torch", "transformers", "pyarrow"} <= provenance["packages"].keys()
    assert {"model_files", "heads_files_jsonl", "plan"} <= provenance["hashes"].keys()
    assert {"git_sha", "git_dirty", "platform", "adadecode"} <= provenance.keys()
    (worker,) = run["workers"]
    assert (worker["worker_id"], worker["threads"], worker["width"]) == ("local", 1, 8)
    assert worker["exits"] == {"jsonl": [1, 2]}
    assert worker["model_hash"]
    assert worker["heads_hash"]["jsonl"]


def test_the_tables_beside_the_samples_have_their_schemas(finished):
    out, _ = finished
    assert pq.read_table(out / "plan.parquet").schema.equals(PLAN)
    verify, summary = pq.read_table(out / "verify.parquet"), pq.read_table(out / "summary.parquet")
    assert verify.schema.equals(VERIFY)
    assert summary.schema.equals(SUMMARY)
    assert verify.num_rows == NUM_PROMPTS * 2 * (len(METHODS) - 1)
    assert summary["method"].to_pylist() == list(METHODS)
    assert summary["n"].to_pylist() == [NUM_PROMPTS * 2] * len(METHODS)


def test_the_output_names_progress_parity_and_folder(finished):
    out, result = finished
    lines = result.stdout.splitlines()
    assert lines[0] == (
        f"run {out}: 5 samples in 3 shards, 0 done before, 3 to do; methods vanilla, vanilla-w1, adadecode, transformers"
    )
    assert re.fullmatch(r"5/5 samples, \d+ tokens/s, parity 10/10, 0 errors", lines[1])
    assert "parity 10/10, logits 10/10" in lines
    assert lines[-1] == f"tables: {out}"
    assert "\x1b" not in result.stdout, "plain lines in a job log"


def test_a_rerun_computes_nothing_and_changes_nothing(copied, rerun):
    before, times = contents(copied), data_times(copied)
    result = rerun(copied)
    assert result.exit_code == 0
    assert "3 done before, 0 to do" in result.stdout
    assert "tokens/s" not in result.stdout.splitlines()[1], "nothing was decoded in this session"
    assert result.stdout.splitlines()[1] == "5/5 samples, parity 10/10, 0 errors"
    assert contents(copied) == before
    assert data_times(copied) == times


def test_a_deleted_commit_is_made_again_of_its_data(copied, rerun):
    before, times = contents(copied), data_times(copied)
    (copied / "commits" / "00001.json").unlink()
    result = rerun(copied)
    assert result.exit_code == 0
    assert "3 done before, 0 to do" in result.stdout
    assert contents(copied) == before
    assert times.items() - data_times(copied).items() == {("commits/00001.json", times["commits/00001.json"])}


def test_a_deleted_data_file_is_the_only_shard_computed_again(copied, rerun):
    (copied / "samples" / "part-00001.parquet").unlink()
    before, times = contents(copied), data_times(copied)
    result = rerun(copied)
    assert result.exit_code == 0
    assert "2 done before, 1 to do" in result.stdout
    new = contents(copied).keys() - before.keys()
    assert new == {"samples/part-00001.parquet", "samples/part-00001-1.parquet", "commits/00001-1.json"}
    assert pq.read_table(copied / "samples" / "part-00001.parquet").num_rows == 0
    changed = dict(times.items() - data_times(copied).items())
    assert changed.keys() == {"commits/00001.json"}, "it says now that it is withdrawn"
    assert read_samples(copied).num_rows == NUM_PROMPTS * len(METHODS) * 2


def test_a_prompt_that_is_too_long_is_error_rows_beside_good_ones(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model", context_len=24)
    heads = save_tiny_heads(tmp_path / "heads", model, (2,))
    prompts = write_prompts(tmp_path / "p.jsonl", ["w5 w6", " ".join(["w7"] * 24), "w8"])
    out = tmp_path / "run"
    flags = tiny.flags(model=model, heads=heads, data_file=prompts, max_new_tokens=5)
    result = cli("eval", "--local", *flags, "--out", out)
    assert result.exit_code == 0, result.stderr
    rows = read_samples(out).to_pylist()
    errors = [row for row in rows if row["status"] == "error"]
    assert [(row["sample_id"], row["error_type"]) for row in errors] == [("00001", "PromptTooLongError")] * 3
    for row in errors:
        assert "has 24 tokens; the model's context of 24 needs 1 to 23" in row["error_message"]
        assert row["finish_reason"] == "error"
        assert row["prompt_len"] == 24
        assert row["output_token_ids"] is row["e2e_s"] is row["ttft_s"] is row["parity"] is row["num_rounds"] is None
    assert len(rows) == 9
    summary = pq.read_table(out / "summary.parquet").to_pylist()
    assert [(line["n"], line["num_errors"]) for line in summary] == [(2, 1)] * 3
    lines = result.stdout.splitlines()
    assert next(line for line in lines if line.startswith("task")).split()[:4] == ["task", "method", "n", "errors"]
    assert "errors: 1 of 3 samples failed: adadecode 1, vanilla 1, vanilla-w1 1 rows (3 PromptTooLongError); " in (
        result.stdout
    )
    assert "parity 2/2, logits 2/2" in result.stdout
    assert read_run(out)["status"] == "complete"


def test_a_token_the_model_has_no_embedding_for_is_error_rows(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    word_tokenizer(200).save_pretrained(model)
    prompts = write_prompts(tmp_path / "p.jsonl", ["w150 w5", "w5"])
    flags = tiny.flags(model=model, heads=None, data_file=prompts, methods="vanilla")
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    rows = read_samples(tmp_path / "run").to_pylist()
    assert [(row["status"], row["error_type"]) for row in rows] == [("error", "UnknownTokenError"), ("ok", None)]


def test_a_run_whose_every_sample_failed_exits_1(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model", context_len=12)
    prompts = write_prompts(tmp_path / "p.jsonl", [" ".join(["w7"] * n) for n in (12, 13)])
    flags = tiny.flags(model=model, heads=None, data_file=prompts, methods="vanilla")
    result = cli("eval", "--local", *flags, "--max-errors", "100%", "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stderr.startswith("every sample failed: vanilla on jsonl; errors: 2 of 2 samples failed: ")
    assert "first: jsonl/00000: the prompt has 12 tokens; " in result.stderr
    assert read_samples(tmp_path / "run")["status"].to_pylist() == ["error", "error"]


def test_methods_that_draft_nothing_need_no_heads(cli, tiny, tmp_path):
    flags = tiny.flags(heads=None, methods="vanilla,transformers")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert set(read_samples(tmp_path / "run")["parity"].to_pylist()) == {None, "exact"}
    assert "parity not checked" in result.stdout


def test_logits_are_not_compared_when_told_so(cli, tiny, tmp_path):
    result = cli("eval", "--local", *tiny.flags(limit=2), "--no-check-logits", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "parity 2/2\n" in result.stdout
    samples = read_samples(tmp_path / "run")
    assert set(samples["logits_digest"].to_pylist()) == {None}
    assert set(samples["logits_equal"].to_pylist()) == {None}


def test_other_settings_in_the_same_folder_are_refused(copied, rerun):
    before = contents(copied)
    result = rerun(copied, gamma=0.5)
    assert result.exit_code == 2
    assert "belongs to another run" in result.stderr
    assert "different: decode)" in result.stderr
    assert contents(copied) == before


@pytest.mark.parametrize("changed", [{"threads": 2}, {"workers": 1}])
def test_placement_may_change_between_a_run_and_its_rerun(copied, rerun, changed):
    result = rerun(copied, **changed)
    assert result.exit_code == 0
    assert "0 to do" in result.stdout


def test_verify_confirms_a_run_and_writes_nothing(copied, cli):
    before = contents(copied)
    result = cli("verify", copied)
    assert result.exit_code == 0
    assert "parity 10/10, logits 10/10" in result.stdout
    assert contents(copied) == before


def test_a_broken_token_exits_3_with_its_position_and_both_tokens(copied, cli, rerun):
    (row,) = [
        row
        for row in read_samples(copied).to_pylist()
        if (row["sample_id"], row["method"], row["repeat"]) == ("00002", "adadecode", 0)
    ]
    right = row["output_token_ids"][4]
    rewrite(copied, 1, break_token)
    for result in (cli("verify", copied), rerun(copied)):
        assert result.exit_code == 3
        lines = result.stdout.splitlines()
        line = next(line for line in lines if line.startswith("jsonl/00002 adadecode repeat 0: mismatch"))
        assert f"at output position 4: vanilla token {right} (margin " in line
        assert f"adadecode token {(right + 1) % 97} (margin " in line
        assert "jsonl/00002 adadecode repeat 0: parity is stored as exact and recomputed as mismatch" in result.stdout
        assert "parity 9/10" in result.stdout
        assert result.stderr.splitlines()[0] == "parity broken on 1 of 30 checked outputs"


def test_logits_that_are_not_vanillas_exit_3_though_the_tokens_are_equal(copied, cli):
    def break_digest(rows: list[dict]) -> list[dict]:
        row = next(row for row in rows if row["method"] == "adadecode")
        return [r | {"logits_digest": "0" * 32, "logits_equal": False} if r is row else r for r in rows]

    rewrite(copied, 0, break_digest)
    result = cli("verify", copied)
    assert result.exit_code == 3
    assert "parity 10/10, logits 9/10" in result.stdout


def test_a_broken_baseline_outside_the_contract_is_reported_but_is_no_failure(copied, cli, rerun):
    """vanilla-w1's bits may differ; what its row says of the difference must be true."""

    def differ(rows: list[dict]) -> list[dict]:
        row = next(row for row in rows if row["method"] == "vanilla-w1")
        old = row["output_token_ids"][9]
        row["output_token_ids"][9] = new = (old + 1) % 97
        claim = {"parity": "mismatch", "logits_equal": False, "logits_digest": "0" * 32, "first_diff_idx": 9}
        row |= claim | {"vanilla_token_id": old, "method_token_id": new, "vanilla_margin": 2.0, "method_margin": 1.0}
        return rows

    rewrite(copied, 0, differ)
    assert rerun(copied).exit_code == 0, "which closes the run with the tables of these rows"
    result = cli("verify", copied)
    assert result.exit_code == 0, result.stderr
    assert "vanilla-w1 repeat 0: mismatch at output position 9" in result.stdout


def test_a_missing_commit_makes_verify_exit_4_until_a_rerun(copied, cli, rerun):
    (copied / "commits" / "00002.json").unlink()
    result = cli("verify", copied)
    assert result.exit_code == 4
    assert result.stderr == "8 planned rows are missing; run the same command again\n"
    assert rerun(copied).exit_code == 0
    assert cli("verify", copied).exit_code == 0


def test_an_altered_file_is_refused_by_readers_and_computed_again_by_a_rerun(copied, cli, rerun):
    file = copied / read_commits(copied)[1]["file"]
    file.write_bytes(file.read_bytes() + b"\0")
    for result in (cli("verify", copied), cli("report", copied)):
        assert result.exit_code == 2
        assert "altered after its commit; run the same command again" in result.stderr
    result = rerun(copied)
    assert result.exit_code == 0, result.stderr
    assert "withdrawn, to be computed again" in result.stdout
    assert "2 done before, 1 to do" in result.stdout
    assert cli("verify", copied).exit_code == 0


def test_retry_errors_computes_only_shards_with_failed_samples_again(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model", context_len=24)
    prompts = write_prompts(tmp_path / "p.jsonl", ["w5 w6", "w8", " ".join(["w7"] * 24)])
    flags = tiny.flags(model=model, heads=None, data_file=prompts, max_new_tokens=5, methods="vanilla")
    command = ("eval", "--local", *flags, "--out", tmp_path / "run")
    assert cli(*command).exit_code == 0
    first = read_commits(tmp_path / "run")
    result = cli(*command, "--retry-errors")
    assert "1 done before, 1 to do" in result.stdout
    again = read_commits(tmp_path / "run")
    assert again[0] == first[0]
    assert again[1]["attempt"] != first[1]["attempt"]


def test_a_missing_plan_is_refused_by_verify(copied, cli):
    (copied / "plan.parquet").unlink()
    result = cli("verify", copied)
    assert result.exit_code == 2
    assert "plan.parquet cannot be read; run the same command again" in result.stderr


def test_original_heads_need_no_folder_and_stand_at_the_papers_exits(cli, tiny, tmp_path):
    flags = tiny.flags(heads="original", methods="vanilla,adadecode")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    assert "parity 5/5, logits 5/5" in result.stdout
    drafting = [row for row in read_samples(tmp_path / "run").to_pylist() if row["method"] == "adadecode"]
    assert {tuple(row["exits"]) for row in drafting} == {(1, 2, 3)}
    assert sum(row["num_accepted"] for row in drafting) > 0
    run = read_run(tmp_path / "run")
    assert "heads_files_jsonl" not in run["provenance"]["hashes"]
    assert run["workers"][0]["heads_hash"] == {"jsonl": "original"}


def test_what_an_unverified_output_claims_of_itself_is_still_checked(cli, tiny, tmp_path):
    """A difference from vanilla is no failure of a lossy method; a stored claim that is not true is one of any."""
    flags = tiny.flags(methods="vanilla,adadecode-unverified", gamma=0.0)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0

    def lie(rows: list[dict]) -> list[dict]:
        row = next(row for row in rows if row["parity"] == "mismatch")
        row["parity"], row["first_diff_idx"] = "exact", None
        return rows

    rewrite(tmp_path / "run", 0, lie)
    result = cli("verify", tmp_path / "run")
    assert result.exit_code == 3
    assert "adadecode-unverified repeat 0: parity is stored as exact and recomputed as mismatch" in result.stdout
