"""Decode steps that requests share: one cache for all widths, and no more columns than there is room for."""

import weakref
from typing import Any

import pytest
import torch

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.shared import SharedSteps
from adadecode.model.decoder import DecoderModel
from tests.models import tiny_lm

LIKE = torch.zeros(1)


class NotedStep:
    """Stands in for a step: its width and its cache, and nothing to compute with."""

    def __init__(self, width: int, cache: KVCache) -> None:
        self.width, self.cache = width, cache


class Notes:
    """SharedSteps over NotedSteps, and the columns of every cache that was allocated."""

    def __init__(self, most_columns: int) -> None:
        self.allocated: list[int] = []
        self.kept_at_allocation: list[tuple[int, ...]] = []
        self.steps = SharedSteps(self._new_cache, NotedStep, most_columns)

    def _new_cache(self, num_columns: int) -> KVCache:
        self.allocated.append(num_columns)
        self.kept_at_allocation.append(self.steps.kept_columns)
        return KVCache(1, 1, 1, num_columns, LIKE)


def test_steps_of_two_widths_share_the_cache_of_their_columns():
    notes = Notes(1000)
    wide, narrow, other = (notes.steps.step(*shape) for shape in ((8, 256), (1, 256), (8, 320)))
    assert (wide.width, narrow.width, other.width) == (8, 1, 8)
    assert wide.cache is narrow.cache is not other.cache
    assert notes.steps.step(8, 256) is wide
    assert notes.steps.step(1, 256) is narrow
    assert notes.allocated == [256, 320]


def test_what_was_not_used_for_longest_is_let_go_of_before_another_cache_is_allocated():
    notes = Notes(1000)
    first = notes.steps.step(8, 256)
    for num_columns in (320, 384):
        notes.steps.step(8, num_columns)
    assert notes.steps.step(8, 256) is first
    notes.steps.step(8, 448)
    assert notes.kept_at_allocation[-1] == (256,), "384 and 320 were used before 256"
    assert notes.steps.kept_columns == (256, 448)
    notes.steps.step(8, 320)
    assert notes.allocated == [256, 320, 384, 448, 320]


def test_a_cache_that_fills_all_the_room_is_kept_alone():
    notes = Notes(1000)
    for num_columns in (256, 1000, 1000):
        notes.steps.step(8, num_columns)
    assert notes.steps.kept_columns == (1000,)
    assert notes.allocated == [256, 1000]


class SmallDevice:
    """SharedSteps on a device with room for so many things: each cache is one, and each step."""

    def __init__(self, room: int) -> None:
        self.room, self.alive = room, weakref.WeakSet[Any]()
        self.steps = SharedSteps(
            lambda num_columns: self._placed(KVCache(1, 1, 1, num_columns, LIKE)),
            lambda width, cache: self._placed(NotedStep(width, cache)),
            1 << 20,
        )

    def _placed(self, thing):
        if len(self.alive) >= self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.alive.add(thing)
        return thing


def test_a_device_without_room_for_a_cache_or_a_step_lets_go_of_what_was_not_used_for_longest():
    device = SmallDevice(room=5)
    for num_columns in (256, 320):
        device.steps.step(8, num_columns)
    device.steps.step(8, 256)
    device.steps.step(8, 384)  # its cache is the fifth, its step would be the sixth
    assert device.steps.kept_columns == (256, 384)
    device.steps.step(1, 256)
    device.steps.step(8, 448)
    assert device.steps.kept_columns == (256, 448)


def test_memory_that_runs_out_with_nothing_left_to_let_go_of_is_the_callers():
    device = SmallDevice(room=1)
    with pytest.raises(torch.OutOfMemoryError):
        device.steps.step(8, 256)
    assert device.steps.kept_columns == (256,), "its own cache is no room to be had"
    device.room = 2
    assert device.steps.step(8, 256).width == 8


def test_steps_of_two_widths_share_one_cache_of_the_whole_context(monkeypatch):
    """What a model keeps on a CUDA device, by its own reckoning: a `vanilla-w1` beside it takes no second cache."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr("adadecode.kernels.choose.free_workspaces", lambda: None)
    model = DecoderModel(tiny_lm(num_layers=1, context_len=131_072, hidden_size=8), "eager")
    monkeypatch.setattr(model.steps, "_is_cuda", True)
    monkeypatch.setattr(model.steps, "_is_graphed", True)
    monkeypatch.setattr(model.steps, "_attention", "any")
    monkeypatch.setattr(
        "adadecode.kernels.choose.GraphedStep", lambda weights, _, width, cache, *rest: NotedStep(width, cache)
    )
    wide, narrow = (model.new_step(width, 131_072) for width in (8, 1))
    assert wide.cache is narrow.cache
    assert wide.cache.num_columns == 131_136
    short = model.new_step(8, 100)
    assert short.cache.num_columns == 256
    assert model.new_step(8, 131_072) is wide
    model.drop_steps()
    assert model.new_step(8, 131_072) is not wide
