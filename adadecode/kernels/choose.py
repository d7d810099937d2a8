"""Which kernels compute the decode steps of a model, and what these steps share."""

import importlib.util
import os
import shutil

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
from adadecode.records import ChosenKernels
from adadecode.settings import Kernels
from adadecode.stopwatch import lap


class Steps:
    """The decode steps of one model, and what they share: packed weights, compiled layers, graphs and their memory."""

    @lap("kernels")
    def __init__(self, weights: Weights, prefill: Prefill, kernels: Kernels) -> None:
        """Steps over `weights` with `kernels`; `auto` takes the fastest there are, torch's run prompts by `prefill`.

        Raises KernelsError when `kernels` cannot be had for these weights.
        """
        set_exact_arithmetic()
        self.weights, self.prefill = weights, prefill
        self.chosen = choose_kernels(kernels, weights.device, weights.dtype)
        self._is_compiled = self.chosen.kernels == "compile"
        self.layer_step: LayerStep = compile_layer_step() if self._is_compiled else layer_step
        self._packed = PackedWeights(weights) if self.chosen.kernels == "native" else None
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
        if self._is_compiled:
            return CompiledStep(weights, prefill, width, cache, layer_step, self._compiled_shapes)
        return EagerStep(weights, prefill, width, cache, layer_step)

    def num_columns(self, num_positions: int) -> int:
        """S for a request of `num_positions` positions; one of few where each S is captured or compiled for."""
        if self._is_cuda or self._is_compiled:
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
