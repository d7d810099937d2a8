"""Which kernels compute the decode steps of a model, and what these steps share."""

import importlib.util
import os
import shutil
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend

from adadecode.errors import KernelsError
from adadecode.kernels.arithmetic import PLAIN_BACKENDS, set_exact_arithmetic, step_backend
from adadecode.kernels.borrowed import BorrowedStep
from adadecode.kernels.compiled import CompiledStep, compile_layer_step
from adadecode.kernels.eager import EagerStep, LayerStep, Prefill
from adadecode.kernels.graphed import GraphedStep, free_workspaces, why_no_graphs
from adadecode.kernels.kv_cache import KVCache, bucket_columns, num_columns
from adadecode.kernels.layers import layer_step
from adadecode.kernels.library import NATIVE_DTYPES, load_library
from adadecode.kernels.native import NativeStep
from adadecode.kernels.packed import PackedWeights
from adadecode.kernels.shared import SharedSteps
from adadecode.kernels.staged import StagedStep
from adadecode.kernels.stages import computing_on
from adadecode.kernels.step import DecodeStep
from adadecode.kernels.weights import Weights
from adadecode.records import ChosenKernels
from adadecode.settings import Kernels
from adadecode.stopwatch import lap

PLAIN_KERNELS = ("eager", "transformers")  # of operations one by one, on CUDA too


class Steps:
    """The decode steps of one model, and what they share: packed weights, compiled layers, graphs and their memory."""

    @lap("kernels")
    def __init__(self, weights: Weights, prefill: Prefill, kernels: Kernels) -> None:
        """Steps over `weights` with `kernels`; `auto` takes the fastest there are, torch's run prompts by `prefill`.

        Raises KernelsError when `kernels` cannot be had for these weights.
        """
        set_exact_arithmetic()
        self.weights, self.prefill = weights, prefill
        self._is_cuda = weights.device.type == "cuda"
        if weights.borrowed is None:
            self.chosen = choose_kernels(kernels, weights.device, weights.dtype)
        else:
            self.chosen = ChosenKernels("transformers", weights.borrowed.because)
        self._attention = self._settle_on_cuda(kernels) if self._is_cuda else None
        self._is_compiled = self.chosen.kernels == "compile"
        self._is_graphed = self._is_cuda and self.chosen.kernels not in PLAIN_KERNELS
        self.layer_step: LayerStep = compile_layer_step() if self._is_compiled else layer_step
        self._of_stages = [weights.at(stage.device) for stage in weights.stages] or [weights]
        self._packed = PackedWeights(weights) if self.chosen.kernels == "native" else None
        assert self._packed is None or not weights.stages, weights.stages
        self._compiled_shapes: set[tuple[int, int]] = set()  # W and S
        self._graphed: SharedSteps[DecodeStep] | None = None

    def _settle_on_cuda(self, kernels: Kernels) -> SDPBackend:
        """Who computes the attention of steps on CUDA. Graphs are tried first: where they fail, `auto` does without.

        Raises KernelsError when they fail and were asked for.
        """
        weights = self.weights
        if self.chosen.kernels not in PLAIN_KERNELS:
            attention, columns = step_backend(weights), bucket_columns(1, weights.context_len)
            pool = torch.cuda.graph_pool_handle()
            problem = why_no_graphs(
                lambda: GraphedStep(weights, self.prefill, 1, weights.new_cache(columns), layer_step, pool, attention)
            )
            if problem is None:
                return attention
            free_workspaces()
            if kernels != "auto":
                why = f"CUDA graphs fail here ({problem})"
                raise KernelsError(f"--kernels {kernels}: {why}; use --kernels eager, which is slower", why)
            self.chosen = ChosenKernels("eager", f"CUDA graphs fail here ({problem})")
        return step_backend(weights, PLAIN_BACKENDS)

    def new(self, width: int, num_positions: int) -> DecodeStep:
        """The decode step of one request: W = `width` rows over columns for `num_positions` positions.

        Graphed steps, and the cache of their S, are shared by requests: one decodes at a time.
        """
        columns = self.num_columns(num_positions)
        if self.weights.borrowed is not None:
            cache = self.weights.new_cache(columns)
            return BorrowedStep(self.weights, self.weights.borrowed, width, cache, self._attention)
        if self._packed is not None:
            return NativeStep(self.weights, self._packed, width, columns)
        if self._is_graphed:
            self._graphed = self._graphed or self._new_graphed()
            return self._graphed.step(width, columns)
        prefill, layer_step, cache = self.prefill, self.layer_step, self.weights.new_cache(columns)
        if self._is_compiled:
            ready = self._compiled_shapes
            return self._over_stages(lambda w: CompiledStep(w, prefill, width, cache, layer_step, ready))
        attention = self._attention
        return self._over_stages(lambda w: EagerStep(w, prefill, width, cache, layer_step, attention, PLAIN_BACKENDS))

    def _over_stages(self, make: Callable[[Weights], EagerStep]) -> DecodeStep:
        """The step that `make` gives for the weights; over stages one of a step for each, of the weights as it has them."""
        steps: list[EagerStep] = []
        for weights in self._of_stages:
            with computing_on(weights.device):
                steps.append(make(weights))
        return StagedStep(self.weights.stages, steps) if self.weights.stages else steps[0]

    def num_columns(self, num_positions: int) -> int:
        """S for a request of `num_positions` positions; one of few where each S is captured or compiled for."""
        if self._is_cuda or self._is_compiled:
            return bucket_columns(num_positions, self.weights.context_len)
        return num_columns(num_positions)

    @property
    def attention(self) -> str | None:
        """Who computes the attention of decode steps; None where torch's choice is left to torch, on a CPU."""
        return None if self._attention is None else self._attention.name

    def _new_graphed(self) -> SharedSteps[DecodeStep]:
        """Graphed steps that share a pool on a device, with room for two caches of the whole context or several shorter."""
        prefill, layer_step, attention = self.prefill, self.layer_step, self._attention
        assert attention is not None
        pools = {weights.device: torch.cuda.graph_pool_handle() for weights in self._of_stages}

        def new_step(width: int, cache: KVCache) -> DecodeStep:
            return self._over_stages(
                lambda w: GraphedStep(w, prefill, width, cache, layer_step, pools[w.device], attention)
            )

        return SharedSteps(self.weights.new_cache, new_step, 2 * num_columns(self.weights.context_len))

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
            f"use --kernels eager{' or compile' if device.type == 'cpu' else ', graphs or compile'}"
        )
    if kernels == "graphs" and device.type != "cuda":
        raise KernelsError(
            f"--kernels graphs: they are CUDA's, not to be had on {device.type}; use --device cuda, or --kernels auto"
        )
    if kernels == "compile":
        _check_compilable(device)
    if kernels in ("eager", "graphs", "compile", "transformers"):
        return ChosenKernels(kernels)
    if device.type != "cpu":
        return ChosenKernels("graphs")
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
