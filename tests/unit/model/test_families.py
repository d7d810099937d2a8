"""Which models are decoded, as transformers does, and which are refused."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)

from adadecode.engine.generate import Request, generate
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import UnsupportedModelError
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import FAMILIES, Family, short_window
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.models import KERNELS, tiny_lm

THETA = {"rope_theta": 10000.0}

UNSUPPORTED: dict[str, tuple[PretrainedConfig, str, str]] = {
    "mistral with a window": (
        MistralConfig(sliding_window=128, max_position_embeddings=1024),
        "mistral",
        "sliding-window attention over 128 positions",
    ),
    "qwen2 with a window": (
        Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=1, max_position_embeddings=1024),
        "qwen2",
        "sliding-window attention over 64 positions",
    ),
    "soft-capped logits": (Gemma2Config(), "gemma2", "soft-capped"),
    "mixtral": (MixtralConfig(), "mixtral", "mixture-of-experts"),
    "qwen3 with experts": (Qwen3MoeConfig(), "qwen3_moe", "mixture-of-experts"),
    "llama with biases in its attention": (LlamaConfig(attention_bias=True), "llama", "bias"),
    "llama with biases in its MLP": (LlamaConfig(mlp_bias=True), "llama", "bias"),
    "qwen3 with biases": (Qwen3Config(attention_bias=True), "qwen3", "bias"),
    "another activation": (LlamaConfig(hidden_act="gelu"), "llama", "gelu"),
    "encoder-decoder": (T5Config(), "t5", "encoder-decoder"),
    "unknown family": (GPT2Config(), "gpt2", "not known to the engine"),
    "dynamic rope": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, **THETA}),
        "llama",
        "rotary type 'dynamic'",
    ),
    "longrope": (
        LlamaConfig(
            hidden_size=32,
            num_attention_heads=4,
            rope_parameters={
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "factor": 2.0,
                "original_max_position_embeddings": 1024,
                **THETA,
            },
        ),
        "llama",
        "rotary type 'longrope'",
    ),
}


def ids_of(decoded) -> tuple[int, ...]:
    return decoded.generation.output_token_ids


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_the_engine_would_decode_wrongly_is_refused_in_one_line(name, tmp_path):
    config, model_type, why = UNSUPPORTED[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(ModelSettings(model=str(tmp_path)))
    message = str(caught.value)
    assert message.startswith(f"model type {model_type!r}: ")
    assert why in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_window_as_long_as_the_context_is_no_window():
    config = tiny_lm("mistral", context_len=64).config
    config.sliding_window = 64
    assert DecoderModel(AutoModelForCausalLM.from_config(config)).context_len == 64
    config.sliding_window = 63
    with pytest.raises(UnsupportedModelError, match="over 63 positions"):
        DecoderModel(AutoModelForCausalLM.from_config(config))


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("rope", [LLAMA3, YARN], ids=["llama3", "yarn"])
def test_a_rotary_type_that_is_fixed_by_position_is_decoded(rope, kernels):
    config = tiny_lm().config
    config.rope_parameters = {**rope, **THETA}
    torch.manual_seed(0)
    model = DecoderModel(AutoModelForCausalLM.from_config(config), kernels)
    ours = generate(model, Request([5, 6, 7], 20))
    assert ids_of(ours) == ids_of(generate_with_transformers(model, Request([5, 6, 7], 20)))


class ToyConfig(Qwen2Config):
    model_type = "toy"


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_family_is_one_row(kernels, monkeypatch):
    sizes = tiny_lm("qwen2").config.to_dict() | {"model_type": "toy", "architectures": None}
    torch.manual_seed(0)
    lm: Any = Qwen2ForCausalLM(ToyConfig(**sizes))
    lm.model.layers[0].self_attn.q_proj.bias.data.fill_(1.0)  # a fresh one is zero
    with pytest.raises(
        UnsupportedModelError, match=r"'toy': its layers are not known .* llama, mistral, qwen2, qwen3$"
    ):
        DecoderModel(lm)
    monkeypatch.setitem(FAMILIES, "toy", Family(has_qkv_bias=True, refused=(short_window,)))
    model = DecoderModel(lm, kernels)
    ours = generate(model, Request([5, 6, 7], 20))
    assert ids_of(ours) == ids_of(generate_with_transformers(model, Request([5, 6, 7], 20)))
    lm.config.sliding_window = 64
    with pytest.raises(UnsupportedModelError, match="'toy': sliding-window attention over 64 positions"):
        DecoderModel(lm)
