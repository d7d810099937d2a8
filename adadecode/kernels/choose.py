"""Which kernels compute the decode steps of a model, and what these steps share."""

import torch

from adadecode.errors import KernelsError
from adadecode.kernels.eager import CompiledStep, EagerStep, LayerStep, Prefill, compile_layer_step
from adadecode.kernels.graphed import GraphedStep, GraphPool
from adadecode.kernels.kv_cache import bucket_columns, num_columns
from adadecode.kernels.layers import layer_step
from adadecode.kernels.library import NATIVE_DTYPES, load_library
from adadecode.kernels.native import NativeStep
from adadecode.kernels.packed import PackedWeights
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Weights
from adadecode.settings import Kernels


class Steps:
    """The decode steps of one model, and what they share: packed weights, compiled layers, graphs and their memory."""

    def __init__(self, weights: Weights, prefill: Prefill, kernels: Kernels) -> None:
        """Steps over `weights` with `kernels`; `auto` takes the fastest there are, torch's run prompts by `prefill`.

        Raises KernelsError when `kernels` cannot be had for these weights.
        """
        self.weights, self.prefill = weights, prefill
        self.kernels: Kernels = choose_kernels(kernels, weights.device, weights.dtype)
        self.layer_step: LayerStep = compile_layer_step() if self.kernels == "compile" else layer_step
        self._packed = PackedWeights(weights) if self.kernels == "native" else None
        self._compiled_shapes: set[tuple[int, int]] = set()  # W and S
        self._graphed: dict[tuple[int, int], GraphedStep] = {}  # by W and S
        self._graph_pool: GraphPool | None = None

    def new(self, width: int, num_positions: int) -> DecodeStep:
        """The decode step of one request: W = `width` rows over columns for `num_positions` positions.

        On a CUDA device steps of one shape share their buffers and graphs: one request decodes at a time.
        """
        weights, prefill, layer_step = self.weights, self.prefill, self.layer_step
        if self._packed is not None:
            return NativeStep(weights, self._packed, width, num_columns(num_positions))
        if weights.device.type == "cuda":
            return self._shared_graphed(width, bucket_columns(num_positions))
        if self.kernels == "compile":
            columns = bucket_columns(num_positions)
            return CompiledStep(weights, prefill, width, columns, layer_step, self._compiled_shapes)
        return EagerStep(weights, prefill, width, num_columns(num_positions), layer_step)

    def _shared_graphed(self, width: int, columns: int) -> GraphedStep:
        if self._graph_pool is None:
            self._graph_pool = torch.cuda.graph_pool_handle()
        key = (width, columns)
        if key not in self._graphed:
            self._graphed[key] = GraphedStep(self.weights, self.prefill, *key, self.layer_step, self._graph_pool)
        return self._graphed[key]

    def drop(self) -> None:
        """Lets go of the steps that requests of one shape share, with their buffers and graphs."""
        self._graphed.clear()
        self._graph_pool = None  # it ended with the last graph


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
