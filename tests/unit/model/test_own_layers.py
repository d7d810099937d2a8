"""Models of families nobody taught the engine: their own layers at static shapes, with parity, or refused in one line."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from adadecode.engine.drafters import drafters_of
from adadecode.engine.generate import Request, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy
from adadecode.errors import RowsDependentError, UnsupportedModelError
from adadecode.model.decoder import DecoderModel
from adadecode.model.head_tensors import original_heads
from tests.models import tiny_lm

PROMPT = [(7 * i + 3) % 97 for i in range(20)]  # longer than any window here
POLICY = Policy((1, 3), (0.02, 0.02), 5, ngram=0.1)
NUM_TOKENS = 24
SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DENSE = {
    "cohere2": {"sliding_window": 8},  # windows in some layers, scaled logits
    "starcoder2": {"sliding_window": 8},
    "gpt2": {},  # learned positions
}
EXPERTS = {"mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2}}


def other_lm(kind: str, dtype: torch.dtype = torch.float32, **settings):
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings}))
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # so that layers tell
    return lm.to(dtype).eval()


def decode(model: DecoderModel, policy: Policy, num_tokens: int = NUM_TOKENS):
    heads = original_heads(model, policy.exits) if policy.exits else None
    request = Request(PROMPT, num_tokens, eos_token_ids=(), record_logits=True)
    return generate(model, request, policy, drafters_of(policy, heads))


def greedy_by_transformers(lm) -> list[int]:
    ids = torch.tensor([PROMPT])
    mask = torch.ones_like(ids)
    out = lm.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=NUM_TOKENS, pad_token_id=0)
    return out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*DENSE, *EXPERTS])
def test_unknown_family_is_as_transformers_has_it_and_adadecode_as_vanilla(kind, dtype):
    lm = other_lm(kind, dtype, **(DENSE | EXPERTS)[kind])
    expected = greedy_by_transformers(lm)
    model = DecoderModel(lm, "auto")
    assert (model.kernels, model.chosen_kernels.because is None) == ("transformers", False)
    check_rows_independent(model, POLICY.width, (len(PROMPT) + NUM_TOKENS,))
    vanilla, ours = decode(model, Policy(rows=POLICY.width)), decode(model, POLICY)
    if dtype == torch.float32:
        assert list(vanilla.generation.output_token_ids) == expected
    assert ours.generation.output_token_ids == vanilla.generation.output_token_ids
    assert vanilla.logits is not None
    assert ours.logits is not None
    assert torch.equal(ours.logits.view(torch.uint8), vanilla.logits.view(torch.uint8))
    assert ours.generation.num_rounds < vanilla.generation.num_rounds  # something was drafted and accepted


def test_known_family_by_its_own_layers_gives_the_tokens_of_the_engines():
    lm = tiny_lm("llama")
    own = decode(DecoderModel(lm, "transformers"), POLICY)
    assert own.generation.output_token_ids == decode(DecoderModel(lm, "eager"), POLICY).generation.output_token_ids


def test_the_models_attention_is_its_own_again_after_every_call():
    lm = other_lm("gpt2")
    before = lm.config._attn_implementation
    model = DecoderModel(lm, "transformers")
    decode(model, POLICY, 3)
    assert lm.config._attn_implementation == before
    assert lm.transformer.h is model.layers


def test_row_check_refuses_layers_whose_rows_see_their_slots():
    model = DecoderModel(other_lm("mixtral", **EXPERTS["mixtral"]), "transformers")

    def by_slot(_layer, _args, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * (1 + torch.arange(hidden.shape[1])[:, None] / 64)

    model.layers[1].register_forward_hook(by_slot)
    with pytest.raises(RowsDependentError, match=r"slot \d+ differs from slot 0"):
        check_rows_independent(model, 4, (64,))


def test_layers_that_another_code_gives_other_logits_are_refused():
    lm = other_lm("gpt2")
    lm.transformer.h[1].register_forward_hook(lambda _l, args, out: out * args[0].shape[1])
    with pytest.raises(UnsupportedModelError, match="give other logits than it does"):
        DecoderModel(lm, "transformers")


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        ("falcon", {}, "does not go through transformers' attention interface"),
        ("mamba", {"num_hidden_layers": 2}, "not every layer has keys and values"),
        ("gpt_neo", {"attention_types": [[["global"], 4]]}, "attention interface|cannot be called from outside"),
    ],
)
def test_refused_in_one_line(kind, settings, why):
    with pytest.raises(UnsupportedModelError, match=why) as caught:
        DecoderModel(other_lm(kind, **settings), "transformers")
    assert "\n" not in str(caught.value)
    assert "would lift it" in str(caught.value)


def test_other_kernels_name_the_remedy():
    with pytest.raises(
        UnsupportedModelError, match=r"not known to the engine, so --kernels eager .*--kernels transformers"
    ):
        DecoderModel(other_lm("gpt2"), "eager")
