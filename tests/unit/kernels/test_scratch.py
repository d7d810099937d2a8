"""The memory that native kernels work in: no call writes past what it is said to take."""

import pytest
import torch

from adadecode.kernels import native
from adadecode.kernels.native import NativeStep
from adadecode.kernels.weights import ExitTest, Head
from tests.models import needs_compiler, tiny_model

MARGIN, UNTOUCHED = 1 << 16, 7.0  # floats


def with_a_margin(step: NativeStep) -> torch.Tensor:
    """Gives `step` a scratch as long as its own with a margin behind it, which is returned."""
    num_floats = len(step._scratch)
    step._scratch = torch.full((num_floats + MARGIN,), UNTOUCHED)
    step._shape.scratch = step._scratch.data_ptr()
    return step._scratch[num_floats:]


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("width", [1, 8, 13])
def test_no_call_writes_past_the_scratch_it_is_said_to_take(dtype, num_threads, width, monkeypatch):
    monkeypatch.setattr(native, "BLOCK_LEN", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = tiny_model(dtype=dtype, kernels="native")
        step = model.new_step(width, 190)
        assert isinstance(step, NativeStep)
        margin = with_a_margin(step)
        step.prefill([1 + i % 90 for i in range(170)])
        step.begin(170)
        step.put(0, list(range(1, width + 1)))
        step.run(0, width, 0, model.num_layers)
        step.verify(0, width)
        assert (margin == UNTOUCHED).all()
        head = Head((torch.ones(43, model.width, dtype=dtype),))
        step.test(head, 0, width)
        step.run_to_exit((0, width, 0, 1), ExitTest(head), 0)
        assert (margin == UNTOUCHED).all()
    finally:
        torch.set_num_threads(before)
