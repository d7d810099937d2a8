"""Speed of every method on one machine, and where the time goes: rounds, their parts, and what is between them.

All methods decode the same prompts in turns, in one process. Prefill is excluded throughout.
"""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import torch

from adadecode.bench.calls import Call, RecordingModel, used_tests
from adadecode.bench.figures import CountedPass, Measurements, Parity, bench_result, step_weights
from adadecode.bench.machine import ReadBandwidth, copy_bandwidth, memory_used
from adadecode.bench.result import BenchResult, BenchRow
from adadecode.bench.subject import BenchSubject, load_subject
from adadecode.bench.timer import CallTimer
from adadecode.engine.invariance import check_rows_independent
from adadecode.errors import UsageError
from adadecode.evaluation.compare import compare
from adadecode.files import whole_file, write_whole
from adadecode.kernels.weights import Gate, Head
from adadecode.methods import METHODS, REFERENCE, in_turn
from adadecode.model.load import use_threads
from adadecode.model.memory import out_of_memory_named
from adadecode.records import Say
from adadecode.settings import BenchConfig

PARTS_BUDGET_S = 8.0


@out_of_memory_named()
def run_bench(config: BenchConfig, say: Say) -> tuple[BenchResult, list[BenchRow]]:
    """What was found and its rows, one per measured generation; raises UsageError and RowsDependentError.

    The parts are timed between the repeats, so that a machine that is slower for a while is so for both. `say` is told
    what is going on. Memory that runs out is an AdaDecodeError.
    """
    use_threads(config.threads)
    subject = load_subject(config, say)
    if subject.model.weights.borrowed is not None:
        raise UsageError(
            "--kernels transformers: bench times the engine's own parts, and the layers here are the model's own; "
            "compare methods with eval --repeats"
        )
    for line in subject.model.chosen_kernels.lines():
        say(line)
    check_rows_independent(subject.model, subject.width, tuple(map(subject.num_positions, subject.prompts)))
    is_cuda, is_native = subject.model.device.type == "cuda", subject.model.kernels == "native"
    bandwidth = copy_bandwidth() if is_cuda else None
    reads = ReadBandwidth(step_weights(subject.model)) if is_native else None
    say(f"{config.name}: {len(subject.prompts)} prompts, W = {subject.width}; counting {', '.join(subject.methods)}")
    counted = count_calls(subject)
    if is_cuda:
        for device in subject.model.devices:
            torch.cuda.reset_peak_memory_stats(device)
    measure(subject, counted, 0)
    memory = memory_used(subject)
    say("warm")
    timer = timer_of(subject, counted)
    rows: list[BenchRow] = []
    for repeat in range(config.repeats):
        rows += measure(subject, counted, repeat)
        timer.measure(PARTS_BUDGET_S / config.repeats)
        if reads is not None:
            reads.measure()
            bandwidth = reads.bytes_per_s
        say(f"repeat {repeat + 1} of {config.repeats}")
    return bench_result(Measurements(subject, counted, rows, timer.times(), memory, bandwidth)), rows


def count_calls(subject: BenchSubject) -> CountedPass:
    """One generation per method and prompt that is not timed: its calls counted, its logits compared with vanilla's."""
    counted = CountedPass(subject.methods)
    for prompt in subject.prompts:
        reference = None
        for method in sorted(subject.methods, key=lambda name: name != REFERENCE):
            recording = RecordingModel(subject.model)
            decoded = subject.decode_prompt(method, prompt, model=recording, record_logits=True)
            # what a draft model or Medusa heads are asked for is not recorded: without it the calls are no whole round
            of_others = METHODS[method].draft_model or METHODS[method].medusa
            if recording.step is not None and not of_others:
                counted.calls[method] += recording.step.calls
                counted.tests |= recording.step.tests
            reference = reference or decoded
            draw = subject.draw(prompt)
            counted.outputs[method].append(decoded.generation.output_token_ids)
            if method == REFERENCE or METHODS[method].is_compared(is_sampled=draw is not None):
                compared = compare(reference, decoded, subject.config.dtype, draw)
                counted.parity[method].append(Parity(compared.parity, compared.logits_equal))
    return counted


def measure(subject: BenchSubject, counted: CountedPass, repeat: int) -> list[BenchRow]:
    """One row per prompt and method, the methods in turns.

    A method whose tokens are not those of its counted generation becomes a mismatch in `counted`.
    """
    rows = []
    for prompt_idx, prompt in enumerate(subject.prompts):
        for order_idx, method in enumerate(in_turn(subject.methods, repeat + prompt_idx)):
            generation = subject.decode_prompt(method, prompt).generation
            is_other = generation.output_token_ids != counted.outputs[method][prompt_idx]
            if is_other and counted.parity[method]:
                before = counted.parity[method][prompt_idx]
                counted.parity[method][prompt_idx] = before._replace(parity="mismatch")
            drafts = METHODS[method].drafts
            rows.append(
                BenchRow(
                    method=method,
                    width=subject.width_of(method),
                    task=prompt.task,
                    prompt_idx=prompt_idx,
                    repeat=repeat,
                    order_idx=order_idx,
                    prompt_len=len(prompt.token_ids),
                    output_len=len(generation.output_token_ids),
                    num_rounds=generation.num_rounds,
                    layers_run=generation.layers_run,
                    num_drafted=generation.num_drafted if drafts else None,
                    num_accepted=generation.num_accepted if drafts else None,
                    ttft_s=generation.ttft_s,
                    decode_s=generation.decode_s,
                )
            )
    return rows


def timer_of(subject: BenchSubject, counted: CountedPass) -> CallTimer:
    """A timer of every call that was counted or that a round of the policies may make, at the middle prompt's length."""
    middle = sorted(subject.prompts, key=lambda prompt: len(prompt.token_ids))[len(subject.prompts) // 2]
    tests = tests_of_policies(subject, counted)
    calls = {call for of_method in counted.calls.values() for call in of_method} | set(tests) | calls_of_rounds(subject)
    return CallTimer(subject.model, calls, tests, middle.token_ids, subject.num_positions(middle), subject.draw(middle))


def tests_of_policies(subject: BenchSubject, counted: CountedPass) -> dict[Call, Head | Gate]:
    """All that may be tested, on one row and on as many as were counted; for comparison the full head too."""
    tests = dict(counted.tests)
    for task, policy in subject.policies.items():
        tests |= used_tests(subject.heads[task], policy.exits, subject.width)
    at_exit: dict[int, Head] = {}  # whose block is run there: heads of several tasks have one each
    for call, test in tests.items():
        if isinstance(test, Head) and test.block is not None:
            tests[call] = at_exit.setdefault(call.start, test)
    model = subject.model
    full = Head((torch.eye(model.width, dtype=model.dtype, device=model.device), *model.weights.head.matrices))
    for call in [call for call in tests if call.head == "shortlist" and call.rows == 1]:
        tests.setdefault(dataclasses.replace(call, head="full"), full)
    return tests


def calls_of_rounds(subject: BenchSubject) -> set[Call]:
    """Every segment of a round and the verification, for each number of rows, whether a generation made it or not."""
    width, num_layers = subject.width, subject.model.num_layers
    calls = set()
    for policy in subject.policies.values():
        boundaries = (0, *policy.exits, num_layers)
        for rows in range(1, policy.max_drafts + 2):
            calls.add(Call("verify", width, rows))
            calls |= {Call("layers", width, rows, start, stop) for start, stop in pairwise(boundaries)}
    return calls


def write_bench(out: Path, result: BenchResult, rows: list[BenchRow], text: str) -> None:
    """Writes bench.json, bench.parquet with one row per measured generation, and bench.txt, what was printed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from adadecode.bench.table import BENCH_ROWS

    write_whole(out / "bench.json", json.dumps(result.to_json(), indent=2) + "\n")
    write_whole(out / "bench.txt", text)
    columns = [dataclasses.asdict(row) for row in rows]
    with whole_file(out / "bench.parquet") as unfinished:
        pq.write_table(pa.Table.from_pylist(columns, schema=BENCH_ROWS), unfinished, compression="zstd")
