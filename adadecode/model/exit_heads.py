"""Exit heads: the paper's, one trained d x d matrix T(e) per exit layer before the frozen norm and LM head, and others.

`logits = E* . T(e) . norm(h)` (paper section 3). On disk: `exit_heads.safetensors` with the tensors of the kind for each
exit layer e - `T.<e>` (transform), `U.<e>` and `V.<e>` of T(e) = I + U V (low-rank), `W.<e>`, a matrix `[V, d]` instead of
E* . T(e) (full), nothing (original: T(e) = I; shortlist: below alone) - and, when they were reduced, `shortlist.ids`,
`shortlist.<e>` and `gate.<e>`. `exit_heads.json` says what they were made for. Shapes: W rows, d model width, V vocabulary,
K tokens of the shortlist, r rank.
"""

import copy
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor
from torch.nn.functional import linear

from adadecode.errors import ExitHeadsError
from adadecode.kernels.step import DecodeStep, Proposals, Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from adadecode.settings import HeadKind, TrainedKind

TENSORS, FACTS = "exit_heads.safetensors", "exit_heads.json"

# The tensors that a head of each kind has at every exit, by the names they have on disk.
PART_NAMES: dict[TrainedKind, tuple[str, ...]] = {
    "transform": ("T",),
    "low-rank": ("U", "V"),
    "full": ("W",),
    "original": (),
    "shortlist": (),
}


class HeadFacts(BaseModel):
    """What a set of heads was made for and how; `training` holds settings and measured agreement."""

    model_config = ConfigDict(frozen=True)

    format_version: int = 1
    kind: TrainedKind = "transform"
    base_model: str
    base_model_hash: str
    exits: tuple[int, ...]
    width: int
    dtype: str
    training: dict[str, Any]


class Shortlist(NamedTuple):
    """Heads over the K most frequent tokens: `token_ids` `[K]`, and per exit layer E*[token_ids] . T(e) `[K, d]`."""

    token_ids: Tensor
    matrices: dict[int, Tensor]


class ExitHeads:
    """The exit heads of one model; proposes tokens with their top-1 probability at an exit layer.

    With a shortlist a test costs K d instead of V d + d d multiplications; its probabilities are over the shortlist.
    With gates a test is skipped when the gate gives less than `gate` for the head being right.
    """

    def __init__(
        self,
        model: DecoderModel,
        transforms: dict[int, Tensor],
        *,
        matrices: dict[int, Tensor] | None = None,
        shortlist: Shortlist | None = None,
        gates: dict[int, Tensor] | None = None,
        gate: float = 0.0,
        content_hash: str | None = None,
    ) -> None:
        """Takes T(e) `[d, d]` per exit layer, in increasing order; raises ExitHeadsError when they do not fit `model`.

        Instead of `transforms`, which is empty then, there may be `matrices` `[V, d]` in place of E* . T(e), or a
        shortlist alone. A gate is a logistic regression on the normed hidden state, weights and bias `[d + 1]`.
        """
        self.exits = tuple(transforms or matrices or (shortlist.matrices if shortlist else ()))
        check_exits(self.exits, model.num_layers)
        for exit_layer, matrix in (matrices or {}).items():
            if matrix.shape != (model.vocab_size, model.width):
                raise ExitHeadsError(
                    f"exit head {exit_layer} has shape {list(matrix.shape)}, the model needs "
                    f"[{model.vocab_size}, {model.width}]: train heads for this model"
                )
        for exit_layer, transform in transforms.items():
            if transform.shape != (model.width, model.width):
                raise ExitHeadsError(
                    f"exit head {exit_layer} has shape {list(transform.shape)}, the model needs "
                    f"[{model.width}, {model.width}]: train heads for this model"
                )
        if shortlist is not None:
            num_ids, width = len(shortlist.token_ids), model.width
            fits = all(matrix.shape == (num_ids, width) for matrix in shortlist.matrices.values())
            if (
                not fits
                or not num_ids
                or not 0 <= min(shortlist.token_ids) <= max(shortlist.token_ids) < model.vocab_size
            ):
                raise ExitHeadsError(
                    f"a shortlist of {num_ids} tokens does not fit a model of width {width} and {model.vocab_size} tokens: "
                    "train heads for this model"
                )
        if any(weights.shape != (model.width + 1,) for weights in (gates or {}).values()):
            raise ExitHeadsError(f"gates need {model.width + 1} numbers for this model: train heads for this model")
        self._model = model
        like = model.lm.lm_head.weight
        full = {e: Head((transform.to(like), like)) for e, transform in transforms.items()}
        full |= {e: Head((matrix.to(like),)) for e, matrix in (matrices or {}).items()}
        heads = full
        if shortlist is not None:
            token_ids = shortlist.token_ids.to(model.device, torch.long)
            heads = {e: Head((matrix.to(like),), token_ids) for e, matrix in shortlist.matrices.items()}
        self._full = full or heads
        self.gates = {
            e: Gate(weights[:-1].to(model.device, torch.float32).contiguous(), float(weights[-1]))
            for e, weights in (gates or {}).items()
        }
        self._tests = self._gated(heads, gate)
        self.content_hash = content_hash

    def _gated(self, heads: dict[int, Head], gate: float) -> dict[int, ExitTest]:
        least = torch.tensor(gate).item()  # in float32, as some kernels compare it
        return {e: ExitTest(head, self.gates.get(e) if gate > 0.0 else None, least) for e, head in heads.items()}

    def with_gate(self, gate: float) -> "ExitHeads":
        """The same heads, their tests skipped where a gate gives less than `gate`."""
        gated = copy.copy(self)
        gated._tests = self._gated({e: test.head for e, test in self._tests.items()}, gate)
        return gated

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

    def propose(self, step: DecodeStep, segment: Segment, first_tested: int, first_position: int) -> Proposals | None:
        """Runs `segment`, which ends at an exit layer, and tests slots [first_tested, hi) there.

        The most likely next token of each and its probability; None when the gate skips the test of one slot alone.
        """
        return step.run_to_exit(segment, self._tests[segment.stop], first_tested)


def original_heads(model: DecoderModel, exits: tuple[int, ...]) -> ExitHeads:
    """Heads at `exits` that nobody trained: the model's own norm and LM head."""
    matrices = {e: model.lm.lm_head.weight for e in exits}  # noqa: C420
    return ExitHeads(model, {}, matrices=matrices, content_hash="original")


def check_exits(exits: tuple[int, ...], num_layers: int) -> None:
    """Raises ExitHeadsError unless `exits` increase within 1..L-1."""
    if not exits or list(exits) != sorted(set(exits)) or exits[0] < 1 or exits[-1] >= num_layers:
        raise ExitHeadsError(
            f"exit layers {list(exits)} must increase and lie in 1..{num_layers - 1} for a model of {num_layers} layers"
        )


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
        """These heads on `model`, tested in full or over their shortlist, which kind `shortlist` has alone."""
        transforms: dict[int, Tensor] = {}
        matrices: dict[int, Tensor] | None = None
        match self.kind:
            case "transform":
                transforms = {e: transform for e, (transform,) in self.parts.items()}
            case "low-rank":
                transforms = {e: merged(*factors) for e, factors in self.parts.items()}
            case "full":
                matrices = {e: matrix for e, (matrix,) in self.parts.items()}
            case "original":
                matrices = {e: model.lm.lm_head.weight for e in self.parts}  # noqa: C420
        shortlist = self.shortlist if head == "shortlist" or self.kind == "shortlist" else None
        return ExitHeads(
            model,
            transforms,
            matrices=matrices,
            shortlist=shortlist,
            gates=self.gates,
            gate=gate,
            content_hash=content_hash,
        )


def merged(u: Tensor, v: Tensor) -> Tensor:
    """T = I + U V `[d, d]` of the factors `[d, r]` and `[r, d]`, float32; raises ExitHeadsError when they do not fit."""
    if u.ndim != 2 or v.shape != u.T.shape:
        raise ExitHeadsError(
            f"low-rank factors have shapes {list(u.shape)} and {list(v.shape)}, not [d, r] and [r, d]: train them again"
        )
    return torch.eye(len(u), device=u.device) + u.float() @ v.float()


def save_heads(folder: Path, tensors: HeadTensors, facts: HeadFacts) -> None:
    """Writes `tensors` and `facts` to `folder`, made if missing; the facts last, as the sign of completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)
    save_file(tensors.named(getattr(torch, facts.dtype)), folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> HeadFacts | None:
    """The facts of the complete heads in `folder`; None when there are none that can be read."""
    try:
        return HeadFacts.model_validate_json((folder / FACTS).read_bytes())
    except (OSError, ValidationError):
        return None


def load_heads(folder: Path, model: DecoderModel, head: HeadKind = "full", gate: float = 0.0) -> ExitHeads:
    """The exit heads in `folder`, tested in full or over their shortlist, after a gate when `gate` is above 0.

    Raises ExitHeadsError when they are missing, damaged, made for another model, or lack what `head` and `gate` need.
    """
    retrain = "train heads for this model with `adadecode train-heads`"
    if not (folder / FACTS).is_file() or not (folder / TENSORS).is_file():
        raise ExitHeadsError(f"--heads {str(folder)!r}: no {FACTS} with {TENSORS} there; {retrain}")
    try:
        facts = HeadFacts.model_validate_json((folder / FACTS).read_bytes())
        raw = (folder / TENSORS).read_bytes()
        named = load(raw)
    except (SafetensorError, ValidationError) as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: the files are damaged; {retrain} ({type(error).__name__})"
        ) from error
    if facts.base_model_hash != model.model_hash:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: made for {facts.base_model!r} with weights {facts.base_model_hash}, "
            f"this model's are {model.model_hash}; {retrain}"
        )
    try:
        tensors = HeadTensors.from_named(named, facts.exits, facts.kind)
    except KeyError as error:
        raise ExitHeadsError(
            f"--heads {str(folder)!r}: tensors {sorted(named)} do not match exits {list(facts.exits)} of kind {facts.kind}"
        ) from error
    lacking = {
        "--head full": (head == "full" and facts.kind == "shortlist", "--head shortlist"),
        "--head shortlist": (head == "shortlist" and tensors.shortlist is None, "--head full"),
        f"--gate {gate:g}": (gate > 0.0 and not tensors.gates, "--gate 0"),
    }
    for flag, (is_lacking, remedy) in lacking.items():
        if is_lacking:
            raise ExitHeadsError(f"{flag}: the heads in {str(folder)!r} were made without; use {remedy}, or {retrain}")
    return tensors.on(model, head, gate, hashlib.sha256(raw).hexdigest()[:16])
