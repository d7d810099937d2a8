"""`adadecode tasks`: the list of data sets, and the prompts of one as they are decoded."""

import json

import pytest
from transformers import AutoTokenizer

from adadecode.runs.folder import read_run, read_samples
from adadecode.settings import DataSettings
from adadecode.tasks import TASKS, load_examples

QUESTIONS = [{"question": f"w{n} w10", "answer": f"#### {n}"} for n in range(5, 10)]


@pytest.fixture
def questions(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text("\n".join(map(json.dumps, QUESTIONS)))
    return file


def test_every_task_is_a_line_with_its_size_metric_licence_and_source(cli):
    result = cli("tasks")
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert set(TASKS) <= set(lines)
    assert all(part in lines["gsm8k"] for part in ("1,319", "final number", "MIT", "openai/gsm8k/main/test"))
    assert all(part in lines["demo-math"] for part in (" 24 ", "final number", "Apache-2.0", "embedded"))
    assert all(part in lines["mbpp"] for part in (" 500 ", "CC-BY-4.0", "google-research-datasets/mbpp"))


def test_the_first_prompts_of_a_task_are_printed_with_their_ids_and_references(cli):
    result = cli("tasks", "demo-math", "-n", "2")
    first, second = load_examples("demo-math", DataSettings(limit=2))
    lines = result.stdout.splitlines()
    assert lines[0] == f"demo-math demo-math-000, plain prompt; reference: {first.reference}"
    assert "\n".join(line.removeprefix("  ") for line in lines[1:3]) == first.prompt
    assert lines[3].startswith("demo-math demo-math-001, ")
    assert "\n".join(line.removeprefix("  ") for line in lines[4:]) == second.prompt


def test_three_are_printed_unless_told_otherwise_and_demo_is_both_its_tasks(cli):
    headings = [line.split(",")[0] for line in cli("tasks", "demo").stdout.splitlines() if line[0] != " "]
    assert headings == [f"demo-{kind} demo-{kind}-00{idx}" for kind in ("math", "code") for idx in range(3)]


def test_offset_and_limit_are_those_of_an_evaluation(cli, questions):
    result = cli("tasks", "gsm8k", "--data-file", questions, "--offset", 3, "--limit", 9)
    assert [line.split(",")[0] for line in result.stdout.splitlines() if line[0] != " "] == [
        "gsm8k gsm8k-00003",
        "gsm8k gsm8k-00004",
    ]


def test_a_model_with_a_template_shows_what_the_template_makes_of_the_prompt(cli, questions, chat_model):
    result = cli("tasks", "gsm8k", "-n", 1, "--data-file", questions, "--model", chat_model)
    assert result.exit_code == 0, result.stderr
    heading, *text = result.stdout.splitlines()
    assert heading.startswith("gsm8k gsm8k-00000, chat template, ")
    assert "\n".join(line.removeprefix("  ") for line in text).startswith("w3 [user] w5 w10\n\nReason step by step")


def test_what_is_shown_is_what_an_evaluation_decodes(cli, questions, chat_model, tiny, tmp_path):
    shown = cli("tasks", "gsm8k", "-n", 1, "--data-file", questions, "--model", chat_model).stdout
    num_tokens = int(shown.partition("chat template, ")[2].split()[0])
    flags = tiny.flags(task="gsm8k", data_file=questions, model=chat_model, heads=None, methods="vanilla", limit=1)
    assert cli("eval", "--local", *flags, "--out", tmp_path / "run").exit_code == 0
    (row,) = read_samples(tmp_path / "run").to_pylist()
    assert row["prompt_len"] == num_tokens
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    text = "\n".join(line.removeprefix("  ") for line in shown.splitlines()[1:])
    assert row["prompt_token_ids"] == tokenizer(text).input_ids
    assert read_run(tmp_path / "run")["provenance"]["data"] == {"gsm8k": {"source": str(questions), "revision": None}}


def test_a_model_without_a_template_shows_the_plain_prompt_and_its_tokens(cli, questions, tiny):
    result = cli("tasks", "gsm8k", "-n", 1, "--data-file", questions, "--model", tiny.model)
    assert result.stdout.splitlines() == [
        "gsm8k gsm8k-00000, plain prompt, 4 tokens; reference: 5",
        "  Question: w5 w10",
        "  Answer:",
    ]


def test_a_prompt_sends_nothing_to_the_terminal_and_forges_no_heading(cli, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps({"prompt": "red \x1b[31m\ngsm8k gsm8k-00000, plain prompt"}))
    lines = cli("tasks", "jsonl", "--data-file", file).stdout.splitlines()
    assert lines == ["jsonl 00000, plain prompt", "  red \\x1b[31m", "  gsm8k gsm8k-00000, plain prompt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gsmk8"], "--task gsmk8: unknown task; did you mean gsm8k? use demo"),
        (["-n", "3"], "--limit: without a task nothing is shown of it; name one, as in `adadecode tasks gsm8k`"),
        (["--model", "demo"], "--model: without a task nothing is shown"),
        (["demo-math", "-n", "0"], "--limit 0: "),
        (["demo-math", "--offset", "24"], "--offset 24: task demo-math has 24 samples; leave out fewer"),
        (["demo-math", "--model", "no/such-model-here"], "--model 'no/such-model-here' cannot be loaded: "),
        (["jsonl"], "--data-file is missing: task jsonl reads your prompts"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, usage_error, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert said in usage_error("tasks", *arguments)


def test_a_file_that_lacks_a_field_of_the_task_is_one_line_with_those_it_has(usage_error, questions):
    line = usage_error("tasks", "mbpp", "--data-file", questions)
    assert "line 1: no field 'text' among its fields (question, answer); MBPP rows hold" in line
