"""Runs with stop strings: the rows they end, what verify says of them, and the task's own."""

import pyarrow as pa
import pytest

import adadecode
from adadecode.runs.folder import read_run, read_samples
from adadecode.runs.run_checks import stop_findings
from adadecode.scoring.gsm8k import STOPS as GSM8K_STOPS
from adadecode.scoring.humaneval import STOPS as CODE_STOPS
from adadecode.settings import EvalConfig
from adadecode.tasks import stops_of

METHODS = "vanilla,vanilla-w1,adadecode,ngram,layerskip,transformers,hf-early-exit"


@pytest.fixture(scope="module")
def runs(cli, tiny, tmp_path_factory):
    """Two runs of the same prompts with every kind of method, without stop strings and with two."""
    folder = tmp_path_factory.mktemp("stops")
    flags = [*tiny.flags(kernels="eager", max_new_tokens=16), "--methods", METHODS, "--local"]
    whole = cli("eval", *flags, "--out", folder / "whole")
    assert whole.exit_code == 0, whole.stderr
    texts = [row["output_text"] for row in rows_of(folder / "whole") if row["method"] == "vanilla"]
    strings = (texts[0][-7:-3], texts[1][5:11])
    stops = [part for string in strings for part in ("--stop-strings", string)]
    stopped = cli("eval", *flags, *stops, "--out", folder / "stopped")
    assert stopped.exit_code == 0, stopped.stderr
    return folder, strings, stopped


def rows_of(run) -> list[dict]:
    return read_samples(run).to_pylist()


def test_an_output_ends_before_the_first_stop_string_whatever_decodes_it(runs):
    folder, strings, result = runs
    whole = {(row["sample_id"], row["method"]): row for row in rows_of(folder / "whole")}
    stopped = rows_of(folder / "stopped")
    assert {row["finish_reason"] for row in stopped} >= {"stop"}
    for row in stopped:
        before = whole[row["sample_id"], row["method"]]
        ends = [at for string in strings if (at := before["output_text"].find(string)) >= 0]
        assert row["output_text"] == before["output_text"][: min(ends, default=None)]
        assert row["output_token_ids"] == before["output_token_ids"][: row["output_len"]]
        assert row["finish_reason"] == ("stop" if ends else before["finish_reason"])
        assert row["parity"] in (None, "exact")
    assert "parity" in result.stdout


def test_verify_finds_a_row_that_goes_on_at_a_stop_string(runs, cli):
    folder, strings, _ = runs
    assert cli("verify", folder / "stopped").exit_code == 0
    config, samples = read_run(folder / "stopped")["config"], read_samples(folder / "stopped")
    assert not any(wrong.any() for _, wrong in stop_findings(samples, config))
    texts = [f"{text}{strings[1]}" if idx == 2 else text for idx, text in enumerate(samples["output_text"].to_pylist())]
    at = samples.schema.get_field_index("output_text")
    longer = samples.set_column(at, "output_text", pa.array(texts, pa.string()))
    found = {line for line, wrong in stop_findings(longer, config) if wrong[2] and wrong.sum() == 1}
    assert found == {"output_text goes on at a stop string"}
    without = stop_findings(samples, config | {"stop_strings": None})
    ((line, wrong),) = [(line, wrong) for line, wrong in without if wrong.any()]
    assert line == "finish_reason is stop, but the run has no stop strings"
    assert wrong.sum() == sum(row["finish_reason"] == "stop" for row in samples.to_pylist())


def test_the_demo_ends_at_a_stop_string_with_vanillas_tokens_and_bits(cli, tmp_path):
    flags = ["--task", "demo-math", "--limit", "3", "--max-new-tokens", "80", "--threads", "1", "--local"]
    methods = ["--methods", "vanilla,adadecode,ngram,layerskip"]
    result = cli("eval", *flags, *methods, "--task-stops", "--stop-strings", "####", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "parity 9/9, logits 9/9" in result.stdout
    rows = rows_of(tmp_path)
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}
    for row in rows:
        assert "####" not in row["output_text"]
        assert row["finish_reason"] == "length" or row["output_len"] < 80


def test_a_tasks_own_stop_strings_follow_those_that_are_given():
    config = EvalConfig(task_stops=True, stop_strings=("x", "Question:"))
    assert stops_of(config, "gsm8k") == ("x", *GSM8K_STOPS)
    assert stops_of(EvalConfig(task_stops=True), "humaneval") == CODE_STOPS
    assert stops_of(EvalConfig(stop_strings=("x",)), "jsonl") == ("x",)
    assert stops_of(EvalConfig(), "gsm8k") == ()


def test_task_stops_where_a_task_has_none_or_a_template_ends_answers_is_one_line(
    usage_error, tiny, chat_model, tmp_path
):
    line = usage_error("eval", *tiny.flags(), "--task-stops", "--local", "--out", tmp_path / "a")
    assert "--task-stops: task jsonl has no stop strings of its own (gsm8k, humaneval, mbpp," in line
    flags = ["--model", chat_model, "--methods", "vanilla", "--task", "demo-math", "--task-stops", "--local"]
    assert "has a chat template" in usage_error("eval", *flags, "--out", tmp_path / "b")


def test_an_empty_stop_string_is_one_line(usage_error, tmp_path):
    assert "an empty stop string" in usage_error("eval", "--stop-strings", "", "--out", tmp_path)


def test_the_library_ends_an_output_before_a_stop_string():
    prompt = "Question: A box holds 12 pens. Ann has 4 boxes and gives away 7 pens. How many pens are left?\nAnswer:"
    whole = adadecode.load("demo", max_new_tokens=64, threads=1).generate(prompt)
    stop = whole.text[len(whole.text) // 2 :][:4]
    lm = adadecode.load("demo", max_new_tokens=64, threads=1, stop_strings=[stop])
    for method in ("adadecode", "vanilla"):
        out = lm.generate(prompt, method=method)
        assert out.text == whole.text[: whole.text.find(stop)]
        assert out.generation.finish_reason == "stop"
        num_tokens = len(out.generation.output_token_ids)
        assert out.generation.output_token_ids == whole.generation.output_token_ids[:num_tokens]
