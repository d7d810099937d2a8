"""What `plan --rates` predicts from a run that was really computed."""

import math
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from adadecode.errors import RunFolderError, UsageError
from adadecode.evaluation.capacity import (
    DECISIVE_FIELDS,
    Capacity,
    differences,
    list_schedule,
    plan_capacity,
    read_rates,
)
from adadecode.runs.folder import read_samples
from adadecode.runs.run import plan_run
from adadecode.settings import DRAWN_BEFORE, READ_BEFORE, STOPPED_BEFORE, DecodeSettings, EvalConfig, RivalSettings
from adadecode.settings.groups import PlacementSettings
from tests.folders import write_prompts
from tests.planting import edit_json, plant
from tests.unit.conftest import PROMPTS

METHODS = ("vanilla", "vanilla-w1", "adadecode")


GOLDEN = Path(__file__).parents[2] / "golden" / "run-0.1.0" / "complete"


@pytest.fixture(scope="module")
def measured(tiny, cli, tmp_path_factory) -> Path:
    """A run of the five prompts and one too long, an error; every method twice. Not to be changed."""
    root = tmp_path_factory.mktemp("measured")
    prompts = write_prompts(root / "prompts.jsonl", [*PROMPTS, " ".join(["w7"] * 3000)])
    result = cli("eval", "--local", *tiny.flags(data_file=prompts, repeats=2), "--out", root / "run")
    assert result.exit_code == 0, result.stderr
    assert sum(row["status"] == "error" for row in read_samples(root / "run").to_pylist()) == 6
    return root / "run"


def predict(run: Path, prompts: Path, *, nums_workers: tuple[int, ...] = (1,), **changed) -> Capacity:
    """The capacity of a run of the tiny settings over `prompts`, from the rates of `run`."""
    settings = {"task": "jsonl", "data_file": str(prompts), "shard_size": 2, "methods": METHODS}
    config = EvalConfig(**(settings | changed))
    config, shards, plan = plan_run(config)
    return plan_capacity(shards, plan, config, read_rates(run), nums_workers)


def seconds_of(run: Path, method: str) -> dict[str, float]:
    """Mean seconds of the two repeats of each sample without error, added up by hand."""
    rows = [row for row in read_samples(run).to_pylist() if row["method"] == method and row["status"] == "ok"]
    assert len(rows) == 10
    sums = dict.fromkeys([row["sample_id"] for row in rows], 0.0)
    for row in rows:
        sums[row["sample_id"]] += row["e2e_s"] / 2
    return sums


def test_samples_that_were_measured_take_what_they_took(measured, tiny):
    capacity = predict(measured, tiny.prompts, repeats=3)
    assert (capacity.num_same, capacity.num_of_task, capacity.num_of_other_tasks) == (5, 0, 0)
    assert capacity.num_shards == 3
    assert capacity.tokens == dict.fromkeys(METHODS, 5 * 3 * 10)
    for method in METHODS:
        assert capacity.busy_s[method] == pytest.approx(3 * sum(seconds_of(measured, method).values()))
    (alone,) = capacity.times
    assert alone.wall_s == pytest.approx(sum(capacity.busy_s.values()))
    assert alone.busy_share == pytest.approx(1)
    assert alone.worker_hours == pytest.approx(alone.wall_s / 3600)


def test_another_prompt_under_a_known_id_takes_the_mean_of_its_task(measured, tmp_path):
    prompts = write_prompts(tmp_path / "others.jsonl", [PROMPTS[0], "w50 w51", "w52", "w53"])
    capacity = predict(measured, prompts, methods=("vanilla",))
    assert (capacity.num_same, capacity.num_of_task, capacity.num_of_other_tasks) == (1, 3, 0)
    by_sample = seconds_of(measured, "vanilla")
    mean_s = sum(by_sample.values()) / 5
    assert capacity.busy_s == {"vanilla": pytest.approx(by_sample["00000"] + 3 * mean_s)}


def test_a_sample_that_failed_there_takes_the_mean_of_its_task(measured):
    capacity = predict(measured, measured.parent / "prompts.jsonl", methods=("vanilla",))
    assert (capacity.num_same, capacity.num_of_task) == (5, 1)
    assert capacity.busy_s["vanilla"] == pytest.approx(6 / 5 * sum(seconds_of(measured, "vanilla").values()))


def test_another_task_takes_the_mean_over_all_tasks_and_is_named(measured):
    capacity = predict(measured, measured, task="demo", data_file=None, limit=2)
    assert (capacity.num_same, capacity.num_of_task, capacity.num_of_other_tasks) == (0, 0, 4)
    assert capacity.other_tasks == ("demo-code", "demo-math")
    for method in METHODS:
        assert capacity.busy_s[method] == pytest.approx(4 / 5 * sum(seconds_of(measured, method).values()))


def test_shards_go_to_the_worker_that_is_free_first():
    shard_s = [5.0, 4.0, 3.0, 3.0, 3.0]
    assert [list_schedule(shard_s, n).wall_s for n in (1, 2, 3, 5, 8)] == [18, 10, 7, 5, 5]
    two, eight = list_schedule(shard_s, 2), list_schedule(shard_s, 8)
    assert two.busy_share == pytest.approx(18 / 20)
    assert two.worker_hours == pytest.approx(20 / 3600)
    assert eight.busy_share == pytest.approx(18 / 40)


def test_workers_share_the_shards_longest_prompts_first(measured, tiny):
    capacity = predict(measured, tiny.prompts, methods=("vanilla",), shard_size=1, nums_workers=(2,))
    by_sample = seconds_of(measured, "vanilla")
    longest_first = sorted(range(5), key=lambda idx: -len(PROMPTS[idx]))
    assert longest_first == [4, 2, 0, 1, 3]
    free_at = [0.0, 0.0]
    for idx in longest_first:
        free_at.sort()
        free_at[0] += by_sample[f"{idx:05d}"]
    assert capacity.times[0].wall_s == pytest.approx(max(free_at))


def test_a_method_that_was_not_measured_is_one_line(measured, tiny):
    with pytest.raises(UsageError, match=r"--rates measured adadecode,vanilla,vanilla-w1 and not transformers; choose"):
        predict(measured, tiny.prompts, methods=("vanilla", "transformers"))


def test_a_run_without_rows_or_plan_is_refused(measured, tiny, tmp_path):
    run = Path(shutil.copytree(measured, tmp_path / "run"))
    for file in (run / "commits").iterdir():
        file.unlink()
    with pytest.raises(RunFolderError, match="no committed row without error that has a time; give another run"):
        predict(run, tiny.prompts)
    pq.write_table(pq.read_table(run / "plan.parquet").drop_columns(["prompt_hash"]), run / "plan.parquet")
    with pytest.raises(RunFolderError, match=r"its plan\.parquet cannot be read; give another run"):
        predict(run, tiny.prompts)
    (run / "plan.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"its plan\.parquet cannot be read; give another run"):
        predict(run, tiny.prompts)


@pytest.mark.parametrize("e2e_s", [None, math.nan, math.inf, 0.0, -1.0])
def test_times_that_no_clock_can_have_shown_predict_nothing(tmp_path, e2e_s):
    run = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    before = read_rates(run)
    plant(run, lambda rows: [row.update(e2e_s=e2e_s) for row in rows if row["sample_id"] == "demo-math-000"])
    rates = read_rates(run)
    lost = [key for key in before.of_sample if key[1] == "demo-math-000"]
    assert rates.of_sample == {key: cost for key, cost in before.of_sample.items() if key not in lost}
    plant(run, lambda rows: [row.update(e2e_s=e2e_s) for row in rows])
    with pytest.raises(RunFolderError, match="no committed row without error that has a time"):
        read_rates(run)


def test_rates_that_are_averages_over_engines_say_so(tmp_path):
    run = Path(shutil.copytree(GOLDEN, tmp_path / "run"))
    assert "engines" not in read_rates(run).measured_on
    edit_json(run / "commits" / "00001.json", lambda commit: commit["worker"].update(threads=64))
    assert read_rates(run).measured_on.endswith("; its times are averages over 2 engines, see `adadecode report`")


def test_settings_that_change_the_time_are_told():
    theirs = EvalConfig(dtype="float32", threads=1, decode={"policy": "paper"}).model_dump(mode="json")
    decode = DecodeSettings(policy="paper", exits=(4, 8), max_new_tokens=40)
    ours = EvalConfig(workers=4, limit=3, repeats=2, decode=decode).model_dump(mode="json")
    assert differences(theirs, theirs) == []
    assert differences(theirs, ours) == [
        "dtype float32 (here bfloat16)",
        "threads 1 (here not given)",
        "exits not given (here 4,8)",
        "max_new_tokens 512 (here 40)",
    ]


def test_what_an_older_run_could_not_set_is_no_difference():
    ours = EvalConfig().model_dump(mode="json")
    theirs = {
        name: value for name, value in ours.items() if name not in {**READ_BEFORE, **STOPPED_BEFORE, **DRAWN_BEFORE}
    }
    theirs["decode"] = {name: value for name, value in ours["decode"].items() if name not in RivalSettings.model_fields}
    assert differences(theirs, ours) == []
    ours["decode"]["layerskip_drafts"] = 5
    assert differences(theirs, ours) == ["layerskip_drafts 4 (here 5)"]


def test_every_setting_changes_the_time_of_a_sample_or_is_known_not_to():
    which_samples = {"task", "data_file", "prompt_field", "offset", "limit", "shuffle_seed"}
    which_samples |= {"repeats", "warmup", "shard_size"}
    what_may_be_used = {"foreign_heads"}  # which heads are used is decisive, whether they may be is not
    where_and_how_patiently = set(PlacementSettings.model_fields) - {"threads"}
    groups = ({*DECISIVE_FIELDS, "decode"}, which_samples, what_may_be_used, where_and_how_patiently)
    assert sum(map(len, groups)) == len(set().union(*groups)), "each setting stands once"
    assert set().union(*groups) == set(EvalConfig.model_fields)


def test_plan_prints_tokens_times_and_what_they_rest_on(measured, tiny, cli):
    result = cli("plan", *tiny.flags(), "--rates", measured, "--gpus", "1,3")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[:2] for row in rows if row and row[0] in (*METHODS, "all")] == [
        *([method, "50"] for method in METHODS),
        ["all", "150"],
    ]
    busy = {row[0]: row[-1] for row in rows if row and row[-1].endswith("%")}
    assert (busy.keys(), busy["1"]) == ({"1", "3"}, "100%")
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"rates: run run: {tiny.model} in float32 on cpu \(1 thread of .+\)", lines[-3])
    assert lines[-2] == "times of 5 samples: 5 as that run measured them"
    assert lines[-1].startswith("3 shards, longest prompts first; not counted: start-up")


def test_plan_warns_of_rates_of_other_settings(measured, tiny, cli):
    result = cli("plan", *tiny.flags(dtype="bfloat16"), "--rates", measured)
    assert result.stdout.splitlines()[-1] == ("warning: the rates are of other settings: dtype float32 (here bfloat16)")


def test_mistakes_with_rates_are_one_line(usage_error, tiny, tmp_path):
    assert "--gpus 2: without --rates no time is known" in usage_error("plan", "--gpus", "2")
    assert "--gpus 0,1: numbers of workers, each from 1 to 100000" in usage_error(
        "plan", "--gpus", "0,1", "--rates", "x"
    )
    assert "'--gpus': 'two' must be whole numbers" in usage_error("plan", "--gpus", "two")
    assert f"{str(tmp_path)!r} is not a run folder" in usage_error("plan", *tiny.flags(), "--rates", tmp_path)
