"""Weights in the layout native.cpp reads: matrices in tiles, structures of addresses.

Shapes: N outputs and K inputs of a linear layer.
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adadecode.kernels.library import Int, LayerStruct, Pointer, load_library
from adadecode.kernels.weights import Block, Head, LayerWeights, Weights

NAMES = tuple(field[0] for field in LayerStruct._fields_)  # of a layer's weights


def pack_weight(weight: Tensor, tile: int) -> Tensor:
    """`weight` `[N, K]` as `[ceil(N / tile), ceil(K / step), tile, step]`, zeros behind: a step reads it in one stream.

    `step` inputs share 32 bits, one in float32 and two in bfloat16, as dot products of bfloat16 take them.
    """
    (num_outputs, num_inputs), step = weight.shape, 4 // weight.dtype.itemsize
    num_tiles, num_steps = -(-num_outputs // tile), -(-num_inputs // step)
    padded = torch.zeros(num_tiles * tile, num_steps * step, dtype=weight.dtype)
    padded[:num_outputs, :num_inputs] = weight.detach()
    return padded.view(num_tiles, tile, num_steps, step).transpose(1, 2).contiguous()


class PackedHead:
    """A head as the library takes it; raises ValueError when it is not one for hidden states `[M, d]` in `dtype`."""

    def __init__(self, head: Head, packed: list[Tensor], width: int, dtype: torch.dtype) -> None:
        self._packed = packed  # keeps the memory alive
        sizes = [width, *(matrix.shape[0] for matrix in head.matrices)]
        inputs, dtypes = [matrix.shape[1] for matrix in head.matrices], {matrix.dtype for matrix in head.matrices}
        if inputs != sizes[:-1] or dtypes != {dtype}:
            shapes = [list(matrix.shape) for matrix in head.matrices]
            raise ValueError(f"a head of {shapes} in {dtypes} on hidden states of {width} in {dtype}")
        if head.token_ids is not None and len(head.token_ids) != sizes[-1]:
            raise ValueError(f"a head of {sizes[-1]} outputs with names for {len(head.token_ids)}")
        self.num_matrices, self.widest = len(self._packed), max(sizes)
        self._matrices = (Pointer * len(self._packed))(*(matrix.data_ptr() for matrix in self._packed))
        self._sizes = (Int * len(sizes))(*sizes)
        self._token_ids = None if head.token_ids is None else head.token_ids.to(torch.int64).contiguous()
        self.matrices_at, self.sizes_at = ctypes.addressof(self._matrices), ctypes.addressof(self._sizes)
        self.token_ids_at = None if self._token_ids is None else self._token_ids.data_ptr()


class PackedLayers:
    """Layers as the library takes them: `structs` of addresses."""

    def __init__(self, layers: Sequence[LayerWeights], tile: int) -> None:
        self._tile, self._kept = tile, list[Tensor]()  # keeps the memory alive
        self.structs = (LayerStruct * len(layers))(
            *(LayerStruct(**{name: self._pointer(getattr(layer, name)) for name in NAMES}) for layer in layers)
        )

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        kept = pack_weight(tensor, self._tile) if tensor.dim() == 2 else tensor.detach().contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


class PackedWeights:
    """The weights of one model packed for the library; shared by all its decode steps."""

    def __init__(self, weights: Weights) -> None:
        self.library = load_library()
        self._width, self._dtype = weights.width, weights.dtype
        self.tile: int = self.library.adadecode_tile()
        self.layers = PackedLayers(weights.layers, self.tile)
        self._blocks: WeakKeyDictionary[Block, PackedLayers] = WeakKeyDictionary()
        self._heads: WeakKeyDictionary[Head, PackedHead] = WeakKeyDictionary()
        self._matrices = WeakTensorKeyDictionary()  # heads share the model's own

    def block(self, block: Block) -> PackedLayers:
        packed = self._blocks.get(block)
        if packed is None:
            packed = self._blocks[block] = PackedLayers([block.layer], self.tile)
        return packed

    def head(self, head: Head) -> PackedHead:
        packed = self._heads.get(head)
        if packed is None:
            matrices = [self._pack_once(matrix) for matrix in head.matrices]
            packed = self._heads[head] = PackedHead(head, matrices, self._width, self._dtype)
        return packed

    def _pack_once(self, matrix: Tensor) -> Tensor:
        if matrix not in self._matrices:
            self._matrices[matrix] = pack_weight(matrix, self.tile)
        return self._matrices[matrix]
