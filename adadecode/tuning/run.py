"""`adadecode tune`: records or reuses traces, measures costs, searches, and judges the result on prompts it did not see."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray

from adadecode.config import DecodeSettings, HeadKind, TuneConfig
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import VANILLA, make_policy
from adadecode.errors import ExitHeadsError, PromptTooLongError, RunFolderError, UsageError
from adadecode.evaluation.run import provenance
from adadecode.evaluation.sources import heads_folder
from adadecode.evaluation.worker import cpu_name
from adadecode.model.decoder import DecoderModel, chat_template_hash, load_model
from adadecode.model.exit_heads import ExitHeads, load_heads
from adadecode.report.stats import paired_speedups
from adadecode.report.tune_table import TUNE_ROWS
from adadecode.tasks import expand_task, load_examples
from adadecode.tasks.encode import encode_prompt
from adadecode.tuning.costs import Costs
from adadecode.tuning.measure import Variant, measure_costs, measure_variants, replays_alike
from adadecode.tuning.replay import Candidate, ModelFacts
from adadecode.tuning.search import Simulator, cross_validated, search, start_candidates
from adadecode.tuning.trace import SampleTrace, TraceSpace, record
from adadecode.tuning.trace_table import read_traces, write_traces

TRACE, POLICY, RESULT, ROWS = "trace.parquet", "policy.yaml", "tune.json", "tune.parquet"
GAMMA_FLOOR, NGRAM_FLOOR = 0.3, 0.2
MIN_TUNED, MIN_HELD_OUT = 4, 2
SECONDS_BETWEEN_LINES = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prompt:
    task: str
    sample_id: str
    token_ids: list[int]


@dataclass(frozen=True)
class Tuner:
    """A loaded model with its heads per task, as they are traced and in full, and the space that is searched."""

    config: TuneConfig
    model: DecoderModel
    tokenizer: Any
    head: HeadKind
    heads: dict[str, ExitHeads]
    full_heads: dict[str, ExitHeads]
    space: TraceSpace

    @property
    def has_gates(self) -> bool:
        return all(of_task.gates for of_task in self.heads.values())

    def made_from(self, prompts: list[Prompt]) -> dict[str, Any]:
        """What a trace of `prompts` depends on."""
        return {
            "model_hash": self.model.model_hash,
            "tokenizer_hash": hash_tokenizer(self.tokenizer),
            "heads_hash": {task: of_task.content_hash for task, of_task in self.heads.items()},
            "head": self.head,
            "dtype": self.config.dtype,
            "kernels": self.model.kernels,
            "device": self.config.device,
            "space": json.loads(json.dumps(asdict(self.space))),
            "prompts_hash": _hash([(p.task, p.sample_id, p.token_ids) for p in prompts]),
        }


def tune_from_config(config: TuneConfig, out: Path, say: Say) -> dict[str, Any]:
    """Tunes what `config` describes into `out`; returns what `tune.json` holds. Raises UsageError."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    tasks = expand_task(config.task)
    data_file = Path(config.data_file) if config.data_file else None
    examples = {
        task: load_examples(
            task, data_file=data_file, prompt_field=config.prompt_field, offset=config.offset, limit=config.limit
        )
        for task in tasks
    }
    folders = {task: folder for task in tasks if (folder := heads_folder(config, task)) is not None}
    if not folders:
        raise UsageError(
            f"--heads {config.heads}: tuning needs heads in a folder; "
            "make some with `adadecode train-heads --kind original`"
        )
    model, tokenizer = load_model(
        config.model, dtype=config.dtype, device=config.device, revision=config.revision, kernels=config.kernels
    )
    prompts = [
        Prompt(task, example.sample_id, encode_prompt(tokenizer, example))
        for task, found in examples.items()
        for example in found
    ]
    return tune(load_tuner(config, model, tokenizer, folders), prompts, out, say)


def load_tuner(config: TuneConfig, model: DecoderModel, tokenizer: Any, folders: dict[str, Path]) -> Tuner:
    """The tuner for `model` with the heads in `folders`, one per task; raises ExitHeadsError and UsageError."""
    head = config.head or _cheapest_head(folders, model)
    heads = {task: load_heads(folder, model, head) for task, folder in folders.items()}
    full_heads = heads if head == "full" else {task: load_heads(folder, model) for task, folder in folders.items()}
    common = set.intersection(*(set(of_task.exits) for of_task in heads.values()))
    exits = config.exits or tuple(sorted(common))
    missing = sorted(set(exits) - common)
    if missing or not exits:
        raise UsageError(
            f"--exits {','.join(map(str, exits))}: there are no heads at {missing}; "
            f"the heads are at {','.join(map(str, sorted(common)))}: choose among them or train others"
        )
    space = TraceSpace(exits, config.max_drafts, GAMMA_FLOOR, NGRAM_FLOOR, config.max_new_tokens)
    return Tuner(config, model, tokenizer, head, heads, full_heads, space)


def _cheapest_head(folders: dict[str, Path], model: DecoderModel) -> HeadKind:
    """`shortlist` when all heads have one, else `full`."""
    try:
        for folder in folders.values():
            load_heads(folder, model, "shortlist")
    except ExitHeadsError:
        return "full"
    return "shortlist"


def tune(tuner: Tuner, prompts: list[Prompt], out: Path, say: Say) -> dict[str, Any]:
    """Finds the best policy on a part of `prompts` and measures it on the others.

    Writes `trace.parquet`, `policy.yaml`, `tune.parquet` (a row per measured generation) and `tune.json`, and returns what
    the last holds. Progress goes to `say`.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"--out {str(out)!r} cannot be made ({error.strerror}): choose another folder") from error
    config, model, space = tuner.config, tuner.model, tuner.space
    check_rows_independent(model, space.width)
    traces = traced(tuner, prompts, out / TRACE, say)
    tuned_on, held_out = split(traces, config.held_out, config.seed)
    say(f"costs: timing calls and generations on {len(tuned_on)} prompts, {len(held_out)} are held out")
    costs = measure_costs(model, tuner.heads, tuned_on, space, config.seed)
    say(f"costs: rounds are predicted within {costs.error:.1%} (root mean square)")

    facts = ModelFacts.of(model)
    simulator, unseen = Simulator(tuned_on, space, facts), Simulator(held_out, space, facts)
    paper = make_policy(DecodeSettings(), space.exits, model.num_layers)  # pyright: ignore[reportCallIssue]
    starts = start_candidates(space, paper)
    gains = _told(partial(simulator.gains, costs=costs), say)
    num_prompts = len(simulator.traces)
    best = search(gains, starts, space, np.arange(num_prompts), tuner.has_gates)
    say(f"search: {_speed(simulator.gains(best, costs))} on the prompts it was found on; now cross-validating")
    validated = cross_validated(
        gains, starts, space, num_prompts, min(config.folds, num_prompts), tuner.has_gates, config.seed
    )
    say(f"search: {_speed(validated)} cross-validated")

    variants = _variants(tuner, best, paper)
    say(f"measuring {', '.join(variant.name for variant in variants)} on {len(unseen.traces)} held-out prompts")
    replayable = [variant for variant in variants if variant.candidate is not None]
    alike = {v.name: [replays_alike(model, v, trace, space) for trace in unseen.traces] for v in replayable}
    rows = measure_variants(model, variants, unseen.traces, space, config.repeats)
    oracles = {
        name: _geomean(unseen.oracle_gains(costs, ngrams=ngrams))
        for name, ngrams in (("oracle", False), ("oracle with n-grams", True))
    }
    result = {
        "settings": config.model_dump(mode="json"),
        "made_from": tuner.made_from(prompts),
        "num_prompts": {"tuned_on": len(tuned_on), "held_out": len(unseen.traces)},
        "policy": policy_settings(tuner, best),
        "predicted": {"tuned_on": _geomean(simulator.gains(best, costs)), "cross_validated": _geomean(validated)},
        "oracle": oracles,
        "variants": _judged(variants, rows, alike, unseen, costs),
        "costs": asdict(costs) | {"seconds": costs.seconds.tolist()},
        "machine": {
            "device": torch.cuda.get_device_name() if config.device == "cuda" else cpu_name(),
            "threads": torch.get_num_threads(),
        },
        "provenance": provenance(),
    }
    pq.write_table(pa.Table.from_pylist(rows, schema=TUNE_ROWS), out / ROWS, compression="zstd")
    (out / RESULT).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    write_policy(out / POLICY, result)
    return result


def traced(tuner: Tuner, prompts: list[Prompt], path: Path, say: Say) -> list[SampleTrace]:
    """A trace for each of `prompts` that fits the context, from `path` when they were recorded there."""
    made_from = tuner.made_from(prompts)
    if not path.exists():
        write_traces(path, _recorded(tuner, prompts, say), made_from)
    traces = list(read_traces(path, made_from))
    if len([trace for trace in traces if len(trace.output_ids) > 1]) < MIN_TUNED + MIN_HELD_OUT:
        raise UsageError(
            f"{len(traces)} of {len(prompts)} prompts could be traced; tuning needs at least "
            f"{MIN_TUNED + MIN_HELD_OUT} with two output tokens: give more prompts that fit the model's context"
        )
    return traces


def _recorded(tuner: Tuner, prompts: list[Prompt], say: Say) -> Iterator[SampleTrace]:
    import time

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
    import time

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


def _variants(tuner: Tuner, best: Candidate, paper: Any) -> list[Variant]:
    """What is measured: both vanillas, the paper's policy with full heads and with the traced ones, and the tuned one."""
    width = tuner.space.width
    variants = [Variant("vanilla", VANILLA, width), Variant("vanilla-w1", VANILLA, 1)]
    if tuner.head != "full":
        variants.append(Variant("paper", paper, width, tuner.full_heads))
    name = "paper" if tuner.head == "full" else f"paper, {tuner.head}"
    if paper.max_drafts <= tuner.space.max_drafts:
        variants.append(Variant(name, paper, width, tuner.heads, Candidate(paper)))
    gated = {task: of_task.with_gate(best.gate) for task, of_task in tuner.heads.items()}
    return [*variants, Variant("tuned", best.policy, width, gated, best)]


def _judged(
    variants: list[Variant], rows: list[dict[str, Any]], alike: dict[str, list[bool]], unseen: Simulator, costs: Costs
) -> list[dict[str, Any]]:
    """Per variant the speedup over the faster vanilla, measured and predicted, and what agrees."""
    keys = sorted({(row["task"], row["sample_id"], row["repeat"]) for row in rows})
    prompts = {key: idx for idx, key in enumerate(dict.fromkeys((task, sample) for task, sample, _ in keys))}
    prompt_idx = [prompts[task, sample] for task, sample, _ in keys]
    times = {(r["variant"], r["task"], r["sample_id"], r["repeat"]): r["decode_s"] for r in rows}
    decode_s = {v.name: [times[v.name, *key] for key in keys] for v in variants}
    faster = min(("vanilla", "vanilla-w1"), key=lambda name: sum(decode_s[name]))
    judged = []
    for variant in variants:
        of_variant = [row for row in rows if row["variant"] == variant.name]
        speedups = paired_speedups(prompt_idx, decode_s[faster], decode_s[variant.name])
        assert speedups is not None
        same = alike.get(variant.name)
        drafted, accepted = (sum(row[name] for row in of_variant) for name in ("num_drafted", "num_accepted"))
        tokens = sum(row["output_len"] - 1 for row in of_variant)
        judged.append(
            {
                "variant": variant.name,
                "tokens_per_s": tokens / sum(row["decode_s"] for row in of_variant),
                "speedup": asdict(speedups.geomean),
                "speedup_total": asdict(speedups.total),
                "predicted_speedup": None if same is None else _geomean(unseen.gains(variant.candidate, costs)),  # pyright: ignore[reportArgumentType]
                "acceptance_rate": accepted / drafted if drafted else None,
                "layers_per_token": sum(row["layers_run"] for row in of_variant) / tokens,
                "num_exact": sum(row["is_exact"] for row in of_variant),
                "num_checked": len(of_variant),
                "num_replayed_alike": None if same is None else sum(same),
                "num_replayed": None if same is None else len(same),
            }
        )
    return judged


def policy_settings(tuner: Tuner, best: Candidate) -> dict[str, Any]:
    """`best` as the decode settings of a policy file."""
    policy = best.policy
    gammas = set(policy.gammas)
    settings: dict[str, Any] = {
        "exits": list(policy.exits),
        "gamma": policy.gammas[0] if len(gammas) == 1 else list(policy.gammas),
        "max_drafts": policy.max_drafts,
        "head": tuner.head,
        "gate": best.gate,
    }
    return settings | {k: v for k, v in (("reject", policy.reject), ("ngram", policy.ngram)) if v is not None}


def write_policy(path: Path, result: dict[str, Any]) -> None:
    """A policy file with what was predicted and measured of it; `eval --policy` reads the settings alone."""
    tuned = next(variant for variant in result["variants"] if variant["variant"] == "tuned")
    machine, made_from = result["machine"], result["made_from"]
    known = {
        "model": result["settings"]["model"],
        "model_hash": made_from["model_hash"],
        "heads_hash": made_from["heads_hash"],
        "machine": f"{machine['device']}, {machine['threads']} threads, {made_from['dtype']}",
        "prompts": result["num_prompts"],
        "predicted_speedup": round(result["predicted"]["cross_validated"], 3),
        "measured_speedup": round(tuned["speedup"]["value"], 3),
        "oracle_speedup": round(result["oracle"]["oracle"], 3),
    }
    settings = yaml.safe_dump(result["policy"], sort_keys=False, default_flow_style=None)
    about = yaml.safe_dump({"tuned": known}, sort_keys=False, default_flow_style=False, width=1000)
    comment = "# Found by `adadecode tune`. Decoding speedups over the faster vanilla, geometric means over prompts.\n"
    path.write_text(comment + settings + about, encoding="utf-8")


def hash_tokenizer(tokenizer: Any) -> str:
    """A 16-digit hash of a tokenizer's vocabulary and chat template."""
    return _hash([sorted(tokenizer.get_vocab().items()), chat_template_hash(tokenizer)])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _geomean(gains: NDArray[np.float64]) -> float:
    return float(np.exp(gains.mean()))


def _speed(gains: NDArray[np.float64]) -> str:
    return f"{_geomean(gains):.3f}x"
