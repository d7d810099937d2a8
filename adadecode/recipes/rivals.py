"""Builds what other methods draft with on the demo model: Medusa heads for each domain, and a smaller model.

    python -m adadecode.recipes.rivals --gsm8k train.jsonl --work build/rivals --install

They learn from the greedy outputs that the demo's blocks learned from, as far as these get better by it. Every stage
resumes, and is skipped when its result is in the work folder. With `--device cuda` it takes minutes.
"""

import copy
import json
import math
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.model.medusa_heads import FACTS, TENSORS
from adadecode.published import DEMO_DRAFT_DIR, DEMO_MEDUSA_DIR
from adadecode.recipes.build import BLOCK_SETTINGS, KEPT_FOR_TUNING, others_than_kept, short_prompts
from adadecode.recipes.corpus import gsm8k_documents, python_functions
from adadecode.records import Say
from adadecode.settings import Device, ModelSettings, TrainConfig
from adadecode.training.base_pass import run_base
from adadecode.training.loss import argmax_loss_sum, make_target
from adadecode.training.outputs import GreedyOutput, make_outputs, read_part
from adadecode.training.stream import pack
from adadecode.training.train import train_heads

AHEAD = 4
DRAFT_LAYERS = (0, 15)  # of the model, those that the draft model's begin as
DRAFT_EPOCHS, DRAFT_BATCH_TOKENS = 10, 8192
PEAK_LR, WARMUP_SHARE = 1.5e-3, 0.02
DRAFT_FACTS = "training.json"


@click.command()
@click.option("--gsm8k", type=click.Path(exists=True, path_type=Path), help="GSM8K train.jsonl.  [default: the hub]")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/rivals"), show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--install", is_flag=True, help="Copy the result into this package.")
def main(gsm8k: Path | None, work: Path, threads: int, seed: int, device: Device, install: bool) -> None:
    """Builds the draft model and the Medusa heads of the demo."""
    torch.set_num_threads(threads)
    model, tokenizer = load_demo(device)
    documents = {"math": gsm8k_documents(gsm8k), "code": python_functions()}
    usable = {domain: short_prompts(tokenizer, group) for domain, group in documents.items()}
    prompts = {domain: others_than_kept(group, KEPT_FOR_TUNING[domain]) for domain, group in usable.items()}
    build(model, tokenizer, prompts, work, seed, click.echo)
    if install:
        install_from(work)


def load_demo(device: Device) -> tuple[DecoderModel, Any]:
    """The demo model and its tokenizer on `device`."""
    return load_model(ModelSettings(model="demo", device=device, kernels="auto" if device == "cpu" else "eager"))


def build(
    model: DecoderModel, tokenizer: Any, prompts: dict[str, list[list[int]]], work: Path, seed: int, say: Say
) -> None:
    """Medusa heads in `work`/medusa, a folder for each domain of `prompts`, and a draft model in `work`/draft-model."""
    outputs: list[GreedyOutput] = []
    for domain, group in prompts.items():
        config = TrainConfig(
            model="demo",
            task=f"demo-{domain}",
            kind="medusa",
            ahead=AHEAD,
            seed=seed,
            device="cuda" if model.device.type == "cuda" else "cpu",
            **BLOCK_SETTINGS,
        )
        folder = work / "medusa" / domain
        train_heads(model, group, config, folder, say)
        for part in make_outputs(model, group, config, folder, say):
            outputs += read_part(folder, part)
    out = work / "draft-model"
    if (out / DRAFT_FACTS).exists():
        return
    lm, facts = train_draft_model(model, outputs, seed, say)
    lm.bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / DRAFT_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def train_draft_model(
    model: DecoderModel, outputs: list[GreedyOutput], seed: int, say: Say
) -> tuple[Any, dict[str, Any]]:
    """A model of DRAFT_LAYERS alone that learned to say what `model` says most likely, and how often it does.

    One in twenty of `outputs` is held out.
    """
    rng = random.Random(seed)
    outputs = rng.sample(outputs, len(outputs))
    num_held_out = len(outputs) // 20
    held_out, train = outputs[:num_held_out], outputs[num_held_out:]
    lm = of_layers(model.lm, DRAFT_LAYERS)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=PEAK_LR, weight_decay=0.0)
    num_steps = sum(len(pack(train, DRAFT_BATCH_TOKENS)) for _ in range(DRAFT_EPOCHS))
    step = 0
    for epoch in range(DRAFT_EPOCHS):
        for batch in shuffled_batches(train, rng):
            share = step / num_steps
            rate = PEAK_LR * min(1.0, (share + 1e-6) / WARMUP_SHARE) * 0.5 * (1.0 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, _, num_positions = said_alike(model, lm, batch)
            (loss / num_positions).backward()
            nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        agreement = agreement_on(model, lm, held_out)
        say(f"draft model, epoch {epoch + 1} of {DRAFT_EPOCHS}: agrees on {agreement:.1%} of held-out tokens")
    facts = {"num_outputs": len(train), "num_steps": step, "agreement": agreement_on(model, lm, held_out), "seed": seed}
    return lm, facts | {"layers": list(DRAFT_LAYERS), "base_model_hash": model.model_hash}


def of_layers(lm: Any, layers: tuple[int, ...]) -> Any:
    """A trainable float32 copy of `lm` with these of its layers alone."""
    config = copy.deepcopy(lm.config)
    config.num_hidden_layers = len(layers)
    smaller = type(lm)(config).float().to(lm.device)
    state = {name: tensor for name, tensor in lm.state_dict().items() if ".layers." not in name}
    for to, layer in enumerate(layers):
        for name, tensor in lm.model.layers[layer].state_dict().items():
            state[f"model.layers.{to}.{name}"] = tensor
    smaller.load_state_dict(state)
    smaller.config.dtype = torch.bfloat16
    return smaller


def shuffled_batches(outputs: list[GreedyOutput], rng: random.Random) -> Iterator[list[GreedyOutput]]:
    """One epoch of `outputs`."""
    batches = pack(rng.sample(outputs, len(outputs)), DRAFT_BATCH_TOKENS)
    yield from rng.sample(batches, len(batches))


def said_alike(model: DecoderModel, lm: Any, batch: list[GreedyOutput]) -> tuple[torch.Tensor, int, int]:
    """The loss of `lm` for what `model` says at the N positions that predict output tokens, how often it agrees, and N."""
    base = run_base(model, batch, ())
    target = make_target(base.final_logits, 1)
    token_ids = base.token_ids
    with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
        hidden = lm.model(token_ids, use_cache=False).last_hidden_state[base.predicts]
        logits = lm.lm_head(hidden)
    agreeing = int((logits.argmax(dim=-1) == target.token_ids).sum())
    return argmax_loss_sum(target, logits, None), agreeing, len(target.token_ids)


@torch.no_grad()
def agreement_on(model: DecoderModel, lm: Any, outputs: list[GreedyOutput]) -> float:
    """The share of the tokens of `outputs` at which `lm` says what `model` says."""
    counts = [said_alike(model, lm, batch)[1:] for batch in pack(outputs, DRAFT_BATCH_TOKENS)]
    return sum(agreeing for agreeing, _ in counts) / sum(total for _, total in counts)


def install_from(work: Path) -> None:
    """Copies what `work` holds into this package."""
    shutil.copytree(work / "draft-model", DEMO_DRAFT_DIR, dirs_exist_ok=True)
    for folder in (work / "medusa").iterdir():
        (DEMO_MEDUSA_DIR / folder.name).mkdir(parents=True, exist_ok=True)
        for name in (TENSORS, FACTS):
            shutil.copy(folder / name, DEMO_MEDUSA_DIR / folder.name / name)


if __name__ == "__main__":
    main()
