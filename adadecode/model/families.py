"""One transformer layer and the heads as plain functions of tensors, for the rows of a decode step.

Shapes: W rows, d model width, F width of the MLP, H query heads, G key/value heads, D head width, S cache columns,
V vocabulary, K outputs of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from adadecode.errors import UnsupportedModelError
from adadecode.kernels.weights import LayerWeights


def fuse_layer(layer: Any) -> LayerWeights:
    """The weights of a transformers layer, joined where they are used together.

    The layer's own parameters become views of the joined ones, so the weights are in memory once.
    """
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return LayerWeights(
        input_norm=layer.input_layernorm.weight,
        qkv=_join([projection.weight for projection in projections]),
        qkv_bias=_join([p.bias for p in projections]) if attention.q_proj.bias is not None else None,
        q_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        k_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        o=attention.o_proj.weight,
        post_norm=layer.post_attention_layernorm.weight,
        gate_up=_join([mlp.gate_proj.weight, mlp.up_proj.weight]),
        down=mlp.down_proj.weight,
    )


def _join(parameters: list[nn.Parameter]) -> Tensor:
    joined = torch.cat([parameter.detach() for parameter in parameters])
    first = 0
    for parameter in parameters:
        parameter.data = joined[first : first + len(parameter)]
        first += len(parameter)
    return joined


FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check_supported(config: Any) -> None:
    """Raises UnsupportedModelError when `config` asks for something the engine does not do."""

    def refuse(what: str) -> None:
        raise UnsupportedModelError(f"model type {config.model_type!r}: {what}; supported are {', '.join(FAMILIES)}")

    if getattr(config, "is_encoder_decoder", False):
        refuse("encoder-decoder models are not decoded here")
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        refuse("mixture-of-experts routing depends on the other rows of a step")
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        refuse("soft-capped logits are not done by the engine")
    if config.model_type not in FAMILIES:
        refuse("its layers are not known to the engine")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        refuse("biases of its attention or MLP are not added by the engine")
    if config.hidden_act != "silu":
        refuse(f"its activation {config.hidden_act!r} is not silu")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        refuse(f"sliding-window attention over {window} positions is not done by the engine")
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in ("dynamic", "longrope"):
        refuse(f"rotary type {rope!r} changes with the sequence length")
