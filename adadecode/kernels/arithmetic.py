"""What torch may compute in several ways, pinned to one: the precision of sums and products, and who computes attention."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypedDict

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from adadecode.errors import KernelsError
from adadecode.kernels.weights import Weights

# Of a decode step, whose attention has a mask, and of a prompt, whose has none; the faster first.
STEP_BACKENDS = (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
PREFILL_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
PLAIN_BACKENDS = (SDPBackend.MATH,)  # of steps and prompts whose every operation is plain


def set_exact_arithmetic() -> None:
    """Has this process compute in the precision of its numbers, whatever an environment variable or a library set.

    No TensorFloat-32 for float32, no sums of half-precision products in half precision.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_accumulation = False


class Arithmetic(TypedDict):
    """The precision of products of float32, and whether sums of half-precision products are in half precision."""

    float32_precision: str
    reduced_precision_sums: bool


def arithmetic() -> Arithmetic:
    """In which precision this process computes, as it is set now."""
    matmul = torch.backends.cuda.matmul
    return Arithmetic(
        float32_precision=torch.get_float32_matmul_precision(),
        reduced_precision_sums=bool(
            matmul.allow_bf16_reduced_precision_reduction
            or matmul.allow_fp16_reduced_precision_reduction
            or matmul.allow_fp16_accumulation
        ),
    )


def attention_by(backends: SDPBackend | Sequence[SDPBackend] | None) -> AbstractContextManager[object]:
    """A context in which the first of `backends` that can computes attention, and no other; torch's choice without any."""
    if backends is None:
        return nullcontext()
    wanted = [backends] if isinstance(backends, SDPBackend) else list(backends)
    return sdpa_kernel(wanted, set_priority=True)


def step_backend(weights: Weights, backends: Sequence[SDPBackend] = STEP_BACKENDS) -> SDPBackend:
    """The one of `backends` that computes the attention of decode steps on the device of `weights`, found by trying.

    Raises KernelsError when none can.
    """
    shape, like = weights.shape, weights.embedding
    num_rows, num_columns = 8 * shape.num_heads // shape.num_kv_heads, 64
    queries = like.new_zeros(1, shape.num_kv_heads, num_rows, shape.head_dim)
    keys = like.new_zeros(1, shape.num_kv_heads, num_columns, shape.head_dim)
    mask = like.new_zeros(num_rows, num_columns)
    for backend in backends:
        try:
            with attention_by(backend):
                scaled_dot_product_attention(queries, keys, keys, attn_mask=mask, scale=shape.scale)
            return backend
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError:
            continue
    raise KernelsError(
        f"torch has no attention with a mask for {like.dtype} and heads of {shape.head_dim} on this device: "
        "use another --dtype, or --device cpu"
    )
