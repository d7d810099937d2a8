"""The parts of a transformers causal LM, found by its family's row, and their weights as decode steps read them.

Shapes: T rows of a prompt, d model width, H query heads, D head width, R of it that is turned.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adadecode.kernels.kv_cache import COLUMN_MULTIPLE, KVCache
from adadecode.kernels.layers import causal_mask
from adadecode.kernels.stages import Stage
from adadecode.kernels.weights import Head, LayerKind, LayerWeights, RotaryTable, Weights
from adadecode.model.families import (
    LAYER,
    context_len,
    family_of,
    layer_kinds,
    layer_shape,
    rotary_types,
)


def body_of(lm: Any) -> Any:
    """All of `lm` but its head: embedding, `layers`, `rotary_emb` and last norm."""
    return lm.base_model


def norm_of(lm: Any) -> Any:
    """The last norm of `lm`."""
    return getattr(body_of(lm), family_of(lm.config).norm)


def parts_at_home(lm: Any) -> tuple[nn.Module, ...]:
    """What of `lm` is no layer."""
    return lm.get_input_embeddings(), body_of(lm).rotary_emb, norm_of(lm), lm.get_output_embeddings()


def read_weights(lm: Any, stages: tuple[Stage, ...] = ()) -> Weights:
    """The weights of `lm`, in `stages` where it is on several devices; its projections become views of the joined ones.

    So they are in memory once, but for those that a family has head by head.
    """
    config, head, norm = lm.config, lm.get_output_embeddings().weight, norm_of(lm)
    family, most = family_of(config), context_len(config)
    positions = torch.arange(most + COLUMN_MULTIPLE + 1, device=head.device)
    if most < config.max_position_embeddings:  # a position beyond would change the frequencies of all
        positions = positions.clamp(max=most - 1)
    tables = rotary_tables(lm, torch.zeros(1, dtype=head.dtype, device=head.device), positions[None])
    return Weights(
        embedding=lm.get_input_embeddings().weight,
        layers=tuple(read_layer(lm, layer) for layer in body_of(lm).layers),
        norm=norm.weight,
        head=Head((head,)),
        rotaries=tuple((cos[0].to(head.dtype), sin[0].to(head.dtype)) for cos, sin in tables),
        shape=layer_shape(config),
        context_len=most,
        stages=stages,
        kinds=layer_kinds(config),
        norm_bias=getattr(norm, "bias", None),
        embedding_scale=family.embedding_scale(config, head.dtype),
        logits=family.logits(config),
    )


def rotary_tables(lm: Any, like: Tensor, positions: Tensor) -> tuple[RotaryTable, ...]:
    """Each table of `lm`, cos and sin `[1, T, R]` of `positions` `[1, T]`, where and, mostly, of the dtype as `like` is."""
    rotary, types = body_of(lm).rotary_emb, rotary_types(lm.config)
    if not types:
        return (rotary(like, position_ids=positions),)
    return tuple(rotary(like, positions, layer_type) for layer_type in types)


class WholeSequences:
    """What layers of `lm` are called with for B whole sequences of T rows: made once, for all layers alike."""

    def __init__(self, lm: Any, like: Tensor) -> None:
        """For hidden states like `like` `[B, T, d]`."""
        self._positions = torch.arange(like.shape[1], device=like.device)
        self._tables = rotary_tables(lm, like, self._positions[None])
        self._cache_name, self._is_masked = family_of(lm.config).cache, lm.config._attn_implementation != "sdpa"
        self._dtype, self._masks = like.dtype, dict[int | None, Tensor]()

    def run(self, layer: Any, kind: LayerKind, hidden: Tensor, cache: KVCache | None = None) -> Tensor:
        """`hidden` `[B, T, d]` after `layer`, one of `kind`; fills `cache` where it is given."""
        more: dict[str, Any] = {} if cache is None else {self._cache_name: cache}
        window = None if kind.window is None or kind.window >= len(self._positions) else kind.window
        if window is not None or self._is_masked:  # else attention is causal of itself
            more["attention_mask"] = self._mask(window)
        return layer(hidden, position_embeddings=self._tables[kind.rotary or 0], **more)

    def _mask(self, window: int | None) -> Tensor:
        if window not in self._masks:
            self._masks[window] = causal_mask(self._positions, self._positions, window, self._dtype)[None, None]
        return self._masks[window]


def read_layer(lm: Any, layer: Any) -> LayerWeights:
    """The weights of `layer`, one of those of `lm` or like them, joined where they are used together.

    The layer's own parameters become views of the joined ones.
    """
    family, shape = family_of(lm.config), layer_shape(lm.config)
    names = {**LAYER, **family.layer}
    read: dict[str, Any] = {part: _joined([_found(layer, name) for name in names[part]]) for part in names}
    if family.is_interleaved:
        sizes = shape.num_heads, 3, shape.head_dim
        for part in ("qkv", "qkv_bias"):
            if read[part] is not None:
                read[part] = read[part].unflatten(0, sizes).transpose(0, 1).flatten(0, 2).detach()
    if shape.is_parallel and read["post_norm"] is None:  # MLP and attention share their norm
        read |= {"post_norm": read["input_norm"], "post_norm_bias": read["input_norm_bias"]}
    return LayerWeights(**read)


def _found(layer: Any, name: str) -> nn.Parameter | None:
    found = layer
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _joined(parameters: list[nn.Parameter | None]) -> Tensor | None:
    """`parameters` as one; None without any."""
    there = [parameter for parameter in parameters if parameter is not None]
    if len(there) < 2:
        return there[0] if there else None
    joined = torch.cat([parameter.detach() for parameter in there])
    first = 0
    for parameter in there:
        parameter.data = joined[first : first + len(parameter)]
        first += len(parameter)
    return joined
