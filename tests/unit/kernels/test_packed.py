"""Weights in tiles, as native.cpp reads them."""

import pytest
import torch

from adadecode.kernels.packed import pack_weight


@pytest.mark.parametrize("tile", [16, 32])
@pytest.mark.parametrize("shape", [(32, 8), (1, 5), (33, 3), (97, 32), (64, 1)])
def test_a_packed_weight_holds_each_output_of_a_tile_beside_the_others(shape, tile):
    num_outputs, num_inputs = shape
    weight = torch.arange(1.0, num_outputs * num_inputs + 1).view(shape)
    packed = pack_weight(weight, tile)
    assert packed.shape == (-(-num_outputs // tile), num_inputs, tile)
    assert packed.is_contiguous()
    unpacked = packed.transpose(1, 2).reshape(-1, num_inputs)
    assert torch.equal(unpacked[:num_outputs], weight)
    assert not unpacked[num_outputs:].any()


@pytest.mark.parametrize("tile", [16, 32])
def test_a_packed_bfloat16_weight_alternates_the_halves_of_a_tile(tile):
    weight = torch.randn(45, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    packed = pack_weight(weight, tile).view(-1, 7, tile)
    halves = torch.cat((packed[..., 0::2], packed[..., 1::2]), dim=-1)
    unpacked = halves.transpose(1, 2).reshape(-1, 7)
    assert torch.equal(unpacked[:45], weight)
    assert not unpacked[45:].any()
