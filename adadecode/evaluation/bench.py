"""Speed of every method on one machine, and where the time goes: rounds, their parts, and what is between them.

All methods decode the same prompts in turns, in one process. Prefill is excluded throughout.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from adadecode.config import DRAFTING_METHODS, BenchConfig
from adadecode.engine.baselines import generate_with_transformers
from adadecode.engine.generate import Decoded, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import VANILLA, Policy, make_policy, step_width
from adadecode.errors import UsageError
from adadecode.evaluation.bench_figures import copy_bandwidth, make_report, memory_facts
from adadecode.evaluation.parts import Call, PartTimer, TracedModel, used_tests
from adadecode.evaluation.verify import compare
from adadecode.evaluation.worker import heads_for
from adadecode.model.decoder import DecoderModel, load_model
from adadecode.model.exit_heads import ExitHeads
from adadecode.model.layers import Gate, Head
from adadecode.model.shapes import synthetic_heads, synthetic_lm, synthetic_prompts
from adadecode.report.schema import LOSSY_METHODS
from adadecode.tasks import expand_task, load_examples
from adadecode.tasks.encode import encode_prompt

Variant = Literal["vanilla", "vanilla-w1", "adadecode", "adadecode-unverified", "adadecode-never", "transformers"]
Say = Callable[[str], None]

PROMPTS_PER_TASK = 2
SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN = 3, 64
PARTS_BUDGET_S = 8.0


class Prompt(NamedTuple):
    task: str
    token_ids: list[int]


@dataclass(frozen=True)
class Bench:
    """What is measured: a loaded model, its heads and policies per task, and prompts."""

    config: BenchConfig
    model: DecoderModel
    prompts: list[Prompt]
    heads: dict[str, ExitHeads]
    policies: dict[str, Policy]
    width: int

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The methods, and beside `adadecode` the same policy with exits that never fire."""
        never: tuple[Variant, ...] = ("adadecode-never",) if "adadecode" in self.config.methods else ()
        return (*self.config.methods, *never)

    def width_of(self, variant: Variant) -> int | None:
        return {"vanilla-w1": 1, "transformers": None}.get(variant, self.width)

    def num_positions(self, prompt: Prompt) -> int:
        """Positions of the prompt and the longest output."""
        longest = self.model.context_len - len(prompt.token_ids)
        return len(prompt.token_ids) + min(self.config.decode.max_new_tokens, longest)

    def decode(self, variant: Variant, prompt: Prompt, *, model: Any = None, record_logits: bool = False) -> Decoded:
        """One generation; `model` stands in for the bench's own where it is to be watched."""
        max_new_tokens = self.config.decode.max_new_tokens
        if variant == "transformers":
            return generate_with_transformers(
                self.model, prompt.token_ids, max_new_tokens=max_new_tokens, record_logits=record_logits
            )
        policy, heads = VANILLA, None
        if variant in DRAFTING_METHODS or variant == "adadecode-never":
            policy, heads = self.policies[prompt.task], self.heads[prompt.task]
            if variant == "adadecode-never":
                policy = dataclasses.replace(policy, gammas=(1.0,) * len(policy.exits), ngram=None)
        width = self.width_of(variant)
        assert width is not None, variant
        return generate(
            model or self.model,
            prompt.token_ids,
            width=width,
            max_new_tokens=max_new_tokens,
            policy=policy,
            drafter=heads,
            verified=variant not in LOSSY_METHODS,
            record_logits=record_logits,
        )


@dataclass
class Traces:
    """What one traced generation of every prompt called, per variant, and how it compares with vanilla's."""

    calls: dict[Variant, Counter[Call]]
    tests: dict[Call, Head | Gate]
    outputs: dict[Variant, list[tuple[int, ...]]]
    parity: dict[Variant, list[dict[str, Any]]]


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


def load_bench(config: BenchConfig) -> Bench:
    """Loads or makes the model, the heads and the prompts."""
    drafts = not DRAFTING_METHODS.isdisjoint(config.methods)
    heads: dict[str, ExitHeads] = {}
    if config.shape is not None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device 'cuda': no CUDA device is visible to this process; use --device cpu")
        lm = synthetic_lm(config.shape, dtype=getattr(torch, config.dtype), device=config.device)
        model = DecoderModel(lm, config.kernels)
        prompt_ids = synthetic_prompts(model.vocab_size, config.limit or SYNTHETIC_PROMPTS, SYNTHETIC_PROMPT_LEN)
        prompts = [Prompt("synthetic", token_ids) for token_ids in prompt_ids]
        if drafts:
            decode = config.decode
            heads["synthetic"] = synthetic_heads(model, decode.exits, decode.head, decode.gate)
    else:
        tasks = expand_task(config.task)
        data_file = Path(config.data_file) if config.data_file else None
        limit = config.limit or PROMPTS_PER_TASK
        examples = {
            task: load_examples(
                task, data_file=data_file, prompt_field=config.prompt_field, offset=config.offset, limit=limit
            )
            for task in tasks
        }
        model, tokenizer = load_model(
            config.model, dtype=config.dtype, device=config.device, revision=config.revision, kernels=config.kernels
        )
        prompts = [
            Prompt(task, encode_prompt(tokenizer, example)) for task, found in examples.items() for example in found
        ]
        if drafts:
            heads = {task: heads_for(config, task, model) for task in tasks}
    policies = {task: make_policy(config.decode, of_task.exits, model.num_layers) for task, of_task in heads.items()}
    return Bench(config, model, prompts, heads, policies, step_width(config.decode.max_drafts))


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
            traces.parity[variant].append(compare(vanilla, decoded, bench.config.dtype))
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
                    "num_drafted": generation.num_drafted if variant in DRAFTING_METHODS else None,
                    "num_accepted": generation.num_accepted if variant in DRAFTING_METHODS else None,
                    "ttft_s": generation.ttft_s,
                    "decode_s": generation.decode_s,
                }
            )
    return rows


def in_turn(variants: tuple[Variant, ...], turn: int) -> tuple[Variant, ...]:
    """`variants`, each first as often as the others over as many turns, forwards and backwards by turns."""
    start = turn % len(variants)
    rotated = variants[start:] + variants[:start]
    return rotated if turn // len(variants) % 2 == 0 else rotated[::-1]


def parts_of_policy(bench: Bench, traces: Traces) -> dict[Call, Head | Gate]:
    """All that may be tested, on one row and on as many as the traces had; for comparison the full head too."""
    tests = dict(traces.tests)
    for task, policy in bench.policies.items():
        tests |= used_tests(bench.heads[task], policy.exits, bench.width)
    model = bench.model
    full = Head((torch.eye(model.width, dtype=model.dtype, device=model.device), *model.head.matrices))
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

    from adadecode.report.bench_table import BENCH_ROWS

    (out / "bench.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "bench.txt").write_text(text, encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows, schema=BENCH_ROWS), out / "bench.parquet", compression="zstd")


def make_folder(out: Path) -> None:
    """Makes `out` before anything is measured for it; raises UsageError when it cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {str(out)!r}: cannot be made a folder ({error.strerror}); give another") from error
