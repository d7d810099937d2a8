"""From settings to saved heads: outputs, n-grams, training, what makes tests cheap, and a report on held-out prompts."""

import copy
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from adadecode.engine.policy import paper_exits
from adadecode.engine.soundness import sound_token
from adadecode.errors import ExitHeadsError, PromptError, UsageError
from adadecode.files import PRIVATE, make_folder, short_hash
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import check_exits
from adadecode.model.head_files import FACTS, HeadFacts, load_heads, read_facts, save_heads
from adadecode.model.head_tensors import HeadTensors, Shortlist
from adadecode.model.load import load_model, use_threads
from adadecode.model.medusa_heads import FACTS as MEDUSA_FACTS
from adadecode.model.medusa_heads import MedusaTensors, load_medusa_heads, save_medusa_heads
from adadecode.model.memory import out_of_memory_named
from adadecode.model.shortlist import default_shortlist_len
from adadecode.records import Say
from adadecode.settings import TrainConfig
from adadecode.training.base_pass import measure
from adadecode.training.calibrate import fit_temperatures
from adadecode.training.curves import write_curves
from adadecode.training.distill import CHECKPOINT, Distillation
from adadecode.training.kinds import new_heads
from adadecode.training.medusa import check_outputs_reach, measured_medusa
from adadecode.training.ngrams import make_store
from adadecode.training.outputs import Part, make_outputs, part_path
from adadecode.training.prompts import TaskPrompts
from adadecode.training.reduce import fit_gates, frequent_tokens
from adadecode.training.stream import OutputStream

SMALLER_TRAINING = (
    "try fewer --batch-tokens, --kl-top-k, fewer --max-new-tokens or fewer --exits; the same command goes on from what is "
    "stored"
)
# Settings that decide the trained heads, beside the model and its outputs.
DECISIVE = {
    "seed",
    "device",
    "epochs",
    "batch_tokens",
    "learning_rate",
    "held_out",
    "kind",
    "rank",
    "kl_top_k",
    "loss",
    "shortlist_len",
}
DEFAULT_AHEAD = 4


def train_from_config(config: TrainConfig, out: Path, say: Say) -> HeadFacts:
    """Trains the heads `config` describes into `out`, in this process; returns their facts."""
    model, tokenizer = load_base(config)
    for line in model.chosen_kernels.lines():
        say(line)
    return train_heads(model, TaskPrompts(config, tokenizer, model.context_len, model.vocab_size), config, out, say)


@out_of_memory_named(SMALLER_TRAINING)
def load_base(config: TrainConfig) -> tuple[DecoderModel, PreTrainedTokenizerBase]:
    """The model that `config` names and its tokenizer, computing with its threads.

    Raises NotFiniteError when it gives no finite logits, before outputs that mean nothing are made and stored.
    """
    use_threads(config.threads)
    model, tokenizer = load_model(config)
    sound_token(model, width=1)
    return model, tokenizer


def train_heads(
    model: DecoderModel,
    prompts: Iterable[list[int] | PromptError],
    config: TrainConfig,
    out: Path,
    say: Say,
    *,
    checkpoint_every_s: float = 60.0,
) -> HeadFacts:
    """Trains a head per exit on greedy outputs of `prompts`, saves them to `out` and returns their facts.

    A run that was interrupted goes on from the outputs and the checkpoint in `out` and ends in the same bits; one that
    was finished is not done again. `prompts` is iterated over twice and need not fit in memory. `say` gets lines of
    progress. Raises UsageError, also as ExitHeadsError and RunFolderError, and NonFiniteLogitsError.
    """
    check_settings(config, model.config)
    make_folders(config, out)
    with out_of_memory_named(SMALLER_TRAINING):
        parts = make_outputs(model, prompts, config, outputs_folder(config, out), say)
        return distill_heads(model, parts, config, out, say, checkpoint_every_s=checkpoint_every_s)


def distill_heads(
    model: DecoderModel,
    parts: list[Part],
    config: TrainConfig,
    out: Path,
    say: Say,
    *,
    checkpoint_every_s: float = 60.0,
) -> HeadFacts:
    """Trains heads on the outputs stored as `parts` into `out`, measures and saves them beside their n-gram store.

    Returns their facts.
    """
    exits = trained_places(config, model.num_layers)
    is_medusa = config.kind == "medusa"
    base = training_base(model)
    fingerprint = fingerprint_of(model, base, exits, parts, config)
    stream = OutputStream(
        outputs_folder(config, out),
        parts,
        held_out=config.held_out,
        seed=config.seed,
        batch_tokens=config.batch_tokens,
    )
    if is_medusa:
        check_outputs_reach(stream, exits[-1])
    else:
        make_store(model, stream, parts, config, out, say)
    finished = read_facts(out, MEDUSA_FACTS if is_medusa else FACTS)
    if finished is not None and finished.training.get("fingerprint") == fingerprint and is_loadable(out, model, config):
        say(f"{out}: these heads were trained before; delete the folder to train them again")
        return finished
    shortlist_len = config.shortlist_len or default_shortlist_len(model.vocab_size)
    token_ids = frequent_tokens(base.vocab_size, stream.train_outputs(), shortlist_len).to(base.device)
    heads = new_heads(base, exits, config, token_ids)
    run = Distillation(base, exits, heads, stream, config, fingerprint)
    run.train(out / CHECKPOINT, checkpoint_every_s, say)
    tensors, report = measured_medusa(run, token_ids) if is_medusa else measured_tensors(run, token_ids)
    for place, share in report["agreement"].items():
        head = f"{place} ahead" if is_medusa else f"exit {place}"
        say(f"{head}: agrees with the final layer on {share:.1%} of {report['num_held_out_tokens']} tokens")
    write_curves(out, run.points, say)
    facts = HeadFacts(
        kind=config.kind,
        base_model=config.model,
        base_model_hash=model.model_hash,
        exits=() if is_medusa else exits,
        width=model.width,
        vocab_size=model.vocab_size,
        dtype=str(model.dtype).removeprefix("torch."),
        training=training_facts(run, shortlist_len) | report,
    )
    if isinstance(tensors, MedusaTensors):
        save_medusa_heads(out, tensors, facts)
    else:
        save_heads(out, tensors, facts)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return facts


def trained_places(config: TrainConfig, num_layers: int) -> tuple[int, ...]:
    """What tells the heads of a training apart: their exit layers, or of kind `medusa` how many tokens ahead each looks."""
    if config.kind == "medusa":
        return tuple(range(1, (config.ahead or DEFAULT_AHEAD) + 1))
    return paper_exits(num_layers) if config.exits is None else config.exits


def measured_tensors(run: Distillation, token_ids: Tensor) -> tuple[HeadTensors, dict[str, Any]]:
    """The exit heads that `run` trained, their confidences made chances, and what `HeadFacts.training` says of them."""
    base, stream = run.model, run.stream
    tensors = trained_tensors(run, token_ids)
    temperatures = {} if run.config.kind == "original" else fit_temperatures(base, tensors, stream.held_out_batches())
    tensors = replace(tensors, temperatures=temperatures)
    report = measure(base, tensors.on(base), stream.held_out_batches())
    report["temperatures"] = {str(e): temperature for e, temperature in temperatures.items()}
    return tensors, report


def trained_tensors(run: Distillation, token_ids: Tensor) -> HeadTensors:
    """What `run` trained, as it is saved: heads, their rows for the shortlist `token_ids` `[K]`, and gates for these."""
    by_exit = dict(zip(run.exits, run.heads, strict=True))
    with torch.no_grad():
        is_trained = run.config.kind == "shortlist"  # else the rows are cut out of the whole head when it is loaded
        shortlist = Shortlist(token_ids, {e: head.rows(token_ids) for e, head in by_exit.items()} if is_trained else {})
        kept = {e: tuple(part.detach() for part in head.parts) for e, head in by_exit.items()}
        blocks = {e: block for e, head in by_exit.items() if (block := head.block) is not None}
    gates = fit_gates(run.model, by_exit, token_ids, run.stream.train_batches())
    return HeadTensors(kept, shortlist, gates, run.config.kind, blocks)


def training_facts(run: Distillation, shortlist_len: int) -> dict[str, Any]:
    """What was trained how, for `HeadFacts.training`; losses are in nats, by exit."""
    losses = dict(zip(map(str, run.exits), run.since_epoch.kl, strict=True)) if run.step else {}
    return {
        "settings": run.config.model_dump(mode="json"),
        "fingerprint": run.fingerprint,
        "compute_dtype": str(run.model.dtype).removeprefix("torch."),
        "num_prompts": run.stream.num_outputs,
        "num_held_out_prompts": run.stream.num_held_out,
        "num_trained_tokens": run.num_tokens // max(1, run.epoch),
        "num_steps": run.step,
        "shortlist_len": shortlist_len,
        "final_losses": losses,
    }


def check_settings(config: TrainConfig, lm_config: Any) -> None:
    """Raises UsageError, also as ExitHeadsError, when a model of `lm_config` has no such exits, tokens or rank.

    And when no output would be long enough for Medusa heads.
    """
    num_layers, vocab_size, width = lm_config.num_hidden_layers, lm_config.vocab_size, lm_config.hidden_size
    places = trained_places(config, num_layers)
    if config.kind != "medusa":
        check_exits(places, num_layers)
    elif config.max_new_tokens <= places[-1]:
        raise UsageError(
            f"--ahead {places[-1]}: outputs of --max-new-tokens {config.max_new_tokens} do not reach so far; give more of "
            "these, or a lower --ahead"
        )
    if config.rank is not None and config.rank > width:
        raise UsageError(f"--rank {config.rank}: the model's width is {width}; give 1..{width}")
    lens = {"shortlist-len": config.shortlist_len, "kl-top-k": config.kl_top_k}
    for flag, length in lens.items():
        if length is not None and length > vocab_size:
            raise UsageError(f"--{flag} {length}: the vocabulary has {vocab_size} tokens; give 1..{vocab_size}")


def outputs_folder(config: TrainConfig, out: Path) -> Path:
    """The heads' folder that holds the outputs to learn from: `out` unless the settings name another."""
    return out if config.outputs is None else Path(config.outputs)


def make_folders(config: TrainConfig, out: Path) -> None:
    """Makes the folders of the heads and of their outputs; raises RunFolderError when one cannot be made."""
    make_folder(out)
    flag = "--out" if config.outputs is None else "--outputs"
    make_folder(part_path(outputs_folder(config, out), 0).parent, flag, PRIVATE)


def training_base(model: DecoderModel) -> DecoderModel:
    """The base to train against: `model`, or on a CPU its weights, their values unchanged, computing in float32.

    Few CPUs compute in half precision; the others take about nine times as long to emulate it.
    """
    if model.device.type != "cpu" or model.dtype == torch.float32:
        return model
    kernels = "eager" if model.weights.borrowed is None else "transformers"
    return DecoderModel(copy.deepcopy(model.lm).float(), kernels)


def is_loadable(out: Path, model: DecoderModel, config: TrainConfig) -> bool:
    """Whether the heads in `out` are whole."""
    try:
        if config.kind == "medusa":
            load_medusa_heads(out, model)
        else:
            load_heads(out, model, "shortlist")
    except ExitHeadsError:
        return False
    return True


def fingerprint_of(
    model: DecoderModel, base: DecoderModel, exits: tuple[int, ...], parts: list[Part], config: TrainConfig
) -> str:
    """A hash of all that decides the trained heads of `model`, which are trained against `base`."""
    settings = config.model_dump(mode="json", include=DECISIVE)
    if config.loss == "kl":
        del settings["loss"]  # trainings that began before there were others are found again
    dtypes = [str(model.dtype), str(base.dtype)]
    decisive = [settings, exits, model.model_hash, dtypes, [part.content_hash for part in parts]]
    return short_hash(json.dumps(decisive, sort_keys=True))
