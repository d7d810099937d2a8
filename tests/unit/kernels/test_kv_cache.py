"""The preallocated cache: columns are positions, and the last one is scratch."""

import pytest
import torch

from adadecode.kernels.kv_cache import COLUMN_MULTIPLE, KVCache, bucket_columns, num_columns

LAYERS, GROUPS, HEAD_DIM = 2, 3, 4
LIKE = torch.zeros(1, dtype=torch.bfloat16)


def make_cache(num_positions: int = 20) -> KVCache:
    return KVCache(LAYERS, GROUPS, HEAD_DIM, num_columns(num_positions), LIKE)


def rows(*values: float) -> torch.Tensor:
    """`[1, G, T, D]`: row i is filled with `values[i]`."""
    return torch.tensor(values, dtype=LIKE.dtype)[None, None, :, None].expand(1, GROUPS, -1, HEAD_DIM)


@pytest.mark.parametrize(("num_positions", "expected"), [(1, 64), (63, 64), (64, 128), (127, 128), (128, 192)])
def test_columns_hold_every_position_and_scratch_in_a_multiple_of_64(num_positions, expected):
    assert num_columns(num_positions) == expected
    assert expected % COLUMN_MULTIPLE == 0
    assert num_positions <= make_cache(num_positions).scratch == expected - 1


@pytest.mark.parametrize("context_len", [16, 300, 2048, 131_072])
def test_buckets_are_few_hold_every_position_and_take_a_third_more_at_most(context_len):
    found = [bucket_columns(num_positions, context_len) for num_positions in range(1, context_len + 1)]
    assert found == sorted(found)
    assert len(set(found)) <= 30
    assert found[-1] == num_columns(context_len), "the last is no more than the context takes"
    for num_positions, columns in enumerate(found, start=1):
        assert columns % COLUMN_MULTIPLE == 0
        assert num_positions < columns <= max(256, 4 * num_columns(num_positions) / 3)


def test_the_first_buckets_grow_by_a_quarter():
    found = dict.fromkeys(bucket_columns(num_positions, 131_072) for num_positions in range(1, 1500))
    assert list(found) == [256, 320, 448, 576, 768, 960, 1216, 1536]


def test_a_new_cache_is_zero_in_the_dtype_it_is_made_for():
    """What a masked column holds must be finite: its weight is zero, and zero times NaN is NaN."""
    cache = make_cache()
    assert cache.kv.shape == (LAYERS, 2, GROUPS, 64, HEAD_DIM)
    assert cache.kv.dtype == LIKE.dtype
    assert not cache.kv.any()


def test_a_layer_is_a_view_of_its_own_keys_and_values():
    cache = make_cache()
    keys, values = cache.layer(1)
    assert keys.shape == values.shape == (GROUPS, 64, HEAD_DIM)
    keys[:, 7], values[:, 7] = 3, 4
    assert torch.equal(cache.kv[1, 0, :, 7], rows(3)[0, :, 0])
    assert torch.equal(cache.kv[1, 1, :, 7], rows(4)[0, :, 0])
    assert not cache.kv[0].any(), "layers do not share columns"


def test_prefill_fills_the_first_columns_and_attends_to_the_prompt_alone():
    cache = make_cache()
    keys, values = cache.update(rows(1, 2, 3), rows(4, 5, 6), 0)
    assert torch.equal(keys, rows(1, 2, 3))
    assert torch.equal(values, rows(4, 5, 6))
    assert torch.equal(cache.kv[0, 0, :, :3], rows(1, 2, 3)[0])
    assert torch.equal(cache.kv[0, 1, :, :3], rows(4, 5, 6)[0])
    assert not cache.kv[0, :, :, 3:].any()
    assert not cache.kv[1].any()


def test_a_prompt_that_would_reach_scratch_is_our_own_bug():
    cache = make_cache(10)
    prompt = rows(*[1.0] * cache.scratch)
    cache.update(prompt[:, :, 1:], prompt[:, :, 1:], 0)
    with pytest.raises(AssertionError):
        cache.update(prompt, prompt, 0)
