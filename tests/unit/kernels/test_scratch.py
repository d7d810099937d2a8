"""The memory that native kernels work in: no call writes past what it is said to take."""

from typing import Any

import pytest
import torch

from adadecode.kernels import native
from adadecode.kernels.native import NativeDraw, NativeStep
from adadecode.kernels.sampling import Draw
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


@needs_compiler
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("draw", [Draw(1.0, key=3), Draw(1.5, top_p=0.99, key=4), Draw(0.7, top_k=1000, key=5)])
@torch.inference_mode()
def test_no_draw_writes_past_the_scratch_it_is_said_to_take_by_whatever_head(draw, num_threads, monkeypatch):
    margins = []

    class DrawWithMargin(NativeDraw):
        def at(self, *args: Any, **kwargs: Any) -> int:
            widest, address = self._widest, super().at(*args, **kwargs)
            if self._widest != widest:
                num_floats = len(self._scratch)
                self._scratch = torch.full((num_floats + MARGIN,), UNTOUCHED)
                self._struct.scratch = self._scratch.data_ptr()
                margins.append(self._scratch[num_floats:])
            return address

    monkeypatch.setattr(native, "NativeDraw", DrawWithMargin)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = tiny_model(kernels="native")
        step = model.new_step(8, 40)
        step.prefill(list(range(1, 10)))
        step.draw_by(draw)
        step.begin(9)
        step.put(0, list(range(1, 9)))
        step.run(0, 8, 0, model.num_layers)
        step.verify(0, 8)
        for num_outputs in (model.vocab_size * 3, 5000):  # wider than what there was room for, and not prepared
            matrix = torch.randn(num_outputs, model.width, generator=torch.Generator().manual_seed(1)) / 100
            step.test(Head((matrix,)), 0, 8)
            assert len(margins) > 1
            assert all((margin == UNTOUCHED).all() for margin in margins)
    finally:
        torch.set_num_threads(before)
