"""Preallocated keys and values whose columns are positions.

Shapes: L layers, S columns, G key/value heads, D head width, T rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from adadecode.kernels.stages import Stage

COLUMN_MULTIPLE = 64
SMALLEST_BUCKET = 256


def num_columns(num_positions: int) -> int:
    """S: columns for `num_positions` positions and a scratch column, rounded up to a multiple of 64."""
    return -(-(num_positions + 1) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def bucket_columns(num_positions: int, context_len: int) -> int:
    """S for `num_positions` positions and a scratch column, one of few, so that their shapes serve all requests.

    Each is about a quarter more than the one before, from 256 on; the last is what the whole context takes.
    """
    needed, columns = num_columns(num_positions), SMALLEST_BUCKET
    while columns < needed:
        columns = -(-columns * 5 // (4 * COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
    return min(columns, max(needed, num_columns(context_len)))


class KVCache:
    """Keys and values of every layer, each on the device of its stage.

    Column i belongs to position i; the last column is scratch, where rows that take no part in a step write. Rejected
    columns are not cleared: no row attends past its own position, and a column is rewritten before any row may see it
    again. In a prefill it serves transformers' layers as their cache.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        num_columns: int,
        like: Tensor,
        stages: Sequence[Stage] = (),
    ) -> None:
        """Allocates zeros for S = `num_columns`, in the dtype of `like`; without `stages` all on its device."""
        self.num_columns = num_columns
        self._of_stages = [
            torch.zeros(stop - start, 2, num_kv_heads, num_columns, head_dim, dtype=like.dtype, device=device)
            for device, start, stop in stages or (Stage(like.device, 0, num_layers),)
        ]
        self._layers = [layer for of_stage in self._of_stages for layer in of_stage]

    @property
    def kv(self) -> Tensor:
        """Keys and values of all layers `[L, 2, G, S, D]`, where they are on one device."""
        [kv] = self._of_stages
        return kv

    def clear(self) -> None:
        """Makes all of them zero."""
        for of_stage in self._of_stages:
            of_stage.zero_()

    @property
    def scratch(self) -> int:
        """The column nobody attends to."""
        return self.num_columns - 1

    def layer(self, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, `[G, S, D]` each."""
        keys, values = self._layers[layer_idx]
        return keys, values

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: object) -> tuple[Tensor, Tensor]:
        """Writes the T rows of a prompt `[1, G, T, D]` to the first columns and returns them to be attended to."""
        prompt_len = key.shape[2]
        assert prompt_len < self.scratch, (prompt_len, self.scratch)
        keys, values = self.layer(layer_idx)
        keys[:, :prompt_len] = key[0]
        values[:, :prompt_len] = value[0]
        return key, value
