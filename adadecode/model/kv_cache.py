"""Preallocated keys and values whose columns are positions.

Shapes: S columns, G key/value heads, D head width, T rows, W the width of a decode step.
"""

import torch
from torch import Tensor

COLUMN_MULTIPLE = 64


class KVCache:
    """Keys and values of every layer, `[1, G, S, D]` each; handed to transformers' layers as their cache.

    Column i belongs to position i; the last column is scratch, where rows that take no part in a step write. A layer
    calls `update` once per step; `prefill` or `decode_at` says beforehand where its rows go. Rejected columns are not
    cleared: no row attends past its own position, and a column is rewritten before any row may see it again. A masked
    column has weight zero, but zero times NaN is NaN: a key or value that is not finite (a wrong draft may overflow in
    float16) is written as zero, so that it cannot reach the rows that do not attend to it.
    """

    def __init__(self, num_layers: int, num_kv_heads: int, head_dim: int, num_positions: int, like: Tensor) -> None:
        """Allocates zeros for `num_positions` positions and the scratch column, in the dtype and device of `like`."""
        self.num_columns = -(-(num_positions + 1) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        shape = (num_layers, 2, 1, num_kv_heads, self.num_columns, head_dim)
        self._kv = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._columns: Tensor | None = None
        self._prompt_len = 0

    @property
    def scratch(self) -> int:
        """The column nobody attends to."""
        return self.num_columns - 1

    def prefill(self, prompt_len: int) -> None:
        """The coming updates bring rows 0..prompt_len, in order."""
        assert prompt_len < self.scratch, (prompt_len, self.scratch)
        self._columns, self._prompt_len = None, prompt_len

    def decode_at(self, columns: Tensor) -> None:
        """The coming updates bring W rows; row i goes to `columns[i]` (`[W]`)."""
        self._columns = columns

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Writes rows `[1, G, T, D]` of one layer and returns what its queries attend to: `[1, G, T or S, D]`."""
        keys, values = self._kv[layer_idx]
        if self._columns is None:
            keys[:, :, : self._prompt_len] = key
            values[:, :, : self._prompt_len] = value
            return key, value
        keys.index_copy_(2, self._columns, key.nan_to_num(0.0, 0.0, 0.0))
        values.index_copy_(2, self._columns, value.nan_to_num(0.0, 0.0, 0.0))
        return keys, values
