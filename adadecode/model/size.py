"""How many bytes a model will take, told from its configuration before any weight is read."""

from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from adadecode.model.load import ATTENTION, NO_CODE


class ModelSize(NamedTuple):
    """Bytes of a model: all `weights`, each layer's, what native kernels keep `packed` once more, a column of the cache."""

    weights: int
    layers: tuple[int, ...]
    packed: int
    column: int
    vocab_size: int


def model_size(config: Any, dtype: str) -> ModelSize:
    """The size of the model that transformers' `config` describes, in `dtype`."""
    itemsize = getattr(torch, dtype).itemsize
    with torch.device("meta"):
        lm: Any = AutoModelForCausalLM.from_config(config, **NO_CODE, **ATTENTION)
    numbers = sum(parameter.numel() for parameter in lm.parameters())
    embedding, head = lm.model.embed_tokens.weight, lm.lm_head.weight
    num_packed = numbers - (0 if head is embedding else embedding.numel())
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    column = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * itemsize
    layers = tuple(sum(parameter.numel() for parameter in layer.parameters()) * itemsize for layer in lm.model.layers)
    return ModelSize(numbers * itemsize, layers, num_packed * itemsize, column, config.vocab_size)
