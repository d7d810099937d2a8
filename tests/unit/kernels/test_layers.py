"""A layer, whatever the attention kernel of the device returns."""

import torch

from adadecode.kernels import layers
from adadecode.model.decoder import DecoderModel
from tests.models import tiny_model

ATTENTION = layers.scaled_dot_product_attention


def logits(model: DecoderModel) -> torch.Tensor:
    """The logits of two tokens after a prompt of three."""
    step = model.new_step(8, 40)
    step.prefill([1, 2, 3])
    step.begin(3)
    step.put(0, [4, 5])
    step.run(0, 2, 0, model.num_layers)
    step.verify(0, 2)
    return step.logits[:2].clone()


def test_a_layer_takes_attention_in_the_layout_of_cuda_with_the_heads_of_a_row_side_by_side(monkeypatch):
    """CUDA's memory-efficient kernel writes `[1, rows, heads, D]` and returns that transposed."""
    model = tiny_model(kernels="eager")
    expected = logits(model)
    returned = []

    def as_on_cuda(*args, **kwargs):
        mixed = ATTENTION(*args, **kwargs)
        returned.append(mixed.transpose(1, 2).contiguous().transpose(1, 2))
        return returned[-1]

    monkeypatch.setattr(layers, "scaled_dot_product_attention", as_on_cuda)
    assert torch.equal(logits(model), expected)
    assert len(returned) == model.num_layers
    assert not any(mixed.is_contiguous() for mixed in returned)
