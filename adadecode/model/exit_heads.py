"""Exit heads: the paper's, one trained d x d matrix T(e) per exit layer before the frozen norm and LM head, and others.

`logits = E* . T(e) . norm(h)` (paper section 3). Shapes: W rows, d model width, V vocabulary, K tokens of the shortlist,
r rank.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from adadecode.errors import ExitHeadsError
from adadecode.files import short_hash
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.model.ngram_store import NgramStore
from adadecode.settings import HeadKind, TrainedKind

# The tensors that a head of each kind has at every exit, by the names they have on disk.
PART_NAMES: dict[TrainedKind, tuple[str, ...]] = {
    "transform": ("T",),
    "low-rank": ("U", "V"),
    "full": ("W",),
    "original": (),
    "shortlist": (),
}


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

    def logits(self, exit_layer: int, hidden: Tensor) -> Tensor:
        """Logits `[W, V]` of the full head on hidden states `[W, d]` at `exit_layer`; `[W, K]` with a shortlist alone."""
        outputs = self._model.final_norm(hidden)
        for matrix in self._full[exit_layer].matrices:
            outputs = linear(outputs, matrix)
        return outputs


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


class Shortlist(NamedTuple):
    """Heads over the K most frequent tokens: `token_ids` `[K]`, and per exit layer E*[token_ids] . T(e) `[K, d]`."""

    token_ids: Tensor
    matrices: dict[int, Tensor]

    def heads(self, model: DecoderModel) -> dict[int, Head]:
        """These heads on `model`; raises ExitHeadsError when they do not fit."""
        num_ids, width, vocab_size = self.token_ids.numel(), model.width, model.vocab_size
        fits = self.token_ids.ndim == 1 and not self.token_ids.is_floating_point()
        fits = fits and all(matrix.shape == (num_ids, width) for matrix in self.matrices.values())
        if not fits or not num_ids or not 0 <= int(self.token_ids.min()) <= int(self.token_ids.max()) < vocab_size:
            raise ExitHeadsError(
                f"a shortlist of {num_ids} tokens does not fit a model of width {width} and {vocab_size} tokens: "
                "train heads for this model"
            )
        token_ids = self.token_ids.to(model.device, torch.long)
        return {e: Head((m.to(model.device, model.dtype),), token_ids) for e, m in self.matrices.items()}


@dataclass(frozen=True)
class HeadTensors:
    """The tensors of one set of heads: per exit those of its kind, and what makes tests cheap, when they were reduced.

    A gate is a logistic regression on the normed hidden state, weights and bias `[d + 1]`, float32.
    """

    parts: dict[int, tuple[Tensor, ...]]
    shortlist: Shortlist | None = None
    gates: dict[int, Tensor] = field(default_factory=dict)
    kind: TrainedKind = "transform"

    def named(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """As they are on disk, the heads in `dtype`."""
        names = PART_NAMES[self.kind]
        tensors = {
            f"{name}.{e}": part.to(dtype)
            for e, parts in self.parts.items()
            for name, part in zip(names, parts, strict=True)
        }
        if self.shortlist is not None:
            tensors["shortlist.ids"] = self.shortlist.token_ids.to(torch.int32)
            tensors |= {f"shortlist.{e}": t.to(dtype) for e, t in self.shortlist.matrices.items()}
        tensors |= {f"gate.{e}": t.float() for e, t in self.gates.items()}
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_named(
        cls, tensors: dict[str, Tensor], exits: tuple[int, ...], kind: TrainedKind = "transform"
    ) -> "HeadTensors":
        """The heads at `exits` in what a file holds; raises KeyError when it holds something else."""
        tensors = dict(tensors)
        parts = {e: tuple(tensors.pop(f"{name}.{e}") for name in PART_NAMES[kind]) for e in exits}
        shortlist = None
        if "shortlist.ids" in tensors or kind == "shortlist":
            shortlist = Shortlist(tensors.pop("shortlist.ids"), {e: tensors.pop(f"shortlist.{e}") for e in exits})
        gates = {e: tensors.pop(f"gate.{e}") for e in exits} if tensors else {}
        if tensors:
            raise KeyError(*tensors)
        return cls(parts, shortlist, gates, kind)

    def on(
        self, model: DecoderModel, head: HeadKind = "full", gate: float = 0.0, content_hash: str | None = None
    ) -> ExitHeads:
        """These heads on `model`, tested in full or over their shortlist, which kind `shortlist` has alone.

        `gate` is the least that a gate must give for a test to be made. Raises ExitHeadsError when they do not fit.
        """
        full = self._full_heads(model)
        is_over_shortlist = head == "shortlist" or self.kind == "shortlist"
        heads = self.shortlist.heads(model) if self.shortlist is not None and is_over_shortlist else full
        gates = self._gates(model)
        return ExitHeads(model, gated(heads, gates, gate), full=full, gates=gates, content_hash=content_hash)

    def _full_heads(self, model: DecoderModel) -> dict[int, Head]:
        """The heads over the whole vocabulary, of which kind `shortlist` has none."""
        output = model.weights.head.matrices[0]  # E*, [V, d]
        match self.kind:
            case "transform" | "low-rank":
                transforms = {e: merged(*p) if self.kind == "low-rank" else p[0] for e, p in self.parts.items()}
                _check_shapes(transforms, (model.width, model.width))
                return {e: Head((transform.to(output), output)) for e, transform in transforms.items()}
            case "full":
                matrices = {e: matrix for e, (matrix,) in self.parts.items()}
                _check_shapes(matrices, (model.vocab_size, model.width))
                return {e: Head((matrix.to(output),)) for e, matrix in matrices.items()}
            case "original":
                return {e: Head((output,)) for e in self.parts}
            case "shortlist":
                return {}

    def _gates(self, model: DecoderModel) -> dict[int, Gate]:
        if any(weights.shape != (model.width + 1,) for weights in self.gates.values()):
            raise ExitHeadsError(f"gates need {model.width + 1} numbers for this model: train heads for this model")
        return {
            e: Gate(weights[:-1].to(model.device, torch.float32).contiguous(), float(weights[-1]))
            for e, weights in self.gates.items()
        }


def original_heads(model: DecoderModel, exits: tuple[int, ...]) -> ExitHeads:
    """Heads at `exits` that nobody trained: the model's own norm and LM head."""
    return HeadTensors(dict.fromkeys(exits, ()), kind="original").on(model, content_hash="original")


def _check_shapes(matrices: dict[int, Tensor], shape: tuple[int, int]) -> None:
    for exit_layer, matrix in matrices.items():
        if matrix.shape != shape:
            raise ExitHeadsError(
                f"exit head {exit_layer} has shape {list(matrix.shape)}, the model needs {list(shape)}: "
                "train heads for this model"
            )


def merged(u: Tensor, v: Tensor) -> Tensor:
    """T = I + U V `[d, d]` of the factors `[d, r]` and `[r, d]`, float32; raises ExitHeadsError when they do not fit."""
    if u.ndim != 2 or v.shape != u.T.shape:
        raise ExitHeadsError(
            f"low-rank factors have shapes {list(u.shape)} and {list(v.shape)}, not [d, r] and [r, d]: train them again"
        )
    return torch.eye(len(u), device=u.device) + u.float() @ v.float()
