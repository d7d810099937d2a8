"""What the engine does not do of the configurations of families it knows, each with why and what would lift it."""

from collections.abc import Callable, Mapping
from typing import Any

from adadecode.kernels.weights import Activation

# What decoding takes of any configuration.
SIZES = ("num_hidden_layers", "vocab_size", "num_attention_heads", "max_position_embeddings")
Refusal = Callable[[Any], str | None]  # why a configuration is refused; None when it is not

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def rotary_settings(config: Any) -> list[Mapping[str, Any]]:
    """The settings of each rotary table of a model."""
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or [found]


def activation_of(config: Any) -> str:
    """What transformers calls the activation of the MLP."""
    return getattr(config, "hidden_act", None) or config.hidden_activation


def other_activation(config: Any) -> str | None:
    """Why `config` is refused when its activation is none of ours; else None."""
    if (name := activation_of(config)) in ACTIVATIONS:
        return None
    return (
        f"its activation {name!r} is none of {', '.join(ACTIVATIONS)}; it would take one in ACTIVATIONS of the layers"
    )


def changing_rotary(config: Any) -> str | None:
    """Why `config` is refused when its rotary frequencies depend on how long the sequence is; else None.

    Of longrope the short range is decoded, where they do not.
    """
    for rope in rotary_settings(config):
        if rope.get("rope_type") == "dynamic":
            return "rotary type 'dynamic' changes keys that are cached as the sequence grows; linear, yarn or llama3 do not"
    return None


def other_attention(config: Any) -> str | None:
    """Why `config` is refused when some layers neither see all positions nor the last of them; else None."""
    kinds = {*(getattr(config, "layer_types", None) or ())} - {"full_attention", "sliding_attention"}
    if kinds:
        return f"its layers of {', '.join(sorted(kinds))} are not known; the engine has full and sliding attention"
    return None


def encoder_and_decoder(config: Any) -> str | None:
    """Why `config` is refused when it has an encoder; else None."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder models are not decoded here; use a decoder-only one"
    return None


def lacking_sizes(config: Any) -> str | None:
    """Why a configuration is refused that lacks a size which decoding takes; else None."""
    lacks = next((name for name in SIZES if not isinstance(getattr(config, name, None), int)), None)
    if lacks is None:
        return None
    text: Any = getattr(config, "text_config", None)
    if text is None:
        return f"its configuration has no {lacks}; a model whose config.json gives {', '.join(SIZES)} can be decoded"
    kind = getattr(text, "model_type", None)
    return (
        f"its text model is a part of it (text_config); save that alone, as {kind or 'its own model type'}, and give it"
    )


def looks_ahead(config: Any) -> str | None:
    """Why `config` is refused when its attention is not causal; else None."""
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention looks ahead, so a cache cannot hold what it saw; a causal one can be decoded"
    return None


def norms_of_each_head(config: Any) -> str | None:
    """Why `config` is refused when each head has a norm of its own; else None."""
    if getattr(config, "qk_layernorm", False):
        return "its queries and keys have a LayerNorm for each head; it would take norms `[H, D]` in the layers"
    return None


def partial_rotary(config: Any) -> str | None:
    """Why `config` is refused when it has part of a head turned and its family turns all of it; else None."""
    shares = [rope.get("partial_rotary_factor") for rope in rotary_settings(config)]
    share = next((share for share in shares if share is not None), getattr(config, "partial_rotary_factor", None))
    if share is None or share == 1.0:
        return None
    return f"rope_parameters.partial_rotary_factor {share}: its layers turn whole heads; leave it out, or 1"


PARTIAL_REFUSALS: tuple[Refusal, ...] = (other_activation, other_attention, norms_of_each_head)
USUAL_REFUSALS = (*PARTIAL_REFUSALS, partial_rotary)

# Of any family, whoever computes its layers.
ANYBODYS_REFUSALS: tuple[Refusal, ...] = (encoder_and_decoder, looks_ahead, changing_rotary)
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")  # what configurations call them
