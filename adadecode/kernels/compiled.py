"""Eager decode steps whose layers torch compiles.

Shapes: W rows, d model width, S cache columns, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from adadecode.errors import KernelsError
from adadecode.kernels.eager import EagerStep, LayerStep, Prefill
from adadecode.kernels.kv_cache import KVCache
from adadecode.kernels.layers import layer_step
from adadecode.kernels.weights import ExitTest, Weights
from adadecode.stopwatch import lap


def compile_layer_step() -> LayerStep:
    """`layer_step` compiled for static shapes: once per W and S, for all layers alike.

    What it returns raises KernelsError when it is called and cannot be compiled.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    compiled = torch.compile(layer_step, dynamic=False, fullgraph=True)

    def compiled_step(*arguments: Any) -> Tensor:
        try:
            return compiled(*arguments)
        except BackendCompilerFailed as error:
            if isinstance(error.inner_exception, torch.OutOfMemoryError):
                raise error.inner_exception from None
            reason = str(error.inner_exception).strip().splitlines()[0][:200]
            raise KernelsError(
                "--kernels compile: torch cannot compile the layers here; it needs a C++ compiler (g++) on a CPU, a C "
                f"compiler (gcc) and triton on a GPU: install what is missing, or use --kernels auto or eager ({reason})"
            ) from error

    return compiled_step


class CompiledStep(EagerStep):
    """An eager step with compiled layers, made ready once per W and S for all steps of a model."""

    def __init__(
        self,
        weights: Weights,
        prefill: Prefill,
        width: int,
        cache: KVCache,
        layer_step: LayerStep,
        compiled_shapes: set[tuple[int, int]],
    ) -> None:
        """`layer_step` is compiled; `compiled_shapes` holds each W and S it is ready for, and is added to."""
        super().__init__(weights, prefill, width, cache, layer_step)
        self._compiled_shapes = compiled_shapes
        kinds = [weights.kind(idx) for idx in range(weights.num_layers)]
        self._num_different = max(kinds.index(kind) for kind in {*kinds}) + 1

    def prepare(self, boundaries: Sequence[int], tests: Iterable[ExitTest]) -> None:
        super().prepare(boundaries, tests)
        shape = (self.width, self.cache.num_columns)
        if shape not in self._compiled_shapes:
            with lap("kernels"):
                self.segment(0, self._num_different)  # the others are like these, and no slot takes part
            self._compiled_shapes.add(shape)
