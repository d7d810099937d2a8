"""Heads of native.cpp, whose outputs threads share: the lowest id of the highest logit, and what is no number."""

import pytest
import torch

from adadecode.kernels.weights import Head
from tests.models import needs_compiler, tiny_model


@pytest.fixture
def num_threads():
    """Sets torch's number of threads, which native steps take over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("num_outputs", [5, 64, 97, 1000])
@torch.inference_mode()
def test_the_lowest_id_is_taken_among_equal_logits_in_whichever_threads_share_they_are(
    num_outputs, num_rows, num_threads
):
    model = tiny_model(kernels="native", num_layers=1)
    for threads in (1, 2, 3):
        num_threads(threads)
        step = model.new_step(8, 20)
        step.hidden.fill_(1.0)
        for first in {0, num_outputs // 2, num_outputs - 1}:
            for sign, highest in ((1.0, first), (-1.0, 0)):
                matrix = torch.zeros(num_outputs, model.width)
                matrix[first:] = sign
                proposals = step.test(Head((matrix,)), 0, num_rows)
                assert [token_id for token_id, _ in proposals] == [highest] * num_rows


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_one_logit_that_is_not_a_number_is_told_of_its_row_alone(threads, num_threads):
    num_threads(threads)
    model = tiny_model(kernels="native", num_layers=1)
    step = model.new_step(8, 20)
    step.hidden.fill_(1.0)
    step.hidden[1, 3] = float("nan")
    _, tops = step.verify(0, 3)
    assert [top == top for top in tops] == [True, False, True]
