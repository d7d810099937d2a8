"""Which kernels compute the decode steps of a model, and what these steps share."""

import torch

from adadecode.errors import KernelsError
from adadecode.kernels.arithmetic import set_exact_arithmetic, step_backend
from adadecode.kernels.eager import CompiledStep, EagerStep, LayerStep, Prefill, compile_layer_step
from adadecode.kernels.graphed import GraphedStep, free_workspaces
from adadecode.kernels.kv_cache import KVCache, bucket_columns, num_columns
from adadecode.kernels.layers import layer_step
from adadecode.kernels.library import NATIVE_DTYPES, load_library
from adadecode.kernels.native import NativeStep
from adadecode.kernels.packed import PackedWeights
from adadecode.kernels.shared import SharedSteps
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Weights
from adadecode.settings import Kernels


class Steps:
    """The decode steps of one model, and what they share: packed weights, compiled layers, graphs and their memory."""

    def __init__(self, weights: Weights, prefill: Prefill, kernels: Kernels) -> None:
        """Steps over `weights` with `kernels`; `auto` takes the fastest there are, torch's run prompts by `prefill`.

        Raises KernelsError when `kernels` cannot be had for these weights.
        """
        set_exact_arithmetic()
        self.weights, self.prefill = weights, prefill
        self.kernels: Kernels = choose_kernels(kernels, weights.device, weights.dtype)
        self.layer_step: LayerStep = compile_layer_step() if self.kernels == "compile" else layer_step
        self._packed = PackedWeights(weights) if self.kernels == "native" else None
        self._compiled_shapes: set[tuple[int, int]] = set()  # W and S
        self._is_cuda = weights.device.type == "cuda"
        self._attention = step_backend(weights) if self._is_cuda else None
        self._graphed: SharedSteps[GraphedStep] | None = None

    def new(self, width: int, num_positions: int) -> DecodeStep:
        """The decode step of one request: W = `width` rows over columns for `num_positions` positions.

        On a CUDA device requests share steps and the cache of their S: one request decodes at a time.
        """
        weights, prefill, layer_step = self.weights, self.prefill, self.layer_step
        columns = self.num_columns(num_positions)
        if self._packed is not None:
            return NativeStep(weights, self._packed, width, columns)
        if self._is_cuda:
            self._graphed = self._graphed or self._new_graphed()
            return self._graphed.step(width, columns)
        cache = weights.new_cache(columns)
        if self.kernels == "compile":
            return CompiledStep(weights, prefill, width, cache, layer_step, self._compiled_shapes)
        return EagerStep(weights, prefill, width, cache, layer_step)

    def num_columns(self, num_positions: int) -> int:
        """S for a request of `num_positions` positions; one of few where each S is captured or compiled for."""
        if self._is_cuda or self.kernels == "compile":
            return bucket_columns(num_positions, self.weights.context_len)
        return num_columns(num_positions)

    @property
    def attention(self) -> str | None:
        """Who computes the attention of decode steps; None where torch's choice is left to torch, on a CPU."""
        return None if self._attention is None else self._attention.name

    def _new_graphed(self) -> SharedSteps[GraphedStep]:
        """Graphed steps that share a pool, with room for two caches of the whole context or several shorter ones."""
        weights, prefill, layer_step = self.weights, self.prefill, self.layer_step
        attention, pool = self._attention, torch.cuda.graph_pool_handle()
        assert attention is not None

        def new_step(width: int, cache: KVCache) -> GraphedStep:
            return GraphedStep(weights, prefill, width, cache, layer_step, pool, attention)

        return SharedSteps(weights.new_cache, new_step, 2 * num_columns(weights.context_len))

    def drop(self) -> None:
        """Lets go of the steps that requests share, their buffers and graphs, and the pool that ended with them."""
        if self._graphed is not None:
            self._graphed = None
            free_workspaces()


def choose_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Kernels:
    """What `auto` stands for on `device` in `dtype`; raises KernelsError when `kernels` cannot be had there."""
    can_be_native = device.type == "cpu" and dtype in NATIVE_DTYPES
    if kernels == "native":
        if not can_be_native:
            raise KernelsError(
                f"--kernels native: only on a CPU in float32 or bfloat16, not on {device.type} in {dtype}; "
                "use --kernels eager or compile"
            )
        load_library()
    if kernels != "auto":
        return kernels
    if can_be_native:
        try:
            load_library()
            return "native"
        except KernelsError:
            return "eager"
    return "eager"
