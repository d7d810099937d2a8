"""Speed of every method on one machine, and where the time goes: rounds, their parts, and what is between them.

All methods decode the same prompts in turns, in one process. Prefill is excluded throughout.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from adadecode.bench.figures import copy_bandwidth, make_report, memory_facts
from adadecode.bench.parts import Call, PartTimer, TracedModel, used_tests
from adadecode.bench.subject import Bench, Traces, load_bench
from adadecode.engine.invariance import check_rows_independent
from adadecode.evaluation.compare import compare
from adadecode.files import whole_file, write_whole
from adadecode.kernels.weights import Gate, Head
from adadecode.methods import METHODS, in_turn
from adadecode.settings import BenchConfig

Say = Callable[[str], None]
PARTS_BUDGET_S = 8.0


def run_bench(config: BenchConfig, say: Say) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report and its rows, one per measured generation; raises UsageError and RowsDependentError.

    The parts are timed between the repeats, so that a machine that is slower for a while is so for both. `say` is told
    what is going on.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bench = load_bench(config)
    check_rows_independent(bench.model, bench.width)
    bandwidth = copy_bandwidth() if bench.model.device.type == "cuda" else None
    say(f"{config.name}: {len(bench.prompts)} prompts, W = {bench.width}; tracing {', '.join(bench.variants)}")
    traces = trace(bench)
    if bandwidth is not None:
        torch.cuda.reset_peak_memory_stats()
    measure(bench, traces, 0)
    memory = memory_facts(bench)
    say("warm")
    middle = sorted(bench.prompts, key=lambda prompt: len(prompt.token_ids))[len(bench.prompts) // 2]
    tests = parts_of_policy(bench, traces)
    calls = {call for counted in traces.calls.values() for call in counted} | set(tests) | parts_of_rounds(bench)
    timer = PartTimer(bench.model, calls, tests, middle.token_ids, bench.num_positions(middle))
    rows = []
    for repeat in range(config.repeats):
        rows += measure(bench, traces, repeat)
        timer.measure(PARTS_BUDGET_S / config.repeats)
        say(f"repeat {repeat + 1} of {config.repeats}")
    times = timer.times()
    return make_report(bench, traces, rows, times, bandwidth, memory), rows


def trace(bench: Bench) -> Traces:
    """One generation per variant and prompt that is not timed: its calls counted, its logits compared with vanilla's."""
    names = bench.variants
    traces = Traces({name: Counter() for name in names}, {}, {name: [] for name in names}, {name: [] for name in names})
    for prompt in bench.prompts:
        vanilla = None
        for variant in sorted(names, key=lambda name: name != "vanilla"):
            traced = TracedModel(bench.model)
            decoded = bench.decode(variant, prompt, model=traced, record_logits=True)
            if traced.step is not None:
                traces.calls[variant] += traced.step.calls
                traces.tests |= traced.step.tests
            vanilla = vanilla or decoded
            traces.outputs[variant].append(decoded.generation.output_token_ids)
            traces.parity[variant].append(dataclasses.asdict(compare(vanilla, decoded, bench.config.dtype)))
    return traces


def measure(bench: Bench, traces: Traces, repeat: int) -> list[dict[str, Any]]:
    """One row per prompt and variant, the variants in turns.

    A variant whose tokens are not those of its traced generation counts as unequal to vanilla's.
    """
    rows = []
    for prompt_idx, prompt in enumerate(bench.prompts):
        for order_idx, variant in enumerate(in_turn(bench.variants, repeat + prompt_idx)):
            generation = bench.decode(variant, prompt).generation
            if generation.output_token_ids != traces.outputs[variant][prompt_idx]:
                traces.parity[variant][prompt_idx] |= {"parity": "mismatch", "repeat": repeat}
            rows.append(
                {
                    "method": variant,
                    "width": bench.width_of(variant),
                    "task": prompt.task,
                    "prompt_idx": prompt_idx,
                    "repeat": repeat,
                    "order_idx": order_idx,
                    "prompt_len": len(prompt.token_ids),
                    "output_len": len(generation.output_token_ids),
                    "num_rounds": generation.num_rounds,
                    "layers_run": generation.layers_run,
                    "num_drafted": generation.num_drafted if METHODS[variant].drafts else None,
                    "num_accepted": generation.num_accepted if METHODS[variant].drafts else None,
                    "ttft_s": generation.ttft_s,
                    "decode_s": generation.decode_s,
                }
            )
    return rows


def parts_of_policy(bench: Bench, traces: Traces) -> dict[Call, Head | Gate]:
    """All that may be tested, on one row and on as many as the traces had; for comparison the full head too."""
    tests = dict(traces.tests)
    for task, policy in bench.policies.items():
        tests |= used_tests(bench.heads[task], policy.exits, bench.width)
    model = bench.model
    full = Head((torch.eye(model.width, dtype=model.dtype, device=model.device), *model.weights.head.matrices))
    for call in [call for call in tests if call.head == "shortlist" and call.rows == 1]:
        tests.setdefault(dataclasses.replace(call, head="full"), full)
    return tests


def parts_of_rounds(bench: Bench) -> set[Call]:
    """Every segment of a round and the verification, for each number of rows, whether the traces had it or not."""
    width, num_layers = bench.width, bench.model.num_layers
    calls = set()
    for policy in bench.policies.values():
        boundaries = (0, *policy.exits, num_layers)
        for rows in range(1, policy.max_drafts + 2):
            calls.add(Call("verify", width, rows))
            calls |= {Call("layers", width, rows, start, stop) for start, stop in pairwise(boundaries)}
    return calls


def write_bench(out: Path, result: dict[str, Any], rows: list[dict[str, Any]], text: str) -> None:
    """Writes bench.json, bench.parquet with one row per measured generation, and bench.txt, what was printed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adadecode.bench.table import BENCH_ROWS

    write_whole(out / "bench.json", json.dumps(result, indent=2) + "\n")
    write_whole(out / "bench.txt", text)
    with whole_file(out / "bench.parquet") as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema=BENCH_ROWS), unfinished, compression="zstd")
