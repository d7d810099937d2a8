"""The families of models the engine decodes, one row each: how their layers are read and what is refused of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adadecode.errors import UnsupportedModelError
from adadecode.kernels.weights import LayerWeights


def biases(config: Any) -> str | None:
    """Why `config` is refused when its attention or MLP has biases that a layer here does not add; else None."""
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        return "biases of its attention or MLP are not added by the engine"
    return None


def other_activation(config: Any) -> str | None:
    """Why `config` is refused when its activation is not SiLU; else None."""
    return None if config.hidden_act == "silu" else f"its activation {config.hidden_act!r} is not silu"


def short_window(config: Any) -> str | None:
    """Why `config` is refused when its attention slides over less than the whole context; else None."""
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        return f"sliding-window attention over {window} positions is not done by the engine"
    return None


def changing_rotary(config: Any) -> str | None:
    """Why `config` is refused when its rotary frequencies depend on how long the sequence is; else None."""
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return f"rotary type {rope!r} changes with the sequence length" if rope in ("dynamic", "longrope") else None


Refusal = Callable[[Any], str | None]  # why a configuration is refused; None when it is not

USUAL_REFUSALS: tuple[Refusal, ...] = (biases, other_activation, short_window, changing_rotary)


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`: what their layers have besides norms, projections and MLP, and what is refused."""

    has_qkv_bias: bool = False  # whatever the configuration says
    has_qk_norm: bool = False
    refused: tuple[Refusal, ...] = USUAL_REFUSALS

    def read_layer(self, layer: Any) -> LayerWeights:
        """The weights of a transformers layer, joined where they are used together.

        The layer's own parameters become views of the joined ones, so the weights are in memory once.
        """
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return LayerWeights(
            input_norm=layer.input_layernorm.weight,
            qkv=_join([projection.weight for projection in projections]),
            qkv_bias=_join([projection.bias for projection in projections]) if self.has_qkv_bias else None,
            q_norm=attention.q_norm.weight if self.has_qk_norm else None,
            k_norm=attention.k_norm.weight if self.has_qk_norm else None,
            o=attention.o_proj.weight,
            post_norm=layer.post_attention_layernorm.weight,
            gate_up=_join([mlp.gate_proj.weight, mlp.up_proj.weight]),
            down=mlp.down_proj.weight,
        )


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(has_qkv_bias=True),
    "qwen3": Family(has_qk_norm=True),
}


def read_layers(lm: Any) -> tuple[LayerWeights, ...]:
    """The weights of all layers of `lm`, a causal LM that `check_supported` lets pass."""
    return tuple(read_layer(lm, layer) for layer in lm.model.layers)


def read_layer(lm: Any, layer: Any) -> LayerWeights:
    """The weights of `layer`, one of those of `lm` or like them."""
    return FAMILIES[lm.config.model_type].read_layer(layer)


def check_supported(config: Any) -> None:
    """Raises UnsupportedModelError when `config` asks for something the engine does not do."""
    why = next(_refusals(config), None)
    if why is not None:
        raise UnsupportedModelError(f"model type {config.model_type!r}: {why}; supported are {', '.join(FAMILIES)}")


def _refusals(config: Any) -> Iterator[str]:
    """Why `config` is refused: as no engine of this kind can decode it, as an unknown family, or by its family."""
    if getattr(config, "is_encoder_decoder", False):
        yield "encoder-decoder models are not decoded here"
    if getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        yield "mixture-of-experts routing depends on the other rows of a step"
    if getattr(config, "attn_logit_softcapping", None) or getattr(config, "final_logit_softcapping", None):
        yield "soft-capped logits are not done by the engine"
    family = FAMILIES.get(config.model_type)
    if family is None:
        yield "its layers are not known to the engine"
    else:
        yield from (why for refusal in family.refused if (why := refusal(config)) is not None)


def _join(parameters: list[nn.Parameter]) -> Tensor:
    joined = torch.cat([parameter.detach() for parameter in parameters])
    first = 0
    for parameter in parameters:
        parameter.data = joined[first : first + len(parameter)]
        first += len(parameter)
    return joined
