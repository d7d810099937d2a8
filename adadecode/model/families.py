"""The families of models the engine decodes, one row each: how their parts are named and what layers of theirs compute."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from adadecode.errors import UnsupportedModelError
from adadecode.kernels.weights import LayerKind, LayerShape, LogitShape
from adadecode.model.refusals import (
    ACTIVATIONS,
    ANYBODYS_REFUSALS,
    EXPERTS,
    PARTIAL_REFUSALS,
    USUAL_REFUSALS,
    Refusal,
    activation_of,
    lacking_sizes,
    rotary_settings,
)
from adadecode.settings import Kernels

Names = tuple[str, ...]

# What of a transformers layer each of LayerWeights is, joined where it is several; a layer may lack what is optional.
LAYER: Mapping[str, Names] = {
    "input_norm": ("input_layernorm.weight",),
    "input_norm_bias": ("input_layernorm.bias",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "o": ("self_attn.o_proj.weight",),
    "o_bias": ("self_attn.o_proj.bias",),
    "post_norm": ("post_attention_layernorm.weight",),
    "post_norm_bias": ("post_attention_layernorm.bias",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "gate_up_bias": ("mlp.gate_proj.bias", "mlp.up_proj.bias"),
    "down": ("mlp.down_proj.weight",),
    "down_bias": ("mlp.down_proj.bias",),
}
FUSED: Mapping[str, Names] = {"qkv": ("self_attn.qkv_proj.weight",), "gate_up": ("mlp.gate_up_proj.weight",)}
NORMED_OUTPUTS: Mapping[str, Names] = {
    "attention_out_norm": ("post_attention_layernorm.weight",),
    "post_norm": ("pre_feedforward_layernorm.weight",),
    "mlp_out_norm": ("post_feedforward_layernorm.weight",),
}
NEOX: Mapping[str, Names] = {
    "qkv": ("attention.query_key_value.weight",),
    "qkv_bias": ("attention.query_key_value.bias",),
    "o": ("attention.dense.weight",),
    "o_bias": ("attention.dense.bias",),
    "gate_up": ("mlp.dense_h_to_4h.weight",),
    "gate_up_bias": ("mlp.dense_h_to_4h.bias",),
    "down": ("mlp.dense_4h_to_h.weight",),
    "down_bias": ("mlp.dense_4h_to_h.bias",),
}


def no_windows(config: Any) -> list[int | None]:
    """All layers see all positions."""
    return [None] * config.num_hidden_layers


def windows_everywhere(config: Any) -> list[int | None]:
    """All layers see as many positions as `sliding_window` says."""
    return [config.sliding_window] * config.num_hidden_layers


def windows_by_type(config: Any) -> list[int | None]:
    """Layers whose type is `sliding_attention` see as many positions as `sliding_window` says."""
    return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]


def one_table(config: Any) -> list[int | None]:
    """All layers are turned by the one table."""
    return [0] * config.num_hidden_layers


def table_by_type(config: Any) -> list[int | None]:
    """Each type of layer is turned by a table of its own."""
    return [rotary_types(config).index(kind) for kind in config.layer_types]


def table_or_none(config: Any) -> list[int | None]:
    """Layers that `no_rope_layers` has 0 for are not turned."""
    return [0 if is_turned else None for is_turned in config.no_rope_layers]


def _nothing_else(_: Any) -> dict[str, Any]:
    return {}


def _gemma_shape(config: Any) -> dict[str, Any]:
    return {"norm_offset": 1.0, "attention_scale": config.query_pre_attn_scalar**-0.5}


def _gemma2_shape(config: Any) -> dict[str, Any]:
    return _gemma_shape(config) | {"attention_cap": config.attn_logit_softcapping}


def _granite_shape(config: Any) -> dict[str, Any]:
    return {"attention_scale": config.attention_multiplier, "residual_scale": config.residual_multiplier}


def _layer_norms(config: Any) -> dict[str, Any]:
    return {"norm": "layer", "is_parallel": config.use_parallel_residual}


def _neox_shape(config: Any) -> dict[str, Any]:
    return _layer_norms(config) | {"is_gated": False}


def _unscaled(_config: Any, _dtype: torch.dtype) -> float:
    return 1.0


def _by_width(config: Any, dtype: torch.dtype) -> float:
    return float(torch.tensor(config.hidden_size**0.5).to(dtype))


def _by_multiplier(config: Any, _dtype: torch.dtype) -> float:
    return float(config.embedding_multiplier)


def _plain_logits(_: Any) -> LogitShape:
    return LogitShape()


def _capped_logits(config: Any) -> LogitShape:
    return LogitShape(cap=config.final_logit_softcapping)


def _divided_logits(config: Any) -> LogitShape:
    return LogitShape(divisor=float(config.logits_scaling))


@dataclass(frozen=True)
class Family:
    """Models of one `model_type`: where they differ from Llama's, of which they have names, sizes and order.

    `layer` names parts of a layer, `norm` the last norm, `cache` what a layer calls its cache, `attention` transformers',
    and `saved_as` tensors of checkpoints. Of a configuration `shape` tells what layers compute besides, `windows` and
    `tables` what each sees and is turned by, `embedding_scale` and `logits` what embeddings and logits are multiplied with.
    `is_interleaved` has queries, keys and values head by head.
    """

    layer: Mapping[str, Names] = field(default_factory=dict[str, Names])
    norm: str = "norm"
    cache: str = "past_key_values"
    attention: str = "sdpa"
    saved_as: Mapping[str, str] = field(default_factory=dict[str, str])
    is_interleaved: bool = False
    shape: Callable[[Any], dict[str, Any]] = _nothing_else
    windows: Callable[[Any], list[int | None]] = no_windows
    tables: Callable[[Any], list[int | None]] = one_table
    embedding_scale: Callable[[Any, torch.dtype], float] = _unscaled
    logits: Callable[[Any], LogitShape] = _plain_logits
    refused: tuple[Refusal, ...] = USUAL_REFUSALS


BORROWING: tuple[Kernels, ...] = ("auto", "transformers")  # kernels that may run a model's own layers

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(windows=windows_everywhere),
    "qwen2": Family(windows=windows_by_type),
    "qwen3": Family(windows=windows_by_type),
    "phi3": Family(FUSED, windows=windows_everywhere, refused=PARTIAL_REFUSALS),
    "olmo2": Family({"post_norm": ()} | {k: v for k, v in NORMED_OUTPUTS.items() if k != "post_norm"}),
    "granite": Family(shape=_granite_shape, embedding_scale=_by_multiplier, logits=_divided_logits),
    "smollm3": Family(windows=windows_by_type, tables=table_or_none),
    "stablelm": Family(shape=_layer_norms, refused=PARTIAL_REFUSALS),
    "gemma2": Family(
        NORMED_OUTPUTS,
        attention="eager",  # the only one of transformers' that has its caps
        shape=_gemma2_shape,
        windows=windows_by_type,
        embedding_scale=_by_width,
        logits=_capped_logits,
    ),
    "gemma3_text": Family(
        NORMED_OUTPUTS,
        shape=_gemma_shape,
        windows=windows_by_type,
        tables=table_by_type,
        embedding_scale=_by_width,
        logits=_capped_logits,
    ),
    "gpt_neox": Family(
        NEOX,
        norm="final_layer_norm",
        cache="layer_past",
        saved_as={"lm_head.weight": "embed_out.weight"},
        is_interleaved=True,
        shape=_neox_shape,
        refused=PARTIAL_REFUSALS,
    ),
}


def family_of(config: Any) -> Family:
    """The row of a configuration that `check_supported` lets pass."""
    return FAMILIES[config.model_type]


def attention_of(config: Any) -> dict[str, str]:
    """Whose attention transformers' layers are to compute with, whatever `config` names, even one to be fetched."""
    if config.model_type in FAMILIES:
        return {"attn_implementation": family_of(config).attention}
    lm_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return {"attn_implementation": "sdpa" if getattr(lm_class, "_supports_sdpa", False) else "eager"}


def kv_shape(config: Any) -> tuple[int, int]:
    """Key/value heads G and their width D, by a configuration of any family."""
    num_heads: int = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    return num_kv_heads, getattr(config, "head_dim", None) or config.hidden_size // num_heads


def layer_shape(config: Any) -> LayerShape:
    """What the layers of a model have in common, by its configuration."""
    return LayerShape(
        config.num_attention_heads,
        *kv_shape(config),
        config.rms_norm_eps if hasattr(config, "rms_norm_eps") else config.layer_norm_eps,
        activation=ACTIVATIONS[activation_of(config)],
        **family_of(config).shape(config),
    )


def layer_kinds(config: Any) -> tuple[LayerKind, ...]:
    """What is its own of each layer; a window as long as the context is none. Empty where all layers are usual."""
    family, most = family_of(config), context_len(config)
    windows = [None if window is None or window >= most else window for window in family.windows(config)]
    kinds = tuple(map(LayerKind, windows, family.tables(config)))
    return () if {*kinds} == {LayerKind()} else kinds


def context_len(config: Any) -> int:
    """Positions that a model is decoded at: with longrope those of its short range, where no cached key ever changes."""
    most: int = config.max_position_embeddings
    short = [
        rope.get("original_max_position_embeddings") or most
        for rope in rotary_settings(config)
        if rope.get("rope_type") == "longrope"
    ]
    return min(most, *short) if short else most


def rotary_types(config: Any) -> list[str]:
    """The types of layers that have rotary tables of their own, in the order of the tables; empty where one is for all."""
    found: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    return sorted({*config.layer_types}) if any(isinstance(value, Mapping) for value in found.values()) else []


def check_supported(config: Any, kernels: Kernels = "auto") -> None:
    """Raises UnsupportedModelError when `config` asks for something that `kernels` do not do."""
    check_decodable(config)
    why = why_borrowed(config)
    if why is not None and (lacks := lacking_sizes(config)) is not None:
        raise UnsupportedModelError(f"model type {config.model_type!r}: {lacks}")
    if why is not None and kernels not in BORROWING:
        raise UnsupportedModelError(
            f"model type {config.model_type!r}: {why}, so --kernels {kernels} cannot compute them; "
            "use --kernels transformers, which runs the model's own layers, or auto"
        )


def check_decodable(config: Any) -> None:
    """Raises UnsupportedModelError when no kernels decode what `config`, perhaps part of one, describes."""
    for why in filter(None, (refusal(config) for refusal in ANYBODYS_REFUSALS)):
        raise UnsupportedModelError(f"model type {config.model_type!r}: {why}; supported are {', '.join(FAMILIES)}")


def is_borrowed(config: Any, kernels: Kernels) -> bool:
    """Whether `kernels` run the own layers of a model of a `config` that `check_supported` lets pass."""
    return kernels == "transformers" or why_borrowed(config) is not None


def check_one_device(config: Any, kernels: Kernels, num_devices: int) -> None:
    """Raises UnsupportedModelError where a model's own layers would be on several devices."""
    if num_devices > 1 and is_borrowed(config, kernels):
        raise UnsupportedModelError(
            f"--gpus-per-worker {num_devices}: --kernels transformers runs a model on one GPU; "
            "use --gpus-per-worker 1, or a smaller model"
        )


def why_borrowed(config: Any) -> str | None:
    """Why only the model's own layers can compute what `config` describes; None where those here can."""
    if any(getattr(config, name, None) for name in EXPERTS):
        return "its layers have experts, which are not known to the engine"
    family = FAMILIES.get(config.model_type)
    if family is None:
        return "its layers are not known to the engine"
    return next(filter(None, (refusal(config) for refusal in family.refused)), None)
