"""Rebuilds the demo from scratch: tokenizer, model, exit heads and policy.

    python -m adadecode.recipes.build --gsm8k train.jsonl --work build/demo --install

The texts are GSM8K's training split and the documented functions of the standard library of the Python that runs this
script. The heads are the paper's, and a block behind the first layer, which learns from every prompt. The policy is tuned
on prompts that no head was trained on, for the machine at hand. Every stage resumes, and is skipped when its result is in
the work folder. On two CPU cores it takes some hours, with the blocks many; with `--device cuda` those take minutes. The
result depends, in the last bits, on the machine's kernels and number of threads.
"""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adadecode.demo import HEADS_DIR, MODEL_DIR, POLICY_FILE
from adadecode.model.head_files import FACTS, TENSORS, HeadFacts, save_heads
from adadecode.model.head_tensors import HeadTensors, joined
from adadecode.model.load import load_model
from adadecode.recipes.corpus import Document, gsm8k_documents, python_functions
from adadecode.recipes.pretrain import demo_config, encode, train_model, train_tokenizer
from adadecode.records import Prompt
from adadecode.settings import Device, ModelSettings, TrainConfig, TrainedKind, TuneConfig
from adadecode.training.train import train_heads
from adadecode.tuning.subject import load_subject
from adadecode.tuning.tune import POLICY, tune

MODEL_FACTS = "training.json"
TUNING_PROMPTS = 40  # per domain, of those kept
TUNING_THREADS = 1  # as the workers of `make demo` have
HEAD_EXITS = (4, 8, 10, 12)
BLOCK_EXITS = (1,)  # more would not fit the 24 MB the embedded files may take
KEPT_FOR_TUNING = {"math": 300, "code": 100}  # the last usable prompts of each domain, which no heads are trained on
LONGEST_HEAD_PROMPT = 256
HEAD_PROMPTS = 1536  # per domain, the first usable ones; blocks learn from all
HEAD_SETTINGS: dict[str, Any] = {"max_new_tokens": 192, "epochs": 2, "batch_tokens": 1024, "store_mb": 0.0}
BLOCK_SETTINGS: dict[str, Any] = {
    "epochs": 12,
    "batch_tokens": 8192,
    "loss": "argmax",
    "part_prompts": 1024,
    "batch_prompts": 1024,
    "store_mb": 0.0,  # this small, the model is as fast as its n-grams are looked up
}

ABLATION_EXITS = (4, 8, 12)


@click.command()
@click.option("--gsm8k", type=click.Path(exists=True, path_type=Path), help="GSM8K train.jsonl.  [default: the hub]")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--head-prompts", type=int, default=HEAD_PROMPTS, show_default=True, help="Prompts per domain.")
@click.option(
    "--ablation", is_flag=True, help="Also train full-parameter heads and heads of mixed domains, in WORK/ablation."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Trains blocks.")
@click.option("--install", is_flag=True, help="Copy the result into this package.")
def main(
    gsm8k: Path | None,
    work: Path,
    threads: int,
    seed: int,
    head_prompts: int,
    ablation: bool,
    device: Device,
    install: bool,
) -> None:
    """Builds the demo's tokenizer, model, heads and policy."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    documents = {"math": gsm8k_documents(gsm8k), "code": python_functions()}
    build_model(documents, work, seed)
    builder = HeadBuilder(work, threads, seed)
    usable = {domain: short_prompts(builder.tokenizer, group) for domain, group in documents.items()}
    others = {domain: others_than_kept(group, KEPT_FOR_TUNING[domain]) for domain, group in usable.items()}
    prompts = {domain: group[:head_prompts] for domain, group in others.items()}
    for domain, group in prompts.items():
        builder.train(work / "transforms" / domain, domain, group, HEAD_EXITS, "transform", HEAD_SETTINGS)
    if ablation:
        of_math = HEAD_SETTINGS | {"outputs": str(work / "transforms" / "math")}
        builder.train(work / "ablation" / "math-full", "math", prompts["math"], ABLATION_EXITS, "full", of_math)
        mixed = mixed_prompts(prompts)
        builder.train(work / "ablation" / "mixed", "mixed", mixed, ABLATION_EXITS, "transform", HEAD_SETTINGS)
    block_builder = HeadBuilder(work, threads, seed, device)
    for domain, group in others.items():
        block_builder.train(work / "blocks" / domain, domain, group, BLOCK_EXITS, "block", BLOCK_SETTINGS)
        join(work / "transforms" / domain, work / "blocks" / domain, work / "heads" / domain)
    kept = {domain: group[-KEPT_FOR_TUNING[domain] :][:TUNING_PROMPTS] for domain, group in usable.items()}
    builder.tune(work / "tuned", {domain: work / "heads" / domain for domain in kept}, kept)
    if install:
        shutil.copytree(work / "model", MODEL_DIR, dirs_exist_ok=True)
        for domain in documents:
            (HEADS_DIR / domain).mkdir(parents=True, exist_ok=True)
            for name in (TENSORS, FACTS):
                shutil.copy(work / "heads" / domain / name, HEADS_DIR / domain / name)
        shutil.copy(work / "tuned" / POLICY, POLICY_FILE)


def build_model(documents: dict[str, list[Document]], work: Path, seed: int) -> None:
    """Trains tokenizer and model into `work`/model, in bfloat16, unless they are there."""
    if not (work / "tokenizer").exists():
        train_tokenizer([document for group in documents.values() for document in group], work / "tokenizer")
    if (work / "model" / MODEL_FACTS).exists():
        return
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    rows = {domain: encode(tokenizer, group) for domain, group in documents.items()}
    for domain, group in rows.items():
        click.echo(f"{domain}: {len(group)} documents, {sum(map(len, group))} tokens")
    model, facts = train_model(rows, demo_config(tokenizer), work, seed, click.echo)
    model.bfloat16().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    facts |= {"python": platform.python_version(), "torch": torch.__version__, "seed": seed}
    (work / "model" / MODEL_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def short_prompts(tokenizer: PreTrainedTokenizerBase, documents: list[Document]) -> list[list[int]]:
    """Token ids of the prompts of `documents` that heads may learn from."""
    prompts: Any = tokenizer([document.prompt for document in documents])["input_ids"]
    return [prompt for prompt in prompts if len(prompt) <= LONGEST_HEAD_PROMPT]


def others_than_kept(prompts: list[list[int]], num_kept: int) -> list[list[int]]:
    """Each of `prompts` once, in order, but for the last `num_kept` and all that are like one of these."""
    kept = set(map(tuple, prompts[-num_kept:]))
    return [list(prompt) for prompt in dict.fromkeys(map(tuple, prompts[:-num_kept])) if prompt not in kept]


def join(heads: Path, blocks: Path, out: Path) -> None:
    """Writes the heads of the folders `heads` and `blocks` to `out` as one set, its facts those of both trainings."""
    facts, facts_of_blocks = (
        HeadFacts.model_validate_json((folder / FACTS).read_bytes()) for folder in (heads, blocks)
    )
    tensors = joined(
        *(
            HeadTensors.from_named(load_file(folder / TENSORS), of.exits, of.kind)
            for folder, of in ((heads, facts), (blocks, facts_of_blocks))
        )
    )
    assert facts.base_model_hash == facts_of_blocks.base_model_hash, (heads, blocks)
    training = facts.training | {"blocks": facts_of_blocks.training}
    training.pop("oracle_layers_per_token", None)  # of the first alone
    changed = {"exits": tuple(tensors.parts), "training": training, "block_exits": facts_of_blocks.exits}
    save_heads(out, tensors, facts.model_copy(update=changed))


class HeadBuilder:
    """Trains exit heads on the model in `work` and tunes a policy for them, each unless it is there."""

    def __init__(self, work: Path, threads: int, seed: int, device: Device = "cpu") -> None:
        self._threads, self._seed = threads, seed
        self._device: Device = device
        torch.set_num_threads(threads)
        settings = ModelSettings(
            model=str(work / "model"), device=device, kernels="auto" if device == "cpu" else "eager"
        )
        self._model, self.tokenizer = load_model(settings)

    def train(
        self,
        out: Path,
        task: str,
        prompts: list[list[int]],
        exits: tuple[int, ...],
        kind: TrainedKind,
        settings: dict[str, Any],
    ) -> None:
        """Trains heads of `kind` at `exits` on `prompts` into `out`, with other `settings` of the training."""
        if (out / FACTS).exists():
            return
        click.echo(f"{out}: {len(prompts)} prompts")
        config = TrainConfig(
            model="demo",
            task=f"demo-{task}",
            kind=kind,
            exits=exits,
            seed=self._seed,
            threads=self._threads,
            device=self._device,
            **settings,
        )
        train_heads(self._model, prompts, config, out, click.echo)

    def tune(self, out: Path, heads: dict[str, Path], prompts: dict[str, list[list[int]]]) -> None:
        """Finds one policy for the heads of all domains on `prompts` that they were not trained on, into `out`."""
        if (out / POLICY).exists():
            return
        config = TuneConfig.model_validate({"model": "demo", "threads": TUNING_THREADS, "seed": self._seed})
        torch.set_num_threads(TUNING_THREADS)
        subject = load_subject(config, self._model, self.tokenizer, heads)
        numbered = [
            Prompt(domain, f"{domain}-{idx}", prompt)
            for domain, group in prompts.items()
            for idx, prompt in enumerate(group)
        ]
        tune(subject, numbered, out, click.echo)


def mixed_prompts(prompts: dict[str, list[list[int]]]) -> list[list[int]]:
    """As many prompts as those for math, half of them for code where there are so many, in turns."""
    num_code = min(len(prompts["code"]), len(prompts["math"]) // 2)
    num_math = len(prompts["math"]) - num_code
    math, code = prompts["math"][:num_math], prompts["code"][:num_code]
    by_turn = [((i + 0.5) / len(group), prompt) for group in (math, code) for i, prompt in enumerate(group)]
    return [prompt for _, prompt in sorted(by_turn)]


if __name__ == "__main__":
    main()
