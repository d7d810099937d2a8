"""What a decode step computes with, frozen: the weights of a model, and the heads and gates that test its exits.

Shapes: L layers, d model width, F width of the MLP, H query heads, G key/value heads, D head width, R of it that is
turned, S cache columns, V vocabulary, K outputs of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.stages import Stage

NormKind = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
RotaryTable = tuple[Tensor, Tensor]  # cos and sin `[positions, R]`; the first R <= D elements of a head are turned


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerWeights:
    """The weights of one layer, in the layout a step wants; each that a family has none of is None.

    Projections are `qkv` `[(H + 2G) D, d]`, `o` `[d, H D]`, `gate_up` `[2F, d]` (of an MLP without a gate `[F, d]`, up
    alone) and `down` `[d, F]`, each with a bias. Norms are before attention (`input_norm`) and the MLP (`post_norm`), of
    what these give before it is added (`attention_out_norm`, `mlp_out_norm`), and of queries and keys, per head `[D]` or
    over all heads, `q_norm` `[H D]` and `k_norm` `[G D]`.
    """

    input_norm: Tensor | None = None
    qkv: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None
    o: Tensor
    post_norm: Tensor | None = None
    gate_up: Tensor
    down: Tensor
    input_norm_bias: Tensor | None = None
    o_bias: Tensor | None = None
    attention_out_norm: Tensor | None = None
    post_norm_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    mlp_out_norm: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that a pass of the layer reads of its weights."""
        return sum(tensor.nbytes for tensor in vars(self).values() if tensor is not None)


OPTIONAL_WEIGHTS = tuple(field.name for field in fields(LayerWeights) if field.default is None)


@dataclass(frozen=True)
class LayerShape:
    """What the layers of one model have in common.

    All norms are of one kind, with `norm_offset` added to their weights. What attention and MLP give is added
    `residual_scale` times; where the residual `is_parallel`, attention and MLP read the same hidden state. Attention scores
    are scaled, then `attention_cap` * tanh(score / `attention_cap`) where there is one.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    norm: NormKind = "rms"
    norm_offset: float = 0.0
    activation: Activation = "silu"
    is_gated: bool = True
    attention_scale: float | None = None  # 1 / root of D where None
    attention_cap: float | None = None
    residual_scale: float = 1.0
    is_parallel: bool = False

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale


@dataclass(frozen=True)
class LayerKind:
    """What layers of one model may differ in: a row sees the last `window` positions, its own among them, or all.

    `rotary` is which of the model's tables turns queries and keys; None where none does.
    """

    window: int | None = None
    rotary: int | None = 0


@dataclass(frozen=True)
class LogitShape:
    """What becomes of the product of a head's matrix: divided by `divisor`, then `cap` * tanh(logit / `cap`), if any.

    Or whatever the model's `own` code makes of products `[N, K]`, where that is not known.
    """

    divisor: float = 1.0
    cap: float | None = None
    own: Callable[[Tensor], Tensor] | None = None


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


@dataclass(frozen=True)
class Calls:
    """What W rows enter layer 1 with, `entering` `[W, d]`, and what each layer of a model is called with besides.

    They stand at `positions` `[W]` and write to `columns` `[W]` of `cache`.
    """

    entering: Tensor
    positions: Tensor
    columns: Tensor
    cache: KVCache
    of_layers: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]

    def at(self, columns: Tensor) -> "Calls":
        """The same rows, writing to other `columns`."""
        return replace(self, columns=columns)


class Borrowed(Protocol):
    """A model's own layers, last norm and head, where steps borrow them instead of reading their weights.

    `because` says why they are, unless that was asked for. Where the layers have experts, every row takes copies of the
    weights of those it is routed to.
    """

    num_layers: int
    width: int
    because: str | None
    has_experts: bool
    layers: Any

    def calls(self, token_ids: Tensor, positions: Tensor, columns: Tensor, cache: KVCache) -> Calls:
        """What rows of `token_ids` `[W]` at `positions` `[W]` enter layer 1 with, and each layer is called with."""
        ...

    def run(self, calls: Calls, hidden: Tensor, start: int, stop: int) -> Tensor:
        """`hidden` `[W, d]` after layers [start, stop)."""
        ...

    def norm(self, hidden: Tensor) -> Tensor:
        """What the model makes of `hidden` `[N, d]` between its last layer and its head."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits `[N, V]` of `hidden` `[N, d]` after all layers."""
        ...


@dataclass(frozen=True, eq=False)
class Weights:
    """All weights of a causal LM, as its decode steps read them.

    `embedding` `[V, d]`, whose rows enter layer 1 times `embedding_scale`, which is rounded to the weights' dtype where the
    model has it so; the last `norm` `[d]` and its bias; and `rotaries`, all of one R, with at least one row for every
    position of the context of `context_len`, in the dtype of the weights. `kinds` has one for each layer, none where all
    are usual. `stages` say which layers are on which device; there are none where all are on one. A model whose layers are
    not known has none of `layers` and `rotaries`: its own are `borrowed`.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Head
    rotaries: tuple[RotaryTable, ...]
    shape: LayerShape
    context_len: int
    stages: tuple[Stage, ...] = ()
    kinds: tuple[LayerKind, ...] = ()
    norm_bias: Tensor | None = None
    embedding_scale: float = 1.0
    logits: LogitShape = LogitShape()
    borrowed: Borrowed | None = None

    def kind(self, layer_idx: int) -> LayerKind:
        """What is its own of a layer, from 0; -1 is the last, which the block of a head is like."""
        return self.kinds[layer_idx] if self.kinds else LayerKind()

    @property
    def rotary_width(self) -> int:
        """R."""
        return self.rotaries[0][0].shape[1]

    @property
    def num_layers(self) -> int:
        """L."""
        return self.borrowed.num_layers if self.borrowed is not None else len(self.layers)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.embedding.shape[0]

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return self.borrowed.width if self.borrowed is not None else self.embedding.shape[1]

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
        return self.rotaries[0][0].device if self.rotaries else self.embedding.device

    def at(self, device: torch.device) -> "Weights":
        """The same for the rows of a step on `device`, one of a stage: whatever is no layer stays at home."""
        return replace(self, rotaries=tuple((cos.to(device), sin.to(device)) for cos, sin in self.rotaries))

    @property
    def column_bytes(self) -> int:
        """Bytes of the keys and values of one position, in all layers."""
        return 2 * self.num_layers * self.shape.num_kv_heads * self.shape.head_dim * self.dtype.itemsize

    def new_cache(self, num_columns: int, num_layers: int | None = None) -> KVCache:
        """Zeroed keys and values with S = `num_columns`, of all layers unless `num_layers`, at home, are given."""
        shape, stages = self.shape, () if num_layers else self.stages
        num_layers = num_layers or self.num_layers
        return KVCache(num_layers, shape.num_kv_heads, shape.head_dim, num_columns, self.embedding, stages)
