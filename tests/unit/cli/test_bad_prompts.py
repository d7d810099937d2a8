"""One prompt that cannot be used is left out and named, whatever the command; when none can be, the line says why."""

import json
from pathlib import Path

import pytest

from tests.folders import save_tiny_heads, save_tiny_model, word_tokenizer

TOO_LONG = " ".join(["w7"] * 100)
UNKNOWN, UNKNOWN_REASON = (
    "w5 w120",
    "the prompt has token ids 5 to 120, the model knows 0 to 96: its tokenizer has more tokens",
)
TEMPLATE = (
    "{% for m in messages %}{% if 'w90' in m.content %}{{ raise_exception('forbidden word') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)
REASON = "the model's chat template cannot take the prompt (TemplateError: forbidden word): change the prompt or the"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 64 positions and 97 tokens, fewer than its tokenizer has, whose template raises at w90; heads; prompts."""
    folder = tmp_path_factory.mktemp("prompts")
    model = save_tiny_model(folder / "model", context_len=64)
    tokenizer = word_tokenizer(150)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    save_tiny_heads(folder / "heads", model, (1, 2))
    good = [f"w{5 + i} w{20 + i}" for i in range(8)]
    write_rows(folder / "some.jsonl", [good[0], "w90 w5", TOO_LONG, 42, *good[1:]])
    write_rows(folder / "none.jsonl", ["w90 w5", "w6 w90"])
    return folder


def write_rows(path: Path, prompts: list[object]) -> None:
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def arguments(folder: Path, command: str, prompts: str, out: Path) -> list[object]:
    """`command` on the prompts of that name."""
    common = ["--model", folder / "model", "--dtype", "float32", "--threads", 1, "--kernels", "eager"]
    data = ["--task", "jsonl", "--data-file", folder / f"{prompts}.jsonl"]
    of_command = {
        "train-heads": ["--max-new-tokens", 4, "--exits", "1", "--out", out],
        "tune": ["--heads", folder / "heads", "--max-new-tokens", 6, "--folds", 2, "--repeats", 1, "--out", out],
        "bench": ["--heads", "original", "--max-new-tokens", 4, "--repeats", 1, "--limit", 12],
        "eval": ["--local", "--heads", folder / "heads", "--max-new-tokens", 4, "--out", out],
    }
    return [command, *common, *data, *of_command[command]]


@pytest.mark.parametrize("command", ["train-heads", "tune", "bench"])
def test_prompts_that_cannot_be_used_are_left_out_and_the_first_is_named(cli, folder, tmp_path, command):
    result = cli(*arguments(folder, command, "some", tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    said = (result.stderr if command == "bench" else result.stdout).splitlines()
    assert said[0].startswith(f"3 of 11 prompts left out, the first: jsonl/00001: {REASON}")


@pytest.mark.parametrize("command", ["train-heads", "bench"])
def test_a_prompt_that_is_no_utf8_is_left_out_and_named(cli, folder, tmp_path, command):
    write_rows(folder / "bytes.jsonl", [f"w{5 + i} w{20 + i}" for i in range(8)])
    with (folder / "bytes.jsonl").open("ab") as file:
        file.write(b'{"prompt": "w\xff"}\n')
    result = cli(*arguments(folder, command, "bytes", tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    said = (result.stderr if command == "bench" else result.stdout).splitlines()
    assert said[0].startswith("1 of 9 prompts left out: ")
    assert "bytes.jsonl line 9: field 'prompt' is 'w\\udcff', not valid Unicode" in said[0]


def test_an_evaluation_refuses_a_row_without_a_prompt_in_text_before_anything_runs(usage_error, folder, tmp_path):
    line = usage_error(*arguments(folder, "eval", "some", tmp_path / "out"))
    assert "some.jsonl line 4: field 'prompt' is 42, not text; every row needs a prompt" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["train-heads", "tune", "bench"])
def test_when_no_prompt_can_be_used_the_line_says_why(usage_error, folder, tmp_path, command):
    line = usage_error(*arguments(folder, command, "none", tmp_path / "out"))
    assert f"2 of 2 prompts left out, the first: jsonl/00000: {REASON}" in line


def test_an_evaluation_in_which_every_sample_fails_says_why_on_its_first_line(cli, folder, tmp_path):
    result = cli(*arguments(folder, "eval", "none", tmp_path / "out"))
    assert result.exit_code == 1
    first = result.stderr.splitlines()[0]
    assert first.startswith("adadecode: 2 of 2 planned samples failed, and --max-errors 5% allows 1: ")
    assert first.endswith("(6 TemplateError); first: jsonl/00000: forbidden word")


@pytest.mark.parametrize("command", ["train-heads", "tune", "bench"])
def test_a_prompt_with_a_token_that_the_model_lacks_is_left_out_and_named(cli, folder, tmp_path, command):
    write_rows(folder / "unknown.jsonl", [*(f"w{5 + i} w{20 + i}" for i in range(8)), UNKNOWN])
    result = cli(*arguments(folder, command, "unknown", tmp_path / "out"))
    assert result.exit_code == 0, result.stderr
    said = (result.stderr if command == "bench" else result.stdout).splitlines()
    assert said[0].startswith(f"1 of 9 prompts left out: jsonl/00008: {UNKNOWN_REASON}")


def test_one_prompt_too_long_in_a_bench_is_named_before_anything_is_measured(cli, folder, tmp_path):
    write_rows(folder / "long.jsonl", ["w5", "w6", "w7 w8", TOO_LONG, "w9", "w10", "w11", "w12"])
    result = cli(*arguments(folder, "bench", "long", tmp_path))
    assert result.exit_code == 0, result.stderr
    left_out, counting, *_ = result.stderr.splitlines()
    assert left_out.startswith(
        "1 of 8 prompts left out: jsonl/00003: the prompt has 100 tokens; the model's context of 64"
    )
    assert ": 7 prompts, " in counting


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("w90", REASON),
        (TOO_LONG, "the prompt has 100 tokens; the model's context of 64 needs"),
        (UNKNOWN, UNKNOWN_REASON),
    ],
)
def test_generate_refuses_a_prompt_that_cannot_be_used(usage_error, folder, prompt, reason):
    flags = ["--model", folder / "model", "--heads", "original", "--dtype", "float32", "--threads", 1]
    assert usage_error("generate", prompt, *flags).startswith(f"adadecode: {reason}")
