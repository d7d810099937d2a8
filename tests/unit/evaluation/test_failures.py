"""Samples that fail: each is rows with its error, every other row is there, and what ran out of memory is tried again."""

import gc
import json
import math
import os
import subprocess
import sys
import weakref
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, pre_tokenizers

from adadecode.engine.drafters import HeadDrafter
from adadecode.errors import DeviceLostError, RowsDependentError
from adadecode.evaluation.failures import (
    MAX_MESSAGE_LEN,
    Failure,
    failure_of,
    result_or_failure,
)
from adadecode.evaluation.worker import Worker, evaluate_shard
from adadecode.model.memory import broken_devices_named
from adadecode.records import Example, Shard
from adadecode.report.schema import SAMPLES
from adadecode.runs.folder import read_samples
from adadecode.settings import DecodeSettings, EvalConfig
from tests.folders import save_tiny_heads, save_tiny_model, word_tokenizer, write_prompts
from tests.models import needs_compiler, random_heads, tiny_model

ROOT = Path(__file__).parents[3]
METHODS = ("vanilla", "vanilla-w1", "adadecode")
IDENTITY = {"run_id", "task", "sample_id", "method", "repeat", "shard", "status", "reference", "lossy", "order_idx"}
IDENTITY |= {"turn", "worker_id", "attempt", "started_at", "finish_reason", "error_type", "error_message"}
PROMPT = {"prompt_len", "prompt_token_ids"}
TOO_MUCH = 1 << 50  # bytes: no machine has them, so that asking for them fails at once


def run_of(cli, tiny, tmp_path: Path, prompts: list[str], **flags: Any) -> dict[str, list[dict]]:
    """The rows of a whole run over `prompts`, by sample; it exits with 0."""
    data = write_prompts(tmp_path / "p.jsonl", prompts)
    out = tmp_path / "run"
    result = cli("eval", "--local", *tiny.flags(data_file=data, max_new_tokens=6, **flags), "--out", out)
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "", "a local run logs nothing on the terminal"
    rows: dict[str, list[dict]] = {}
    for row in read_samples(out).to_pylist():
        rows.setdefault(row["sample_id"], []).append(row)
    assert {len(of_sample) for of_sample in rows.values()} == {len(METHODS)}
    assert len(rows) == len(prompts)
    return rows


def assert_only_the_second_failed(rows: dict[str, list[dict]], error_type: str, message: str, known: set[str]) -> None:
    """Sample 00001 has one error in every method and nothing but the columns `known`; the others are exact."""
    for sample_id, of_sample in rows.items():
        for row in of_sample:
            if sample_id != "00001":
                assert (row["status"], row["output_len"], row["error_type"]) == ("ok", 6, None), row
                assert row["parity"] == (None if row["method"] == "vanilla" else "exact")
                continue
            assert (row["status"], row["finish_reason"], row["error_type"]) == ("error", "error", error_type)
            assert message in row["error_message"]
            assert "\n" not in row["error_message"]
            absent = {name for name, value in row.items() if value is None}
            assert absent >= set(SAMPLES.names) - IDENTITY - known
            assert not absent & known


@pytest.fixture
def templated(tiny, tmp_path):
    """Flags of a model whose chat template does what `action` says for prompts with w90, and else gives the prompt."""

    def save(action: str) -> dict[str, Path]:
        model = save_tiny_model(tmp_path / "model")
        tokenizer = word_tokenizer(97)
        tokenizer.chat_template = (
            "{% if 'w90' in messages[0].content %}" + action + "{% endif %}{{ messages[0].content }}"
        )
        tokenizer.save_pretrained(model)
        return {"model": model, "heads": save_tiny_heads(tmp_path / "heads", model, (1, 2))}

    return save


@pytest.mark.parametrize(
    ("action", "error_type", "message"),
    [
        ("{{ raise_exception('roles must\n  alternate') }}", "TemplateError", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "TypeError", "can only concatenate str"),
        ("{{ 1 // 0 }}", "ZeroDivisionError", "integer division or modulo by zero"),
        ("{{ raise_exception('half of a pair: ' + '\\ud800') }}", "TemplateError", "half of a pair: ?"),
        ("{{ 'x' * 10 ** 17 }}", "MemoryError", "MemoryError()"),
    ],
    ids=["raises", "wrong type", "no Exception of templates", "a message no file can hold", "host memory runs out"],
)
def test_a_chat_template_that_fails_for_one_sample(cli, tiny, templated, tmp_path, action, error_type, message):
    rows = run_of(cli, tiny, tmp_path, ["w5 w6", "w90", "w8"], **templated(action))
    assert_only_the_second_failed(rows, error_type, message, known=set())


def test_a_tokenizer_that_panics_for_one_sample(cli, tiny, tmp_path):
    """A pattern that backtracks without end makes the Rust code panic, which Python sees as no Exception."""
    model = save_tiny_model(tmp_path / "model")
    tokenizer = word_tokenizer(97)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("(a|aa)+c"), "isolated")]
    )
    tokenizer.save_pretrained(model)
    heads = save_tiny_heads(tmp_path / "heads", model, (1, 2))
    rows = run_of(cli, tiny, tmp_path, ["w5 w6", "a" * 60, "w8"], model=model, heads=heads)
    assert_only_the_second_failed(rows, "PanicException", "retry-limit-in-match over", known=set())


def test_a_prompt_longer_than_the_context(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model", context_len=24)
    heads = save_tiny_heads(tmp_path / "heads", model, (1, 2))
    prompts = ["w5 w6", " ".join(["w7"] * 900), "w8"]
    rows = run_of(cli, tiny, tmp_path, prompts, model=model, heads=heads)
    assert_only_the_second_failed(rows, "PromptTooLongError", "the prompt has 900 tokens", known=PROMPT)


def test_a_model_whose_logits_are_not_finite_for_one_prompt(cli, tiny, tmp_path):
    model = save_tiny_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.embed_tokens.weight"][50] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    heads = save_tiny_heads(tmp_path / "heads", model, (1, 2))
    rows = run_of(cli, tiny, tmp_path, ["w5 w6", "w6 w50", "w8"], model=model, heads=heads)
    assert_only_the_second_failed(rows, "NonFiniteLogitsError", "logits at position 1 are not finite", known=PROMPT)


class FullMemory:
    """Stands in for `HeadDrafter.propose`: finds no memory left for the first `num_failures` proposals, then proposes.

    Notes when each failed, and keeps a weak reference to the decode step that failed with it.
    """

    def __init__(self, num_failures: int, error: type[Exception] | None) -> None:
        self._num_failures, self._error = num_failures, error
        self._propose = HeadDrafter.propose
        self.failed_at: list[datetime] = []
        self.failed_steps: list[weakref.ref] = []
        self.num_alive_later = 0

    def propose(self, drafter: HeadDrafter, step: Any, *arguments: Any) -> Any:
        self.num_alive_later += sum(ref() is not None for ref in self.failed_steps)
        if len(self.failed_at) < self._num_failures:
            self.failed_at.append(datetime.now(UTC))
            self.failed_steps.append(weakref.ref(step))
            if self._error is not None:
                raise self._error("CUDA out of memory.\nTried to allocate 20.00 MiB.")
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return self._propose(drafter, step, *arguments)


@pytest.fixture
def evaluated(monkeypatch):
    """The rows of two samples, by sample and method, and the memory, which failed as told."""

    def evaluate(num_failures: int, error: type[Exception] | None = None) -> tuple[dict, FullMemory]:
        model = tiny_model()
        decode = DecodeSettings(gamma=0.02, max_new_tokens=20, exits=(1, 2))
        config = EvalConfig(model="tiny", task="jsonl", methods=METHODS, decode=decode, dtype="float32")
        memory = FullMemory(num_failures, error)
        worker = Worker("w0", config, model, word_tokenizer(97), {"jsonl": random_heads(model, (1, 2))}, 8)
        examples = tuple(Example(f"s{i}", prompt, prompt) for i, prompt in enumerate(["w5 w6", "w8 w9 w10"]))
        with monkeypatch.context() as patched:
            patched.setattr(HeadDrafter, "propose", lambda *arguments: memory.propose(*arguments))
            rows = evaluate_shard(worker, Shard(0, "jsonl", examples))
        return {(row.sample_id, row.method): row.columns() for row in rows}, memory

    return evaluate


TIMES = {"started_at", "ttft_s", "decode_s", "e2e_s", "tpot_s", "step_gaps_s"}


@pytest.mark.parametrize(
    "error", [None, torch.OutOfMemoryError, MemoryError], ids=["torch on the CPU", "CUDA", "Python"]
)
def test_a_generation_that_ran_out_of_memory_once_is_measured_anew(evaluated, caplog, error):
    undisturbed, _ = evaluated(0)
    rows, memory = evaluated(1, error)
    assert len(memory.failed_at) == 1
    for key, row in rows.items():
        assert {name: row[name] for name in row.keys() - TIMES} == {
            name: undisturbed[key][name] for name in row.keys() - TIMES
        }
    retried = rows["s0", "adadecode"]
    assert retried["status"] == "ok"
    assert retried["started_at"] > memory.failed_at[0]
    assert len(retried["step_gaps_s"]) == retried["num_rounds"]
    assert retried["e2e_s"] == pytest.approx(retried["ttft_s"] + sum(retried["step_gaps_s"]))
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert warning.getMessage().startswith("jsonl/s0 adadecode: out of memory, trying once more: ")


def test_what_ran_out_of_memory_is_freed_before_it_is_tried_again(evaluated):
    gc.disable()  # the cycle collector must not do by chance what the retry is to do
    try:
        _, memory = evaluated(2)
    finally:
        gc.enable()
    assert len(memory.failed_steps) == 2
    assert memory.num_alive_later == 0, "a failed decode step and its cache were still in memory"


def test_a_generation_that_runs_out_of_memory_twice_is_one_error_row(evaluated, caplog):
    rows, memory = evaluated(2)
    assert len(memory.failed_at) == 2
    failed = rows.pop(("s0", "adadecode"))
    assert (failed["status"], failed["finish_reason"], failed["error_type"]) == ("error", "error", "RuntimeError")
    assert "can't allocate memory" in failed["error_message"]
    assert {failed[name] for name in TIMES - {"started_at"} | {"parity", "output_token_ids", "num_rounds"}} == {None}
    assert len(rows) == 5
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["s1", "adadecode"]["parity"] == "exact"
    assert [record.getMessage().partition(":")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        "jsonl/s0 adadecode",
        "jsonl/s0 adadecode failed",
    ]


def test_other_errors_are_not_tried_again(evaluated):
    rows, memory = evaluated(1, LookupError)
    assert len(memory.failed_at) == 1
    failed = rows["s0", "adadecode"]
    assert (failed["error_type"], failed["error_message"]) == (
        "LookupError",
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
    )


def test_a_comparison_that_fails_makes_an_error_row_of_what_was_compared(evaluated, monkeypatch):
    def compare(vanilla, other, dtype, draw):
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    monkeypatch.setattr("adadecode.evaluation.worker.compare", compare)
    rows, _ = evaluated(0)
    for (_, method), row in rows.items():
        assert row["status"] == ("ok" if method == "vanilla" else "error")
        measured = [row[name] is not None for name in ("e2e_s", "output_token_ids")]
        assert measured == [method == "vanilla"] * 2


def raising(error: BaseException):
    def function():
        raise error

    return function


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), DeviceLostError("gone")])
def test_what_ends_a_process_is_no_samples_failure(error):
    with pytest.raises(type(error)):
        result_or_failure("s0", raising(error), tiny_model())


def test_a_broken_device_context_needs_a_new_process():
    with pytest.raises(DeviceLostError, match="needs a new process: CUDA error: an illegal memory access"):
        result_or_failure("s0", raising(torch.AcceleratorError("CUDA error: an illegal memory access")), tiny_model())


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["outside of torch's allocator", "cuBLAS"],
)
def test_a_devices_memory_that_runs_out_outside_of_torch_is_tried_again_and_no_lost_device(error):
    calls = iter([raising(error), lambda: 7])
    assert result_or_failure("s0", lambda: next(calls)(), tiny_model()) == 7
    failure = result_or_failure("s0", raising(error), tiny_model())
    assert isinstance(failure, Failure)
    assert failure.is_out_of_memory
    with pytest.raises(type(error)), broken_devices_named():
        raise error


def test_the_retry_has_the_result_of_its_own():
    calls = iter([raising(MemoryError()), lambda: 7])
    assert result_or_failure("s0", lambda: next(calls)(), tiny_model()) == 7


def test_a_message_is_one_line_of_bounded_length():
    failure = failure_of(ValueError("a\n\tb" + "c" * 2000))
    assert failure.error_message == "a b" + "c" * (MAX_MESSAGE_LEN - 3)
    assert failure_of(ValueError()) == Failure("ValueError", "ValueError()", False)
    json.dumps(asdict(failure))


UNDER_A_LIMIT = """
import resource
from pathlib import Path
from adadecode.evaluation.worker import Worker, evaluate_shard
from adadecode.records import Example, Shard
from adadecode.settings import DecodeSettings, EvalConfig
from tests.folders import word_tokenizer
from tests.models import random_heads, tiny_model

sizes = {"intermediate_size": 4096, "num_key_value_heads": 4, "head_dim": 64}
model = tiny_model(kernels="native", num_layers=2, context_len=70_000, **sizes)
decode = DecodeSettings(gamma=0.02, max_new_tokens=4, exits=(1,))
config = EvalConfig(model="tiny", task="jsonl", methods=("vanilla", "adadecode"), decode=decode, dtype="float32")
worker = Worker("w0", config, model, word_tokenizer(97), {"jsonl": random_heads(model, (1,))}, 8)

def evaluate(*lengths):
    examples = tuple(Example(str(length), " ".join(["w7"] * length), None) for length in lengths)
    return evaluate_shard(worker, Shard(0, "jsonl", examples))

evaluate(5)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
for row in evaluate(3000, 60_000, 6):
    print(row.sample_id, row.method, row.status, row.parity, row.error_type, row.error_message)
"""


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from what the process uses")
def test_native_kernels_that_find_no_memory_are_an_error_row_and_the_next_sample_is_decoded():
    """64 MiB: a prompt of 3,000 tokens fits in blocks of rows, not as a whole; the cache of one of 60,000 does not."""
    found = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    words = {tuple(line.split()[:2]): line.split()[2:] for line in lines}
    assert len(words) == 6, lines
    for length in ("3000", "6"):
        assert words[length, "vanilla"] == ["ok", "None", "None", "None"]
        assert words[length, "adadecode"] == ["ok", "exact", "None", "None"]
    for method in ("vanilla", "adadecode"):
        status, _, error_type, *message = words["60000", method]
        assert (status, error_type) == ("error", "RuntimeError")
        assert "can't allocate memory" in " ".join(message)


def test_rows_that_depend_on_each_other_at_the_columns_of_one_prompt_end_the_run(cli, tiny, tmp_path, monkeypatch):
    """The check at load has no prompt yet; that of 500 tokens needs a step of 512 columns."""

    def check(model, width, num_positions):
        if model.num_columns(num_positions[0]) == 512:
            raise RowsDependentError("a row's bits depend on its slot")

    monkeypatch.setattr("adadecode.engine.invariance.check_rows_independent", check)
    data = write_prompts(tmp_path / "p.jsonl", ["w5 w6", " ".join(["w7"] * 500)])
    flags = tiny.flags(data_file=data, max_new_tokens=6, kernels="eager")
    result = cli("eval", "--local", *flags, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "a row's bits depend on its slot" in result.stderr


@pytest.mark.parametrize("kernels", ["eager", pytest.param("native", marks=needs_compiler)])
def test_each_number_of_columns_a_run_needs_is_checked_once(monkeypatch, kernels):
    model, seen = tiny_model(kernels=kernels), list[int]()
    decode = DecodeSettings(max_new_tokens=20)
    config = EvalConfig(model="tiny", task="jsonl", methods=("vanilla", "vanilla-w1"), decode=decode, dtype="float32")
    worker = Worker("w0", config, model, word_tokenizer(97), {}, 8)
    monkeypatch.setattr(
        "adadecode.engine.invariance.check_rows_independent",
        lambda model, width, num_positions: seen.append(model.num_columns(*num_positions)),
    )
    prompts = [" ".join(["w7"] * length) for length in (2, 5, 90, 200, 95, 2)]
    rows = evaluate_shard(worker, Shard(0, "jsonl", tuple(Example(str(i), p, p) for i, p in enumerate(prompts))))
    assert {row.status for row in rows} == {"ok"}
    assert seen == ([64, 128, 256] if kernels == "eager" else [64]), "to native kernels columns are no shape"


@pytest.mark.parametrize("command", ["eval", "bench", "tune", "generate"])
def test_a_model_without_finite_logits_is_one_line_in_every_command(cli, tiny, tmp_path, command):
    model = save_tiny_model(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = math.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    heads = save_tiny_heads(tmp_path / "heads", model, (1, 2))
    common = ["--model", model, "--heads", heads, "--dtype", "float32", "--threads", 1]
    data = ["--task", "jsonl", "--data-file", tiny.prompts]
    flags = {
        "eval": [*common, *data, "--local", "--out", tmp_path / "out"],
        "bench": [*common, *data],
        "tune": [*common, *data, "--out", tmp_path / "out"],
        "generate": [*common, "w5 w6"],
    }
    result = cli(command, *flags[command])
    assert result.exit_code == 2
    [line] = [line for line in result.stderr.splitlines() if "not finite" in line]
    assert "in float32" in line
    assert "model.layers.1.mlp.up_proj.weight holds NaN or infinity; check the checkpoint" in line
