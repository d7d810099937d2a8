"""Rebuilds the demo from scratch: tokenizer, model and exit heads.

    python -m adadecode.demo.build --gsm8k train.jsonl --work build/demo --install

The texts are GSM8K's training split and the documented functions of the standard library of the Python that runs this
script. Every stage resumes, and is skipped when its result is in the work folder. On two CPU cores it takes about an
hour; the result depends, in the last bits, on the machine's kernels and number of threads.
"""

import json
import platform
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from transformers import PreTrainedTokenizerFast

from adadecode.config import TrainConfig
from adadecode.demo import HEADS_DIR, MODEL_DIR
from adadecode.demo.corpus import Document, gsm8k_documents, python_functions
from adadecode.demo.pretrain import demo_config, encode, train_model, train_tokenizer
from adadecode.model.decoder import load_model
from adadecode.model.exit_heads import FACTS, TENSORS
from adadecode.training.run import train_heads

MODEL_FACTS = "training.json"
HEAD_PROMPTS = {"math": 1000, "code": 800}
LONGEST_HEAD_PROMPT = 256
HEAD_SETTINGS: dict[str, Any] = {"max_new_tokens": 192, "epochs": 3, "batch_tokens": 1024}


@click.command()
@click.option("--gsm8k", type=click.Path(exists=True, path_type=Path), help="GSM8K train.jsonl.  [default: the hub]")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/demo"), show_default=True)
@click.option("--threads", type=int, default=2, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--install", is_flag=True, help="Copy the result into this package.")
def main(gsm8k: Path | None, work: Path, threads: int, seed: int, install: bool) -> None:
    """Builds the demo's tokenizer, model and heads."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    documents = {"math": gsm8k_documents(gsm8k), "code": python_functions()}
    build_model(documents, work, seed)
    for domain, group in documents.items():
        build_heads(domain, group, work, threads, seed)
    if install:
        shutil.copytree(work / "model", MODEL_DIR, dirs_exist_ok=True)
        for domain in documents:
            (HEADS_DIR / domain).mkdir(parents=True, exist_ok=True)
            for name in (TENSORS, FACTS):
                shutil.copy(work / "heads" / domain / name, HEADS_DIR / domain / name)


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


def build_heads(domain: str, documents: list[Document], work: Path, threads: int, seed: int) -> None:
    """Trains the exit heads of one domain into `work`/heads/<domain>, unless they are there."""
    out = work / "heads" / domain
    if (out / FACTS).exists():
        return
    model, tokenizer = load_model(str(work / "model"), kernels="eager")
    prompts: list[list[int]] = tokenizer([document.prompt for document in documents])["input_ids"]  # pyright: ignore
    prompts = [prompt for prompt in prompts if len(prompt) <= LONGEST_HEAD_PROMPT][: HEAD_PROMPTS[domain]]
    config = TrainConfig(model="demo", task=f"demo-{domain}", seed=seed, threads=threads, **HEAD_SETTINGS)
    train_heads(model, prompts, config, out, click.echo)


if __name__ == "__main__":
    main()
