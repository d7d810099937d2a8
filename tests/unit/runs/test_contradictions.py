"""Faults planted in a finished run, each found by a line of its own; none in the runs that nobody altered."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adadecode.records import ShardOutcome
from adadecode.report.row_checks import MEASURED
from adadecode.report.schema import SAMPLES
from adadecode.runs.engines import worker_facts
from adadecode.runs.folder import RunFolder, read_commits, read_run
from adadecode.runs.result import read_result
from adadecode.runs.table_checks import summary_lines
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts
from tests.planting import Row, edit_json, edit_table, plant

GOLDEN = Path(__file__).parents[2] / "golden" / "run-0.1.0" / "complete"
NOTHING = ShardOutcome(0, 0, 0, 0.0, 0, 0)
FIRST = "demo-math/demo-math-000"


@pytest.fixture
def run(tmp_path) -> Path:
    """A finished run of 6 samples, 3 methods and 2 repeats, one sample a shard, to be altered."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "run"))


def each(method: str | None = None, **columns: Callable[[Row], Any]) -> Callable[[list[Row]], None]:
    """Sets columns in every row, or in those of one method, to what is made of the row."""

    def change(rows: list[Row]) -> None:
        for row in rows:
            if method in (None, row["method"]):
                row |= {name: of(row) for name, of in columns.items()}

    return change


def once(method: str, **columns: Any) -> Callable[[list[Row]], None]:
    """Sets columns of the first row of a method."""

    def change(rows: list[Row]) -> None:
        next(row for row in rows if row["method"] == method).update(columns)

    return change


def all_of(*changes: Callable[[list[Row]], None]) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        for one in changes:
            one(rows)

    return change


def swapped(rows: list[Row], *names: str) -> None:
    """Exchanges the named columns of vanilla and adadecode in the first sample and repeat."""
    first = [row for row in rows if (row["sample_id"], row["repeat"]) == ("demo-math-000", 0)]
    a, b = (next(row for row in first if row["method"] == name) for name in ("vanilla", "adadecode"))
    for name in names:
        a[name], b[name] = b[name], a[name]


def other_prompt(row: Row) -> list[int]:
    return [*row["prompt_token_ids"][:-1], row["prompt_token_ids"][-1] + 1]


def altered_first(name: str, idx: int, value: int) -> Callable[[Row], list[int]]:
    return lambda row: [*row[name][:idx], value, *row[name][idx + 1 :]]


OURS, VANILLA, W1 = "adadecode", "vanilla", "vanilla-w1"
TIMES = ("ttft_s", "decode_s", "e2e_s", "tpot_s", "step_gaps_s")
FAILED = dict.fromkeys(MEASURED) | {"status": "error", "finish_reason": "error", "error_type": "X", "width": None}
ONE_TOKEN = {
    "output_len": 1,
    "output_token_ids": [5],
    "num_rounds": 0,
    "step_gaps_s": [],
    "decode_s": 0.0,
    "e2e_s": 1.0,
}

FAULTS = {
    # times
    "e2e_s divided by ten": (
        each(OURS, e2e_s=lambda r: r["e2e_s"] / 10),
        f"e2e_s is not ttft_s + decode_s: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "e2e_s and ttft_s shifted": (
        each(OURS, e2e_s=lambda r: r["e2e_s"] - 0.02, decode_s=lambda r: r["decode_s"] - 0.02),
        f"decode_s is not the sum of step_gaps_s: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "one gap": (
        each(VANILLA, step_gaps_s=lambda r: [g * 1.5 for g in r["step_gaps_s"]]),
        f"decode_s is not the sum of step_gaps_s: 12 rows, first {FIRST} {VANILLA} repeat 0",
    ),
    "tpot_s halved": (
        each(W1, tpot_s=lambda r: r["tpot_s"] / 2),
        f"tpot_s is not decode_s / (output_len - 1): 12 rows, first {FIRST} {W1} repeat 0",
    ),
    "e2e_s 0": (once(OURS, e2e_s=0.0), f"e2e_s is no positive, finite number: 1 rows, first {FIRST} {OURS} repeat 0"),
    "e2e_s negative": (once(OURS, e2e_s=-1.0), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s infinite": (once(OURS, e2e_s=math.inf), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s NaN": (once(VANILLA, e2e_s=math.nan), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s null": (once(VANILLA, e2e_s=None), "e2e_s is no positive, finite number: 1 rows"),
    "e2e_s 0 in all rows": (each(e2e_s=lambda r: 0.0), "e2e_s is no positive, finite number: 36 rows"),
    "e2e_s null in all rows": (each(e2e_s=lambda r: None), "e2e_s is no positive, finite number: 36 rows"),
    "ttft_s infinite": (once(OURS, ttft_s=math.inf), "ttft_s is no positive, finite number: 1 rows"),
    "ttft_s 0": (once(OURS, ttft_s=0.0), "ttft_s is no positive, finite number: 1 rows"),
    "decode_s negative": (once(OURS, decode_s=-1e-3), "decode_s is no finite number from 0 on: 1 rows"),
    "tpot_s null": (once(OURS, tpot_s=None), "tpot_s is no positive, finite number: 1 rows"),
    "tpot_s of one token": (
        once(W1, **ONE_TOKEN, ttft_s=1.0),
        f"tpot_s is there below two output tokens: 1 rows, first {FIRST} {W1} repeat 0",
    ),
    "tpot_s negative": (once(OURS, tpot_s=-1e-3), "tpot_s is no positive, finite number: 1 rows"),
    "a gap NaN": (
        once(OURS, step_gaps_s=[math.nan] * 14),
        "step_gaps_s has values that are no finite numbers from 0 on: 1 rows",
    ),
    "a gap null": (each(OURS, step_gaps_s=lambda r: None), "step_gaps_s are not one per round: 12 rows"),
    # lengths and rounds
    "output_len tripled": (
        each(OURS, output_len=lambda r: r["output_len"] * 3),
        f"output_len is not the number of output_token_ids: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "negative ids": (
        each(output_token_ids=altered_first("output_token_ids", 3, -1)),
        "output_token_ids has negative ids: 36 rows",
    ),
    "a prompt of negative ids": (
        each(prompt_token_ids=altered_first("prompt_token_ids", 0, -1)),
        "prompt_token_ids has negative ids: 36 rows",
    ),
    "digests that are none": (
        each(logits_digest=lambda r: "equal"),
        f"logits_digest is not 32 hexadecimal digits: 36 rows, first {FIRST} {OURS} repeat 0",
    ),
    "an output without ids": (
        once(OURS, output_token_ids=None),
        "output_len is not the number of output_token_ids: 1 rows",
    ),
    "an empty output": (
        once(OURS, output_token_ids=[], output_len=0),
        "status is ok, but there is no output: 1 rows",
    ),
    "prompt_len": (each(prompt_len=lambda r: r["prompt_len"] - 1), "prompt_len is not the number of prompt_token_ids"),
    "no prompt": (
        each(prompt_len=lambda r: None, prompt_token_ids=lambda r: None),
        "status is ok, but there is no prompt: 36 rows",
    ),
    "a depth too few": (
        each(OURS, draft_depths=lambda r: r["draft_depths"][:-1]),
        "draft_depths are not one per output token: 12 rows",
    ),
    "one round": (
        each(OURS, num_rounds=lambda r: 1),
        "num_rounds + num_accepted are not the tokens after the first: 12 rows",
    ),
    "a round more of vanilla": (
        once(VANILLA, num_rounds=48),
        "num_rounds + num_accepted are not the tokens after the first: 1 rows",
    ),
    # drafts
    "accepted twice what was drafted": (
        each(OURS, num_accepted=lambda r: 2 * r["num_drafted"]),
        f"num_accepted is more than num_drafted: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "drafted doubled": (
        each(OURS, num_drafted=lambda r: 2 * r["num_drafted"]),
        "num_drafted is not the sum of drafted_per_exit: 12 rows",
    ),
    "accepted one fewer": (
        each(OURS, num_accepted=lambda r: r["num_accepted"] - 1),
        "num_accepted is not the sum of accepted_per_exit: 12 rows",
    ),
    "more accepted than a round holds": (
        once(OURS, num_accepted=45, num_rounds=2, num_drafted=45),
        "more drafts were accepted than max_drafts a round: 1 rows",
    ),
    "accepted per exit past drafted": (
        each(
            OURS, drafted_per_exit=lambda r: r["accepted_per_exit"], accepted_per_exit=lambda r: r["drafted_per_exit"]
        ),
        "accepted_per_exit has more than drafted_per_exit, or less than none: 12 rows",
    ),
    "accepted per exit exchanged": (
        each(OURS, accepted_per_exit=lambda r: r["accepted_per_exit"][::-1]),
        "accepted_per_exit is not how often draft_depths has each exit: 10 rows",
    ),
    "an exit fewer": (
        each(OURS, exits=lambda r: r["exits"][:-1]),
        "exits, drafted_per_exit and accepted_per_exit are not of one length: 12 rows",
    ),
    "exits out of order": (
        each(OURS, exits=lambda r: r["exits"][::-1]),
        "exits do not increase from 0 on: 12 rows",
    ),
    "exits of another worker": (
        each(
            OURS,
            exits=lambda r: [0, 5, 10],
            draft_depths=lambda r: [5 if depth == 4 else depth for depth in r["draft_depths"]],
        ),
        "exits are not those of the method and the worker: 12 rows",
    ),
    "a depth that is none": (
        once(OURS, draft_depths=[16, 7, *[16] * 46]),
        "draft_depths has other depths than exits and the model's last layer: 1 rows",
    ),
    "no counts of drafts": (each(OURS, num_drafted=lambda r: None), "a method that drafts has no counts of drafts: 12"),
    "counts of drafts of vanilla": (
        each(VANILLA, num_drafted=lambda r: 0),
        "a method that drafts nothing has counts of drafts: 12 rows",
    ),
    # layers
    "half a layer a token": (
        each(OURS, layers_per_token=lambda r: 0.5),
        f"layers_per_token is none that these rounds and drafts can have run: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "layers no whole number": (
        each(OURS, layers_per_token=lambda r: r["layers_per_token"] + 0.001),
        "layers_per_token is none that these rounds and drafts can have run: 12 rows",
    ),
    "layers infinite": (
        once(VANILLA, layers_per_token=math.inf),
        "layers_per_token is none that these rounds and drafts can have run: 1 rows",
    ),
    "layers null": (
        each(OURS, layers_per_token=lambda r: None),
        "layers_per_token is missing, or there below two tokens",
    ),
    "vanilla of half the layers": (
        each(VANILLA, layers_per_token=lambda r: 8.0),
        "the number of the model's layers is not that of the others: 24 rows",
    ),
    # how it ended
    "finish_reason none that is known": (
        each(finish_reason=lambda r: "stop"),
        "finish_reason is neither eos nor length: 36 rows",
    ),
    "an end that others go on after": (
        once(VANILLA, finish_reason="eos"),
        "the output goes on after a token that ends others: ",
    ),
    "an end that is none for others": (
        once(VANILLA, finish_reason="eos"),
        "finish_reason is length, but the output ends in a token that ends others: 5 rows",
    ),
    "longer than max_new_tokens": (
        each(
            output_token_ids=lambda r: [*r["output_token_ids"], 5],
            output_len=lambda r: 49,
        ),
        "the output is longer than max_new_tokens: 36 rows",
    ),
    "cut short": (
        once(VANILLA, output_token_ids=[5] * 10, output_len=10),
        "finish_reason is length, but neither max_new_tokens nor the context is reached: 1 rows",
    ),
    # labels and errors
    "status unknown": (once(W1, status="fine"), "status is neither ok nor error: 1 rows"),
    "an error that has measurements": (
        once(W1, status="error", error_type="X", finish_reason="error"),
        "status is error, but the row has measurements: 1 rows",
    ),
    "an error without its type": (
        once(W1, status="error", finish_reason="error"),
        "status is error, but error_type is missing: 1 rows",
    ),
    "an error that ended": (
        once(W1, status="error", error_type="X"),
        "status is error, but finish_reason is not: 1 rows",
    ),
    "an ok row with an error": (once(W1, error_type="X"), "status is ok, but the row has an error: 1 rows"),
    "lossy": (each(lossy=lambda r: True), "lossy is not what the method is: 36 rows"),
    "width": (each(W1, width=lambda r: 8), "width is not that of the method and the worker: 12 rows"),
    "run_id": (each(run_id=lambda r: "another"), "run_id is not that of run.json: 36 rows"),
    "attempt": (each(attempt=lambda r: "f" * 12), "attempt is not that of their commit: 36 rows"),
    "order_idx twice": (each(order_idx=lambda r: 0), "order_idx is missing or that of another method: 24 rows"),
    "order_idx turned": (
        each(order_idx=lambda r: (r["order_idx"] + 1) % 3),
        "order_idx is not the method's turn at this sample: 36 rows",
    ),
    # claims
    "no digests at all": (
        each(logits_digest=lambda r: None, logits_equal=lambda r: None),
        "logits_digest is missing, but the logits were to be compared: 36 rows",
    ),
    "one digest and its claim": (
        once(OURS, logits_digest=None, logits_equal=None),
        f"logits_digest is missing, but the logits were to be compared: 1 rows, first {FIRST} {OURS} repeat 0",
    ),
    "a claim on digests withdrawn": (
        each(OURS, logits_equal=lambda r: None),
        "logits_equal is missing, but there are two digests: 12 rows",
    ),
    "parity withdrawn": (
        each(OURS, parity=lambda r: None),
        "parity is missing, but there is an output of vanilla: 12 rows",
    ),
    "parity with an output that failed": (
        once(VANILLA, **FAILED),
        "parity is claimed, but there is no output of vanilla: 2 rows",
    ),
    "equal logits of a digest that is not there": (
        once(VANILLA, logits_digest=None),
        "logits_equal is claimed, but there are no two digests: 2 rows",
    ),
    "vanilla's own parity": (each(VANILLA, parity=lambda r: "exact"), "vanilla claims parity with itself: 12 rows"),
    "parity unknown": (each(W1, parity=lambda r: "same"), "parity is none of exact, near_tie and mismatch: 12 rows"),
    "a near-tie that is none": (
        once(W1, parity="near_tie", vanilla_margin=0.6),
        "parity is near_tie, but vanilla_margin is beyond 0.5: 1 rows",
    ),
    "a margin of no difference": (
        once(W1, vanilla_margin=0.5),
        f"vanilla_margin is there, but first_diff_idx is not: 1 rows, first {FIRST} {W1} repeat 0",
    ),
    "a margin without end": (once(W1, method_margin=math.inf), "method_margin is no finite number from 0 on: 1 rows"),
    "a margin that is missing": (
        once(W1, first_diff_idx=0, vanilla_token_id=5, method_token_id=6, vanilla_margin=0.5),
        "method_margin is missing: 1 rows",
    ),
    "vanilla's margin that is missing": (
        once(W1, first_diff_idx=0, vanilla_token_id=5, method_token_id=6, method_margin=0.5),
        "vanilla_margin is missing: 1 rows",
    ),
    # rows beside each other
    "another prompt of one method": (
        each(OURS, prompt_token_ids=other_prompt),
        f"prompt_token_ids are not those of the sample's other rows: 12 rows, first {FIRST} {OURS} repeat 0",
    ),
    "another reference of one method": (
        each(OURS, reference=lambda r: "7"),
        "reference is not that of the sample's other rows: 12 rows",
    ),
    "another text of one method": (
        each(W1, output_text=lambda r: "four"),
        "output_text is not that of the same output in another row: 12 rows",
    ),
    "repeats of vanilla that differ": (
        all_of(
            lambda rows: [
                row.update(output_token_ids=[row["output_token_ids"][0] + 1, *row["output_token_ids"][1:]])
                for row in rows
                if row["repeat"] == 1
            ]
        ),
        "vanilla's output is not that of its other repeats: 6 rows",
    ),
    "a pair whose methods were swapped": (
        lambda rows: swapped(rows, "method"),
        "a method that drafts has no counts of drafts: 1 rows",
    ),
    "a pair whose times were swapped": (
        lambda rows: swapped(rows, *TIMES),
        "step_gaps_s are not one per round: 2 rows",
    ),
    # scores
    "all correct": (each(correct=lambda r: True), "correct is not what output_text and reference give: 36 rows"),
    "no scores": (each(correct=lambda r: None), "correct is not what output_text and reference give: 36 rows"),
    "answers that are none": (
        each(reference=lambda r: "x"),
        "correct is not what output_text and reference give: 36 rows",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_planted_in_the_rows_is_a_line_and_exit_code_3(run, cli, name):
    change, line = FAULTS[name]
    plant(run, change)
    for command in ("verify", "report"):
        result = cli(command, run)
        assert result.exit_code == 3, result.output
        assert [found for found in result.stdout.splitlines() if found.startswith(line)], result.stdout
        assert "the tables contradict themselves in " in result.stderr


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
        line.startswith("plan.parquet: its hash is ") and line.endswith(f"that of the run's plan {stored}")
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
    plant(run, lambda rows: [row.update(method="medusa") for row in rows if row["method"] == OURS])
    edit_json(run / "run.json", lambda content: content["config"].update(methods=[VANILLA, W1, "medusa"]))
    result = cli("verify", run)
    assert result.exit_code == 3
    assert f"method is none that is known: 12 rows, first {FIRST} medusa repeat 0" in result.stdout
    assert "logits_digest is there, but no logits were to be compared: 36 rows" in result.stdout


def test_settings_of_placement_are_no_part_of_the_fingerprint(run, cli):
    edit_json(run / "run.json", lambda content: content["config"].update(threads=7, workers=3, local=False))
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
    assert f"samples/{name}: 6 rows that no commit names; delete it" in result.stdout.splitlines()
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


def test_a_repeat_before_the_first_is_no_planned_row(run, usage_error):
    plant(run, lambda rows: [row.update(repeat=-1) for row in rows if row["repeat"] == 0])
    assert "18 committed rows are not in its plan" in usage_error("verify", run)


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


MAY_BE_NULL = {
    *("lossy", "first_diff_idx", "vanilla_token_id", "method_token_id", "vanilla_margin", "method_margin"),
    *("error_type", "error_message"),
}  # in an ok row that equals vanilla's; lossy in files of version 1


@pytest.mark.parametrize("name", [name for name in SAMPLES.names if name not in MAY_BE_NULL])
def test_a_value_missing_in_any_column_of_one_row_is_never_passed_over(run, cli, name):
    def forget(rows: list[Row]) -> None:
        next(row for row in rows if row["method"] == OURS)[name] = None

    nullable = all(field.nullable for field in SAMPLES if field.name == name)
    plant(run, forget, fits=nullable)
    result = cli("verify", run)
    assert result.exit_code == (3 if nullable else 2), result.output


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
