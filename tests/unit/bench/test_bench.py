"""`adadecode bench`: what it counts and prints. Speeds are never asserted."""

import dataclasses
import functools
import io
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from adadecode.api import silent
from adadecode.bench import bench as bench_module
from adadecode.bench import subject, timer
from adadecode.bench.bench import count_calls, in_turn, run_bench
from adadecode.bench.calls import Call
from adadecode.bench.figures import step_weights
from adadecode.bench.machine import READ_BLOCK, ReadBandwidth
from adadecode.bench.subject import load_subject
from adadecode.bench.synthetic import synthetic_lm
from adadecode.bench.table import BENCH_ROWS, bench_lines, bench_tables
from adadecode.evaluation.compare import compare
from adadecode.model.medusa_heads import TENSORS
from adadecode.published import DEMO_MEDUSA_DIR
from adadecode.settings import DRAWN_BEFORE, READ_BEFORE, BenchConfig, RivalSettings, build_settings
from tests.json_keys import key_paths
from tests.models import HAS_COMPILER, needs_compiler

ROOT = Path(__file__).parents[3]
SHORT = ["--limit", "1", "--max-new-tokens", "4", "--repeats", "1", "--threads", "1"]
SMALL = {
    "num_hidden_layers": 8,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 400,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Shapes are small, and each part is timed a few times only."""
    monkeypatch.setattr(subject, "synthetic_lm", functools.partial(synthetic_lm, **SMALL))
    monkeypatch.setattr(bench_module, "PARTS_BUDGET_S", 0.0)
    monkeypatch.setattr(timer, "MIN_REPETITIONS", 2)


def bench_config(**flags) -> BenchConfig:
    given = {"shape": "llama-160m", "threads": 1, "limit": 2, "max_new_tokens": 12, "repeats": 2, **flags}
    return build_settings(BenchConfig, None, given)


def last_json(output: str) -> dict:
    return json.loads(output.splitlines()[-1])


# what bench.json has that the reference run of 0.1.0 has not
NEW_KEYS = {f"machine.{name}" for name in ("attention", "float32_precision", "reduced_precision_sums")}
NEW_KEYS |= {"provenance.code_hash", "methods.*.is_lossy", "settings.offset", "faster_vanilla_geomean"}
NEW_KEYS |= {"roofline.bandwidth_bytes_per_s", "settings.decode.stop", "settings.decode.ngram_store"}
NEW_KEYS |= {"machine.foreign_heads", "machine.foreign_medusa_heads", "settings.foreign_heads"}
NEW_KEYS |= {"machine.draft_model_hash", "memory.draft_model_bytes"}
NEW_KEYS |= {"machine.medusa_heads_hash", "memory.medusa_heads_bytes"}
NEW_KEYS |= {"machine.policy.stop", "machine.policy.ngram_store", "settings.gpus_per_worker"}
OLD_KEYS = {"roofline.copy_bandwidth_bytes_per_s"}
KEYED_BY_NAME = frozenset({"methods", "parts[].calls_per_round", "machine.heads_hash", "provenance.packages"})
NEW_KEYS |= {f"settings.{name}" for name in (*READ_BEFORE, *DRAWN_BEFORE)} | {
    f"settings.decode.{name}" for name in RivalSettings.model_fields
}


def test_the_json_has_the_keys_of_the_reference_runs_and_the_rows_the_columns():
    result, rows = run_bench(bench_config(repeats=1), lambda _: None)
    fresh = json.loads(json.dumps(result.to_json()))
    for name in ("bench-gsm8k", "bench-humaneval"):
        before = json.loads((ROOT / "results" / "reference" / name / "bench.json").read_text())
        assert key_paths(fresh, KEYED_BY_NAME) == key_paths(before, KEYED_BY_NAME) - OLD_KEYS | NEW_KEYS
        assert [name for name in fresh if name in before] == list(before)
    assert {tuple(dataclasses.asdict(row)) for row in rows} == {tuple(BENCH_ROWS.names)}


@pytest.mark.parametrize(("parity", "code"), [("exact", 0), (None, 0), ("broken", 3)])
def test_only_broken_parity_is_a_mismatch(parity, code):
    result, _ = run_bench(bench_config(repeats=1, limit=1, max_new_tokens=4), lambda _: None)
    assert dataclasses.replace(result, parity=parity).exit_code == code


def test_exits_that_never_fire_are_all_tested_in_every_round():
    subject = load_subject(bench_config(exits=(2, 6), ngram=0.4), silent)
    counted = count_calls(subject)
    never = counted.calls["adadecode-never"]
    (rounds,) = {count for call, count in never.items() if call.kind == "verify"}
    assert never[Call("layers", 8, 1, 2, 6)] == rounds == sum(len(ids) - 1 for ids in counted.outputs["vanilla"])
    # a prompt's last round may draft nothing, so it tests nothing
    assert never[Call("test", 8, 1, 2, head="full")] == rounds - len(subject.prompts)
    assert counted.outputs["adadecode-never"] == counted.outputs["vanilla"]


def test_the_report_adds_up_and_leaves_out_what_was_not_measured():
    config = bench_config(head="shortlist", gate=0.1, methods=("vanilla", "vanilla-w1", "adadecode", "transformers"))
    result, rows = run_bench(config, lambda _: None)
    methods = result.methods
    assert list(methods) == ["vanilla", "vanilla-w1", "adadecode", "transformers", "adadecode-never"]
    assert result.parity == "exact"
    for name, row in methods.items():
        assert row.tokens_per_s_min <= row.tokens_per_s <= row.tokens_per_s_max
        assert row.num_tokens == 2 * 11
        assert row.width == {"vanilla-w1": 1, "transformers": None}.get(name, 8)
        assert (row.roofline_share is not None) == HAS_COMPILER, "bandwidth is measured where kernels are native"
        assert (row.bandwidth_share is not None) == (HAS_COMPILER and name != "transformers")
        if name == "transformers":
            assert row.parts_ms_per_round is row.ceiling_tokens_per_s is None
            continue
        of_parts = sum(part.ms * part.calls_per_round.get(name, 0.0) for part in result.parts)
        assert of_parts == pytest.approx(row.parts_ms_per_round)
        assert of_parts + row.host_overhead_ms_per_round == pytest.approx(row.ms_per_round)
        assert row.ceiling_tokens_per_s * of_parts / 1e3 == pytest.approx(row.tokens_per_round)
    assert methods["vanilla"].layers_per_token == methods["adadecode-never"].layers_per_token == 8
    assert methods[result.faster_vanilla].speedup_over_faster_vanilla == 1.0
    assert methods[result.faster_vanilla_geomean].speedup_geomean == 1.0
    assert all(methods[name].speedup_geomean <= 1.0 for name in ("vanilla", "vanilla-w1"))
    medians = [
        [statistics.median(r.decode_s for r in rows if (r.method, r.prompt_idx) == (m, p)) for p in (0, 1)]
        for m in (result.faster_vanilla_geomean, "adadecode")
    ]
    ratios = [vanilla / ours for vanilla, ours in zip(*medians, strict=True)]
    assert methods["adadecode"].speedup_geomean == pytest.approx(math.sqrt(math.prod(ratios)))
    assert (result.roofline.bandwidth_bytes_per_s is not None) == HAS_COMPILER
    assert result.roofline.vanilla_step_read_bytes > 0.8 * result.memory.weights_bytes - 2 * 64 * 400
    assert result.memory.peak_device_bytes is None
    assert result.memory.peak_rss_bytes > result.memory.weights_bytes
    assert len(rows) == config.repeats * 2 * len(methods)
    assert {row.num_drafted for row in rows if row.method != "adadecode"} == {None}


def test_every_segment_is_timed_for_every_number_of_rows_and_every_kind_of_head():
    result, _ = run_bench(bench_config(head="shortlist", gate=0.1, max_drafts=3, repeats=1), lambda _: None)
    timed = {(tuple(part.layers), part.rows) for part in result.parts if part.part == "layers"}
    assert timed >= {(span, rows) for span in ((0, 2), (2, 4), (4, 6), (6, 8)) for rows in (1, 2, 3, 4)}
    assert ((0, 8), 1) in timed
    tested = {(part.exit_layer, part.head) for part in result.parts if part.part == "test"}
    assert tested == {(e, head) for e in (2, 4, 6) for head in ("full", "shortlist", "gate")}
    assert {part.rows for part in result.parts if part.part == "verify"} == {1, 2, 3, 4}


def test_one_token_leaves_nothing_to_measure_and_breaks_nothing():
    result, _ = run_bench(bench_config(max_new_tokens=1), lambda _: None)
    row = result.methods["adadecode"]
    assert row.num_tokens == row.num_rounds == 0
    assert row.tokens_per_s is row.ceiling_share is row.host_overhead_ms_per_round is None
    assert result.never_fires_cost is None
    assert result.parity == "exact"


def test_what_is_drawn_by_noise_of_its_own_is_not_called_exact():
    config = bench_config(methods="vanilla,adadecode,transformers", limit=1, repeats=1, temperature=1.0)
    result, _ = run_bench(config, lambda _: None)
    assert result.parity == "exact"
    assert {name: row.is_exact for name, row in result.methods.items()}["transformers"] is None
    assert result.methods["adadecode"].is_exact is True
    assert not any("transformers's tokens" in line for line in bench_lines(result))


def test_the_command_prints_tables_stores_them_and_ends_with_one_json_line(cli, tmp_path):
    out = tmp_path / "bench"
    flags = ("--task", "demo-math", "--limit", 1, "--max-new-tokens", 10, "--repeats", 1, "--threads", 1)
    result = cli("bench", *flags, "--out", out)
    assert result.exit_code == 0, result.stderr
    found = last_json(result.stdout)
    assert found == json.loads((out / "bench.json").read_text())
    assert found["synthetic"] is False
    assert found["settings"]["decode"]["policy"] == "demo"
    assert found["machine"]["threads"] == 1
    text = (out / "bench.txt").read_text()
    assert "adadecode-never" in text
    assert "layers 2-16" in text, "behind the exit of its policy"
    assert text.splitlines()[0] == result.stdout.splitlines()[0]
    assert pq.read_schema(out / "bench.parquet").names == BENCH_ROWS.names
    assert pq.read_table(out / "bench.parquet").num_rows == 4


def test_synthetic_weights_are_named_so_in_the_title_and_the_json(cli):
    result = cli("bench", "--shape", "llama-160m", *SHORT)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("llama-160m, SYNTHETIC weights")
    assert last_json(result.stdout)["synthetic"] is True
    assert last_json(result.stdout)["settings"]["decode"]["policy"] == "paper"


def test_an_output_that_differs_from_vanillas_ends_with_exit_code_3(cli, monkeypatch):
    def differs(vanilla, other, dtype, draw):
        wrong = other.generation.num_drafted == 0  # of exits that never fire
        found = compare(vanilla, other, dtype, draw)
        return replace(found, parity="mismatch" if wrong else "exact", logits_equal=not wrong)

    monkeypatch.setattr(bench_module, "compare", differs)
    result = cli("bench", "--shape", "llama-160m", "--limit", 1, "--max-new-tokens", 12, "--repeats", 1)
    assert result.exit_code == 3
    assert last_json(result.stdout)["parity"] == "broken"
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("parity ")]
    assert line == "parity broken: adadecode-never's tokens are vanilla's on 0/1 prompts, its logits on 0/1"


def test_tokens_that_change_between_repeats_break_parity(monkeypatch):
    config = bench_config(repeats=1)
    subject = load_subject(config, silent)
    counted = count_calls(subject)
    counted.outputs["adadecode"][0] = (1, 2, 3)
    bench_module.measure(subject, counted, 0)
    assert counted.parity["adadecode"][0].parity == "mismatch"
    assert counted.parity["adadecode"][1].parity == "exact"


def test_every_method_stands_in_every_place():
    methods = ("vanilla", "vanilla-w1", "adadecode")
    orders = [in_turn(methods, turn) for turn in range(6)]
    assert all(sorted(order) == sorted(methods) for order in orders)
    for place in range(3):
        assert [order[place] for order in orders].count("adadecode") == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shape", "llama-160m", "--model", "demo"), "--shape llama-160m has synthetic weights"),
        (("--shape", "llama-160m", "--task", "gsm8k"), "drop it, or --task"),
        (("--shape", "llama-3"), "--shape 'llama-3'"),
        (("--methods", "adadecode"), "--methods adadecode"),
        (("--exits", "3", "--task", "demo-math"), "no heads at [3]"),
        (
            ("--heads", "original", "--head", "shortlist", "--task", "demo-math"),
            "--heads original is the model's own LM head",
        ),
    ],
)
def test_a_mistake_is_one_line(usage_error, flags, message):
    assert message in usage_error("bench", *flags)


def test_an_out_that_is_a_file_is_refused_before_anything_is_loaded(usage_error, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--out" in usage_error("bench", "--out", tmp_path / "file")


@needs_compiler
def test_on_a_cpu_the_bandwidth_is_that_of_reading_as_much_as_a_step_does():
    result, _ = run_bench(bench_config(kernels="native", methods=("vanilla",)), lambda _: None)
    model = load_subject(bench_config(kernels="native"), lambda _: None).model
    assert 0.9 * step_weights(model) < result.roofline.vanilla_step_read_bytes - 2**10
    assert result.roofline.vanilla_tokens_per_s == pytest.approx(
        result.roofline.bandwidth_bytes_per_s / result.roofline.vanilla_step_read_bytes
    )
    assert 0.0 < result.methods["vanilla"].roofline_share < 1.5
    reads = ReadBandwidth(10 * 4 * READ_BLOCK + 5)
    reads.measure(0.01)
    assert reads.bytes_per_s > 1e8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_cuda_device_bandwidth_is_measured():
    result, _ = run_bench(bench_config(device="cuda"), lambda _: None)
    assert result.roofline.bandwidth_bytes_per_s > 1e9
    assert 0.0 < result.methods["vanilla"].roofline_share < 1.5


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(["--task", "demo-math"], id="demo"),
        pytest.param(["--shape", "llama-160m"], id="llama-160m", marks=pytest.mark.slow),
    ],
)
def test_it_runs_without_ray_and_datasets(what):
    code = """
import sys
sys.modules["ray"] = sys.modules["datasets"] = None  # importing them fails from here on
from adadecode.cli.main import main
from adadecode.bench import bench, timer
bench.PARTS_BUDGET_S, timer.MIN_REPETITIONS = 0.0, 1
main(sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", *what, *SHORT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert last_json(done.stdout)["methods"]["adadecode"]["num_parity_exact"] == 1


def test_a_method_without_verification_is_measured_and_marked_and_breaks_no_parity():
    methods = ("vanilla", "adadecode", "adadecode-unverified")
    result, rows = run_bench(bench_config(methods=methods, gamma=0.0, repeats=1), lambda _: None)
    assert list(result.methods) == [*methods, "adadecode-never"]
    row = result.methods["adadecode-unverified"]
    assert row.num_parity_exact < row.num_prompts, "the test needs wrong drafts"
    assert (row.is_lossy, row.acceptance_rate, result.parity) == (True, None, "exact")
    assert {row.num_drafted == row.num_accepted > 0 for row in rows if row.method == methods[2]} == {True}
    tables = io.StringIO()
    Console(file=tables, width=150).print(*bench_tables(result))
    assert tables.getvalue().count("(lossy)") == 1


def test_original_heads_are_measured_without_a_folder(cli):
    flags = ("--task", "demo-math", "--heads", "original", "--policy", "paper")
    result = cli("bench", *flags, *SHORT)
    assert result.exit_code == 0, result.stderr
    assert last_json(result.stdout)["methods"]["adadecode"]["num_parity_exact"] == 1


def test_a_draft_model_is_measured_with_its_memory_and_its_rounds_are_not_taken_apart(cli):
    flags = ("--task", "demo-math", "--methods", "vanilla,speculative", "--draft-model", "demo")
    result = cli("bench", *flags, *SHORT)
    assert result.exit_code == 0, result.stderr
    found = last_json(result.stdout)
    memory, machine, row = found["memory"], found["machine"], found["methods"]["speculative"]
    assert memory["draft_model_bytes"] >= memory["weights_bytes"] + memory["kv_bytes"], "it is the model itself"
    assert machine["draft_model_hash"] == machine["model_hash"]
    assert (row["num_parity_exact"], row["acceptance_rate"], row["parts_ms_per_round"]) == (1, 1.0, None)
    assert "draft model with its own" in result.stdout


def test_medusa_heads_are_measured_with_their_memory_and_their_rounds_are_not_taken_apart(cli):
    flags = ("--task", "demo-math", "--methods", "vanilla,medusa", "--medusa-heads", "demo")
    result = cli("bench", *flags, *SHORT)
    assert result.exit_code == 0, result.stderr
    found = last_json(result.stdout)
    memory, machine, row = found["memory"], found["machine"], found["methods"]["medusa"]
    assert memory["medusa_heads_bytes"] > (DEMO_MEDUSA_DIR / "math" / TENSORS).stat().st_size, "with the LM head's rows"
    assert set(machine["medusa_heads_hash"]) == {"demo-math"}
    assert (row["num_parity_exact"], row["parts_ms_per_round"]) == (1, None)
    assert "Medusa heads " in result.stdout
