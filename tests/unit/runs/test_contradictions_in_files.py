"""Faults planted in run.json, the plan, commits and shards of a finished run are told; none in runs that nobody altered."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.records import ShardOutcome
from adadecode.runs.engines import worker_facts
from adadecode.runs.folder import read_commits, read_run
from adadecode.runs.result import read_result
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts
from tests.planting import FIRST, GOLDEN, OURS, VANILLA, W1, each, edit_json, once, plant

NOTHING = ShardOutcome(0, 0, 0, 0.0, 0, 0)


def test_rows_that_their_commit_does_not_count_are_told(run, cli):
    plant(run, each(OURS, e2e_s=lambda r: r["e2e_s"] * 2, output_len=lambda r: r["output_len"] + 1), fits=False)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "outcome of a commit is not what its rows come to: 6 shards, first 0" in result.stdout
    edit_json(run / "commits" / "00002.json", lambda commit: commit.update(num_rows=7))
    assert "num_rows of a commit is not the number of its rows: 1 shards, first 2" in cli("verify", run).stdout


def test_rows_of_another_task_than_their_commits_are_told(run, cli):
    edit_json(run / "commits" / "00001.json", lambda commit: commit.update(task="demo-code"))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "task is not that of their commit: 6 rows, first demo-math/demo-math-001 " in result.stdout


def test_shards_taken_out_of_commits_and_plan_together_are_missed(run, cli):
    for shard_idx in (4, 5):
        (run / "commits" / f"{shard_idx:05d}.json").unlink()
    plan = pq.read_table(run / "plan.parquet")
    pq.write_table(plan.filter(pa.array([shard < 4 for shard in plan["shard"].to_pylist()])), run / "plan.parquet")
    result = cli("verify", run)
    assert result.exit_code == 3
    stored = read_run(run)["provenance"]["hashes"]["plan"]
    assert any(
        line.startswith("plan: plan.parquet: its hash is ") and line.endswith(f"that of the run's plan {stored}")
        for line in result.stdout.splitlines()
    )
    edit_json(run / "run.json", lambda content: content["provenance"]["hashes"].pop("plan"))
    assert "run.json: its settings and hashes give the fingerprint " in cli("verify", run).stdout


@pytest.mark.parametrize(
    "change",
    [
        {"model": "meta-llama/Llama-3.1-8B"},
        {"device": "cuda"},
        {"decode": {"gamma": 0.75, "max_new_tokens": 48, "max_drafts": 5}},
        {"check_logits": False},
        {"an_unknown_setting": 1},
    ],
    ids=str,
)
def test_settings_that_are_not_those_of_the_fingerprint_are_told(run, cli, change):
    edit_json(run / "run.json", lambda content: content["config"].update(change))
    result = cli("report", run)
    assert result.exit_code == 3
    assert ", not b93d261f3521951c" in result.stdout


def test_settings_that_rows_contradict_are_told_of_the_rows_too(run, cli):
    edit_json(run / "run.json", lambda content: content["config"].update(check_logits=False))
    plant(run, lambda rows: [row.update(method="eagle") for row in rows if row["method"] == OURS])
    edit_json(run / "run.json", lambda content: content["config"].update(methods=[VANILLA, W1, "eagle"]))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"method is none that is known: 12 rows, first {FIRST} eagle repeat 0" in result.stdout
    assert "logits_digest is there, but no logits were to be compared: 36 rows" in result.stdout


def test_settings_of_placement_are_no_part_of_the_fingerprint(run, cli):
    edit_json(
        run / "run.json", lambda content: content["config"].update(threads=7, workers=3, local=False, gpus_per_worker=2)
    )
    assert cli("verify", run).exit_code == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda run: run.pop("config"),
        lambda run: run.update(config=[]),
        lambda run: run["config"].pop("methods"),
        lambda run: run["config"].update(methods="vanilla"),
        lambda run: run["config"].update(repeats=0),
        lambda run: run["config"].update(repeats="two"),
    ],
)
def test_a_run_without_usable_settings_is_one_line(run, usage_error, edit):
    edit_json(run / "run.json", edit)
    for command in ("verify", "report"):
        assert "its run.json has no settings with `methods` and `repeats`" in usage_error(command, run)


def test_workers_that_a_run_of_this_version_lacks_are_told(run, cli):
    edit_json(run / "run.json", lambda content: content.pop("workers"))
    assert cli("verify", run).exit_code == 0, "a version may have stored none"
    edit_json(run / "run.json", lambda content: content.update(starts=[]))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "run.json: its workers are not those of the commits" in result.stdout


@pytest.mark.parametrize(
    "name", ["extra.parquet", "part-00002.parquet", "task=demo-math/part-00000-ffffffffffff.parquet"]
)
def test_a_data_file_that_no_commit_names_is_told_with_its_rows(run, cli, name):
    first = run / json.loads((run / "commits" / "00000.json").read_text())["file"]
    shutil.copy(first, run / "samples" / name)
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"files: samples/{name}: 6 rows that no commit names; delete it" in result.stdout.splitlines()
    table = pq.ParquetFile(first).read()
    pq.write_table(table.slice(0, 0), run / "samples" / name)
    assert cli("verify", run).exit_code == 0, "the file of a withdrawn edition has no rows"
    shutil.copy(first, run / "samples" / name)
    edit_json(run / "run.json", lambda content: content.update(status="running"))
    assert cli("verify", run).exit_code == 0, "a run that goes on may have leftovers"


def test_workers_that_are_not_those_of_the_commits_are_told(run, cli):
    edit_json(run / "run.json", lambda content: content["workers"][0].update(cpu="another"))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "run.json: its workers are not those of the commits" in result.stdout


def test_rows_of_another_worker_than_their_commits_are_told(run, cli):
    plant(run, lambda rows: None)
    for file in (run / "commits").iterdir():
        edit_json(file, lambda commit: commit["worker"].update(code_hash="c"))
    edit_json(run / "run.json", lambda content: content.update(workers=worker_facts(read_commits(run))))
    assert cli("verify", run).exit_code == 0
    plant(run, once(OURS, worker_id="another"))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"worker_id is none of their commit's workers: 1 rows, first {FIRST} {OURS} repeat 0" in result.stdout


def test_rows_that_are_missing_of_a_complete_run_are_told_by_report_too(run, cli):
    plant(run, lambda rows: None)
    file = run / "commits" / "00003.json"
    commit = json.loads(file.read_text())
    table = pq.ParquetFile(run / commit["file"]).read().slice(1)  # less one row of adadecode
    (run / commit["file"]).unlink()
    edit = {"file": commit["file"], "num_rows": 5}
    pq.write_table(table, run / commit["file"])
    edit_json(file, lambda content: content.update(edit))
    plant(run, lambda rows: None)
    for command in ("verify", "report"):
        result = cli(command, run)
        assert result.exit_code == 4, result.output
        assert result.stderr == "1 planned rows are missing; run the same command again\n"
        assert "11/12" in next(line for line in result.stdout.splitlines() if line.startswith("          adadecode "))
        assert "parity 11/12, logits 11/12" in result.stdout
    assert "status: incomplete, though run.json says complete" in result.stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop_columns(["method"]), "column method is there 0 times"),
        (
            lambda table: table.set_column(0, pa.field("run_id", pa.string()), pa.nulls(6, pa.string())),
            "run_id has rows",
        ),
        (
            lambda table: table.set_column(16, "e2e_s", pa.array([["a"]] * 6)),
            "holds no rows of a shard (",
        ),
        (
            lambda table: table.set_column(10, "output_token_ids", pa.array([[1, None]] * 6, pa.list_(pa.int32()))),
            "column output_token_ids has lists in which a value is missing",
        ),
        (lambda table: table.select([]), "column run_id is there 0 times"),
    ],
)
def test_a_committed_file_that_holds_no_samples_rows_is_one_line(run, usage_error, change, reason):
    file = run / read_commits(run)[0]["file"]
    pq.write_table(change(pq.ParquetFile(file).read()), file)
    edit_json(
        run / "commits" / "00000.json",
        lambda commit: commit.update(sha256=hashlib.sha256(file.read_bytes()).hexdigest()),
    )
    for command in ("verify", "report"):
        line = usage_error(command, run)
        assert reason in line
        assert f"{file}: it holds no rows of a shard (" in line
        assert "); delete it and run the same command again" in line


def test_a_commit_of_a_shard_that_no_table_can_hold_is_one_line(run, usage_error):
    commit = json.loads((run / "commits" / "00000.json").read_text())
    file = commit["file"].replace("part-00000-", "part-99999999999-")
    forged = run / "commits" / "99999999999.json"
    forged.write_text(json.dumps(commit | {"shard": 99999999999, "file": file}))
    shutil.copy(run / commit["file"], run / file)
    for command in ("verify", "report"):
        assert "99999999999.json: the commit is damaged; run the same command again" in usage_error(command, run)


def test_a_repeat_before_the_first_is_no_planned_row(run, cli):
    plant(run, lambda rows: [row.update(repeat=-1) for row in rows if row["repeat"] == 0])
    result = cli("verify", run)
    assert result.exit_code == 3
    assert "rows: 18 committed rows are not in the plan; choose another --out" in result.stdout.splitlines()


@pytest.mark.parametrize(
    "edit",
    [
        {"shard": "0"},
        {"shard": 99999999999},
        {"outcome": dict.fromkeys(vars(NOTHING), 10**400)},
        {"file": None},
        {"sha256": 1},
        {"fingerprint": []},
        {"worker": "local"},
        {"attempt": 7},
        {"num_rows": "six"},
        {"outcome": {}},
        {"outcome": {"num_samples": "one"}},
    ],
    ids=str,
)
def test_a_commit_of_odd_values_is_one_line(run, usage_error, edit):
    edit_json(run / "commits" / "00000.json", lambda commit: commit.update(edit))
    for command in ("verify", "report"):
        assert "00000.json: the commit is damaged; run the same command again" in usage_error(command, run)


def test_runs_that_nobody_altered_contradict_nothing():
    """Whatever version, method and end of an output: the checks have no false alarm."""
    for name in ("complete", "interrupted"):
        result = read_result(GOLDEN.parent / name)
        assert (list(result.contradictions), result.disagreements) == ([], [])


def test_outputs_that_end_by_eos_by_the_context_and_at_the_first_token_contradict_nothing(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model", context_len=24, eos_token_id=[3, 14, 33, 34, 60, 90])
    heads = save_tiny_heads(tmp_path / "heads", model, (1, 2))
    words = [f"w{i} w{i + 1} w{i + 2}" for i in range(3, 90, 6)]
    prompts = write_prompts(tmp_path / "p.jsonl", [*words, " ".join(["w7"] * 20), " ".join(["w8"] * 23), "w9 " * 24])
    methods = "vanilla,vanilla-w1,adadecode,adadecode-never,adadecode-unverified,transformers"
    flags = tiny.flags(model=model, heads=heads, data_file=prompts, methods=methods, repeats=2, ngram=0.1, reject=0.3)
    assert cli("eval", "--local", *flags, "--max-errors", "100%", "--out", tmp_path / "run").exit_code == 0
    result = read_result(tmp_path / "run")
    rows = [row for row in result.summary.to_pylist() if row["method"] == "vanilla"]
    assert rows[0]["num_errors"] == 2
    assert (list(result.contradictions), result.disagreements, result.exit_code) == ([], [], 0)
