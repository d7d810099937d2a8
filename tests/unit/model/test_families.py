"""Which models are decoded, as transformers does, and which are refused."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    T5Config,
)

from adadecode.engine.generate import Request, generate
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import UnsupportedModelError
from adadecode.kernels.weights import LayerKind
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import FAMILIES, Family, windows_by_type
from adadecode.model.load import load_model
from adadecode.model.refusals import changing_rotary
from adadecode.settings import ModelSettings
from tests.models import KERNELS, tiny_lm

THETA = {"rope_theta": 10000.0}

UNSUPPORTED: dict[str, tuple[PretrainedConfig, str, str]] = {
    "mixtral": (MixtralConfig(), "mixtral", "its layers have experts"),
    "qwen3 with experts": (Qwen3MoeConfig(), "qwen3_moe", "its layers have experts"),
    "another activation": (LlamaConfig(hidden_act="relu"), "llama", "'relu' is none of silu, gelu"),
    "encoder-decoder": (T5Config(), "t5", "encoder-decoder"),
    "unknown family": (GPT2Config(), "gpt2", "not known to the engine"),
    "dynamic rope": (
        LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, **THETA}),
        "llama",
        "rotary type 'dynamic'",
    ),
}


def ids_of(decoded) -> tuple[int, ...]:
    return decoded.generation.output_token_ids


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_the_engine_would_decode_wrongly_is_refused_in_one_line(name, tmp_path):
    config, model_type, why = UNSUPPORTED[name]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(ModelSettings(model=str(tmp_path), kernels="eager"))
    message = str(caught.value)
    assert message.startswith(f"model type {model_type!r}: ")
    assert why in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_window_as_long_as_the_context_is_no_window():
    config = tiny_lm("mistral", context_len=64).config
    config.sliding_window = 64
    assert DecoderModel(AutoModelForCausalLM.from_config(config)).weights.kinds == ()
    config.sliding_window = 63
    assert DecoderModel(AutoModelForCausalLM.from_config(config)).weights.kinds == (LayerKind(63),) * 4


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
    with pytest.raises(UnsupportedModelError, match=r"'toy': its layers are not known .* use --kernels transformers"):
        DecoderModel(lm)
    monkeypatch.setitem(FAMILIES, "toy", Family(windows=windows_by_type, refused=(changing_rotary,)))
    model = DecoderModel(lm, kernels)
    ours = generate(model, Request([5, 6, 7], 20))
    assert ids_of(ours) == ids_of(generate_with_transformers(model, Request([5, 6, 7], 20)))
    lm.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, **THETA}
    with pytest.raises(UnsupportedModelError, match="'toy': rotary type 'dynamic'"):
        DecoderModel(lm)
