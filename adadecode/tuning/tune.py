"""`adadecode tune`: records or reuses traces, measures costs, searches, and judges the result on prompts it did not see."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from adadecode.engine.invariance import check_rows_independent
from adadecode.errors import PromptTooLongError, UsageError
from adadecode.files import make_folder, whole_file, write_whole
from adadecode.model.load import load_model
from adadecode.provenance import cpu_name, provenance
from adadecode.runs.fingerprint import heads_folder
from adadecode.settings import TuneConfig
from adadecode.tasks import expand_task, load_examples, task_domain
from adadecode.tasks.encode import encode_prompt
from adadecode.tuning.judge import geomean, judged, papers_policy, policy_settings, variants_of, write_policy
from adadecode.tuning.measure import measure_costs, measure_variants, replays_alike
from adadecode.tuning.replay import Candidate, ModelFacts
from adadecode.tuning.search import Simulator, cross_validated, search, start_candidates
from adadecode.tuning.space import Prompt, Tuner, load_tuner
from adadecode.tuning.table import TUNE_ROWS
from adadecode.tuning.trace import SampleTrace, record
from adadecode.tuning.trace_table import read_traces, write_traces

TRACE, POLICY, RESULT, ROWS = "trace.parquet", "policy.yaml", "tune.json", "tune.parquet"
MIN_TUNED, MIN_HELD_OUT = 4, 2
SECONDS_BETWEEN_LINES = 10.0

Say = Callable[[str], None]


def tune_from_config(config: TuneConfig, out: Path, say: Say) -> dict[str, Any]:
    """Tunes what `config` describes into `out`; returns what `tune.json` holds. Raises UsageError."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tasks = expand_task(config.task)
    examples = {task: load_examples(task, config) for task in tasks}
    folders = {task: folder for task in tasks if (folder := heads_folder(config, task_domain(task))) is not None}
    if not folders:
        raise UsageError(
            f"--heads {config.heads}: tuning needs heads in a folder; "
            "make some with `adadecode train-heads --kind original`"
        )
    model, tokenizer = load_model(config)
    prompts = [
        Prompt(task, example.sample_id, encode_prompt(tokenizer, example))
        for task, found in examples.items()
        for example in found
    ]
    return tune(load_tuner(config, model, tokenizer, folders), prompts, out, say)


def tune(tuner: Tuner, prompts: list[Prompt], out: Path, say: Say) -> dict[str, Any]:
    """Finds the best policy on a part of `prompts` and measures it on the others.

    Writes `trace.parquet`, `policy.yaml`, `tune.parquet` (a row per measured generation) and `tune.json`, and returns what
    the last holds. Progress goes to `say`.
    """
    make_folder(out)
    config, model, space = tuner.config, tuner.model, tuner.space
    check_rows_independent(model, space.width)
    traces = traced(tuner, prompts, out / TRACE, say)
    tuned_on, held_out = split(traces, config.held_out, config.seed)
    if len(tuned_on) < MIN_TUNED or len(held_out) < MIN_HELD_OUT:
        raise UsageError(
            f"{len(tuned_on)} prompts to tune on and {len(held_out)} held out, of {len(prompts)}; at least {MIN_TUNED} and "
            f"{MIN_HELD_OUT} are needed, with two output tokens each: give more prompts or another --held-out"
        )
    say(f"costs: timing calls and generations on {len(tuned_on)} prompts, {len(held_out)} are held out")
    costs = measure_costs(model, tuner.heads, tuned_on, space, config.seed)
    say(f"costs: rounds are predicted within {costs.error:.1%} (root mean square)")

    facts = ModelFacts.of(model)
    simulator, unseen = Simulator(tuned_on, space, facts), Simulator(held_out, space, facts)
    paper = papers_policy(tuner)
    starts = start_candidates(space, paper)
    gains = _told(partial(simulator.gains, costs=costs), say)
    num_prompts = len(simulator.traces)
    best = search(gains, starts, space, np.arange(num_prompts), tuner.has_gates)
    say(f"search: {_speed(simulator.gains(best, costs))} on the prompts it was found on; now cross-validating")
    validated = cross_validated(
        gains, starts, space, num_prompts, min(config.folds, num_prompts), tuner.has_gates, config.seed
    )
    say(f"search: {_speed(validated)} cross-validated")

    variants = variants_of(tuner, best, paper)
    say(f"measuring {', '.join(variant.name for variant in variants)} on {len(unseen.traces)} held-out prompts")
    replayable = [variant for variant in variants if variant.candidate is not None]
    alike = {v.name: [replays_alike(model, v, trace, space) for trace in unseen.traces] for v in replayable}
    rows = measure_variants(model, variants, unseen.traces, space, config.repeats)
    oracles = {
        name: geomean(unseen.oracle_gains(costs, ngrams=ngrams))
        for name, ngrams in (("oracle", False), ("oracle with n-grams", True))
    }
    result = {
        "settings": config.model_dump(mode="json"),
        "made_from": tuner.made_from(prompts),
        "num_prompts": {"tuned_on": len(tuned_on), "held_out": len(unseen.traces)},
        "policy": policy_settings(tuner, best),
        "predicted": {"tuned_on": geomean(simulator.gains(best, costs)), "cross_validated": geomean(validated)},
        "oracle": oracles,
        "variants": judged(variants, rows, alike, unseen, costs),
        "costs": asdict(costs) | {"seconds": costs.seconds.tolist()},
        "machine": {
            "device": torch.cuda.get_device_name() if config.device == "cuda" else cpu_name(),
            "threads": torch.get_num_threads(),
        },
        "provenance": provenance(),
    }
    with whole_file(out / ROWS) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema=TUNE_ROWS), unfinished, compression="zstd")
    write_whole(out / RESULT, json.dumps(result, indent=2) + "\n")
    write_policy(out / POLICY, result)
    return result


def traced(tuner: Tuner, prompts: list[Prompt], path: Path, say: Say) -> list[SampleTrace]:
    """A trace for each of `prompts` that fits the context, from `path` when they were recorded there."""
    made_from = tuner.made_from(prompts)
    if not path.exists():
        write_traces(path, _recorded(tuner, prompts, say), made_from)
    return list(read_traces(path, made_from))


def _recorded(tuner: Tuner, prompts: list[Prompt], say: Say) -> Iterator[SampleTrace]:
    started = last_said = time.monotonic()
    for num_done, prompt in enumerate(prompts, start=1):
        try:
            heads = tuner.heads[prompt.task]
            yield record(tuner.model, heads, tuner.space, prompt.task, prompt.sample_id, prompt.token_ids)
        except PromptTooLongError as error:
            say(f"skipped {prompt.sample_id}: {error}")
        now = time.monotonic()
        if now - last_said > SECONDS_BETWEEN_LINES or num_done == len(prompts):
            left_s = (now - started) / num_done * (len(prompts) - num_done)
            say(f"trace: {num_done}/{len(prompts)} prompts, {left_s:.0f} s left")
            last_said = now


def split(traces: list[SampleTrace], share: float, seed: int) -> tuple[list[SampleTrace], list[SampleTrace]]:
    """`traces` in a seeded order, cut into those to tune on and a held-out `share`, of each task alike."""
    tuned_on: list[SampleTrace] = []
    held_out: list[SampleTrace] = []
    for task in dict.fromkeys(trace.task for trace in traces):
        of_task = [trace for trace in traces if trace.task == task and len(trace.output_ids) > 1]
        order = random.Random(seed).sample(of_task, len(of_task))
        num_held_out = min(max(1, round(share * len(order))), len(order) - 1)
        held_out += order[:num_held_out]
        tuned_on += order[num_held_out:]
    return tuned_on, held_out


def _told(gains: Callable[[Candidate], NDArray], say: Say) -> Callable[[Candidate], NDArray]:
    """`gains` that tells now and then how many candidates were tried and the best so far."""
    seen: dict[Candidate, float] = {}
    last_said = time.monotonic()

    def told(candidate: Candidate) -> NDArray:
        nonlocal last_said
        found = gains(candidate)
        seen[candidate] = float(found.mean())
        if time.monotonic() - last_said > SECONDS_BETWEEN_LINES:
            last_said = time.monotonic()
            say(f"search: {len(seen)} policies replayed, best {np.exp(max(seen.values())):.3f}x on all of the prompts")
        return found

    return told


def _speed(gains: NDArray[np.float64]) -> str:
    return f"{geomean(gains):.3f}x"
