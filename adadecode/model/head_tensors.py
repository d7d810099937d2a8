"""Exit heads: the paper's, one trained d x d matrix T(e) per exit layer before the frozen norm and LM head, and others.

`logits = E* . T(e) . norm(h)` (paper section 3). Shapes: W rows, d model width, V vocabulary, K tokens of the shortlist,
r rank.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adadecode.errors import ExitHeadsError
from adadecode.kernels.weights import OPTIONAL_WEIGHTS, Block, Gate, Head, LayerWeights
from adadecode.model.decoder import DecoderModel
from adadecode.model.exit_heads import ExitHeads, gated
from adadecode.settings import HeadKind, TrainedKind

# The tensors that a head of each kind has at every exit, by the names they have on disk.
PART_NAMES: dict[TrainedKind, tuple[str, ...]] = {
    "transform": ("T",),
    "low-rank": ("U", "V"),
    "full": ("W",),
    "original": (),
    "shortlist": (),
    "block": ("T",),
}
OVER_SHORTLIST: tuple[TrainedKind, ...] = ("shortlist", "block")  # trained on a shortlist, and of use over it alone


class Shortlist(NamedTuple):
    """Heads over the K most frequent tokens: `token_ids` `[K]`, and per exit layer a matrix `[K, d]` where it is stored.

    Those of kind `shortlist` are; of other kinds it is made when they are loaded, such as E*[token_ids] . T(e).
    """

    token_ids: Tensor
    matrices: dict[int, Tensor]

    def heads(self, model: DecoderModel, whole: dict[int, Head]) -> dict[int, Head]:
        """These heads on `model`, cut out of `whole` ones unless stored; raises ExitHeadsError when they do not fit."""
        num_ids, width, vocab_size = self.token_ids.numel(), model.width, model.vocab_size
        fits = self.token_ids.ndim == 1 and not self.token_ids.is_floating_point()
        fits = fits and all(matrix.shape == (num_ids, width) for matrix in self.matrices.values())
        if not fits or not num_ids or not 0 <= int(self.token_ids.min()) <= int(self.token_ids.max()) < vocab_size:
            raise ExitHeadsError(
                f"a shortlist of {num_ids} tokens does not fit a model of width {width} and {vocab_size} tokens: "
                "train heads for this model"
            )
        token_ids = self.token_ids.to(model.device, torch.long)
        matrices = self.matrices or {e: cut(head, token_ids) for e, head in whole.items()}
        blocks = {e: head.block for e, head in whole.items()}
        return {e: Head((m.to(model.device, model.dtype),), token_ids, blocks.get(e)) for e, m in matrices.items()}


def cut(head: Head, token_ids: Tensor) -> Tensor:
    """The matrix `[K, d]` of `head`, which is over the whole vocabulary, for the tokens `token_ids` `[K]`, float32."""
    *before, last = head.matrices
    rows = last[token_ids].float()
    for matrix in reversed(before):
        rows = rows @ matrix.float()
    return rows


@dataclass(frozen=True)
class HeadTensors:
    """The tensors of one set of heads: per exit those of its kind, and what makes tests cheap, when they were reduced.

    A gate is a logistic regression on the normed hidden state, weights and bias `[d + 1]`, float32. A temperature is what
    the logits at an exit are divided by, so that a confidence is a chance; 1 where there is none. Heads of kind `block`
    have `blocks` at all of their exits; those of kind `transform` may have some, from another training.
    """

    parts: dict[int, tuple[Tensor, ...]]
    shortlist: Shortlist | None = None
    gates: dict[int, Tensor] = field(default_factory=dict)
    kind: TrainedKind = "transform"
    blocks: dict[int, LayerWeights] = field(default_factory=dict)
    temperatures: dict[int, float] = field(default_factory=dict)

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
        for e, layer in self.blocks.items():
            tensors |= {f"block.{name}.{e}": t.to(dtype) for name, t in vars(layer).items() if t is not None}
        tensors |= {f"temperature.{e}": torch.tensor([t]) for e, t in self.temperatures.items()}
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
            token_ids = tensors.pop("shortlist.ids")
            is_stored = kind == "shortlist" or any(f"shortlist.{e}" in tensors for e in exits)
            shortlist = Shortlist(token_ids, {e: tensors.pop(f"shortlist.{e}") for e in exits} if is_stored else {})
        with_blocks = {"block": exits, "transform": tuple(e for e in exits if f"block.qkv.{e}" in tensors)}.get(
            kind, ()
        )
        blocks = {e: _layer_of(tensors, e) for e in with_blocks}
        temperatures = {e: _number(tensors, key) for e in exits if (key := f"temperature.{e}") in tensors}
        gates = {e: tensors.pop(f"gate.{e}") for e in exits} if tensors else {}
        if tensors:
            raise KeyError(*tensors)
        return cls(parts, shortlist, gates, kind, blocks, temperatures)

    def on(
        self, model: DecoderModel, head: HeadKind = "full", gate: float = 0.0, content_hash: str | None = None
    ) -> ExitHeads:
        """These heads on `model`, tested in full or over their shortlist, which some kinds have alone.

        `gate` is the least that a gate must give for a test to be made. Raises ExitHeadsError when they do not fit.
        """
        whole = self._whole_heads(model)
        full = {e: one for e, one in whole.items() if e not in self.blocks}  # a block is trained for a shortlist
        is_over_shortlist = head == "shortlist" or self.kind in OVER_SHORTLIST
        heads = self.shortlist.heads(model, whole) if self.shortlist is not None and is_over_shortlist else full
        full, heads = self._cooled(full), self._cooled(heads)
        gates = self._gates(model)
        return ExitHeads(model, gated(heads, gates, gate), full=full, gates=gates, content_hash=content_hash)

    def _whole_heads(self, model: DecoderModel) -> dict[int, Head]:
        """The heads over the whole vocabulary, of which kind `shortlist` has none, and those with blocks no use."""
        output = model.weights.head.matrices[0]  # E*, [V, d]
        match self.kind:
            case "transform" | "low-rank" | "block":
                transforms = {e: merged(*p) if self.kind == "low-rank" else p[0] for e, p in self.parts.items()}
                _check_shapes(transforms, (model.width, model.width))
                blocks = {e: Block(e, _fitted(layer, model, e)) for e, layer in self.blocks.items()}
                return {e: Head((t.to(output), output), block=blocks.get(e)) for e, t in transforms.items()}
            case "full":
                matrices = {e: matrix for e, (matrix,) in self.parts.items()}
                _check_shapes(matrices, (model.vocab_size, model.width))
                return {e: Head((matrix.to(output),)) for e, matrix in matrices.items()}
            case "original":
                return {e: Head((output,)) for e in self.parts}
            case "shortlist" | "medusa":
                return {}

    def _cooled(self, heads: dict[int, Head]) -> dict[int, Head]:
        """`heads` with the temperature of each exit in their first matrix, which is their own."""
        cooled = dict(heads)
        for e, temperature in self.temperatures.items():
            if e in heads:
                own, *others = heads[e].matrices
                cooled[e] = replace(heads[e], matrices=((own.float() / temperature).to(own.dtype), *others))
        return cooled

    def _gates(self, model: DecoderModel) -> dict[int, Gate]:
        if any(weights.shape != (model.width + 1,) for weights in self.gates.values()):
            raise ExitHeadsError(f"gates need {model.width + 1} numbers for this model: train heads for this model")
        return {
            e: Gate(weights[:-1].to(model.device, torch.float32).contiguous(), float(weights[-1]))
            for e, weights in self.gates.items()
        }


def joined(heads: HeadTensors, blocks: HeadTensors) -> HeadTensors:
    """Heads of kind `transform` and, at other exits, of kind `block`, whose shortlist is that of all then."""
    assert (heads.kind, blocks.kind) == ("transform", "block"), (heads.kind, blocks.kind)
    assert heads.parts.keys().isdisjoint(blocks.parts), (heads.parts.keys(), blocks.parts.keys())
    return HeadTensors(
        dict(sorted((heads.parts | blocks.parts).items())),
        blocks.shortlist,
        heads.gates | blocks.gates,
        heads.kind,
        blocks.blocks,
        heads.temperatures | blocks.temperatures,
    )


def original_heads(model: DecoderModel, exits: tuple[int, ...]) -> ExitHeads:
    """Heads at `exits` that nobody trained: the model's own norm and LM head."""
    return HeadTensors(dict.fromkeys(exits, ()), kind="original").on(model, content_hash="original")


def _layer_of(tensors: dict[str, Tensor], exit_layer: int) -> LayerWeights:
    """The block at `exit_layer`, taken out of what a file holds; raises KeyError when it lacks what every layer has."""
    names = [field.name for field in fields(LayerWeights)]
    taken: dict[str, Any] = {
        name: tensors.pop(key)
        if (key := f"block.{name}.{exit_layer}") in tensors or name not in OPTIONAL_WEIGHTS
        else None
        for name in names
    }
    return LayerWeights(**taken)


def _fitted(layer: LayerWeights, model: DecoderModel, exit_layer: int) -> LayerWeights:
    """`layer` where and as the weights of `model` are; raises ExitHeadsError unless it is like the model's own layers."""
    if not model.weights.layers:
        raise ExitHeadsError(
            f"the block at exit {exit_layer} is a layer, and those of this model are not known: train heads of another kind"
        )
    shapes, own = (
        {name: None if t is None else t.shape for name, t in vars(one).items()}
        for one in (layer, model.weights.layers[0])
    )
    if shapes != own:
        differing = next(name for name in own if shapes[name] != own[name])
        raise ExitHeadsError(
            f"the block at exit {exit_layer} is no layer of this model (its {differing} differs): train heads for it"
        )
    like = model.weights.embedding
    moved: dict[str, Any] = {name: None if t is None else t.to(like) for name, t in vars(layer).items()}
    return LayerWeights(**moved)


def _number(tensors: dict[str, Tensor], name: str) -> float:
    """The number above 0 under `name`, taken out of `tensors`; raises KeyError for anything else."""
    tensor = tensors.pop(name)
    if tensor.numel() != 1 or not 0.0 < float(tensor) < torch.inf:
        raise KeyError(name)
    return float(tensor)


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
