"""What a decode step computes with, frozen: the weights of a model, and the heads and gates that test its exits.

Shapes: L layers, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
V vocabulary, K outputs of a head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.stages import Stage

OPTIONAL_WEIGHTS = ("qkv_bias", "q_norm", "k_norm")


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer, in the layout a step wants: `qkv` `[(H + 2G) D, d]`, `gate_up` `[2F, d]`, `o`, `down`.

    The OPTIONAL_WEIGHTS are None in families that have none.
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @property
    def num_bytes(self) -> int:
        """Bytes that a pass of the layer reads of its weights."""
        return sum(tensor.nbytes for tensor in vars(self).values() if tensor is not None)


@dataclass(frozen=True)
class LayerShape:
    """What the layers of one model have in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


@dataclass(frozen=True, eq=False)
class Block:
    """A layer that only the head at `exit_layer` has, with keys and values of its own, of all positions that pass there."""

    exit_layer: int
    layer: LayerWeights


@dataclass(frozen=True, eq=False)
class Head:
    """A head on a hidden state: its `block`, if any, the model's final norm, then `matrices` `[outputs, inputs]` in turn.

    `token_ids` `[K]` names the outputs of a head over a shortlist; None when output i is token i.
    """

    matrices: tuple[Tensor, ...]
    token_ids: Tensor | None = None
    block: Block | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights a test reads; those of a block are read before it, by the segment that ends at the exit."""
        return self.matrices


@dataclass(frozen=True, eq=False)
class Gate:
    """A logistic regression on the normed hidden state: is a test worth its time? `weights` `[d]`, float32."""

    weights: Tensor
    bias: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights a test reads."""
        return (self.weights,)


@dataclass(frozen=True, eq=False)
class ExitTest:
    """What is tested at an exit: `head`, unless one slot alone would be and `gate` gives it less than `least`."""

    head: Head
    gate: Gate | None = None
    least: float = 0.0


@dataclass(frozen=True, eq=False)
class Weights:
    """All weights of a causal LM, as its decode steps read them.

    `embedding` `[V, d]`, the last `norm` `[d]`, and `rotary`, cos and sin `[positions, D]`, at least one for every
    position of the context of `context_len`, in the dtype of the weights. `stages` say which layers are on which device;
    there are none where all are on one.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Head
    rotary: tuple[Tensor, Tensor]
    shape: LayerShape
    context_len: int
    stages: tuple[Stage, ...] = ()

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.layers)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.embedding.shape[0]

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return self.embedding.shape[1]

    @property
    def mlp_width(self) -> int:
        """F."""
        return self.layers[0].down.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the rows of a step are: home, where there are stages."""
        return self.rotary[0].device

    def at(self, device: torch.device) -> "Weights":
        """The same for the rows of a step on `device`, one of a stage: whatever is no layer stays at home."""
        cos, sin = self.rotary
        return replace(self, rotary=(cos.to(device), sin.to(device)))

    @property
    def column_bytes(self) -> int:
        """Bytes of the keys and values of one position, in all layers."""
        return 2 * self.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.dtype.itemsize

    def new_cache(self, num_columns: int, num_layers: int | None = None) -> KVCache:
        """Zeroed keys and values with S = `num_columns`, of all layers unless `num_layers`, at home, are given."""
        shape, stages = self.shape, () if num_layers else self.stages
        num_layers = num_layers or self.num_layers
        return KVCache(num_layers, shape.num_kv_heads, shape.head_dim, num_columns, self.embedding, stages)
