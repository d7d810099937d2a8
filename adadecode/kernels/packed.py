"""Weights in the layout native.cpp reads: matrices in tiles, structures of addresses.

Shapes: N outputs and K inputs of a linear layer.
"""

import ctypes
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adadecode.kernels.library import LAYER_POINTERS, Int, LayerStruct, Pointer, ShapeStruct, load_library
from adadecode.kernels.weights import Activation, Block, Head, LayerKind, LayerWeights, Weights

ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh")  # as the library numbers them


def pack_weight(weight: Tensor, tile: int) -> Tensor:
    """`weight` `[N, K]` as `[ceil(N / tile), ceil(K / step), tile, step]`, zeros behind: a step reads it in one stream.

    `step` inputs share 32 bits, one in float32 and two in bfloat16, as dot products of bfloat16 take them.
    """
    (num_outputs, num_inputs), step = weight.shape, 4 // weight.dtype.itemsize
    num_tiles, num_steps = -(-num_outputs // tile), -(-num_inputs // step)
    padded = torch.zeros(num_tiles * tile, num_steps * step, dtype=weight.dtype)
    padded[:num_outputs, :num_inputs] = weight.detach()
    return padded.view(num_tiles, tile, num_steps, step).transpose(1, 2).contiguous()


def shape_struct(weights: Weights, num_columns: int, num_threads: int, rotaries_at: int) -> ShapeStruct:
    """What layers and heads of `weights` have in common, for a step of S = `num_columns` with its tables at an address.

    It has no scratch yet.
    """
    shape, logits, bias = weights.shape, weights.logits, weights.norm_bias
    return ShapeStruct(
        d=weights.width,
        F=weights.mlp_width,
        H=shape.num_heads,
        G=shape.num_kv_heads,
        D=shape.head_dim,
        R=weights.rotary_width,
        S=num_columns,
        is_bf16=weights.dtype == torch.bfloat16,
        num_threads=num_threads,
        activation=ACTIVATIONS.index(shape.activation),
        is_gated=shape.is_gated,
        is_parallel=shape.is_parallel,
        has_norms_over_heads=_has_norms_over_heads(weights),
        eps=shape.eps,
        norm_offset=shape.norm_offset,
        is_layer_norm=shape.norm == "layer",
        scale=shape.scale,
        attention_cap=shape.attention_cap or 0.0,
        residual_scale=shape.residual_scale,
        embedding_scale=weights.embedding_scale,
        logit_divisor=logits.divisor,
        logit_cap=logits.cap or 0.0,
        norm_bias=None if bias is None else bias.data_ptr(),
        rotaries=rotaries_at,
    )


def _has_norms_over_heads(weights: Weights) -> bool:
    """Whether queries and keys are normalised over all heads and not in each."""
    q_norm = weights.layers[0].q_norm
    return q_norm is not None and len(q_norm) != weights.shape.head_dim


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

    def __init__(self, layers: Sequence[LayerWeights], kinds: Sequence[LayerKind], tile: int) -> None:
        self._tile, self._kept = tile, list[Tensor]()  # keeps the memory alive
        self.structs = (LayerStruct * len(layers))(*map(self._struct, layers, kinds))

    def _struct(self, layer: LayerWeights, kind: LayerKind) -> LayerStruct:
        return LayerStruct(
            **{name: self._pointer(getattr(layer, name)) for name in LAYER_POINTERS},
            window=kind.window or 0,
            rotary=-1 if kind.rotary is None else kind.rotary,
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
        kinds = [weights.kind(idx) for idx in range(weights.num_layers)]
        self.layers, self._block_kind = PackedLayers(weights.layers, kinds, self.tile), weights.kind(-1)
        self._blocks: WeakKeyDictionary[Block, PackedLayers] = WeakKeyDictionary()
        self._heads: WeakKeyDictionary[Head, PackedHead] = WeakKeyDictionary()
        self._matrices = WeakTensorKeyDictionary()  # heads share the model's own

    def block(self, block: Block) -> PackedLayers:
        packed = self._blocks.get(block)
        if packed is None:
            packed = self._blocks[block] = PackedLayers([block.layer], [self._block_kind], self.tile)
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
