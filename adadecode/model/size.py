"""How many bytes a model will take, told from its configuration before any weight is read."""

from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM

from adadecode.model.families import attention_of, kv_shape
from adadecode.model.load import NO_CODE
from adadecode.model.own_layers import found_layers


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
        lm: Any = AutoModelForCausalLM.from_config(config, **NO_CODE, **attention_of(config))
    numbers = sum(parameter.numel() for parameter in lm.parameters())
    embedding, head = lm.get_input_embeddings().weight, lm.get_output_embeddings().weight
    num_packed = numbers - (0 if head is embedding else embedding.numel())
    found = found_layers(lm)
    in_layers = () if found is None else found[2]
    num_kv_heads, head_dim = kv_shape(config)
    column = 2 * config.num_hidden_layers * num_kv_heads * head_dim * itemsize
    layers = tuple(sum(parameter.numel() for parameter in layer.parameters()) * itemsize for layer in in_layers)
    return ModelSize(numbers * itemsize, layers, num_packed * itemsize, column, config.vocab_size)
