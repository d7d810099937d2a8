"""The families beside Llama's kin: as transformers does, past their windows, with heads, and bit for bit as vanilla."""

import pytest
import torch

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy
from adadecode.engine.transformers import generate_with_transformers
from adadecode.errors import UnsupportedModelError
from adadecode.kernels.layers import sequence_step
from adadecode.kernels.step import Segment
from adadecode.kernels.weights import LayerKind
from adadecode.model.decoder import DecoderModel
from adadecode.model.families import check_supported, context_len
from adadecode.model.load import load_model
from adadecode.model.size import model_size
from adadecode.settings import ModelSettings
from tests.folders import save_tiny_model
from tests.models import KERNELS, OTHERS, block_heads, medusa_heads, random_heads, tiny_lm, tiny_model

PROMPT = [(7 * i + 3) % 97 for i in range(20)]  # longer than any window here
POLICY = Policy((1, 3), (0.02, 0.02), 5)
WINDOWED: dict[str, object] = {"sliding_window": 8}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{family: (family, {}) for family in OTHERS},
    "phi3, longrope": (
        "phi3",
        {
            "sliding_window": None,
            "original_max_position_embeddings": 128,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 3.0],
                "partial_rotary_factor": 0.5,
                "rope_theta": 10000.0,
            },
        },
    ),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "gpt_neox, one after the other": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_neox, no biases": ("gpt_neox", {"attention_bias": False}),
    "gemma2, no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, GELU": ("llama", {"hidden_act": "gelu"}),
    "mistral, a window": ("mistral", WINDOWED),
    "qwen2, a window in some": ("qwen2", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3, a window in some": ("qwen3", {**WINDOWED, "use_sliding_window": True, "max_window_layers": 1}),
}


MORE = [*sorted(OTHERS.keys() - {"gemma2", "gpt_neox"}), "stablelm, parallel", "llama, biases", "mistral, a window"]


def variant(name: str, **settings) -> DecoderModel:
    family, config = VARIANTS[name]
    return tiny_model(family, **config, **settings)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_prompt_and_steps_past_every_window_are_as_transformers_has_them(name, kernels):
    model = variant(name, kernels=kernels)
    step = model.new_step(4, 60)
    expected = model.lm(torch.tensor([[*PROMPT, 5, 6, 7]])).logits[0]
    torch.testing.assert_close(step.prefill(PROMPT).logits, expected[19], rtol=1e-5, atol=1e-5)
    step.begin(20)
    step.put(0, [5, 6, 7])
    step.run(0, 3, 0, model.num_layers)
    step.verify(0, 3)
    torch.testing.assert_close(step.logits[:3], expected[20:], rtol=1e-5, atol=1e-5)
    ours = generate(model, Request(PROMPT, 12)).generation.output_token_ids
    assert ours == generate_with_transformers(model, Request(PROMPT, 12)).generation.output_token_ids


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
@pytest.mark.parametrize("kernels", KERNELS)
def test_rounds_keep_every_bit_of_vanilla(name, kernels):
    model = variant(name, dtype=torch.bfloat16, kernels=kernels)
    request = Request(PROMPT, 20, record_logits=True)
    vanilla = generate(model, request, Policy(rows=POLICY.width))
    num_accepted = 0
    for heads in (random_heads(model, (1, 3)), block_heads(model, (1, 3))):
        ours = generate(model, request, POLICY, drafters_of(POLICY, heads))
        assert ours.generation.output_token_ids == vanilla.generation.output_token_ids
        assert torch.equal(ours.logits, vanilla.logits)
        num_accepted += ours.generation.num_accepted
    assert num_accepted > 0


@pytest.mark.parametrize("name", OTHERS)
def test_a_row_gives_the_same_bits_beside_any_rows(name):
    check_rows_independent(variant(name, num_layers=1), 8, (200,))


@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "smollm3", "mistral, a window", "gpt_neox"])
@torch.inference_mode()
def test_the_block_of_a_head_is_like_the_last_layer(name):
    """What a block in training computes, by transformers, is what the engine computes of it."""
    model = variant(name)
    hidden = torch.randn(2, 20, model.width, generator=torch.Generator().manual_seed(0))
    last, kind = model.weights.layers[-1], model.weights.kind(-1)
    rotary = None if kind.rotary is None else model.weights.rotaries[kind.rotary]
    ours = [sequence_step(last, model.weights.shape, one, rotary, kind.window) for one in hidden]
    theirs = model.run_like_last(model.body.layers[-1], hidden)
    torch.testing.assert_close(torch.stack(ours), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt_neox"])
@torch.inference_mode()
def test_heads_give_the_probabilities_that_their_logits_have(name, kernels):
    """The cap, the scale and the last norm with its bias are in what a test says, as in what training reports."""
    model = variant(name, kernels=kernels)
    heads = random_heads(model, (1, 3))
    step = model.new_step(4, 60)
    step.prefill(PROMPT)
    step.begin(20)
    step.put(0, [5, 6, 7])
    test = next(iter(heads.tests))
    proposals = step.run_to_exit(Segment(0, 3, 0, 1), test, 0)
    logits = heads.logits(1, step.hidden[:3])
    expected = logits.softmax(dim=-1).max(dim=-1)
    assert [token_id for token_id, _ in proposals] == expected.indices.tolist()
    torch.testing.assert_close(torch.tensor([p for _, p in proposals]), expected.values)
    if model.weights.logits.cap is not None:
        assert logits.abs().max() <= model.weights.logits.cap
    state = torch.randn(model.width)
    tops = medusa_heads(model, noise=0.0).proposals(state, 1)
    of_model = model.lm_head(state[None])[0].softmax(dim=-1).max(dim=-1)
    assert tops[0][0] == int(of_model.indices)


def test_layers_differ_where_the_family_has_them_differ():
    kinds = variant("gemma3_text").weights.kinds
    assert kinds == (LayerKind(8, 1), LayerKind(None, 0)) * 2
    assert variant("smollm3").weights.kinds == (LayerKind(None, 0), LayerKind(8, None)) * 2
    assert variant("phi3").weights.kinds == (LayerKind(8),) * 4
    assert variant("olmo2").weights.kinds == ()


def test_longrope_is_decoded_within_its_short_range():
    model = variant("phi3, longrope")
    assert (model.context_len, context_len(model.config), model.config.max_position_embeddings) == (128, 128, 1024)
    assert len(generate(model, Request(PROMPT, 110)).generation.output_token_ids) == 128 - 20


def test_a_model_on_two_devices_has_its_parts_there():
    for family in ("gpt_neox", "gemma2"):
        one, two = tiny_model(family), tiny_model(family, num_stages=2)
        outputs = [generate(model, Request(PROMPT, 12)).generation.output_token_ids for model in (one, two)]
        assert outputs[0] == outputs[1]


@pytest.mark.parametrize("family", OTHERS)
@torch.inference_mode()
def test_a_saved_model_is_loaded_again(family, tmp_path):
    folder = str(save_tiny_model(tmp_path, family))
    loaded, _ = load_model(ModelSettings(model=folder, dtype="float32", kernels="eager"))
    ours, theirs = (model.new_step(1, 30).prefill(PROMPT).logits for model in (loaded, tiny_model(family)))
    torch.testing.assert_close(ours, theirs)
    assert model_size(loaded.config, "float32").column == loaded.weights.column_bytes


REFUSED = {
    "norms of each head": ("stablelm", {"qk_layernorm": True}, "a LayerNorm for each head"),
    "attention that looks ahead": ("gemma3_text", {"use_bidirectional_attention": True}, "looks ahead"),
    "an activation of its own": ("gpt_neox", {"hidden_act": "relu"}, "'relu' is none of silu, gelu"),
    "chunked attention": ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "layers of chunked_attention"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_and_what_would_lift_it(name):
    family, config, why = REFUSED[name]
    changed = tiny_lm(family, num_layers=4).config
    for key, value in config.items():
        setattr(changed, key, value)
    with pytest.raises(UnsupportedModelError, match=why) as caught:
        check_supported(changed, "eager")
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)
