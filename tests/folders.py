"""Saved fakes: a tiny random model with a real tokenizer, and heads for it, as the folders `--model` and `--heads` take."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adadecode.model.decoder import DecoderModel
from adadecode.model.head_files import HeadFacts, save_heads
from adadecode.model.head_tensors import HeadTensors
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.models import random_transforms, tiny_lm

# One token per word, so that a prompt of n words has n tokens; ids past the special ones are w3, w4, ...
SPECIAL = ("<unk>", "<s>", "</s>")


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocab_size` words, split at whitespace; unknown words become <unk>."""
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def save_tiny_model(path: Path, family: str = "llama", *, dtype: torch.dtype = torch.float32, **settings: Any) -> Path:
    """Saves `tiny_lm(family, **settings)` in `dtype` and a tokenizer for its vocabulary to `path`, and returns it."""
    lm = tiny_lm(family, **settings).to(dtype)
    lm.save_pretrained(path)
    word_tokenizer(lm.config.vocab_size).save_pretrained(path)
    return path


def save_tiny_heads(path: Path, model: Path, exits: tuple[int, ...], seed: int = 0) -> Path:
    """Saves heads near the identity at `exits`, made for the model saved in `model`, to `path`, and returns it."""
    decoder, _ = load_model(ModelSettings(model=str(model), dtype="float32"))
    save_heads(
        path,
        HeadTensors({e: (t,) for e, t in random_transforms(decoder, exits, seed).items()}),
        tiny_facts(decoder, exits),
    )
    return path


def tiny_facts(model: DecoderModel, exits: tuple[int, ...], **changed: Any) -> HeadFacts:
    """Facts of untrained float32 heads at `exits` of `model`, less what `changed` replaces."""
    facts = {
        "base_model": "tiny",
        "base_model_hash": model.model_hash,
        "exits": exits,
        "width": model.width,
        "vocab_size": model.vocab_size,
        "dtype": "float32",
        "training": {},
    }
    return HeadFacts(**(facts | changed))


def write_prompts(path: Path, prompts: list[str]) -> Path:
    """Writes `prompts` as a data file for --task jsonl, and returns its path."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def undo_shard(run: Path, shard_idx: int) -> None:
    """Leaves the folder of a finished run as it was before one shard was computed."""
    (run / "commits" / f"{shard_idx:05d}.json").unlink()
    (run / "samples" / f"part-{shard_idx:05d}.parquet").unlink()
