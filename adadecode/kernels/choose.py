"""Which kernels compute the decode steps of a model, and what these steps share."""

import importlib.util
import os
import shutil

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
from adadecode.records import ChosenKernels
from adadecode.settings import Kernels


class Steps:
    """The decode steps of one model, and what they share: packed weights, compiled layers, graphs and their memory."""

    def __init__(self, weights: Weights, prefill: Prefill, kernels: Kernels) -> None:
        """Steps over `weights` with `kernels`; `auto` takes the fastest there are, torch's run prompts by `prefill`.

        Raises KernelsError when `kernels` cannot be had for these weights.
        """
        self.weights, self.prefill = weights, prefill
        self.chosen = choose_kernels(kernels, weights.device, weights.dtype)
        self._is_compiled = self.chosen.kernels == "compile"
        self.layer_step: LayerStep = compile_layer_step() if self._is_compiled else layer_step
        self._packed = PackedWeights(weights) if self.chosen.kernels == "native" else None
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
        if self._is_compiled:
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


def choose_kernels(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> ChosenKernels:
    """What `kernels` come to on `device` in `dtype`; raises KernelsError when they cannot be had there."""
    can_be_native = device.type == "cpu" and dtype in NATIVE_DTYPES
    name = str(dtype).removeprefix("torch.")
    if kernels == "native" and not can_be_native:
        raise KernelsError(
            f"--kernels native: only on a CPU in float32 or bfloat16, not on {device.type} in {name}; "
            "use --kernels eager or compile"
        )
    if kernels == "compile":
        _check_compilable(device)
    if kernels in ("eager", "compile") or device.type != "cpu":
        return ChosenKernels("eager" if kernels == "auto" else kernels)
    if not can_be_native:
        return ChosenKernels("eager", f"native ones compute in float32 and bfloat16, not in {name}")
    try:
        load_library()
    except KernelsError as error:
        if kernels == "native":
            raise KernelsError(f"--kernels native: {error}; or use --kernels eager, which is slower") from error
        return ChosenKernels("eager", str(error))
    return ChosenKernels("native")


def _check_compilable(device: torch.device) -> None:
    """Raises KernelsError when torch.compile lacks what it needs: its own error is a page, in the middle of a warm-up."""
    variable, names, language = ("CXX", ("g++",), "C++") if device.type == "cpu" else ("CC", ("gcc", "clang"), "C")
    told = os.environ.get(variable)
    looked_for = (told,) if told else names
    if not any(map(shutil.which, looked_for)):
        raise KernelsError(
            f"--kernels compile: torch.compile needs a {language} compiler, and there is no {' or '.join(looked_for)}: "
            f"install one, name it in {variable} in one word, or use --kernels eager"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise KernelsError(
            "--kernels compile: on a GPU torch.compile needs the package triton: install it, or use eager"
        )
