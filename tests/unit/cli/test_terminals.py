"""What the real program writes on terminals that can show little, of data that means harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.folders import save_tiny_model

ROOT = Path(__file__).parents[3]
FORGED = "evil\x1b[2K\x07\nparity 9/9, logits 9/9\r\u202e€"
SHOWN = r"evil\x1b[2K\x07\nparity 9/9, logits 9/9\r\u202e"
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = {
    "utf-8": ({"PYTHONIOENCODING": "utf-8"}, "€"),
    "ascii": ({"PYTHONIOENCODING": "ascii"}, r"\u20ac"),
    "cp1252": ({"PYTHONIOENCODING": "cp1252"}, "€"),
    "latin-1": ({"PYTHONIOENCODING": "latin-1"}, r"\u20ac"),
    "C locale": (NO_UTF8, r"\u20ac"),
}


def adadecode(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program in a process of its own."""
    command = [sys.executable, "-m", "adadecode", *map(os.fsencode, map(str, arguments))]
    encoding = (environment or {}).get("PYTHONIOENCODING", "utf-8")
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, check=False
    )
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def check_harmless(text: str) -> None:
    """Nothing in `text` is heeded by a terminal but its line breaks."""
    assert {character for character in text if ord(character) < 32 or 127 <= ord(character) < 160} <= {"\n"}
    assert "\u202e" not in text
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def run(cli, tiny, tmp_path_factory):
    """A run of two samples whose ids forge lines; the second one fails."""
    folder = tmp_path_factory.mktemp("terminals")
    rows = [{"id": "fine" + FORGED, "prompt": "w5"}, {"id": FORGED, "prompt": " ".join(["w7"] * 2000)}]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = tiny.flags(data_file=data, max_new_tokens=2)
    result = cli("eval", "--local", *flags, "--max-errors", "100%", "--out", folder / "run")
    assert result.exit_code == 0, result.stderr
    check_harmless(result.stdout + result.stderr)
    assert [line for line in result.stdout.splitlines() if line.startswith("parity")] == ["parity 1/1, logits 1/1"]
    return folder / "run"


@pytest.mark.parametrize(("environment", "euro"), ENCODINGS.values(), ids=ENCODINGS)
def test_a_finished_run_is_reported_whatever_the_encoding_and_no_id_forges_a_line(run, environment, euro):
    code, out, err = adadecode("report", run, environment=environment)
    assert (code, err) == (0, "")
    check_harmless(out)
    (errors,) = (line for line in out.splitlines() if line.startswith("errors: "))
    assert f"first: jsonl/{SHOWN}{euro}: the prompt has 2000 tokens" in errors
    assert sum(line.startswith("parity") for line in out.splitlines()) == 1


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, NO_UTF8], ids=["ascii", "C locale"])
def test_help_and_mistakes_are_shown_where_only_ascii_is(environment):
    for command in ("train-heads", "bench"):
        code, out, err = adadecode(command, "--help", environment=environment)
        assert (code, err) == (0, "")
        assert out.startswith("Usage: ")
    code, out, err = adadecode("plan", "--task", FORGED.replace("\u202e€", ""), environment=environment)
    assert (code, out, err.count("\n")) == (2, "", 1)
    check_harmless(err)
    code, _, err = adadecode("plan", "surplus\x1b[2J", environment=environment)
    assert (code, err.splitlines()[-1]) == (2, r"Error: Got unexpected extra argument (surplus\x1b[2J)")


@pytest.mark.parametrize(
    ("argument", "environment"), [("caf\udce9", {"PYTHONUTF8": "1"}), ("2 €", NO_UTF8)], ids=["latin-1", "C locale"]
)
def test_an_argument_that_is_no_text_here_is_refused_with_the_remedy(argument, environment):
    for command in (["generate", argument], ["eval", "--out", argument], ["plan", "--data-file", argument]):
        code, out, err = adadecode(*command, environment=environment)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert "is no text in this locale's encoding: give UTF-8, and set PYTHONUTF8=1" in err


def test_the_text_of_a_model_is_shown_harmless_in_ascii(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    words = ["<unk>", *(f"é{i}\x1b[2J\x9b" for i in range(96))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(model)
    flags = ["--model", model, "--heads", "original", "--dtype", "float32", "--threads", 1, "--max-new-tokens", 4]
    code, out, err = adadecode("generate", "é1", *flags, environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"})
    assert code == 0, err
    check_harmless(out)
    assert r"\x1b[2J\x9b" in out
    assert r"\xe9" in out


@pytest.mark.parametrize("module", ["adadecode", "adadecode.cli", "adadecode.cli.main"])
def test_the_program_runs_as_a_module(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: adadecode [OPTIONS] COMMAND")
