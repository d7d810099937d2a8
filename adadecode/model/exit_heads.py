"""What a round tests at each exit layer of one model, whatever the heads there are made of.

Shapes: B sequences of T tokens, W rows, d model width, V vocabulary, K tokens of the shortlist.
"""

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn.functional import linear

from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash
from adadecode.kernels.layers import sequence_step
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.model.ngram_store import NgramStore


class ExitHeads:
    """The exit heads of one model: what a round tests at each exit layer, and the logits to train and report by.

    With a shortlist a test costs K d instead of V d + d d multiplications; its probabilities are over the shortlist.
    With gates a test is skipped when the gate gives less than it must for the head being right.
    """

    def __init__(
        self,
        model: DecoderModel,
        tests: dict[int, ExitTest],
        *,
        full: dict[int, Head] | None = None,
        gates: dict[int, Gate] | None = None,
        content_hash: str | None = None,
        store: NgramStore | None = None,
    ) -> None:
        """Takes what is tested at each exit layer, in increasing order; raises ExitHeadsError when `model` lacks a layer.

        `full` are the heads that `logits` are by, where the tests' own are over a shortlist; `gates` are those that
        `with_gate` may put before a test; `store` holds the n-grams beside them.
        """
        self.exits = tuple(tests)
        check_exits(self.exits, model.num_layers)
        self.gates = gates or {}
        self.content_hash, self.store = content_hash, store
        self._model, self._tests = model, tests
        self._full = full or {e: test.head for e, test in tests.items()}

    def with_gate(self, gate: float) -> "ExitHeads":
        """The same heads, their tests skipped where a gate gives less than `gate`."""
        tests = gated({e: test.head for e, test in self._tests.items()}, self.gates, gate)
        return ExitHeads(
            self._model, tests, full=self._full, gates=self.gates, content_hash=self.content_hash, store=self.store
        )

    def with_store(self, store: NgramStore) -> "ExitHeads":
        """The same heads beside `store`, which their hash covers then."""
        content_hash = short_hash(str(self.content_hash), str(store.content_hash))
        return ExitHeads(
            self._model, self._tests, full=self._full, gates=self.gates, content_hash=content_hash, store=store
        )

    @property
    def tests(self) -> Collection[ExitTest]:
        """All that a round may test."""
        return self._tests.values()

    @property
    def token_ids(self) -> Tensor | None:
        """The tokens `[K]` that `logits` are over; None when it is the whole vocabulary."""
        return next(iter(self._full.values())).token_ids

    def enter(self, exit_layer: int, hidden: Tensor) -> Tensor:
        """What `logits` take `[B, T, d]` of the hidden states of B whole sequences at `exit_layer`."""
        block, weights = self._tests[exit_layer].head.block, self._model.weights
        if block is None:
            return hidden
        kind = weights.kind(-1)
        rotary = None if kind.rotary is None else weights.rotaries[kind.rotary]
        rows = [sequence_step(block.layer, weights.shape, sequence, rotary, kind.window) for sequence in hidden]
        return torch.stack(rows)

    def logits(self, exit_layer: int, hidden: Tensor) -> Tensor:
        """Logits `[W, V]` of the full head on `hidden` `[W, d]` at `exit_layer`; `[W, K]` with a shortlist alone.

        Where the head has a block, `hidden` has passed it.
        """
        outputs = self._model.final_norm(hidden)
        for matrix in self._full[exit_layer].matrices:
            outputs = linear(outputs, matrix)
        return self._model.finished(outputs)


def gated(heads: dict[int, Head], gates: dict[int, Gate], gate: float) -> dict[int, ExitTest]:
    """Tests of `heads`, skipped where one of `gates` gives less than `gate`; 0 leaves the gates out."""
    least = torch.tensor(gate).item()  # in float32, as some kernels compare it
    return {e: ExitTest(head, gates.get(e) if gate > 0.0 else None, least) for e, head in heads.items()}


def check_exits(exits: tuple[int, ...], num_layers: int) -> None:
    """Raises ExitHeadsError unless `exits` increase within 1..L-1."""
    if not exits or list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] >= num_layers:
        raise ExitHeadsError(
            f"exit layers {list(exits)} must increase and lie in 1..{num_layers - 1} for a model of {num_layers} layers"
        )
