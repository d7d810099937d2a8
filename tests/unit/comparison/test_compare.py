"""`adadecode compare` on runs of the real demo model: with itself, a slower one, one with other outputs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.folders import undo_shard
from tests.planting import GOLDEN, close_again, each, edit_json, edit_table, forge, plant, slowed

REFERENCE_RUN = Path(__file__).parents[3] / "results" / "reference" / "smollm2-gsm8k"
NUM_SAMPLES, METHODS = 9, "vanilla,adadecode"
SURE = ("--fail-if-slower", "5%", "--fail-if-acceptance-drops", "2%")


@pytest.fixture(scope="module")
def finished(cli, tmp_path_factory) -> Path:
    """A finished run of the demo model, not to be altered."""
    out = tmp_path_factory.mktemp("compare") / "run"
    flags = ("--task", "demo-math", "--limit", NUM_SAMPLES, "--max-new-tokens", 12, "--methods", METHODS)
    result = cli("eval", "--local", "--threads", 1, "--shard-size", 3, *flags, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def other(finished, tmp_path) -> Path:
    """A copy of it to be altered."""
    return Path(shutil.copytree(finished, tmp_path / "other"))


def jitter(idx: int) -> float:
    """Noise of a few percent whose logarithms nearly cancel out over the rows of any method."""
    return float(np.exp((0.02, 0.02, -0.02, -0.02)[idx % 4]))


def cells(stdout: str, method: str) -> list[str]:
    """The words of a method's line in the table."""
    (line,) = (line for line in stdout.splitlines() if f" {method} " in f"{line} " and "x (" in line)
    return line.split()


def test_a_run_beside_itself_is_as_fast_as_itself(cli, finished):
    result = cli("compare", finished, finished, *SURE, "--detail")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert cells(result.stdout, "adadecode")[1:5] == [str(NUM_SAMPLES), "1.00x", "(1.00-1.00)", "1.00x"]
    assert f"outputs: all {2 * NUM_SAMPLES} are equal, token for token" in result.stdout
    assert "provenance: no difference in settings, hashes, versions or machines" in result.stdout
    assert "not compared" not in result.stdout


def test_noise_is_no_regression(cli, finished, other):
    plant(other, slowed(jitter))
    close_again(other)
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 0, result.stderr
    low, high = map(float, cells(result.stdout, "adadecode")[3].strip("()").split("-"))
    assert low <= 1 <= high


def test_a_run_slowed_by_eight_percent_is_found(cli, finished, other):
    plant(other, slowed(lambda idx: 1.08 * jitter(idx) ** 0.5))
    close_again(other)
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 5
    *failed, hint = result.stderr.splitlines()
    assert [line.split(" is 0.9")[0] for line in failed] == [
        "vanilla on demo-math: its speed by A's",
        "adadecode on demo-math: its speed by A's",
    ]
    assert all(line.endswith(", all below 0.95") for line in failed)
    assert hint == "vanilla on demo-math is slower itself, as a busy machine is: --over-vanilla judges beside it"
    assert cells(result.stdout, "adadecode")[2] in ("0.92x", "0.93x")  # 1 / 1.08, and noise
    assert cli("compare", finished, other, "--fail-if-slower", "10%").exit_code == 0
    assert cli("compare", finished, other).exit_code == 0
    assert cli("compare", other, finished, *SURE).exit_code == 0  # faster
    # the whole machine was slower, which speedups over vanilla of the same run do not show
    assert cli("compare", finished, other, "--fail-if-slower", "5%", "--over-vanilla").exit_code == 0


def test_a_method_slowed_by_exactly_one_factor_is_found_beside_its_vanilla(cli, finished, other):
    plant(other, slowed(lambda idx: 1.08, "adadecode"))
    close_again(other)
    result = cli("compare", finished, other, "--fail-if-slower", "5%", "--over-vanilla")
    assert result.exit_code == 5
    (line,) = result.stderr.splitlines()
    assert line == (
        "adadecode on demo-math: its speedup over vanilla by A's is 0.926, its 95 % interval 0.926 to 0.926, all below 0.95"
    )


def test_a_lower_acceptance_is_found(cli, finished, other):
    def drop(rows):
        for row in (row for row in rows if row["method"] == "adadecode" and row["num_accepted"]):
            row["num_drafted"] += 4
            row["drafted_per_exit"] = [row["drafted_per_exit"][0] + 4, *row["drafted_per_exit"][1:]]
            first = {"round_idx": 0, "position": 1, "token_id": 7, "exit": row["exits"][0]}
            row["rejected"] = [first] * 4 + row["rejected"]

    plant(other, drop)
    close_again(other)
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 5
    assert "adadecode on demo-math: the change of its acceptance rate is -0." in result.stderr
    assert "all below -0.02" in result.stderr
    assert cli("compare", finished, other, "--fail-if-acceptance-drops", "90%").exit_code == 0


def another_output(rows, *methods):
    """Another last token for one sample."""
    sample_id = rows[0]["sample_id"]
    for row in rows:
        if row["sample_id"] == sample_id and row["method"] in methods:
            row["output_token_ids"] = [*row["output_token_ids"][:-1], row["output_token_ids"][-1] + 1]


def test_an_output_that_is_another_in_all_methods_is_listed_and_breaks_nothing(cli, finished, other):
    plant(other, lambda rows: another_output(rows, "vanilla", "adadecode"))
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 0, result.stderr
    assert f"outputs: 2 of {2 * NUM_SAMPLES} differ" in result.stdout
    ids = pq.read_table(finished / "samples" / "part-00000.parquet")["output_token_ids"][0].as_py()
    where = f"differs at output position {len(ids) - 1}: A token {ids[-1]}, B token {ids[-1] + 1}"
    assert f"demo-math/demo-math-000 repeat 0: {where} (adadecode, vanilla)" in result.stdout


def test_parity_that_is_broken_in_one_run_is_exit_code_3_and_told(cli, finished, other):
    plant(other, lambda rows: another_output(rows, "adadecode"))
    close_again(other)
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 3
    assert "B: demo-math/demo-math-000 adadecode repeat 0: mismatch at output position" in result.stderr
    assert "B: parity broken on 1 of 9 checked outputs" in result.stderr
    assert cells(result.stdout, "adadecode")[-2:] == ["9/9", "8/9"]


def test_rows_of_other_prompts_are_counted_and_left_out(cli, finished, other):
    def reworded(rows, num_samples):
        wanted = sorted({row["sample_id"] for row in rows})[:num_samples]
        for row in (row for row in rows if row["sample_id"] in wanted):
            row["prompt_token_ids"] = [*row["prompt_token_ids"][:-1], row["prompt_token_ids"][-1] + 1]

    plant(other, lambda rows: reworded(rows, 1))
    result = cli("compare", finished, other)
    assert result.exit_code == 0, result.stderr
    assert "not compared: 2 rows of another prompt (adadecode 1, vanilla 1)" in result.stdout
    assert cells(result.stdout, "adadecode")[1] == "8"
    shutil.rmtree(other)
    shutil.copytree(finished, other)
    plant(other, lambda rows: reworded(rows, NUM_SAMPLES))
    refused = cli("compare", finished, other)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert "cannot be paired: 18 rows of another prompt (adadecode 9, vanilla 9); give runs of the same prompts" in line


def test_a_run_that_lacks_rows_is_compared_on_what_it_has_and_is_not_ok(cli, finished, other):
    undo_shard(other, 1)
    result = cli("compare", finished, other, *SURE)
    assert result.exit_code == 4
    assert "B: 6 planned rows are missing" in result.stderr
    assert "not compared: 6 rows only in A (adadecode 3, vanilla 3)" in result.stdout
    assert "adadecode on demo-math: its speed by A's cannot be judged, as it has no interval" in result.stderr
    assert "1.00x (no interval)" in result.stdout


def test_every_difference_of_provenance_is_named(cli, finished, other):
    def change(run):
        run["provenance"]["packages"]["torch"] = "1.0"
        run["provenance"]["platform"] = "else\x1b[31mwhere"
        del run["provenance"]["git_sha"]
        run["workers"][0] |= {
            "pid": 12345,
            "ready_at": "2026-01-01T00:00:00+00:00",
        }  # of when it ran, which no row depends on

    edit_json(other / "run.json", change)
    lines = cli("compare", finished, other).stdout.splitlines()
    torch = json.loads((finished / "run.json").read_text())["provenance"]["packages"]["torch"]
    assert f"provenance.packages.torch: A {torch}, B 1.0" in lines
    assert any(line.startswith("provenance.git_sha: A ") and line.endswith(", B not stored") for line in lines)
    assert any(line.startswith("provenance.platform: ") and line.endswith("B else\\x1b[31mwhere") for line in lines)
    assert sum(line.startswith(("config.", "provenance.", "worker.")) for line in lines) == 3


def test_scores_are_held_against_each_other_and_the_test_is_named(cli, finished, other, tmp_path):
    """They are of another version of the scorer, so that no audit says that today's gives others."""
    before = shutil.copytree(finished, tmp_path / "before")
    for run in (before, other):
        edit_table(run / "scores.parquet", scorer_version=lambda version: version + 1)
    right = {"demo-math-000", "demo-math-001", "demo-math-004"}
    table = pq.read_table(other / "scores.parquet")
    gains = iter([row["sample_id"] in right for row in table.to_pylist()])
    edit_table(other / "scores.parquet", score=lambda score: 1.0 if next(gains) else score)
    result = cli("compare", before, other)
    assert result.exit_code == 0, result.stderr
    scores = {row["score"] for row in pq.read_table(finished / "scores.parquet").to_pylist()}
    assert scores == {0.0}, "the demo is never right on these"
    told = "A 0.000, B 0.333, n=9, 3 gained, 0 lost, p = 0.250 (McNemar's exact test)"
    assert f"scores demo-math strict (vanilla, adadecode): {told}" in result.stdout
    (other / "scores.parquet").unlink()
    assert "scores: B has none; `adadecode score` makes them" in cli("compare", finished, other).stdout


def test_times_of_few_prompts_have_no_interval_and_pass_no_limit(cli):
    result = cli("compare", GOLDEN, GOLDEN, *SURE)
    assert "1.00x (no interval)" in result.stdout
    assert "cannot be judged" in result.stderr


def test_markdown_is_a_table_and_lists(cli, finished, other):
    plant(other, slowed(lambda idx: 1.08 * jitter(idx) ** 0.5))
    close_again(other)
    result = cli("compare", finished, other, "--markdown", "--detail", *SURE)
    assert result.exit_code == 5
    lines = result.stdout.splitlines()
    (row,) = (line for line in lines if line.startswith("|`demo-math`|`adadecode`|9|"))
    assert row.count("|") == lines[lines.index(row) - 2].count("|") == 13
    assert "**Not as it should be**" in lines
    assert any(line.startswith("- `adadecode on demo-math: its speed by A's is 0.9") for line in lines)
    assert not any("─" in line for line in lines)


def test_tables_fit_a_terminal_of_eighty_columns(cli, finished, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for command in (("compare", finished, finished), ("report", finished), ("verify", finished)):
        result = cli(*command, *(["--detail"] if command[0] != "verify" else []))
        assert result.exit_code == 0, result.stderr
        rules = [line for line in result.stdout.splitlines() if line.startswith("─")]
        assert len(rules) == (1 if command[0] == "verify" else 3)
        assert max(map(len, rules)) <= 80
        assert "…" not in result.stdout


def test_detail_is_of_one_run(usage_error, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "runs" / "one")
    assert "it holds runs, and a detail is of one" in usage_error("report", tmp_path / "runs", "--detail")
    assert "--detail --html: the page has all figures" in usage_error("report", finished, "--detail", "--html")


def test_sweeps_are_compared_cell_by_cell(cli, finished, other, tmp_path):
    plant(other, slowed(lambda idx: 1.08))
    close_again(other)
    for folder, names in (("a", {"x": finished, "y": finished, "z": finished}), ("b", {"x": finished, "y": other})):
        for name, run in names.items():
            shutil.copytree(run, tmp_path / folder / name)
    result = cli("compare", tmp_path / "a", tmp_path / "b", *SURE)
    assert result.exit_code == 5
    assert [line for line in result.stdout.splitlines() if line.startswith("cell ")] == ["cell x", "cell y"]
    assert {line.split(":")[0] for line in result.stderr.splitlines()} == {"cell y"}
    assert "not compared: 1 of 3 cells only in A, first z" in result.stdout


def test_a_run_beside_a_sweep_and_sweeps_without_a_common_cell_are_refused(usage_error, finished, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(finished, tmp_path / name / f"cell-{name}")
    assert "give two runs, or two sweeps" in usage_error("compare", finished, tmp_path / "a")
    line = usage_error("compare", tmp_path / "a", tmp_path / "b")
    assert "1 of 1 cells only in A, first cell-a; 1 of 1 cells only in B, first cell-b" in line


def test_a_published_baseline_without_rows_is_compared_by_its_summary(cli, usage_error, finished):
    result = cli("compare", REFERENCE_RUN, REFERENCE_RUN, *SURE)
    assert result.exit_code == 0
    assert "1.00x (no interval)" in result.stdout
    assert "rows of A and B are not here: summaries are compared, so there are no intervals" in result.stdout
    assert "cannot be judged" in result.stderr
    vanilla, narrow = (cells(result.stdout, method) for method in ("vanilla", "vanilla-w1"))
    assert vanilla.count("1.00x") == 1  # it has no speed over itself
    assert narrow.count("1.00x") == 2
    assert "cannot be paired: no method on a task is in both" in usage_error("compare", REFERENCE_RUN, finished)


def test_outputs_of_another_limit_are_no_regression(cli, usage_error, finished, other, tmp_path):
    """The same command with fewer tokens: every output is cut where those of the other run go on."""
    flags = ("--task", "demo-math", "--limit", 2, "--methods", METHODS)
    longer = tmp_path / "longer"
    assert cli("eval", "--local", "--threads", 1, *flags, "--max-new-tokens", 16, "--out", longer).exit_code == 0
    line = usage_error("compare", finished, longer, *SURE)
    assert "4 rows cut at another max_new_tokens (adadecode 2, vanilla 2)" in line


def test_what_is_no_run_of_ours_is_refused(usage_error, finished, other, tmp_path):
    edit_json(other / "run.json", lambda run: run.update(kind="certify"))
    assert "is a certification: give runs of `adadecode eval`" in usage_error("compare", finished, other)
    assert "is not a run folder" in usage_error("compare", finished, tmp_path / "none")


def test_a_method_that_only_one_run_has_is_told_where_it_would_be_judged(cli, finished, other):
    def without(run):
        run["config"]["methods"].remove("adadecode")

    for commit in sorted((other / "commits").iterdir()):
        table = pq.ParquetFile(other / json.loads(commit.read_text())["file"]).read()
        forge(other, commit, [row for row in table.to_pylist() if row["method"] != "adadecode"], table.schema)
    edit_json(other / "run.json", without)
    result = cli("compare", finished, other, *SURE)
    assert "adadecode on demo-math: only A has it, and cannot be judged" in result.stderr.splitlines()
    assert "not compared: 9 rows only in A (adadecode 9)" in result.stdout
    assert "only A has it" not in cli("compare", finished, other).stderr


@pytest.mark.parametrize("share", ["5", "100%", "-1%", "x%", "1e1%"])
def test_a_limit_that_is_no_share_is_refused(usage_error, finished, share):
    line = usage_error("compare", finished, finished, f"--fail-if-slower={share}")
    assert f"--fail-if-slower {share!r}: give a share from 0% to below 100%, such as 5%" in line


def test_over_vanilla_without_a_limit_is_refused(usage_error, finished):
    assert "--over-vanilla" in usage_error("compare", finished, finished, "--over-vanilla")


def test_a_changed_finish_reason_is_another_output(cli, finished, other):
    plant(other, each(finish_reason=lambda row: "eos"))
    result = cli("compare", finished, other)
    assert "equal tokens, but A ended by length, B by eos (adadecode, vanilla)" in result.stdout
