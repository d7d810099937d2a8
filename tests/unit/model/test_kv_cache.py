"""The preallocated cache: columns are positions, and the last one is scratch."""

import pytest
import torch

from adadecode.model.kv_cache import COLUMN_MULTIPLE, KVCache
from tests.models import tiny_model

LAYERS, GROUPS, HEAD_DIM = 2, 3, 4
LIKE = torch.zeros(1, dtype=torch.bfloat16)


def make_cache(num_positions: int = 20) -> KVCache:
    return KVCache(LAYERS, GROUPS, HEAD_DIM, num_positions, LIKE)


def rows(*values: float) -> torch.Tensor:
    """`[1, G, T, D]`: row i is filled with `values[i]`."""
    return torch.tensor(values, dtype=LIKE.dtype)[None, None, :, None].expand(1, GROUPS, -1, HEAD_DIM)


@pytest.mark.parametrize(("num_positions", "num_columns"), [(1, 64), (63, 64), (64, 128), (127, 128), (128, 192)])
def test_columns_hold_every_position_and_scratch_in_a_multiple_of_64(num_positions, num_columns):
    cache = make_cache(num_positions)
    assert cache.num_columns == num_columns
    assert cache.num_columns % COLUMN_MULTIPLE == 0
    assert num_positions <= cache.scratch == num_columns - 1


def test_decode_writes_each_row_to_its_column_and_returns_every_column():
    cache = make_cache()
    cache.decode_at(torch.tensor([7, 3, 12]))
    keys, values = cache.update(rows(1, 2, 3), rows(4, 5, 6), 1)
    assert keys.shape == values.shape == (1, GROUPS, cache.num_columns, HEAD_DIM)
    assert keys.dtype == LIKE.dtype
    assert torch.equal(keys[:, :, [7, 3, 12]], rows(1, 2, 3))
    assert torch.equal(values[:, :, [7, 3, 12]], rows(4, 5, 6))
    others = [i for i in range(cache.num_columns) if i not in (7, 3, 12)]
    assert not keys[:, :, others].any()


def test_layers_do_not_share_columns():
    cache = make_cache()
    cache.decode_at(torch.tensor([0]))
    cache.update(rows(1), rows(2), 0)
    keys, values = cache.update(rows(3), rows(4), 1)
    assert torch.equal(keys[:, :, :1], rows(3))
    keys, values = cache.update(rows(5), rows(6), 0)
    assert torch.equal(keys[:, :, :1], rows(5))
    assert torch.equal(values[:, :, :1], rows(6))


def test_a_rejected_column_is_overwritten_by_the_next_row_there():
    cache = make_cache()
    cache.decode_at(torch.tensor([4, 5]))
    cache.update(rows(1, 2), rows(1, 2), 0)
    cache.decode_at(torch.tensor([5, 6]))
    keys, _ = cache.update(rows(8, 9), rows(8, 9), 0)
    assert torch.equal(keys[:, :, 4:7], rows(1, 8, 9))


def test_prefill_fills_the_first_columns_and_attends_to_the_prompt_alone():
    cache = make_cache()
    cache.prefill(3)
    keys, values = cache.update(rows(1, 2, 3), rows(4, 5, 6), 0)
    assert torch.equal(keys, rows(1, 2, 3))
    assert torch.equal(values, rows(4, 5, 6))
    cache.decode_at(torch.tensor([3]))
    keys, _ = cache.update(rows(7), rows(7), 0)
    assert torch.equal(keys[:, :, :4], rows(1, 2, 3, 7))


def test_a_prompt_that_would_reach_scratch_is_our_own_bug():
    cache = make_cache(10)
    cache.prefill(cache.scratch - 1)
    with pytest.raises(AssertionError):
        cache.prefill(cache.scratch)


@torch.inference_mode()
def test_inactive_rows_of_a_step_write_only_to_scratch():
    """Of four rows at positions 5..8 only slots 1 and 2 take part: columns 6 and 7 change, and scratch."""
    model = tiny_model(num_layers=2)
    cache = model.new_cache(20)
    model.prefill(torch.arange(5), cache)
    before = cache._kv.clone()
    step = model.step_inputs(5, 4, cache)
    hidden = torch.randn(4, model.width, generator=torch.Generator().manual_seed(0))
    active = torch.tensor([False, True, True, False])
    out = model.run_layers(hidden, 0, model.num_layers, active, step, cache)
    changed = (cache._kv != before).any(dim=-1).flatten(0, 3).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [6, 7, cache.scratch]
    assert torch.equal(out[[0, 3]], hidden[[0, 3]]), "rows that take no part keep their hidden state"
    assert not torch.equal(out[[1, 2]], hidden[[1, 2]])


def test_rows_past_the_cache_stand_on_scratch():
    model = tiny_model(num_layers=1)
    cache = model.new_cache(10)
    step = model.step_inputs(cache.scratch - 2, 8, cache)
    assert step.positions.tolist() == [cache.scratch - 2, cache.scratch - 1, *[cache.scratch] * 6]
