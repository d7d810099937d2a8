"""One transformer layer and the heads as plain functions of tensors, for the rows of a decode step.

Shapes: W rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
V vocabulary, K outputs of a head.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from adadecode.kernels.weights import Gate, Head, LayerShape, LayerWeights


def layer_step(
    weights: LayerWeights,
    shape: LayerShape,
    hidden: Tensor,
    rotary: tuple[Tensor, Tensor],
    columns: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """`hidden` `[W, d]` after one layer; writes row i's key and value to column `columns[i]` of `[G, S, D]`.

    `rotary` holds cos and sin `[W, 1, D]`; `mask` `[H/G * W, S]` is additive. Keys and values that are not finite are
    written as zero: a wrong draft may overflow, and a weight of zero times NaN would reach the rows that mask it.
    """
    num_rows, num_heads, num_groups, head_dim = len(hidden), shape.num_heads, shape.num_kv_heads, shape.head_dim
    x = rms_norm(hidden, hidden.shape[-1:], weights.input_norm, shape.eps)
    qkv = linear(x, weights.qkv, weights.qkv_bias).view(num_rows, num_heads + 2 * num_groups, head_dim)
    queries, new_keys, new_values = qkv.split((num_heads, num_groups, num_groups), dim=1)
    if weights.q_norm is not None and weights.k_norm is not None:
        queries = rms_norm(queries, (head_dim,), weights.q_norm, shape.eps)
        new_keys = rms_norm(new_keys, (head_dim,), weights.k_norm, shape.eps)
    queries, new_keys = _rotate(queries, *rotary), _rotate(new_keys, *rotary)
    keys.index_copy_(1, columns, new_keys.transpose(0, 1).nan_to_num(0.0, 0.0, 0.0))
    values.index_copy_(1, columns, new_values.transpose(0, 1).nan_to_num(0.0, 0.0, 0.0))
    # the query heads that share keys become rows, so keys are never repeated
    folded = queries.transpose(0, 1).reshape(1, num_groups, num_heads // num_groups * num_rows, head_dim)
    mixed = scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=mask, scale=shape.scale)
    mixed = mixed.reshape(num_heads, num_rows, head_dim).transpose(0, 1).reshape(num_rows, num_heads * head_dim)
    hidden = hidden + linear(mixed, weights.o)
    x = rms_norm(hidden, hidden.shape[-1:], weights.post_norm, shape.eps)
    gate, up = linear(x, weights.gate_up).chunk(2, dim=-1)
    return hidden + linear(silu(gate) * up, weights.down)


def sequence_step(weights: LayerWeights, shape: LayerShape, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One whole sequence `[T, d]` from its first position on after one layer; `rotary` are tables `[positions, D]`."""
    length, repeats = len(hidden), shape.num_heads // shape.num_kv_heads
    columns = torch.arange(length, device=hidden.device)
    mask = torch.zeros(length, length, dtype=hidden.dtype, device=hidden.device)
    mask = mask.masked_fill(columns > columns[:, None], float("-inf")).repeat(repeats, 1)
    keys, values = hidden.new_zeros(2, shape.num_kv_heads, length, shape.head_dim)
    cos, sin = (table[:length, None] for table in rotary)
    return layer_step(weights, shape, hidden, (cos, sin), columns, mask, keys, values)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` `[W, heads, D]`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def head_step(head: Head, norm: Tensor, eps: float, hidden: Tensor) -> Tensor:
    """Logits `[W, K]` of `head` on `hidden` `[W, d]`."""
    x = rms_norm(hidden, hidden.shape[-1:], norm, eps)
    for matrix in head.matrices:
        x = linear(x, matrix)
    return x


def gate_step(gate: Gate, norm: Tensor, eps: float, hidden: Tensor) -> Tensor:
    """Probabilities `[W]` of `gate` on `hidden` `[W, d]`, float32."""
    x = rms_norm(hidden, hidden.shape[-1:], norm, eps).float()
    return torch.sigmoid((x * gate.weights).sum(dim=-1) + gate.bias)


def top1(logits: Tensor, token_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Per row of `logits` `[W, K]`: token id, logit (NaN when any is) and probability of the most likely output.

    Ties go to the lowest output.
    """
    tops, best = logits.max(dim=-1)
    probabilities = 1.0 / (logits.float() - tops.float()[:, None]).exp().sum(dim=-1)
    return best if token_ids is None else token_ids[best], tops, probabilities
