"""Which kernels a model decodes with, and what its steps share."""

import pytest
import torch

from adadecode.errors import KernelsError
from adadecode.kernels.choose import choose_kernels
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.native import NativeStep
from adadecode.model.decoder import DecoderModel
from tests.models import needs_compiler, tiny_lm, tiny_model


@needs_compiler
def test_a_model_decodes_with_the_kernels_it_was_given():
    lm = tiny_lm()
    assert isinstance(DecoderModel(lm, "native").new_step(8, 20), NativeStep)
    assert isinstance(DecoderModel(lm, "eager").new_step(8, 20), EagerStep)
    assert [DecoderModel(lm, kernels).kernels for kernels in ("auto", "native", "eager")] == [
        "native",
        "native",
        "eager",
    ]


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float16), ("cuda", torch.float32), ("cuda", torch.bfloat16)]
)
def test_native_kernels_are_refused_where_there_are_none(device, dtype):
    with pytest.raises(KernelsError, match=rf"--kernels native: only on a CPU .* not on {device} in {dtype}; use"):
        choose_kernels("native", torch.device(device), dtype)
    assert choose_kernels("auto", torch.device(device), dtype) == "eager"


def test_a_model_in_float16_refuses_native_kernels_in_one_line():
    with pytest.raises(KernelsError) as caught:
        tiny_model(dtype=torch.float16, kernels="native")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
