"""One transformer layer and the heads as plain functions of tensors, for the rows of a decode step.

Shapes: W rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
V vocabulary, K outputs of a head.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import (
    embedding,
    gelu,
    layer_norm,
    linear,
    rms_norm,
    scaled_dot_product_attention,
    silu,
)

from adadecode.kernels.weights import (
    Activation,
    Gate,
    Head,
    LayerShape,
    LayerWeights,
    LogitShape,
    RotaryTable,
    Weights,
)

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": functools.partial(gelu, approximate="tanh"),
}


def layer_step(
    weights: LayerWeights,
    shape: LayerShape,
    hidden: Tensor,
    rotary: RotaryTable | None,
    columns: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """`hidden` `[W, d]` after one layer; writes row i's key and value to column `columns[i]` of `[G, S, D]`.

    `rotary` holds cos and sin `[W, 1, R]`, None where nothing is turned; `mask` `[H/G * W, S]` is additive. Keys and values
    that are not finite are written as zero: a wrong draft may overflow, and a weight of zero times NaN would reach the rows
    that mask it.
    """
    x = normed(shape, hidden, weights.input_norm, weights.input_norm_bias)
    mixed = _attention(weights, shape, x, rotary, columns, mask, keys, values)
    mixed = normed(shape, linear(mixed, weights.o, weights.o_bias), weights.attention_out_norm)
    after = hidden + _scaled(mixed, shape.residual_scale)
    x = normed(shape, hidden if shape.is_parallel else after, weights.post_norm, weights.post_norm_bias)
    entered = linear(x, weights.gate_up, weights.gate_up_bias)
    activation = ACTIVATIONS[shape.activation]
    if shape.is_gated:
        gate, up = entered.chunk(2, dim=-1)
        entered = activation(gate) * up
    else:
        entered = activation(entered)
    out = normed(shape, linear(entered, weights.down, weights.down_bias), weights.mlp_out_norm)
    return after + _scaled(out, shape.residual_scale)


def _attention(
    weights: LayerWeights,
    shape: LayerShape,
    x: Tensor,
    rotary: RotaryTable | None,
    columns: Tensor,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """What the heads mix of the values `[W, H D]`, after rows `x` `[W, d]` wrote theirs."""
    num_rows, num_heads, num_groups, head_dim = len(x), shape.num_heads, shape.num_kv_heads, shape.head_dim
    qkv = linear(x, weights.qkv, weights.qkv_bias).view(num_rows, num_heads + 2 * num_groups, head_dim)
    queries, new_keys, new_values = qkv.split((num_heads, num_groups, num_groups), dim=1)
    queries, new_keys = _normed_heads(shape, queries, weights.q_norm), _normed_heads(shape, new_keys, weights.k_norm)
    if rotary is not None:
        queries, new_keys = _rotate(queries, *rotary), _rotate(new_keys, *rotary)
    keys.index_copy_(1, columns, new_keys.transpose(0, 1).nan_to_num(0.0, 0.0, 0.0))
    values.index_copy_(1, columns, new_values.transpose(0, 1).nan_to_num(0.0, 0.0, 0.0))
    # the query heads that share keys become rows, so keys are never repeated
    folded = queries.transpose(0, 1).reshape(1, num_groups, num_heads // num_groups * num_rows, head_dim)
    if shape.attention_cap is None:
        mixed = scaled_dot_product_attention(folded, keys[None], values[None], attn_mask=mask, scale=shape.scale)
    else:
        mixed = capped_attention(folded, keys[None], values[None], mask, shape.scale, shape.attention_cap)
    return mixed.reshape(num_heads, num_rows, head_dim).transpose(0, 1).reshape(num_rows, num_heads * head_dim)


def capped_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """`scaled_dot_product_attention` with scores that a tanh holds within `cap`, in float32."""
    scores = capped((queries @ keys.transpose(-1, -2)).float() * scale, cap) + mask.float()
    return scores.softmax(dim=-1).to(values.dtype) @ values


def sequence_step(
    weights: LayerWeights,
    shape: LayerShape,
    hidden: Tensor,
    rotary: RotaryTable | None,
    window: int | None = None,
) -> Tensor:
    """One whole sequence `[T, d]` from its first position on after one layer; `rotary` are tables `[positions, R]`.

    Each row sees itself and all before it, or the last `window` of them.
    """
    length, repeats = len(hidden), shape.num_heads // shape.num_kv_heads
    columns = torch.arange(length, device=hidden.device)
    mask = causal_mask(columns, columns, window, hidden.dtype).repeat(repeats, 1)
    keys, values = hidden.new_zeros(2, shape.num_kv_heads, length, shape.head_dim)
    turned = None if rotary is None else (rotary[0][:length, None], rotary[1][:length, None])
    return layer_step(weights, shape, hidden, turned, columns, mask, keys, values)


def causal_mask(positions: Tensor, columns: Tensor, window: int | None, dtype: torch.dtype) -> Tensor:
    """The additive mask `[W, S]` over `columns` `[S]` of rows at `positions` `[W]`: of what is later or left the window."""
    is_hidden = columns > positions[:, None]
    if window is not None:
        is_hidden = is_hidden | (columns <= positions[:, None] - window)
    mask = torch.zeros_like(columns, dtype=dtype).repeat(len(positions), 1)
    return mask.masked_fill(is_hidden, float("-inf"))


def normed(shape: LayerShape, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """`x` normalised over its last dimension as `shape` says; `x` itself without a `weight`."""
    if weight is None:
        return x
    if shape.norm == "layer":
        return layer_norm(x, x.shape[-1:], weight, bias, shape.eps)
    if shape.norm_offset:  # in float32: a weight near 1 would lose what sets it apart from 1
        return rms_norm(x.float(), x.shape[-1:], weight.float() + shape.norm_offset, shape.eps).to(x.dtype)
    return rms_norm(x, x.shape[-1:], weight, shape.eps)


def _normed_heads(shape: LayerShape, x: Tensor, weight: Tensor | None) -> Tensor:
    """`x` `[W, heads, D]` normalised per head, or over all heads where `weight` is that long."""
    if weight is None or len(weight) == shape.head_dim:
        return normed(shape, x, weight)
    return normed(shape, x.flatten(1), weight).view(x.shape)


def _scaled(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1.0 else x * scale


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `x` `[W, heads, D]`, of the first R elements of each head."""
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return turned if width == x.shape[-1] else torch.cat((turned, x[..., width:]), dim=-1)


def embed(weights: Weights, token_ids: Tensor) -> Tensor:
    """Hidden states `[T, d]` of `token_ids` `[T]` before layer 1."""
    return _scaled(embedding(token_ids, weights.embedding), weights.embedding_scale)


def final_norm(weights: Weights, hidden: Tensor) -> Tensor:
    """The model's last normalisation of `hidden` `[..., d]`."""
    if weights.borrowed is not None and not weights.layers:
        return weights.borrowed.norm(hidden)
    return normed(weights.shape, hidden, weights.norm, weights.norm_bias)


def finished(logits: Tensor, shape: LogitShape) -> Tensor:
    """What becomes of the products `[..., K]` of a head's last matrix."""
    if shape.own is not None:
        return shape.own(logits)
    if shape.divisor != 1.0:
        logits = logits / shape.divisor
    return logits if shape.cap is None else capped(logits, shape.cap)


def capped(x: Tensor, cap: float) -> Tensor:
    """`x` held within `cap` of 0 by a tanh."""
    return torch.tanh(x / cap) * cap


def head_step(head: Head, weights: Weights, hidden: Tensor) -> Tensor:
    """Logits `[W, K]` of `head` on `hidden` `[W, d]`."""
    x = final_norm(weights, hidden)
    for matrix in head.matrices:
        x = linear(x, matrix)
    return finished(x, weights.logits)


def gate_step(gate: Gate, weights: Weights, hidden: Tensor) -> Tensor:
    """Probabilities `[W]` of `gate` on `hidden` `[W, d]`, float32."""
    x = final_norm(weights, hidden).float()
    return torch.sigmoid((x * gate.weights).sum(dim=-1) + gate.bias)


def top1(logits: Tensor, token_ids: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Per row of `logits` `[W, K]`: token id, logit (NaN when any is) and probability of the most likely output.

    Ties go to the lowest output.
    """
    tops, best = logits.max(dim=-1)
    probabilities = 1.0 / (logits.float() - tops.float()[:, None]).exp().sum(dim=-1)
    return best if token_ids is None else token_ids[best], tops, probabilities
