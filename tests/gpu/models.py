"""The models of these tests: random weights, with heads and widths as real models have them, so that kernels are theirs."""

from typing import Any

import torch

from adadecode.bench.synthetic import synthetic_lm

SIZES = {
    "num_hidden_layers": 6,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}


def make_lm(dtype: torch.dtype, name: str = "llama-160m", **changed: Any) -> Any:
    """A causal LM of SIZES with what is `changed`, on the device, of the family of `name`."""
    return synthetic_lm(name, dtype=dtype, device="cuda", agreement=0.8, **{**SIZES, **changed})
