"""`adadecode tune`: records or reuses traces, measures costs, searches, and measures what it found on other prompts."""

import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy
from adadecode.errors import UsageError
from adadecode.files import PRIVATE, make_folder, whole_file, write_whole
from adadecode.kernels.arithmetic import arithmetic
from adadecode.model.load import load_model, use_threads
from adadecode.model.machine_kind import MachineKind, gpu_names
from adadecode.model.memory import out_of_memory_named
from adadecode.provenance import cpu_name, provenance
from adadecode.records import Prompt, Say
from adadecode.settings import TuneConfig
from adadecode.tasks import expand_task, load_found, task_domain
from adadecode.tasks.heads import heads_folder
from adadecode.tasks.usable import usable_prompts
from adadecode.tuning.contenders import Contender, contenders_of, papers_policy
from adadecode.tuning.costs import Costs
from adadecode.tuning.held_out import compare_contenders, speedup_of
from adadecode.tuning.measure import CostStudy, measure_contenders, measure_floors, replays_alike
from adadecode.tuning.policy_file import policy_settings, write_policy
from adadecode.tuning.replay import Candidate, ModelFacts
from adadecode.tuning.result import (
    ContenderResult,
    NumPrompts,
    Oracle,
    PredictedSpeedup,
    TuneMachine,
    TuneResult,
    TuneRow,
)
from adadecode.tuning.search import Search, Simulator, start_candidates
from adadecode.tuning.subject import TuneSubject, load_subject
from adadecode.tuning.table import TUNE_ROWS
from adadecode.tuning.trace import SampleTrace, record
from adadecode.tuning.trace_table import read_floors, read_traces, write_traces

TRACE, POLICY, RESULT, ROWS = "trace.parquet", "policy.yaml", "tune.json", "tune.parquet"
MIN_TUNED, MIN_HELD_OUT = 4, 2
MORE_SEARCHES = 2  # with costs fitted also to what the one before found
SECONDS_BETWEEN_LINES = 10.0


@out_of_memory_named()
def tune_from_config(config: TuneConfig, out: Path, say: Say) -> TuneResult:
    """Tunes what `config` describes into `out`; returns what `tune.json` holds. Raises UsageError."""
    use_threads(config.threads)
    tasks = expand_task(config.task)
    found = {task: load_found(task, config) for task in tasks}
    folders = {task: folder for task in tasks if (folder := heads_folder(config, task_domain(task))) is not None}
    if not folders:
        raise UsageError(
            f"--heads {config.heads}: tuning needs heads in a folder; "
            "make some with `adadecode train-heads --kind original`"
        )
    model, tokenizer = load_model(config)
    for line in model.chosen_kernels.lines():
        say(line)
    prompts = usable_prompts(tokenizer, found, model.context_len, model.vocab_size, say)
    return tune(load_subject(config, model, tokenizer, folders), prompts, out, say)


def tune(subject: TuneSubject, prompts: list[Prompt], out: Path, say: Say) -> TuneResult:
    """Finds the best policy on a part of `prompts` and measures it on the others.

    Writes `trace.parquet`, `policy.yaml`, `tune.parquet` (a row per measured generation) and `tune.json`, which holds what
    is returned. Progress goes to `say`.
    """
    make_folder(out, mode=PRIVATE)
    longest = (len(prompt.token_ids) + subject.space.max_new_tokens for prompt in prompts)
    check_rows_independent(subject.model, subject.space.width, tuple(longest))
    subject = with_floors(subject, prompts, out / TRACE, say)
    traces = traced(subject, prompts, out / TRACE, say)
    tuned_on, held_out = split(traces, subject.config.held_out, subject.config.seed)
    check_enough(len(tuned_on), len(held_out), len(prompts))
    paper = papers_policy(subject)
    say(f"costs: timing calls and generations on {len(tuned_on)} prompts, {len(held_out)} are held out")
    study = CostStudy(subject.model, subject.heads, tuned_on, subject.space, subject.config.seed)
    study.measure_random()
    best, predicted, costs = find_policy(subject, tuned_on, study, paper, say)
    unseen = Simulator(held_out, subject.space, ModelFacts.of(subject.model, subject.heads))
    contenders, rows = measure_held_out(subject, contenders_of(subject, best, paper), unseen, costs, say)
    result = TuneResult(
        settings=subject.config.model_dump(mode="json"),
        made_from=subject.made_from(prompts),
        num_prompts=NumPrompts(len(tuned_on), len(unseen.traces)),
        policy=policy_settings(best, subject.head),
        predicted=predicted,
        oracle=Oracle(
            heads_alone=speedup_of(unseen.oracle_gains(costs, ngrams=False)),
            with_ngrams=speedup_of(unseen.oracle_gains(costs, ngrams=True)),
        ),
        variants=contenders,
        costs=costs,
        machine=TuneMachine(
            device=gpu_names(subject.model.devices) if subject.config.device == "cuda" else cpu_name(),
            threads=torch.get_num_threads(),
            kind=MachineKind.of(subject.model),
            attention=subject.model.steps.attention,
            **arithmetic(),
        ),
        provenance=provenance(),
    )
    write_tune(out, result, rows)
    return result


def check_enough(num_tuned_on: int, num_held_out: int, num_prompts: int) -> None:
    """Raises UsageError when a part of the split of `num_prompts` prompts is too small to say anything."""
    if num_tuned_on < MIN_TUNED or num_held_out < MIN_HELD_OUT:
        raise UsageError(
            f"{num_tuned_on} prompts to tune on and {num_held_out} held out, of {num_prompts}; at least {MIN_TUNED} and "
            f"{MIN_HELD_OUT} are needed, with two output tokens each: give more prompts or another --held-out"
        )


def find_policy(
    subject: TuneSubject, tuned_on: list[SampleTrace], study: CostStudy, paper: Policy | None, say: Say
) -> tuple[Candidate, PredictedSpeedup, Costs]:
    """The best candidate by replay of the traces `tuned_on`, what it is predicted to gain, and at which costs.

    What a search finds is measured, and the costs are fitted anew: a search goes where costs are thought too low.
    """
    config = subject.config
    simulator = Simulator(tuned_on, subject.space, ModelFacts.of(subject.model, subject.heads))
    num_prompts = len(simulator.traces)
    everyone, starts = np.arange(num_prompts), start_candidates(subject.space, paper)

    def searched(costs: Costs) -> Search:
        say(f"costs: half of the speedups of single generations are predicted within {costs.error:.1%}")
        gains = _told(partial(simulator.gains, costs=costs), say)
        return Search(gains, starts, subject.space, subject.has_gates)

    search = searched(study.costs())
    for _ in range(MORE_SEARCHES):
        finalists = search.finalists(everyone)
        say(f"search: measuring the {len(finalists)} policies that it ended in, to search again")
        study.measure(finalists)
        search = searched(study.costs())
    costs, best = study.costs(), search.best(everyone)
    found = speedup_of(simulator.gains(best, costs))
    say(f"search: {found:.3f}x on the prompts it was found on; now cross-validating")
    validated = speedup_of(search.cross_validated(num_prompts, min(config.folds, num_prompts), config.seed))
    say(f"search: {validated:.3f}x cross-validated")
    return best, PredictedSpeedup(tuned_on=found, cross_validated=validated), costs


def measure_held_out(
    subject: TuneSubject, contenders: list[Contender], unseen: Simulator, costs: Costs, say: Say
) -> tuple[tuple[ContenderResult, ...], list[TuneRow]]:
    """How `contenders` do on the traces of `unseen`: replayed beside the engine, measured, and compared."""
    model, space, traces = subject.model, subject.space, unseen.traces
    say(f"measuring {', '.join(one.name for one in contenders)} on {len(traces)} held-out prompts")
    replayable = [one for one in contenders if one.candidate is not None]
    alike = {one.name: [replays_alike(model, one, trace, space) for trace in traces] for one in replayable}
    rows = measure_contenders(model, contenders, traces, space, subject.config.repeats)
    return compare_contenders(contenders, rows, alike, unseen, costs), rows


def write_tune(out: Path, result: TuneResult, rows: list[TuneRow]) -> None:
    """Writes `result` as tune.json and policy.yaml, and `rows` as tune.parquet, to the folder `out`."""
    columns = [asdict(row) for row in rows]
    with whole_file(out / ROWS) as unfinished:
        pq.write_table(pa.Table.from_pylist(columns, schema=TUNE_ROWS), unfinished, compression="zstd")
    write_whole(out / RESULT, json.dumps(result.to_json(), indent=2) + "\n")
    write_policy(out / POLICY, result)


def with_floors(subject: TuneSubject, prompts: list[Prompt], path: Path, say: Say) -> TuneSubject:
    """`subject` with the floors of the traces at `path`, when there are some, else with those that could pay here."""
    if path.exists():
        floors = read_floors(path, subject.made_from(prompts))
    else:
        longest = max(prompts, key=lambda prompt: len(prompt.token_ids))
        draw = subject.draw(longest.task, longest.sample_id, len(longest.token_ids))
        floors = measure_floors(subject.model, subject.heads[longest.task], subject.space, longest.token_ids, draw)
    by_exit = ", ".join(f"{e}: {floor:.2f}" for e, floor in zip(subject.space.exits, floors.exits, strict=True))
    say(f"trace: drafts can pay from a chance of {floors.ngram:.2f} by n-grams, at exits {by_exit}")
    return replace(subject, space=replace(subject.space, floors=floors))


def traced(subject: TuneSubject, prompts: list[Prompt], path: Path, say: Say) -> list[SampleTrace]:
    """A trace for each of `prompts`, from `path` when they were recorded there."""
    made_from = subject.made_from(prompts)
    if not path.exists():
        write_traces(path, _recorded(subject, prompts, say), made_from, subject.space.floors)
    traces = read_traces(path, made_from)
    return [replace(trace, draw=subject.draw(trace.task, trace.sample_id, len(trace.prompt_ids))) for trace in traces]


def _recorded(subject: TuneSubject, prompts: list[Prompt], say: Say) -> Iterator[SampleTrace]:
    started = last_said = time.monotonic()
    for num_done, prompt in enumerate(prompts, start=1):
        draw = subject.draw(prompt.task, prompt.sample_id, len(prompt.token_ids))
        yield record(subject.model, subject.heads[prompt.task], subject.space, prompt, draw)
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
