"""Attention over static columns as transformers' attention interface has it, and what layers take for their cache.

Shapes: W rows, S cache columns, H query heads, G key/value heads, D head width.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.layers import capped_attention, causal_mask

NAME = "adadecode"  # of our attention among transformers'


@dataclass(frozen=True)
class Place:
    """Where the rows of a call stand: positions `[W]`, in a cache of `columns` `[S]`."""

    positions: Tensor
    columns: Tensor


PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


class Columns:
    """What layers take for their cache: row i goes to column `where[i]` of the static one, and all S come back."""

    def __init__(self, cache: KVCache, where: Tensor) -> None:
        self._cache, self._where = cache, where

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values `[1, G, S, D]` after those of W rows were written; what is not finite is written as zero."""
        both: list[Tensor] = []
        for of_layer, new in zip(self._cache.layer(layer_idx), (key[0], value[0]), strict=True):
            own = of_layer[: new.shape[0], :, : new.shape[2]]
            own.index_copy_(1, self._where, new.nan_to_num(0.0, 0.0, 0.0).to(own.dtype))
            both.append(own[None])
        return both[0], both[1]

    def get_seq_length(self, *_: Any) -> int:
        return 0

    def get_query_offset(self, *_: Any) -> int:
        return 0

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        return self._cache.num_columns, 0


class Measure(Columns):
    """A cache that only notes the shapes `[G, T, D]` of what each layer gives it."""

    def __init__(self, length: int) -> None:
        """For T = `length` rows."""
        self._length = length
        self.shapes: list[tuple[int, torch.Size, torch.Size]] = []

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.shapes.append((layer_idx, key.shape[1:], value.shape[1:]))
        return key, value

    def get_mask_sizes(self, *_: Any) -> tuple[int, int]:
        return self._length, 0


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` `[1, H, W, D]` over S columns `[1, G, S, D]`, as transformers' attention interface has it."""
    unknown = sorted(name for name in ("s_aux", "position_bias", "sinks") if others.get(name) is not None)
    if unknown:
        raise ValueError(f"its attention has {', '.join(unknown)}, which the fallback does not add")
    _, num_heads, num_rows, head_dim = query.shape
    num_groups = key.shape[1]
    if attention_mask is None:
        place = PLACE.get()
        assert place is not None
        attention_mask = causal_mask(place.positions, place.columns, sliding_window, query.dtype)[None, None]
    # the query heads that share keys become rows, so keys are never repeated
    folded = query.reshape(1, num_groups, -1, head_dim)
    if attention_mask.dtype == torch.bool:
        attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, float("-inf"))
    mask = attention_mask.to(query.dtype).expand(1, num_heads, num_rows, -1)
    mask = mask.reshape(1, num_groups, -1, mask.shape[-1])
    scale = head_dim**-0.5 if scaling is None else scaling
    if softcap is None:
        mixed = scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    else:
        mixed = capped_attention(folded, key, value, mask, scale, softcap)
    return mixed.reshape(1, num_heads, num_rows, -1).transpose(1, 2).contiguous(), None


def mask_at(*_: Any, mask_function: Callable[..., Any], dtype: torch.dtype = torch.float32, **__: Any) -> Tensor:
    """The additive mask `[1, 1, W, S]` of transformers' `mask_function` at the rows' positions, not at their slots."""
    place = PLACE.get()
    assert place is not None
    positions, columns = place.positions[None, None, :, None], place.columns[None, None, None, :]
    nobody = torch.zeros_like(positions[:, :, :1])
    is_seen = mask_function(nobody, nobody, positions, columns).expand(1, 1, len(place.positions), len(place.columns))
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill(~is_seen, float("-inf"))


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, mask_at)
