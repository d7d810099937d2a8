"""What a bench's measurements come to: speeds, ceilings, overheads, bytes and where they were measured."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from adadecode.bench.parts import Call, CallTime, used_tests
from adadecode.engine.policy import VANILLA
from adadecode.kernels.weights import Gate, Head
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.provenance import cpu_name, gpu_driver, provenance

if TYPE_CHECKING:
    from adadecode.bench.subject import Bench, Traces, Variant


COPY_BYTES, NUM_COPIES, NUM_WARMUP_COPIES = 2 << 30, 20, 3


def copy_bandwidth() -> float:
    """Bytes per second of a large copy within the CUDA device, bytes read and written; the median of several."""
    num_bytes = min(COPY_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.empty(num_bytes // 4, dtype=torch.int32, device="cuda").random_()
    target = torch.empty_like(source)
    durations_ms = []
    for _ in range(NUM_WARMUP_COPIES + NUM_COPIES):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        durations_ms.append(begin.elapsed_time(end))
    del source, target
    torch.cuda.empty_cache()
    return 2 * (num_bytes // 4 * 4) / statistics.median(durations_ms[NUM_WARMUP_COPIES:]) * 1e3


def layer_bytes(model: DecoderModel, start: int, stop: int) -> int:
    """Bytes of the weights of layers [start, stop)."""
    weights = (
        tensor for layer in model.weights.layers[start:stop] for tensor in vars(layer).values() if tensor is not None
    )
    return sum(tensor.nbytes for tensor in weights)


def call_bytes(bench: Bench, call: Call, tests: Mapping[Call, Head | Gate], num_columns: int) -> int:
    """Bytes a call must read: weights, and keys and values of `num_columns` positions in its layers."""
    model = bench.model
    per_column = 2 * model.weights.shape.num_kv_heads * model.weights.shape.head_dim * model.dtype.itemsize
    match call.kind:
        case "layers":
            return layer_bytes(model, call.start, call.stop) + (call.stop - call.start) * num_columns * per_column
        case "test":
            return sum(tensor.nbytes for tensor in tests[call].tensors)
        case "verify":
            return sum(tensor.nbytes for tensor in model.weights.head.tensors)
    return 0


def mean_columns(rows: list[dict[str, Any]]) -> int:
    """Positions attended to by the middle token of an output, over all prompts."""
    return round(statistics.mean(row["prompt_len"] + row["output_len"] / 2 for row in rows))


def make_report(
    bench: Bench,
    traces: Traces,
    rows: list[dict[str, Any]],
    times: dict[Call, CallTime],
    bandwidth: float | None,
    memory: dict[str, int | None],
) -> dict[str, Any]:
    """Everything that was measured, as one JSON object; null is what was not."""
    num_columns = mean_columns(rows)
    step_bytes = sum(
        call_bytes(bench, call, traces.tests, num_columns)
        for call in (Call("layers", 1, 1, 0, bench.model.num_layers), Call("verify", 1, 1))
    )
    methods: dict[Variant, dict[str, Any]] = {
        variant: _speed(bench, variant, rows, traces) for variant in bench.variants
    }
    vanillas: list[Variant] = [variant for variant in bench.variants if variant.startswith("vanilla")]
    faster = max(vanillas, key=lambda variant: methods[variant]["tokens_per_s"] or 0.0)
    for variant, summary in methods.items():
        counted = traces.calls[variant]
        isolated_s = sum(count * times[call].ms for call, count in counted.items()) / 1e3 if counted else None
        num_bytes = sum(count * call_bytes(bench, call, traces.tests, num_columns) for call, count in counted.items())
        tokens = summary["num_tokens"]
        summary["speedup_over_faster_vanilla"] = _paired_ratio(rows, faster, variant)
        summary["speedup_geomean"] = _geomean_ratio(rows, faster, variant)
        ceiling = tokens / isolated_s if isolated_s else None
        summary["ceiling_tokens_per_s"] = ceiling
        summary["ceiling_share"] = _over(summary["tokens_per_s"], ceiling)
        per_round = isolated_s * 1e3 / summary["num_rounds"] if isolated_s and summary["num_rounds"] else None
        summary["parts_ms_per_round"] = per_round
        summary["host_overhead_ms_per_round"] = None if per_round is None else summary["ms_per_round"] - per_round
        summary["read_bytes_per_token"] = num_bytes / tokens if num_bytes and tokens else None
        reads_per_s = (summary["read_bytes_per_token"] or 0) * (summary["tokens_per_s"] or 0)
        summary["bandwidth_share"] = _over(reads_per_s or None, bandwidth)
        summary["roofline_share"] = _over(summary["tokens_per_s"], _over(bandwidth, step_bytes))
    exact = [row["is_exact"] for name, row in methods.items() if METHODS[name].owes == "exact"]
    return {
        "bench": bench.config.name,
        "synthetic": bench.config.shape is not None,
        "parity": None if not exact else "exact" if all(exact) else "broken",
        "methods": methods,
        "faster_vanilla": faster,
        "never_fires_cost": _paired_ratio(rows, "adadecode-never", "vanilla") if "adadecode-never" in methods else None,
        "parts": [_part(call, time, traces, methods) for call, time in times.items()],
        "memory": memory,
        "roofline": {
            "copy_bandwidth_bytes_per_s": bandwidth,
            "vanilla_step_read_bytes": step_bytes,
            "vanilla_tokens_per_s": _over(bandwidth, step_bytes),
        },
        "machine": machine_facts(bench),
        "settings": bench.config.model_dump(mode="json"),
        "provenance": provenance(),
    }


def _speed(bench: Bench, variant: Variant, rows: list[dict[str, Any]], traces: Traces) -> dict[str, Any]:
    """Medians and extremes over the repeats, each of which is all prompts together."""
    repeats = [
        [row for row in rows if row["method"] == variant and row["repeat"] == repeat]
        for repeat in range(bench.config.repeats)
    ]
    tokens = sum(row["output_len"] - 1 for row in repeats[0])
    num_rounds = sum(row["num_rounds"] for row in repeats[0])
    durations_s = [sum(row["decode_s"] for row in of_repeat) for of_repeat in repeats]
    drafted, accepted = (sum(row[name] or 0 for row in repeats[0]) for name in ("num_drafted", "num_accepted"))
    parity = traces.parity[variant]
    exact = sum(found["parity"] == "exact" for found in parity)
    return {
        "width": bench.width_of(variant),
        "num_tokens": tokens,
        "num_rounds": num_rounds,
        **_spread("tokens_per_s", [tokens / duration_s for duration_s in durations_s] if tokens else []),
        **_spread("ms_per_round", [1e3 * duration_s / num_rounds for duration_s in durations_s] if num_rounds else []),
        "tokens_per_round": _over(tokens, num_rounds),
        "layers_per_token": _over(sum(row["layers_run"] for row in repeats[0]), tokens),
        "num_drafted": drafted if METHODS[variant].drafts else None,
        "acceptance_rate": None if METHODS[variant].is_lossy else _over(accepted, drafted),
        "is_lossy": METHODS[variant].is_lossy,
        "num_prompts": len(parity),
        "num_parity_exact": exact,
        "num_near_ties": sum(found["parity"] == "near_tie" for found in parity),
        "num_logits_equal": sum(found["logits_equal"] is True for found in parity),
        "is_exact": exact == len(parity) and all(found["logits_equal"] is not False for found in parity),
    }


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    if not values:
        return {name: None, f"{name}_min": None, f"{name}_max": None}
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def _paired_ratio(rows: list[dict[str, Any]], over: str, under: str) -> float | None:
    """The median over repeats of `over`'s decode time by `under`'s; above 1, `under` is faster."""

    sums: dict[int, dict[str, float]] = {}
    for row in rows:
        of_repeat = sums.setdefault(row["repeat"], dict.fromkeys((over, under), 0.0))
        if row["method"] in of_repeat:
            of_repeat[row["method"]] += row["decode_s"]
    if any(of_repeat[under] == 0 for of_repeat in sums.values()):
        return None
    return statistics.median(of_repeat[over] / of_repeat[under] for of_repeat in sums.values())


def _geomean_ratio(rows: list[dict[str, Any]], over: str, under: str) -> float | None:
    """The geometric mean over prompts of `over`'s median decode time by `under`'s; prompts of one token have none."""
    times: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        times.setdefault((row["method"], row["prompt_idx"]), []).append(row["decode_s"])
    medians = {key: statistics.median(of_prompt) for key, of_prompt in times.items()}
    prompts = [prompt_idx for method, prompt_idx in medians if method == under and medians[under, prompt_idx]]
    ratios = [medians[over, prompt_idx] / medians[under, prompt_idx] for prompt_idx in prompts]
    return statistics.geometric_mean(ratios) if ratios else None


def _over(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _part(call: Call, time: CallTime, traces: Traces, methods: dict[Variant, dict[str, Any]]) -> dict[str, Any]:
    """One line of the parts table: the call, its time, and how often a round of each method made it."""
    calls_per_round = {
        variant: counted[call] / methods[variant]["num_rounds"]
        for variant, counted in traces.calls.items()
        if counted[call]
    }
    return {
        "part": call.kind,
        "width": call.width,
        "rows": call.rows,
        "layers": [call.start, call.stop] if call.kind == "layers" else None,
        "exit_layer": call.start if call.kind == "test" else None,
        "head": call.head,
        **time._asdict(),
        "calls_per_round": calls_per_round,
    }


def memory_facts(bench: Bench) -> dict[str, int | None]:
    """Bytes of the weights, of the heads, of keys and values, and at the peak of device and process."""
    is_cuda = bench.model.device.type == "cuda"
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in bench.model.lm.parameters()}
    used = [used_tests(heads, bench.policies[task].exits, bench.width) for task, heads in bench.heads.items()]
    matrices = [tensor for tests in used for test in tests.values() for tensor in test.tensors]
    storages = {m.untyped_storage().data_ptr(): m.untyped_storage().nbytes() for m in matrices}
    longest = max(bench.num_positions(prompt) for prompt in bench.prompts)
    return {
        "weights_bytes": sum(weights.values()),
        "heads_bytes": sum(size for place, size in storages.items() if place not in weights),
        "kv_bytes": bench.model.new_step(bench.width, longest).cache.kv.nbytes,
        "peak_device_bytes": torch.cuda.max_memory_allocated() if is_cuda else None,
        "peak_device_reserved_bytes": torch.cuda.max_memory_reserved() if is_cuda else None,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def peak_rss_bytes() -> int:
    """The most memory this process had, in bytes; the system counts in KiB, or in bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine_facts(bench: Bench) -> dict[str, Any]:
    is_cuda = bench.model.device.type == "cuda"
    policy = next(iter(bench.policies.values()), VANILLA)
    return {
        "device": torch.cuda.get_device_name() if is_cuda else cpu_name(),
        "driver": gpu_driver() if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
        "python": platform.python_version(),
        "dtype": bench.config.dtype,
        "threads": torch.get_num_threads(),
        "kernels": bench.model.kernels,
        "width": bench.width,
        "num_layers": bench.model.num_layers,
        "model_hash": bench.model.model_hash,
        "heads_hash": {task: heads.content_hash for task, heads in bench.heads.items()},
        "policy": asdict(policy),
    }
