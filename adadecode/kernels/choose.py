"""A transformers causal LM as segments of layers and heads, at the static shapes of a decode step.

Shapes: T rows of a prompt, W rows of a step, S cache columns, d model width, V vocabulary, D head width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from adadecode.errors import KernelsError
from adadecode.kernels.layers import layer_step
from adadecode.kernels.native import DTYPES as NATIVE_DTYPES
from adadecode.kernels.native import load_library
from adadecode.settings import Kernels


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


def compile_layer_step() -> Callable[..., Tensor]:
    """`layer_step` compiled for static shapes: once per W and S, for all layers alike."""
    torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
    return torch.compile(layer_step, dynamic=False, fullgraph=True)
