"""A tiny saved model with its heads and prompts, the command line run in this process, small real samples tables."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from adadecode.cli.main import main
from adadecode.report.schema import SAMPLES
from tests.folders import save_tiny_heads, save_tiny_model, write_prompts

PROMPTS = ["w10 w20 w30", "w11 w40", "w5 w6 w7 w8 w9", "w90", "w33 w3 w34 w4 w35"]


class Tiny(NamedTuple):
    """Folders of a 4-layer model, heads for it at layers 1 and 2, and five prompts."""

    model: Path
    heads: Path
    prompts: Path

    def flags(self, **changed: object) -> list[str]:
        """A quick float32 run of all of it on the command line; `changed` replaces flags, None leaves one out."""
        flags = {
            "model": self.model,
            "heads": self.heads,
            "task": "jsonl",
            "data_file": self.prompts,
            "dtype": "float32",
            "threads": 1,
            "max_new_tokens": 10,
            "gamma": 0.02,
            "shard_size": 2,
        }
        given = {name: value for name, value in (flags | changed).items() if value is not None}
        return [part for name, value in given.items() for part in ("--" + name.replace("_", "-"), str(value))]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    model = save_tiny_model(root / "model")
    return Tiny(model, save_tiny_heads(root / "heads", model, (1, 2)), write_prompts(root / "p.jsonl", PROMPTS))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `tiny` with a chat template of words that its tokenizer knows."""
    path = save_tiny_model(tmp_path_factory.mktemp("chat") / "model")
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = (
        "w3{% for m in messages %} [{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %} [model]{% endif %}"
    )
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    """`adadecode ARGUMENTS`, with `input` piped in; an exception that the command line does not explain is raised here."""

    def run(*arguments: object, input: str | None = None) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture(scope="session")
def usage_error(cli) -> Callable[..., str]:
    """The one line on stderr with which `adadecode ARGUMENTS` refuses a mistake: exit code 2 and no traceback.

    For a value that click itself refuses the line is its `Error:`, under click's usage lines.
    """

    def refuse(*arguments: object) -> str:
        result = cli(*arguments)
        assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
        first, *others = result.stderr.splitlines()
        if first.startswith("adadecode: "):
            assert not others, result.stderr
            return first
        assert first.startswith("Usage: "), result.stderr
        assert others[-1].startswith("Error: "), result.stderr
        return others[-1]

    return refuse


def _row(method: str, sample_id: str = "s0", **values: Any) -> dict[str, Any]:
    """An ok row whose times and lengths follow from `output_token_ids`, `ttft_s` and `e2e_s`."""
    row = {
        "run_id": "run",
        "task": "demo",
        "sample_id": sample_id,
        "method": method,
        "repeat": 0,
        "turn": 0,
        "shard": 0,
        "status": "ok",
        "prompt_len": 2,
        "prompt_token_ids": [1, 2],
        "output_token_ids": [5, 6, 7],
        "finish_reason": "length",
        "ttft_s": 0.5,
        "e2e_s": 2.5,
        "num_rounds": 2,
        "num_drafted": 0,
        "num_accepted": 0,
        "layers_per_token": 8.0,
        "parity": None if method == "vanilla" else "exact",
        "worker_id": "w0",
        "attempt": "a0",
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    } | values
    if row["status"] == "ok" and row["output_token_ids"] is not None:
        num_tokens = len(row["output_token_ids"])
        decode_s = row["e2e_s"] - row["ttft_s"]
        derived = {
            "output_len": num_tokens,
            "decode_s": decode_s,
            "tpot_s": decode_s / (num_tokens - 1) if num_tokens > 1 else None,
        }
        row = derived | row
    return row


def _error_row(method: str, sample_id: str = "s0", **values: Any) -> dict[str, Any]:
    """A row of a sample that failed: null measurements."""
    unmeasured = dict.fromkeys(
        ("prompt_token_ids", "output_token_ids", "ttft_s", "e2e_s", "num_rounds", "num_drafted", "num_accepted")
    )
    failed = {"status": "error", "finish_reason": "error", "parity": None, "layers_per_token": None}
    return _row(
        method, sample_id, **unmeasured, **failed, error_type="NonFiniteLogitsError", error_message="NaN", **values
    )


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    return _row


@pytest.fixture
def error_row() -> Callable[..., dict[str, Any]]:
    return _error_row


@pytest.fixture
def samples_table() -> Callable[..., pa.Table]:
    return lambda *rows: pa.Table.from_pylist(list(rows), schema=SAMPLES)
