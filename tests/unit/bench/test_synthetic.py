"""Synthetic models: the sizes are the published ones, and the exits agree as often as was asked for."""

import typing

import pytest
import torch
from transformers import AutoModelForCausalLM

from adadecode.bench.synthetic import (
    SHAPES,
    layer_variance,
    successors,
    synthetic_heads,
    synthetic_lm,
    synthetic_prompts,
)
from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.policy import Policy
from adadecode.model.decoder import DecoderModel
from adadecode.model.shortlist import default_shortlist_len
from adadecode.settings import ShapeName

SMALL = {
    "num_hidden_layers": 8,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}


def small_lm(name: str = "llama-160m", dtype: torch.dtype = torch.float32, **changed):
    return synthetic_lm(name, dtype=dtype, device="cpu", **{**SMALL, **changed})


@torch.inference_mode()
def continue_prompts(model: DecoderModel, num_prompts: int = 4, num_tokens: int = 100):
    """Per prompt: the last prompt token with the output, and the hidden states `[L + 1, n, d]` that decided it."""
    for prompt in synthetic_prompts(model.vocab_size, num_prompts, 48):
        output = generate(model, Request(prompt, num_tokens)).generation.output_token_ids
        full = torch.tensor([[*prompt, *output[:-1]]])
        hidden = model.lm.model(full, output_hidden_states=True, use_cache=False).hidden_states
        yield [prompt[-1], *output], torch.stack(hidden)[:, 0, len(prompt) - 1 :]


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-3.1-8b", 8.03), ("llama-3.2-1b", 1.236), ("qwen3-8b", 8.19), ("llama-160m", 0.162)]
)
def test_a_shape_has_the_published_number_of_parameters(name, billions):
    config_type, values = SHAPES[name]
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config_type(**{"tie_word_embeddings": False, **values}))
    assert sum(p.numel() for p in lm.parameters()) / 1e9 == pytest.approx(billions, rel=0.003)


def test_the_settings_offer_every_shape():
    assert set(typing.get_args(ShapeName)) == set(SHAPES)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "qwen3-8b"])
@pytest.mark.parametrize("agreement", [0.85, 0.95])
def test_identity_heads_agree_with_the_last_layer_as_often_as_was_asked_for(name, agreement):
    model = DecoderModel(small_lm(name, agreement=agreement), "auto")
    heads = synthetic_heads(model, None)
    agrees = {exit_layer: [] for exit_layer in heads.exits}
    for tokens, hidden in continue_prompts(model):
        for exit_layer in heads.exits:
            proposed = heads.logits(exit_layer, hidden[exit_layer]).argmax(dim=-1)
            agrees[exit_layer] += (proposed == torch.tensor(tokens[1:])).tolist()
    shares = [sum(found) / len(found) for found in agrees.values()]
    assert heads.exits == (2, 4, 6)
    assert shares[0] == pytest.approx(agreement, abs=0.1)
    assert shares[0] <= shares[-1] + 0.02


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b"])
def test_a_continuation_never_stands_still_and_is_mostly_sure(name):
    model = DecoderModel(small_lm(name), "auto")
    first, second = successors(model.vocab_size, 0)
    probabilities = []
    for tokens, hidden in continue_prompts(model):
        now, then = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        assert (now != then).float().mean() > 0.97
        assert ((first[now] == then) | (second[now] == then)).float().mean() > 0.8
        final = model.lm.lm_head(hidden[-1])  # transformers has normed the last
        probabilities += final.softmax(dim=-1).max(dim=-1).values.tolist()
    assert sum(p >= 0.5 for p in probabilities) / len(probabilities) > 0.85
    assert sum(probabilities) / len(probabilities) > 0.75


def test_successors_are_cycles_that_stay_within_the_shortlist_or_outside():
    for successor in successors(101, seed=3):
        assert sorted(successor.tolist()) == list(range(101))
        for start, stop in ((0, default_shortlist_len(101)), (default_shortlist_len(101), 101)):
            seen, token_id = set(), start
            while token_id not in seen:
                seen.add(token_id)
                token_id = int(successor[token_id])
            assert seen == set(range(start, stop))


def test_more_agreement_takes_less_from_each_layer():
    assert layer_variance(32, 0.95) < layer_variance(32, 0.85) < layer_variance(16, 0.85)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_weights_are_made_in_the_dtype_and_tied_where_the_shape_ties_them(dtype):
    tied, untied = small_lm("llama-3.2-1b", dtype), small_lm("llama-3.1-8b", dtype)
    assert {p.dtype for lm in (tied, untied) for p in lm.parameters()} == {dtype}
    assert all(p.isfinite().all() for lm in (tied, untied) for p in lm.parameters())
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    again = small_lm("llama-3.1-8b", dtype)
    assert all(torch.equal(a, b) for a, b in zip(untied.parameters(), again.parameters(), strict=True))


def test_rotary_frequencies_are_the_configs():
    lm = small_lm("qwen3-8b", torch.bfloat16)
    with torch.device("cpu"):
        made = AutoModelForCausalLM.from_config(lm.config)
    assert torch.equal(lm.model.rotary_emb.inv_freq, made.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("head", ["full", "shortlist"])
def test_synthetic_heads_draft_tokens_that_are_accepted(head, gate):
    model = DecoderModel(small_lm(dtype=torch.bfloat16, agreement=0.95), "auto")
    heads = synthetic_heads(model, (2, 6), head, gate)
    policy = Policy((2, 6), (0.75, 0.75), 5)
    prompt = synthetic_prompts(model.vocab_size, 1, 32)[0]
    request = Request(prompt, 80, record_logits=True)
    vanilla, adadecode = generate(model, request), generate(model, request, policy, drafters_of(policy, heads))
    assert adadecode.generation.output_token_ids == vanilla.generation.output_token_ids
    assert torch.equal(adadecode.logits, vanilla.logits)
    assert max(vanilla.generation.output_token_ids) < default_shortlist_len(model.vocab_size)
    assert adadecode.generation.num_accepted > 0.5 * adadecode.generation.num_drafted > 10
