"""Trains exit heads: KL from the final layer's distribution to each head's, base frozen, on the model's own outputs.

Paper section 3. Shapes: N positions that predict an output token, E exits, V vocabulary.
"""

import math
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adadecode.errors import NonFiniteLogitsError
from adadecode.files import whole_file
from adadecode.model.decoder import DecoderModel
from adadecode.records import Say
from adadecode.settings import TrainConfig
from adadecode.training.base_pass import run_base
from adadecode.training.kinds import TrainedHead
from adadecode.training.loss import LOSSES, kl_sum, make_target
from adadecode.training.outputs import GreedyOutput
from adadecode.training.stream import OutputStream

CHECKPOINT = "checkpoint.pt"
WARMUP_SHARE = 0.05
NUM_POINTS = 200  # of a curve, each the mean of what was trained since the last
PROGRESS_EVERY_S = 10.0
PATIENCE = 2  # epochs without a rise
MOST_GRADIENT = 1.0  # of the mean loss of a step by the numbers of one head, as a norm


class Distillation:
    """One training: the heads, their optimizer and how far it is. The rest follows from the config and the outputs."""

    def __init__(
        self,
        model: DecoderModel,
        exits: tuple[int, ...],
        heads: list[TrainedHead],
        stream: OutputStream,
        config: TrainConfig,
        fingerprint: str,
    ) -> None:
        self.model, self.exits, self.stream, self.config = model, exits, stream, config
        self.heads, self._modules = heads, nn.ModuleList(heads)
        self.fingerprint = fingerprint
        # Decay would pull T towards zero, which is no sensible head.
        parameters = list(self._modules.parameters())
        self.optimizer = (
            torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0) if parameters else None
        )
        self.num_epochs = config.epochs if parameters else 0
        self.step = self.num_tokens = 0
        self.epoch = self.window = self.batch = self.outputs_done = 0  # the last three within what is before them
        self.points: list[dict[str, Any]] = []
        self.since_point = Means(len(exits))
        self.since_epoch = Means(len(exits))

    def train(self, checkpoint: Path, checkpoint_every_s: float, say: Say) -> None:
        """Trains from `checkpoint`, or else from the start, to the last step, writing it now and then."""
        if checkpoint.exists():
            self._restore(checkpoint, say)
        if not self.points:
            self._add_held_out_point()
        started = last_saved = last_said = time.monotonic()
        first_share = self._share()
        while self.epoch < self.num_epochs and not self._has_stalled(say):
            if self.window == self.batch == 0:
                self.since_epoch = Means(len(self.exits))
            for outputs in self._rest_of_epoch():
                self._train_step(outputs)
                now = time.monotonic()
                if now - last_said >= PROGRESS_EVERY_S:
                    self._say_progress(first_share, now - started, say)
                    last_said = now
                if now - last_saved >= checkpoint_every_s:
                    self._save(checkpoint, say)
                    last_saved = now
            self._say_progress(first_share, time.monotonic() - started, say)
            self._add_held_out_point()
            self.epoch += 1
            self.window = self.outputs_done = 0
            self._save(checkpoint, say)
            last_saved = last_said = time.monotonic()

    def _has_stalled(self, say: Say) -> bool:
        """Whether the last PATIENCE epochs made no exit agree more often on the held-out outputs than it once did.

        Only in the second half: a learning rate that is still high may keep heads where a lower one takes them on.
        """
        if self.epoch < self.num_epochs / 2:
            return False
        for exit_layer in self.exits:
            held_out = [p for p in self.points if (p["exit"], p["split"]) == (exit_layer, "held_out")]
            agreement = [point["agreement"] for point in held_out]
            best_before = max(agreement[:-PATIENCE], default=-1.0)
            if max(agreement[-PATIENCE:], default=0.0) > best_before:
                return False
        say(f"training ends after {self.epoch} of {self.num_epochs} epochs: agreement no longer rises at any exit")
        return True

    def _rest_of_epoch(self) -> Iterator[list[GreedyOutput]]:
        """The batches of the epoch not yet trained on; counts each before it is yielded, as trained once it was."""
        while self.window < self.stream.num_windows:
            batches = self.stream.window_batches(self.epoch, self.window)
            while self.batch < len(batches):
                self.batch += 1
                yield batches[self.batch - 1]
            self.window += 1
            self.batch = 0

    def _train_step(self, batch: list[GreedyOutput]) -> None:
        assert self.optimizer is not None
        kl, num_agree, num_told = self._forward(batch, is_training=True)
        if not kl.isfinite().all():
            raise NonFiniteLogitsError(
                f"training step {self.step}: KL per exit {kl.tolist()}; use --dtype float32 or a lower --learning-rate"
            )
        before = self._share()
        self.outputs_done += len(batch)
        learning_rate = self._learning_rate(before)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        num_positions = sum(len(output.output_ids) for output in batch)
        self.step += 1
        self.num_tokens += num_positions
        self.since_point.add(kl, num_agree, num_told)
        self.since_epoch.add(kl, num_agree, num_told)
        if int(self._share() * NUM_POINTS) > int(before * NUM_POINTS):
            self._add_point("train", self.since_point, learning_rate)
            self.since_point = Means(len(self.exits))

    def _forward(self, batch: list[GreedyOutput], *, is_training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """KL, number of agreeing argmaxes and of positions per exit, `[E]`, of `batch`; adds the gradients when training.

        The base's part runs in its own dtype, as it does when decoding, the distributions in float32. Exit after exit,
        so that the logits of one alone are in memory beside the target.
        """
        layers = tuple(
            self.model.num_layers if head.ahead else e for e, head in zip(self.exits, self.heads, strict=True)
        )
        base = run_base(self.model, batch, layers)
        whole_target = make_target(base.final_logits, self.config.kl_top_k)
        base = base._replace(final_logits=torch.empty(0))
        kls, agreeing, counts = [], [], []
        for idx, head in enumerate(self.heads):
            target = whole_target.at(base.told_by(head)) if head.ahead else whole_target
            with torch.set_grad_enabled(is_training):
                logits = head.logits(base.read_by(self.model, idx, head))
                # The sum, not the mean: Adam does not mind the scale, and float16 gradients keep clear of underflow.
                loss = kl = kl_sum(target, logits, head.token_ids)
                if self.config.loss != "kl":
                    loss = LOSSES[self.config.loss](target, logits, head.token_ids)
            if is_training:
                loss.backward()
                nn.utils.clip_grad_norm_(head.parameters(), MOST_GRADIENT * len(logits))
            best = logits.detach().argmax(dim=-1)
            agreeing.append(((best if head.token_ids is None else head.token_ids[best]) == target.token_ids).sum())
            kls.append(kl.detach())
            counts.append(len(logits))
            del logits, loss, kl
        return torch.stack(kls), torch.stack(agreeing), torch.tensor(counts)

    def _add_held_out_point(self) -> None:
        means = Means(len(self.exits))
        for batch in self.stream.held_out_batches():
            means.add(*self._forward(batch, is_training=False))
        learning_rate = self._learning_rate(self._share()) if self.num_epochs else 0.0
        self._add_point("held_out", means, learning_rate)

    def _add_point(self, split: str, means: "Means", learning_rate: float) -> None:
        epoch = self.epoch + self.outputs_done / self.stream.num_train
        for exit_layer, kl, agreement in zip(self.exits, means.kl, means.agreement, strict=True):
            point = {"step": self.step, "epoch": epoch, "exit": exit_layer, "split": split, "kl": kl}
            point |= {"agreement": agreement, "learning_rate": learning_rate, "num_tokens": self.num_tokens}
            self.points.append(point)

    def _share(self) -> float:
        """How much of the training is done, by outputs."""
        if not self.num_epochs:
            return 1.0
        return (self.epoch + self.outputs_done / self.stream.num_train) / self.num_epochs

    def _learning_rate(self, share: float) -> float:
        """Linear warm-up under half a cosine, for the step from `share` to where the training now is."""
        warmup = min(1.0, self._share() / WARMUP_SHARE)
        return self.config.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * share))

    def _say_progress(self, first_share: float, elapsed_s: float, say: Say) -> None:
        share = self._share()
        losses = ", ".join(f"{e}: {kl:.3f}" for e, kl in zip(self.exits, self.since_epoch.kl, strict=True))
        left = f", {elapsed_s / (share - first_share) * (1.0 - share):.0f} s left" if share > first_share else ""
        say(f"training: step {self.step}, {share:.1%} of {self.num_epochs} epochs, KL per exit {losses}{left}")

    def _save(self, checkpoint: Path, say: Say) -> None:
        assert self.optimizer is not None
        state = {
            "fingerprint": self.fingerprint,
            "counts": {name: getattr(self, name) for name in COUNTS},
            "heads": self._modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "points": self.points,
            "since_point": self.since_point.state(),
            "since_epoch": self.since_epoch.state(),
        }
        with whole_file(checkpoint) as unfinished:
            torch.save(state, unfinished)
        say(f"checkpoint at step {self.step}")

    def _restore(self, checkpoint: Path, say: Say) -> None:
        try:
            state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            say(f"{CHECKPOINT} is damaged: training from the start")
            return
        if state.get("fingerprint") != self.fingerprint:
            say(f"{CHECKPOINT} belongs to other settings, prompts or another model: training from the start")
            return
        assert self.optimizer is not None
        for name in COUNTS:
            setattr(self, name, state["counts"][name])
        self._modules.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.points = state["points"]
        self.since_point = Means(len(self.exits), *state["since_point"])
        self.since_epoch = Means(len(self.exits), *state["since_epoch"])
        say(f"resuming at step {self.step}, {self._share():.1%} of {self.num_epochs} epochs")


COUNTS = ("step", "num_tokens", "epoch", "window", "batch", "outputs_done")


class Means:
    """Running means per exit of KL and agreement over positions."""

    def __init__(
        self,
        num_exits: int,
        kl: Tensor | None = None,
        num_agree: Tensor | None = None,
        num_positions: Tensor | None = None,
    ) -> None:
        self._kl = torch.zeros(num_exits, dtype=torch.float64) if kl is None else kl
        self._num_agree = torch.zeros(num_exits, dtype=torch.int64) if num_agree is None else num_agree
        self._num_positions = torch.zeros(num_exits, dtype=torch.int64) if num_positions is None else num_positions

    def add(self, kl: Tensor, num_agree: Tensor, num_positions: Tensor) -> None:
        """Adds sums `[E]` over `num_positions` `[E]` positions."""
        self._kl += kl.double().cpu()
        self._num_agree += num_agree.cpu()
        self._num_positions += num_positions.cpu()

    @property
    def kl(self) -> list[float]:
        return (self._kl / self._num_positions).tolist()

    @property
    def agreement(self) -> list[float]:
        return (self._num_agree / self._num_positions).tolist()

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._kl, self._num_agree, self._num_positions
