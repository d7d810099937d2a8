"""The demo model's tokenizer and language-model training: a plain Llama, a plain next-token loss.

No early-exit loss touches the base model: what AdaDecode claims, it claims of unmodified models.
"""

import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adadecode.files import whole_file
from adadecode.recipes.corpus import Document
from adadecode.records import Say

VOCAB_SIZE = 2048
BOS, EOS = "<|bos|>", "<|eos|>"
ROW_LENGTHS = (128, 192, 256, 384, 512)  # padded lengths: few shapes, so that each compiles once
BATCH_TOKENS = 6144
GSM8K_EPOCHS, CODE_EPOCHS = 3, 1
PEAK_LR, WARMUP_STEPS, DECAY_FROM = 1.5e-3, 150, 0.4
CHECKPOINT_EVERY_S = 180.0
HELD_OUT_ROWS = 96  # of each domain

LossOf = Callable[[list[list[int]]], Tensor]  # the loss on a batch of rows


def train_tokenizer(documents: list[Document], out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE with every digit a token of its own; saved to `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, model_max_length=2048)
    fast.save_pretrained(out)
    return fast


def demo_config(tokenizer: Any) -> LlamaConfig:
    """16 layers of width 256: deep and thin, so that an early exit skips something."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_batches(rows: list[list[int]], rng: random.Random) -> list[list[list[int]]]:
    """One epoch of `rows` as shuffled batches of rows of like length, each at most BATCH_TOKENS when padded."""
    by_length: dict[int, list[list[int]]] = {length: [] for length in ROW_LENGTHS}
    for row in rng.sample(rows, len(rows)):
        row = row[: ROW_LENGTHS[-1] + 1]
        by_length[next(length for length in ROW_LENGTHS if len(row) <= length + 1)].append(row)
    batches = []
    for length, group in by_length.items():
        size = BATCH_TOKENS // length
        batches += [group[i : i + size] for i in range(0, len(group) - size + 1, size)]
    return rng.sample(batches, len(batches))


def to_tensors(batch: list[list[int]]) -> tuple[Tensor, Tensor]:
    """`batch` as inputs and next-token labels `[B, T]`, padded on the right with label -100."""
    length = next(length for length in ROW_LENGTHS if max(map(len, batch)) <= length + 1)
    inputs = torch.zeros(len(batch), length, dtype=torch.long)
    labels = torch.full((len(batch), length), -100)
    for i, row in enumerate(batch):
        inputs[i, : len(row) - 1] = torch.tensor(row[:-1])
        labels[i, : len(row) - 1] = torch.tensor(row[1:])
    return inputs, labels


def learning_rate(progress: float, step: int) -> float:
    """Linear warm-up, a plateau, then a linear decay to zero from DECAY_FROM on."""
    decay = 1.0 if progress < DECAY_FROM else (1.0 - progress) / (1.0 - DECAY_FROM)
    return PEAK_LR * min(1.0, (step + 1) / WARMUP_STEPS) * decay


class Checkpoint(NamedTuple):
    """A training and the file `path` that holds where it stands: weights, optimizers and the next step."""

    path: Path
    model: LlamaForCausalLM
    optimizers: list[torch.optim.Optimizer]

    def restore(self) -> int:
        """Takes over what is stored; returns the step to go on from, 0 where nothing is."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"]

    def save(self, next_step: int) -> None:
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        with whole_file(self.path) as unfinished:
            torch.save({"model": self.model.state_dict(), "optimizers": optimizers, "step": next_step}, unfinished)


def train_model(
    rows: dict[str, list[list[int]]], config: LlamaConfig, work: Path, seed: int, say: Say
) -> tuple[LlamaForCausalLM, dict[str, Any]]:
    """The model trained on token id `rows` per domain, and facts about its training; resumes from `work`.

    Muon for the matrices, AdamW elsewhere. The first HELD_OUT_ROWS rows of each domain are held out.
    """
    torch.manual_seed(seed)
    config._attn_implementation = "eager"  # on CPU its backward is twice as fast as the fused kernel's
    model = LlamaForCausalLM(config)
    batches = training_batches(rows, random.Random(seed))
    checkpoint = Checkpoint(work / "checkpoint.pt", model, new_optimizers(model))
    first_step = checkpoint.restore()
    loss_of = compiled_loss(model)
    take_steps(checkpoint, batches, first_step, loss_of, say)
    facts: dict[str, Any] = {"num_steps": len(batches), "num_tokens": sum(len(row) for b in batches for row in b)}
    for domain, group in rows.items():
        facts[f"held_out_perplexity_{domain}"] = perplexity(group[:HELD_OUT_ROWS], loss_of)
    return model, facts


def training_batches(rows: dict[str, list[list[int]]], rng: random.Random) -> list[list[list[int]]]:
    """The batches of all epochs over what is not held out of `rows`, shuffled together."""
    epochs = [make_batches(rows["math"][HELD_OUT_ROWS:], rng) for _ in range(GSM8K_EPOCHS)]
    epochs += [make_batches(rows["code"][HELD_OUT_ROWS:], rng) for _ in range(CODE_EPOCHS)]
    batches = list(itertools.chain.from_iterable(epochs))
    rng.shuffle(batches)
    return batches


def new_optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of `model`, AdamW for its embedding and its norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=PEAK_LR, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]


def compiled_loss(model: LlamaForCausalLM) -> LossOf:
    """The mean next-token loss of `model` on a batch, in nats; its layers are compiled in place."""
    for layer in model.model.layers:
        layer.compile(dynamic=False)

    @torch.compile(dynamic=False)
    def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden @ weight.T).float().flatten(0, 1), labels.flatten())

    def loss_of(batch: list[list[int]]) -> Tensor:
        inputs, labels = to_tensors(batch)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            return cross_entropy(hidden, model.lm_head.weight, labels)

    return loss_of


def take_steps(
    checkpoint: Checkpoint, batches: list[list[list[int]]], first_step: int, loss_of: LossOf, say: Say
) -> None:
    """Trains on `batches` from `first_step` on, one step each, and saves now and then and at the end."""
    started = last_saved = time.monotonic()
    num_tokens = 0
    for step in range(first_step, len(batches)):
        rate = learning_rate(step / len(batches), step)
        loss = loss_of(batches[step])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(checkpoint.model.parameters(), 1.0)
        for optimizer in checkpoint.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        num_tokens += sum(map(len, batches[step]))
        if step % 20 == 0:
            per_s = num_tokens / (time.monotonic() - started)
            say(f"step {step}/{len(batches)} loss {loss.item():.3f} lr {rate:.2e} {per_s:.0f} tokens/s")
        if time.monotonic() - last_saved > CHECKPOINT_EVERY_S:
            checkpoint.save(step + 1)
            last_saved = time.monotonic()
    checkpoint.save(len(batches))


@torch.no_grad()
def perplexity(rows: list[list[int]], loss_of: LossOf) -> float:
    """The perplexity on `rows`, to three digits."""
    batches = make_batches(rows, random.Random(0))
    mean = sum(loss_of(batch).item() for batch in batches) / max(1, len(batches))
    return round(math.exp(mean), 3)


def encode(tokenizer: Any, documents: list[Document]) -> list[list[int]]:
    """Token ids of every document, from BOS to EOS."""
    ids = tokenizer([document.text for document in documents])["input_ids"]
    return [[*row, tokenizer.eos_token_id] for row in ids]
