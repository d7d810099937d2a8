"""Decode steps that requests share, as graphs make them: kept by their number of columns, the latest of them.

Shapes: W rows, S cache columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch

from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.step import DecodeStep

StepT = TypeVar("StepT", bound=DecodeStep)
MadeT = TypeVar("MadeT")


@dataclass
class _Bucket(Generic[StepT]):
    """One cache, and the steps over it by W: one request decodes at a time, and its prefill clears the cache."""

    cache: KVCache
    steps: dict[int, StepT] = field(default_factory=dict[int, StepT])


class SharedSteps(Generic[StepT]):
    """Steps by S and W. Those of one S have one cache, and all caches together at most `most_columns` columns.

    What was not used for longest is let go of before a new cache is allocated, and when the device's memory runs out.
    """

    def __init__(
        self,
        new_cache: Callable[[int], KVCache],
        new_step: Callable[[int, KVCache], StepT],
        most_columns: int,
    ) -> None:
        """`new_cache` allocates S columns, `new_step` makes the step of W rows over a cache."""
        self._new_cache, self._new_step, self._most_columns = new_cache, new_step, most_columns
        self._buckets: dict[int, _Bucket[StepT]] = {}  # by S, the latest used last

    def step(self, width: int, num_columns: int) -> StepT:
        """The step of W = `width` rows over S = `num_columns`, the same one as long as it is kept."""
        bucket = self._buckets.pop(num_columns, None)
        if bucket is None:
            while self._buckets and sum(self._buckets) + num_columns > self._most_columns:
                self._buckets.pop(next(iter(self._buckets)))
            bucket = _Bucket(self._made(lambda: self._new_cache(num_columns)))
        self._buckets[num_columns] = bucket
        if width not in bucket.steps:
            bucket.steps[width] = self._made(lambda: self._new_step(width, bucket.cache), num_columns)
        return bucket.steps[width]

    def _made(self, make: Callable[[], MadeT], needed: int | None = None) -> MadeT:
        """What `make` allocates; lets go of caches but that of S = `needed`, the oldest first, while there is no memory."""
        while True:
            try:
                return make()
            except torch.OutOfMemoryError:
                oldest = next((columns for columns in self._buckets if columns != needed), None)
                if oldest is None:
                    raise
            del self._buckets[oldest]

    @property
    def kept_columns(self) -> tuple[int, ...]:
        """S of the caches that are kept, the latest used last."""
        return tuple(self._buckets)
