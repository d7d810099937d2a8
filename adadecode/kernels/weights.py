"""One transformer layer and the heads as plain functions of tensors, for the rows of a decode step.

Shapes: W rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
V vocabulary, K outputs of a head.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer, in the layout a step wants: `qkv` `[(H + 2G) D, d]`, `gate_up` `[2F, d]`, `o`, `down`.

    Biases and the norms of queries and keys are None in families that have none.
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
class Head:
    """A head on a hidden state: the model's final norm, then `matrices` `[outputs, inputs]` in turn.

    `token_ids` `[K]` names the outputs of a head over a shortlist; None when output i is token i.
    """

    matrices: tuple[Tensor, ...]
    token_ids: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The weights a test reads."""
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
