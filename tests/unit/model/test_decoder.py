"""A model as the engine sees it: facts, hashes, weights that it shares with transformers."""

import gc
import weakref

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
)

from adadecode.engine.generate import Request, generate, room_for_output
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import PromptTooLongError
from adadecode.model.decoder import DecoderModel
from adadecode.model.load import load_model
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model
from tests.models import KERNELS, tiny_lm, tiny_model

DTYPES = ("float32", "bfloat16", "float16")


def ids_of(decoded) -> tuple[int, ...]:
    return decoded.generation.output_token_ids


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
    layer, weights = model.lm.model.layers[2], model.weights.layers[2]
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


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_decoder_is_gone_with_its_last_name(kernels):
    """Its weights fill the memory: they may not wait for the garbage collector."""
    model = tiny_model(kernels=kernels)
    generate(model, Request([5, 6, 7], 2))
    kept = [weakref.ref(model), weakref.ref(model.weights), weakref.ref(model.steps)]
    gc.disable()
    try:
        del model
        assert [ref() for ref in kept] == [None, None, None]
    finally:
        gc.enable()
