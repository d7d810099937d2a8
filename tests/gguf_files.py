"""GGUF files of tiny models, written with the package that llama.cpp's own scripts write them with."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tests.models import tiny_lm

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
TOKENS = [chr(33 + idx) for idx in range(94)] + ["Ġ", "ab", "<end>"]  # byte-level: a space has another letter


def tiny_gguf_lm(family: str = "llama", **settings: Any) -> Any:
    """The model that `write_gguf` writes: of 97 tokens, whose last ends a sequence."""
    return tiny_lm(family, num_layers=2, eos_token_id=96, **settings)


def write_gguf(
    path: Path,
    lm: Any,
    *,
    kind: str | None = None,
    packed: gguf.GGMLQuantizationType | None = None,
    num_parts: int = 0,
    scaling: str | None = None,
    tokens: list[str] | None = None,
    extra: dict[str, NDArray] | None = None,
) -> Path:
    """Writes `lm` to a GGUF file at `path` and returns it; matrices in the quantised form `packed`, if any.

    What else is given makes a file that is odd: its architecture, parts, rotary scaling, no tokens, further tensors.
    """
    config, kind = lm.config, kind or lm.config.model_type
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if num_parts:
        writer.add_uint16("split.count", num_parts)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    tokens = TOKENS if tokens is None else tokens
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(96)
    for name, weight in lm.state_dict().items():
        if not (name == "lm_head.weight" and config.tie_word_embeddings):
            _add(writer, _name(name), _permuted(name, weight, config, kind), packed)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(name: str) -> str:
    module, end = name.rsplit(".", 1)
    if module in OUTSIDE:
        return f"{OUTSIDE[module]}.{end}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{end}"


def _permuted(name: str, weight: Tensor, config: Any, kind: str) -> NDArray:
    """In files of Llama the two halves that rotary embeddings turn are interleaved."""
    values = weight.float().numpy()
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    num_heads = next((heads[end] for end in heads if name.endswith(end)), None)
    if kind != "llama" or num_heads is None:
        return values
    return np.ascontiguousarray(values.reshape(num_heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape))


def _add(writer: gguf.GGUFWriter, name: str, values: NDArray, packed: gguf.GGMLQuantizationType | None) -> None:
    if packed is None or values.ndim == 1:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, packed), raw_dtype=packed)
