"""Which layers are on which device, and that layers on several devices give the bits that they give on one."""

import itertools

import pytest
import torch

from adadecode.kernels.stages import Stage, balanced_stages, stages_between

CPU = torch.device("cpu")


def fullest(layer_bytes: list[int], home_bytes: int, borders: tuple[int, ...]) -> int:
    """The bytes of the fullest device when stages begin at 0 and at `borders`."""
    starts, stops = (0, *borders), (*borders, len(layer_bytes))
    loads = [sum(layer_bytes[start:stop]) for start, stop in zip(starts, stops, strict=True)]
    return max(home_bytes + loads[0], *loads[1:], 0)


@pytest.mark.parametrize("home_bytes", [0, 3, 40])
@pytest.mark.parametrize("layer_bytes", [[5] * 7, [1, 2, 3, 4, 5, 6], [9, 1, 1, 1, 9], [4]], ids=str)
def test_stages_are_contiguous_have_a_layer_each_and_fill_no_device_more_than_must_be(layer_bytes, home_bytes):
    num_layers = len(layer_bytes)
    for num_stages in range(1, num_layers + 1):
        stages = balanced_stages(layer_bytes, home_bytes, [CPU] * num_stages)
        assert [stage.start for stage in stages] == [0, *(stage.stop for stage in stages[:-1])]
        assert stages[-1].stop == num_layers
        assert all(stage.start < stage.stop for stage in stages)
        divisions = itertools.combinations(range(1, num_layers), num_stages - 1)
        least = min(fullest(layer_bytes, home_bytes, borders) for borders in divisions)
        assert fullest(layer_bytes, home_bytes, tuple(stage.start for stage in stages[1:])) == least


def test_what_cannot_be_divided_evenly_leaves_room_at_home():
    assert [stage[1:] for stage in balanced_stages([1] * 10, 0, [CPU] * 4)] == [(0, 1), (1, 4), (4, 7), (7, 10)]
    assert [stage[1:] for stage in balanced_stages([10] * 8, 25, [CPU] * 2)] == [(0, 3), (3, 8)]


@pytest.mark.parametrize("num_devices", [0, 4])
def test_more_devices_than_layers_are_refused(num_devices):
    with pytest.raises(ValueError, match=f"3 layers cannot be divided among {num_devices} devices"):
        balanced_stages([1, 1, 1], 0, [CPU] * num_devices)


def test_layers_between_two_boundaries_are_cut_where_stages_end():
    stages = (Stage(CPU, 0, 3), Stage(CPU, 3, 5), Stage(CPU, 5, 9))
    assert [(idx, *part[1:]) for idx, part in stages_between(stages, 2, 9)] == [(0, 2, 3), (1, 3, 5), (2, 5, 9)]
    assert [(idx, *part[1:]) for idx, part in stages_between(stages, 3, 5)] == [(1, 3, 5)]
    assert list(stages_between(stages, 4, 4)) == []
