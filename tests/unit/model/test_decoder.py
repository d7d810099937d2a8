"""Loading a model: what is refused, and that what is loaded decodes as transformers does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    T5Config,
)

from adadecode.engine.generate import Request, generate, room_for_output
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import PromptTooLongError, UnsupportedModelError, UsageError
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model
from tests.models import FAMILIES, KERNELS, tiny_lm, tiny_model

DTYPES = ("float32", "bfloat16", "float16")
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_loads_in_every_dtype_with_its_weights(dtype, tied, tmp_path):
    lm = tiny_lm(tied=tied).to(getattr(torch, dtype))
    save_tiny_model(tmp_path, tied=tied)
    model, tokenizer = load_model(ModelSettings(model=str(tmp_path), dtype=dtype))
    assert model.dtype == getattr(torch, dtype)
    assert (model.num_layers, model.width, model.vocab_size, model.context_len) == (4, 32, 97, 1024)
    assert (model.lm.lm_head.weight is model.lm.model.embed_tokens.weight) == tied
    expected = dict(lm.named_parameters())
    for name, parameter in model.lm.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
    assert tokenizer("w5 w6 nonsense").input_ids == [5, 6, 0]
    assert len(tokenizer) == model.vocab_size


@pytest.mark.parametrize("kernels", ["auto", *KERNELS])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_from_a_folder_and_decodes_as_transformers_does(family, kernels, tmp_path):
    model, _ = load_model(ModelSettings(model=str(save_tiny_model(tmp_path, family)), dtype="float32", kernels=kernels))
    lm = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompt = torch.tensor([[5, 6, 7]])
    config = GenerationConfig(max_new_tokens=20, do_sample=False, pad_token_id=0)
    oracle = lm.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    assert ids_of(generate(model, Request([5, 6, 7], 20))) == tuple(oracle[0, 3:].tolist())


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


def _damage(folder: Path, file: str, content: bytes | None) -> None:
    """Replaces `file` in `folder`, or removes it when `content` is None."""
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b'{"model_type": "llama"'),
        ("model.safetensors", None),
        ("model.safetensors", b"\x08\0\0\0"),
        ("tokenizer.json", None),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_folder_with_a_missing_or_damaged_file_is_one_line(file, content, tmp_path):
    save_tiny_model(tmp_path)
    _damage(tmp_path, file, content)
    if file == "tokenizer.json" and content is None:
        (tmp_path / "tokenizer_config.json").unlink()
    assert_cannot_be_loaded(str(tmp_path))


def test_a_checkpoint_that_lacks_a_weight_is_one_line(tmp_path):
    """transformers fills the gap with random weights."""
    save_tiny_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = assert_cannot_be_loaded(str(tmp_path))
    assert "(the checkpoint lacks model.layers.1.mlp.up_proj.weight)" in message


def test_a_path_that_is_missing_or_a_file_is_one_line(tmp_path):
    assert_cannot_be_loaded(str(tmp_path / "none"))
    (tmp_path / "file").write_text("no model")
    assert_cannot_be_loaded(str(tmp_path / "file"))


def assert_cannot_be_loaded(model: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_model(ModelSettings(model=model))
    message = str(caught.value)
    assert message.startswith(f"--model {model!r} cannot be loaded; give `demo`, a folder with a transformers model")
    assert "\n" not in message
    return message


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_cannot_be_loaded("no/such-model")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible")
def test_cuda_without_a_device_is_refused(tmp_path):
    save_tiny_model(tmp_path)
    with pytest.raises(UsageError, match=r"--device 'cuda': no CUDA device is visible.*--device cpu"):
        load_model(ModelSettings(model=str(tmp_path), device="cuda"))


@pytest.mark.parametrize(
    ("in_config", "in_generation_config", "expected"),
    [(None, None, set()), (5, None, {5}), ([5, 6], None, {5, 6}), (5, 7, {7}), (5, [7, 8], {7, 8}), (0, None, {0})],
)
def test_eos_ids_come_from_the_generation_config_or_else_from_the_config(
    in_config, in_generation_config, expected, tmp_path
):
    save_tiny_model(tmp_path, eos_token_id=in_config)
    if in_generation_config is not None:
        GenerationConfig(eos_token_id=in_generation_config).save_pretrained(tmp_path)
    assert load_model(ModelSettings(model=str(tmp_path)))[0].eos_token_ids == expected


def test_the_models_own_generation_defaults_do_not_reach_greedy_decoding(tmp_path):
    plain, _ = load_model(ModelSettings(model=str(save_tiny_model(tmp_path / "plain")), dtype="float32"))
    save_tiny_model(tmp_path / "penal")
    GenerationConfig(repetition_penalty=1.8, do_sample=True, temperature=0.7, max_new_tokens=3).save_pretrained(
        tmp_path / "penal"
    )
    penal, _ = load_model(ModelSettings(model=str(tmp_path / "penal"), dtype="float32"))
    expected = ids_of(generate(plain, Request([5, 6, 7], 30)))
    assert len(set(expected)) < len(expected), "a repetition penalty would show"
    assert ids_of(generate(penal, Request([5, 6, 7], 30))) == expected
    assert ids_of(generate_with_transformers(penal, Request([5, 6, 7], 30))) == expected


@pytest.mark.parametrize("tied", [False, True])
def test_the_model_hash_is_the_same_in_every_dtype_for_a_bfloat16_checkpoint(tied, tmp_path):
    save_tiny_model(tmp_path, tied=tied, dtype=torch.bfloat16)
    assert len({load_model(ModelSettings(model=str(tmp_path), dtype=dtype))[0].model_hash for dtype in DTYPES}) == 1


def test_the_model_hash_of_a_float32_checkpoint_is_the_same_in_float32_and_bfloat16(tmp_path):
    save_tiny_model(tmp_path)
    assert (
        len(
            {
                load_model(ModelSettings(model=str(tmp_path), dtype=dtype))[0].model_hash
                for dtype in ("float32", "bfloat16")
            }
        )
        == 1
    )


def test_the_model_hash_tells_other_weights_from_these():
    hashes = [
        tiny_model().model_hash,
        tiny_model(seed=1).model_hash,
        tiny_model(tied=True).model_hash,
        tiny_model(num_layers=3).model_hash,
        tiny_model("qwen2").model_hash,
    ]
    assert len(set(hashes)) == len(hashes)
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.layers[2].mlp.up_proj.weight.mul_(1.05)
    assert DecoderModel(lm).model_hash not in hashes


def test_room_for_output_is_what_the_context_leaves():
    model = tiny_model(context_len=20)
    assert [room_for_output(model, prompt_len) for prompt_len in (1, 10, 19)] == [19, 10, 1]
    for prompt_len in (0, 20, 21):
        with pytest.raises(PromptTooLongError, match=rf"has {prompt_len} tokens.*context of 20 needs 1 to 19"):
            room_for_output(model, prompt_len)


def test_a_model_in_transformers_hands_shares_the_weights_of_the_decoder():
    """The joined projections are the parameters' own memory: they are in memory once, and changed together."""
    model = tiny_model("qwen2")
    layer, weights = model.lm.model.layers[2], model.layers[2]
    parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    assert torch.equal(weights.qkv, torch.cat([part.weight for part in parts]))
    assert torch.equal(weights.qkv_bias, torch.cat([part.bias for part in parts]))
    assert torch.equal(weights.gate_up, torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]))
    for joined, part in ((weights.qkv, parts[0]), (weights.gate_up, layer.mlp.up_proj)):
        assert part.weight.untyped_storage().data_ptr() == joined.untyped_storage().data_ptr()


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_second_decoder_over_the_same_weights_leaves_the_first_as_it_was(kernels):
    lm = tiny_lm()
    first = DecoderModel(lm, kernels)
    expected = ids_of(generate(first, Request([5, 6, 7], 20)))
    second = DecoderModel(lm, kernels)
    assert ids_of(generate(second, Request([5, 6, 7], 20))) == expected
    assert ids_of(generate(first, Request([5, 6, 7], 20))) == expected
    assert first.model_hash == second.model_hash


def test_a_decoder_can_be_saved_as_the_model_it_was(tmp_path):
    lm = tiny_lm("qwen2")
    before = {name: parameter.clone() for name, parameter in lm.named_parameters()}
    DecoderModel(lm).lm.save_pretrained(tmp_path)
    after = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())
