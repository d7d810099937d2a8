"""Stages: which layers of a model are on which device, where one device is too small for all of them."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import NamedTuple

import torch


class Stage(NamedTuple):
    """Layers [start, stop) of a model and the device of their weights, keys and values.

    The first stage's device is home: slots rest there, and whatever is no layer of the model.
    """

    device: torch.device
    start: int
    stop: int


def balanced_stages(layer_bytes: Sequence[int], home_bytes: int, devices: Sequence[torch.device]) -> tuple[Stage, ...]:
    """A stage for each of `devices`, in the order of the layers, so that the fullest device has as little as can be.

    `home_bytes` are on the first device beside its layers. Of several such divisions it is the one that leaves the first
    device the fewest layers: heads and what they compute come to it later. Raises ValueError for fewer layers than devices.
    """
    num_layers, num_stages = len(layer_bytes), len(devices)
    if not 1 <= num_stages <= num_layers:
        raise ValueError(f"{num_layers} layers cannot be divided among {num_stages} devices")
    before = [0, *accumulate(layer_bytes)]  # bytes of the layers before each
    sums = {before[stop] - before[start] for stop in range(1, num_layers + 1) for start in range(stop)}
    at_home = {home_bytes + before[stop] for stop in range(1, num_layers + 1)}
    for most in sorted(sums | at_home):
        starts = _filled(before, num_stages, most)
        if home_bytes + before[starts[0]] <= most:
            borders = [0, *starts, num_layers]
            return tuple(map(Stage, devices, borders, borders[1:]))
    raise AssertionError((layer_bytes, home_bytes, num_stages))


def _filled(before: Sequence[int], num_stages: int, most: int) -> list[int]:
    """Where stages begin, but for the first, when each from the last on takes all it can of `most` bytes, and a layer."""
    starts: list[int] = []
    start = stop = len(before) - 1
    for num_before in range(num_stages - 1, 0, -1):
        start = stop - 1
        while start > num_before and before[stop] - before[start - 1] <= most:
            start -= 1
        starts.insert(0, start)
        stop = start
    return starts or [start]


def stages_between(stages: Sequence[Stage], start: int, stop: int) -> Iterator[tuple[int, Stage]]:
    """The parts of `stages` within layers [start, stop), each after its index; none is empty."""
    for idx, stage in enumerate(stages):
        part = stage._replace(start=max(start, stage.start), stop=min(stop, stage.stop))
        if part.start < part.stop:
            yield idx, part


def computing_on(device: torch.device) -> AbstractContextManager[object]:
    """A context in which CUDA's streams, events and graphs are those of `device`."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
