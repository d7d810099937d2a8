"""Stored outputs as a stream of batches: which are held out, and the seeded order of an epoch.

At most the outputs of two windows of parts are in memory; of all others there are a few bytes each.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from adadecode.training.outputs import GreedyOutput, Part, read_part

WINDOW_PARTS = 4


class OutputStream:
    """The outputs of `parts` in `out`, split by a seeded choice into a part to train on and a held-out part."""

    def __init__(
        self, out: Path, parts: list[Part], *, held_out: float, seed: int, batch_tokens: int, window: int = WINDOW_PARTS
    ) -> None:
        """Neither part of the split is empty; `window` parts are shuffled together."""
        self._out, self._parts, self._seed = out, parts, seed
        self._batch_tokens, self._window = batch_tokens, window
        self._first_idx = [0]
        for part in parts:
            self._first_idx.append(self._first_idx[-1] + part.num_outputs)
        self.num_outputs = self._first_idx[-1]
        assert self.num_outputs >= 2, self.num_outputs
        self.num_held_out = min(max(1, round(held_out * self.num_outputs)), self.num_outputs - 1)
        self.num_train = self.num_outputs - self.num_held_out
        self._is_held_out = bytearray(self.num_outputs)
        for idx in random.Random(seed).sample(range(self.num_outputs), self.num_held_out):
            self._is_held_out[idx] = 1

    @property
    def num_windows(self) -> int:
        return -(-len(self._parts) // self._window)

    def window_batches(self, epoch: int, window_idx: int) -> list[list[GreedyOutput]]:
        """The training batches of one window of `epoch`, in an order of their own, the same whenever asked for."""
        order = random.Random(f"{self._seed} {epoch}").sample(self._parts, len(self._parts))
        rng = random.Random(f"{self._seed} {epoch} {window_idx}")
        first = window_idx * self._window
        outputs = [
            output for part in order[first : first + self._window] for output in self._read(part, is_held_out=False)
        ]
        # Shuffled before they are sorted, so that outputs of one length meet others in every epoch.
        batches = pack(rng.sample(outputs, len(outputs)), self._batch_tokens)
        return rng.sample(batches, len(batches))

    def train_batches(self, epoch: int = 0) -> Iterator[list[GreedyOutput]]:
        """The training batches of `epoch`, window after window."""
        for window_idx in range(self.num_windows):
            yield from self.window_batches(epoch, window_idx)

    def train_outputs(self) -> Iterator[GreedyOutput]:
        """The outputs to train on, in the order of their prompts."""
        for part in self._parts:
            yield from self._read(part, is_held_out=False)

    def held_out_batches(self) -> Iterator[list[GreedyOutput]]:
        """The held-out outputs in batches, part after part."""
        for part in self._parts:
            yield from pack(self._read(part, is_held_out=True), self._batch_tokens)

    def _read(self, part: Part, *, is_held_out: bool) -> list[GreedyOutput]:
        first_idx = self._first_idx[part.part_idx]
        outputs = read_part(self._out, part)
        assert len(outputs) == part.num_outputs, (part, len(outputs))
        return [output for i, output in enumerate(outputs) if bool(self._is_held_out[first_idx + i]) == is_held_out]


def pack(outputs: list[GreedyOutput], batch_tokens: int) -> list[list[GreedyOutput]]:
    """`outputs` by length, in batches of at most `batch_tokens` tokens with their padding, and at least one output."""
    batches: list[list[GreedyOutput]] = []
    for output in sorted(outputs, key=num_fed):
        if not batches or num_fed(output) * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(output)
    return batches


def num_fed(output: GreedyOutput) -> int:
    """Tokens fed to the base: all but the last output token."""
    return len(output.prompt_ids) + len(output.output_ids) - 1
