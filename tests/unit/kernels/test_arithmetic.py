"""What torch may compute in several ways is pinned to one, and told."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.attention import SDPBackend

from adadecode.errors import KernelsError
from adadecode.kernels import arithmetic
from adadecode.kernels.arithmetic import (
    PREFILL_BACKENDS,
    STEP_BACKENDS,
    attention_by,
    set_exact_arithmetic,
    step_backend,
)
from tests.models import tiny_model

SHOW = """
import torch
from tests.models import tiny_model
from adadecode.kernels.arithmetic import arithmetic
print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)
tiny_model(num_layers=1)
print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)
print(arithmetic())
"""


def test_a_model_computes_in_float32_where_the_environment_asks_for_tensorfloat():
    """Some images of vendors set the variable."""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True, timeout=300
    )
    assert found.stdout.splitlines() == [
        "high True",
        "highest False",
        "{'float32_precision': 'highest', 'reduced_precision_sums': False}",
    ]


def test_sums_of_half_precision_are_told_when_something_sets_them_later():
    set_exact_arithmetic()
    try:
        torch.backends.cuda.matmul.allow_fp16_accumulation = True
        assert arithmetic.arithmetic()["reduced_precision_sums"] is True
    finally:
        set_exact_arithmetic()
    assert arithmetic.arithmetic()["reduced_precision_sums"] is False


def enabled() -> set[SDPBackend]:
    """The backends torch may take now."""
    cuda = torch.backends.cuda
    return {
        backend
        for backend, is_on in (
            (SDPBackend.FLASH_ATTENTION, cuda.flash_sdp_enabled()),
            (SDPBackend.EFFICIENT_ATTENTION, cuda.mem_efficient_sdp_enabled()),
            (SDPBackend.CUDNN_ATTENTION, cuda.cudnn_sdp_enabled()),
            (SDPBackend.MATH, cuda.math_sdp_enabled()),
        )
        if is_on
    }


def test_attention_is_by_the_pinned_backends_and_then_by_any_again():
    before = enabled()
    for backends in (STEP_BACKENDS, PREFILL_BACKENDS):
        with attention_by(backends):
            assert enabled() == set(backends)
    with attention_by(SDPBackend.MATH):
        assert enabled() == {SDPBackend.MATH}
    assert enabled() == before


class Attention:
    """Stands in for torch's: refuses unless one of `able` is pinned."""

    def __init__(self, *able: SDPBackend) -> None:
        self.able, self.asked = set(able), list[set[SDPBackend]]()

    def __call__(self, *_: object, **named: object) -> None:
        assert named["attn_mask"] is not None
        self.asked.append(enabled())
        if not enabled() & self.able:
            raise RuntimeError("No available kernel. Aborting execution.")


@pytest.mark.parametrize("able", STEP_BACKENDS, ids=str)
def test_a_step_has_the_first_backend_that_takes_its_mask(able, monkeypatch):
    attention = Attention(able)
    monkeypatch.setattr(arithmetic, "scaled_dot_product_attention", attention)
    assert step_backend(tiny_model(num_layers=1).weights) is able
    assert attention.asked[-1] == {able}


def test_a_device_without_any_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(arithmetic, "scaled_dot_product_attention", Attention())
    with pytest.raises(KernelsError, match=r"no attention with a mask for torch.float32 and heads of 8 .* --dtype"):
        step_backend(tiny_model(num_layers=1).weights)


def test_memory_that_runs_out_is_not_taken_for_a_backend_that_cannot(monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(arithmetic, "scaled_dot_product_attention", full)
    with pytest.raises(torch.OutOfMemoryError):
        step_backend(tiny_model(num_layers=1).weights)
