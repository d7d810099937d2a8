"""Trains exit heads: KL from the final layer's distribution to each head's, base frozen, on the model's own outputs.

Paper section 3. Shapes: N positions that predict an output token, E exits, d model width, V vocabulary.
"""

import hashlib
import json
import math
import os
import pickle
import random
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adadecode.config import TrainConfig
from adadecode.errors import NonFiniteLogitsError, RunFolderError, UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import (
    ExitHeads,
    HeadFacts,
    check_exits,
    paper_exits,
    read_facts,
    save_heads,
)
from adadecode.training.outputs import GreedyOutput, Say, greedy_outputs
from adadecode.training.reduce import default_shortlist_len, reduce_heads
from adadecode.training.replay import BasePass, measure, pack, run_base

CHECKPOINT = "checkpoint.pt"
WARMUP_SHARE = 0.05
PROGRESS_EVERY_S = 10.0


def train_heads(
    model: DecoderModel,
    prompts: list[list[int]],
    config: TrainConfig,
    out: Path,
    say: Say,
    *,
    checkpoint_every_s: float = 60.0,
) -> HeadFacts:
    """Trains a head per exit on greedy outputs of `prompts`, saves them to `out` and returns their facts.

    A run that was interrupted goes on from the outputs and the checkpoint in `out` and ends in the same bits; one that
    was finished is not done again. `say`
    gets lines of progress. Raises UsageError, also as ExitHeadsError and RunFolderError, and NonFiniteLogitsError.
    """
    exits = config.exits or paper_exits(model.num_layers)
    check_exits(exits, model.num_layers)
    shortlist_len = config.shortlist_len or default_shortlist_len(model.vocab_size)
    if shortlist_len > model.vocab_size:
        raise UsageError(f"--shortlist-len {shortlist_len}: the vocabulary has {model.vocab_size} tokens; give fewer")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"--out {str(out)!r} cannot be made ({error.strerror}): choose another folder") from error
    outputs = greedy_outputs(model, prompts, config, out, say)
    train, held_out = split_held_out(outputs, config.held_out, config.seed)
    run = Distillation(model, exits, train, config)
    finished = read_facts(out)
    if finished is not None and finished.training.get("fingerprint") == run.fingerprint:
        say(f"{out}: these heads were trained before; delete the folder to train them again")
        return finished
    run.train(out / CHECKPOINT, checkpoint_every_s, say)

    transforms = dict(zip(exits, run.transforms.detach(), strict=True))
    tensors = reduce_heads(model, transforms, train, shortlist_len, config.batch_tokens)
    report = measure(model, ExitHeads(model, transforms), held_out, config.batch_tokens)
    for exit_layer, share in report["agreement"].items():
        say(f"exit {exit_layer}: agrees with the final layer on {share:.1%} of {report['num_held_out_tokens']} tokens")
    facts = HeadFacts(
        base_model=config.model,
        base_model_hash=model.model_hash,
        exits=exits,
        width=model.width,
        dtype=str(model.dtype).removeprefix("torch."),
        training={
            "settings": config.model_dump(mode="json"),
            "fingerprint": run.fingerprint,
            "num_prompts": len(outputs),
            "num_held_out_prompts": len(held_out),
            "num_trained_tokens": sum(len(output.output_ids) for output in train),
            "num_steps": run.num_steps,
            "shortlist_len": shortlist_len,
            "final_losses": dict(zip(map(str, exits), run.mean_losses(), strict=True)),
            **report,
        },
    )
    save_heads(out, tensors, facts)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return facts


def split_held_out(
    outputs: list[GreedyOutput], share: float, seed: int
) -> tuple[list[GreedyOutput], list[GreedyOutput]]:
    """`outputs` in a seeded order, cut in a part to train on and a held-out part; neither is empty."""
    assert len(outputs) >= 2, len(outputs)
    order = random.Random(seed).sample(outputs, len(outputs))
    num_held_out = min(max(1, round(share * len(outputs))), len(outputs) - 1)
    return order[num_held_out:], order[:num_held_out]


def kl_sums(model: DecoderModel, transforms: Tensor, base: BasePass) -> Tensor:
    """KL(final layer || head) in nats, summed over the N positions of `base`, `[E]`; `transforms` `[E, d, d]`.

    The base's part runs in its own dtype, as it does when decoding, the distributions in float32.
    """
    with torch.no_grad():
        final = base.final_logits.float().log_softmax(dim=-1)
        probabilities = final.exp()
        entropy = -(final.flatten() @ probabilities.flatten())
        normed = model.final_norm(torch.stack(base.hidden))  # [E, N, d]
    logits = model.lm.lm_head(normed @ transforms.to(normed.dtype).mT).float()  # [E, N, V]
    cross_entropy = -(logits.log_softmax(dim=-1).flatten(1) @ probabilities.flatten())
    return cross_entropy - entropy


class Distillation:
    """One training: the T(e), their optimizer and how far it is. The rest follows from the config and the outputs."""

    def __init__(
        self, model: DecoderModel, exits: tuple[int, ...], outputs: list[GreedyOutput], config: TrainConfig
    ) -> None:
        """T(e) start as the identity: a head that is the model's own norm and LM head."""
        self.model, self.exits, self.outputs, self.config = model, exits, outputs, config
        self.transforms = nn.Parameter(torch.eye(model.width, device=model.device).repeat(len(exits), 1, 1))
        # Decay would pull T towards zero, which is no sensible head.
        self.optimizer = torch.optim.AdamW([self.transforms], lr=config.learning_rate, weight_decay=0.0)
        self.step = 0
        self.steps_per_epoch = len(pack(outputs, config.batch_tokens))
        self.num_steps = config.epochs * self.steps_per_epoch
        self.epoch_kl = torch.zeros(len(exits), dtype=torch.float64)  # summed over the epoch's positions so far
        self.epoch_positions = 0
        settings = config.model_dump(include={"seed", "epochs", "batch_tokens", "learning_rate"})
        decisive = [settings, exits, model.model_hash, str(model.dtype), outputs]
        self.fingerprint = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def train(self, checkpoint: Path, checkpoint_every_s: float, say: Say) -> None:
        """Trains from `checkpoint`, or else from the start, to the last step, writing it now and then."""
        if checkpoint.exists():
            self._restore(checkpoint, say)
        started = last_saved = last_said = time.monotonic()
        first_step, batches = self.step, []
        while self.step < self.num_steps:
            epoch, step_of_epoch = divmod(self.step, self.steps_per_epoch)
            if step_of_epoch == 0 or not batches:
                batches = self._epoch_batches(epoch)
            if step_of_epoch == 0:
                self.epoch_kl.zero_()
                self.epoch_positions = 0
            self._train_step(batches[step_of_epoch])
            now, epoch_ended = time.monotonic(), step_of_epoch + 1 == self.steps_per_epoch
            if epoch_ended or now - last_said >= PROGRESS_EVERY_S:
                losses = ", ".join(f"{e}: {kl:.3f}" for e, kl in zip(self.exits, self.mean_losses(), strict=True))
                left_s = (now - started) / (self.step - first_step) * (self.num_steps - self.step)
                say(f"training: step {self.step}/{self.num_steps}, KL per exit {losses}, {left_s:.0f} s left")
                last_said = now
            if epoch_ended or now - last_saved >= checkpoint_every_s:
                self._save(checkpoint)
                say(f"checkpoint at step {self.step}/{self.num_steps}")
                last_saved = now

    def mean_losses(self) -> list[float]:
        """Mean KL per exit, in nats, over the positions of the epoch last trained on."""
        return (self.epoch_kl / self.epoch_positions).tolist()

    def _train_step(self, batch: list[GreedyOutput]) -> None:
        base = run_base(self.model, batch, self.exits)
        kl = kl_sums(self.model, self.transforms, base)
        if not kl.isfinite().all():
            raise NonFiniteLogitsError(
                f"training step {self.step}: KL per exit {kl.tolist()}; use --dtype float32 or a lower --learning-rate"
            )
        # The sum, not the mean: Adam does not mind the scale, and float16 gradients keep clear of underflow.
        kl.sum().backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.epoch_kl += kl.detach().double().cpu()
        self.epoch_positions += len(base.final_logits)

    def _learning_rate(self) -> float:
        """Linear warm-up under half a cosine."""
        warmup = min(1.0, (self.step + 1) / max(1.0, WARMUP_SHARE * self.num_steps))
        return self.config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * self.step / self.num_steps))

    def _epoch_batches(self, epoch: int) -> list[list[GreedyOutput]]:
        """The batches of `epoch` in an order of its own, the same whenever the epoch is begun again."""
        rng = random.Random(f"{self.config.seed} {epoch}")
        # Shuffled before they are sorted, so that outputs of one length meet others in every epoch.
        batches = pack(rng.sample(self.outputs, len(self.outputs)), self.config.batch_tokens)
        return rng.sample(batches, len(batches))

    def _save(self, checkpoint: Path) -> None:
        state = {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "transforms": self.transforms.detach(),
            "optimizer": self.optimizer.state_dict(),
            "epoch_kl": self.epoch_kl,
            "epoch_positions": self.epoch_positions,
        }
        unfinished = checkpoint.with_suffix(".tmp")
        torch.save(state, unfinished)
        os.replace(unfinished, checkpoint)

    def _restore(self, checkpoint: Path, say: Say) -> None:
        try:
            state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            say(f"{CHECKPOINT} is damaged: training from the start")
            return
        if state.get("fingerprint") != self.fingerprint:
            say(f"{CHECKPOINT} belongs to other settings, prompts or another model: training from the start")
            return
        self.step = state["step"]
        self.transforms.data.copy_(state["transforms"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch_kl = state["epoch_kl"]
        self.epoch_positions = state["epoch_positions"]
        say(f"resuming at step {self.step}/{self.num_steps}")
