"""Weights in tiles, as native.cpp reads them."""

import pytest
import torch

from adadecode.kernels.packed import pack_weight


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("shape", [(32, 8), (1, 5), (33, 3), (97, 32), (64, 1)])
@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_a_packed_weight_holds_each_output_of_a_tile_beside_the_others(shape, tile, dtype, step):
    num_outputs, num_inputs = shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    packed = pack_weight(weight, tile)
    assert packed.shape == (-(-num_outputs // tile), -(-num_inputs // step), tile, step)
    assert packed.is_contiguous()
    unpacked = packed.transpose(1, 2).reshape(-1, packed.shape[1] * step)
    assert torch.equal(unpacked[:num_outputs, :num_inputs], weight)
    assert not unpacked[num_outputs:].any()
    assert not unpacked[:, num_inputs:].any()
