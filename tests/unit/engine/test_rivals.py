"""Methods that adadecode is compared with: what each drafts, and vanilla's tokens and bits from those that owe them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.engine.decode import check_can_decode, decode
from adadecode.engine.generate import Request
from adadecode.engine.policy import OneExit, Policy, make_policy
from adadecode.errors import UsageError
from adadecode.methods import METHODS
from adadecode.model.decoder import DecoderModel
from adadecode.records import Generation
from adadecode.settings import DecodeSettings
from tests.models import (
    EAGER_DTYPES,
    FAMILIES,
    KERNELS,
    NATIVE_DTYPES,
    letters_stop,
    random_gates,
    random_heads,
    store_of,
    tiny_lm,
    tiny_model,
)

PROMPT = [7, 8, 9] * 4
LAYERSKIP, NGRAM, SPECULATIVE = METHODS["layerskip"], METHODS["ngram"], METHODS["speculative"]


def layerskip(num_drafts: int, max_new_tokens: int = 40, *, gate: float = 0.0, **model_settings) -> Generation:
    """What drafting at layer 2 of 4 gives, `num_drafts` in a round."""
    model = tiny_model(**model_settings)
    heads = random_heads(model, (1, 2), gates=random_gates(model, (1, 2)), gate=gate)
    policy = Policy((1, 2), (0.9, 0.9), 2, reject=0.1, ngram=0.2, stop="chain", layerskip=OneExit(2, num_drafts))
    return decode(model, LAYERSKIP, Request(PROMPT, max_new_tokens), policy, heads).generation


@pytest.mark.parametrize("num_drafts", [1, 4, 7, 12])
@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_layerskip_drafts_its_fixed_length_in_every_round_that_has_room(num_drafts, gate):
    """However unsure its head is, and whatever a gate says: no policy of gammas, n-grams or rejection counts."""
    generation = layerskip(num_drafts, gate=gate)
    assert generation.exits == (2,)
    given_before = 1
    for accepted in rounds_of(generation):
        given_before += accepted + 1
    assert given_before == 40
    left, num_drafted = 39, 0
    for accepted in rounds_of(generation):
        num_drafted += min(num_drafts, left - 1)
        left -= accepted + 1
    assert generation.num_drafted == num_drafted
    # each draft takes layers 1 and 2 of its slot, the last token all four, the parked ones 3 and 4 with it
    assert generation.layers_run == 2 * num_drafted + 4 * generation.num_rounds


def rounds_of(generation: Generation) -> list[int]:
    """How many drafts each round had accepted."""
    accepted, rounds = 0, []
    for depth in generation.draft_depths[1:]:
        if depth == 4:
            rounds.append(accepted)
        accepted = 0 if depth == 4 else accepted + 1
    return rounds


def test_ngrams_draft_without_heads_by_the_policys_threshold_or_their_own():
    model = tiny_model()
    by_policy, by_default, off = (
        decode(model, NGRAM, Request(PROMPT, 40), policy).generation
        for policy in (Policy(max_drafts=5, ngram=0.99), Policy(max_drafts=5), Policy(max_drafts=0))
    )
    assert by_policy.exits == by_default.exits == (0,)
    assert by_policy.num_drafted < by_default.num_drafted
    assert by_default.num_accepted > 0
    assert off.num_drafted == 0


def test_ngrams_ask_the_store_beside_the_heads():
    model = tiny_model()
    prompts = [[i, 5, 6, 7] for i in range(20, 40)]
    heads = random_heads(model, (1, 2)).with_store(store_of(model, prompts))
    request, policy = Request(prompts[3], 24), Policy((1, 2), (0.5, 0.5), 5)
    with_it, without = (decode(model, NGRAM, request, policy, given).generation for given in (heads, None))
    assert with_it.exits == (0,)
    assert with_it.num_accepted > without.num_accepted
    assert with_it.output_token_ids == without.output_token_ids


def test_layerskip_is_at_the_papers_first_exit_or_the_first_that_has_a_head():
    assert make_policy(DecodeSettings(), (1, 4, 8, 12), 16).layerskip == OneExit(4, 4)
    assert make_policy(DecodeSettings(), (2, 8), 16).layerskip == OneExit(2, 4)
    assert make_policy(DecodeSettings(), None, 16).layerskip == OneExit(4, 4)
    assert make_policy(DecodeSettings(layerskip_exit=8, layerskip_drafts=7), (2, 8), 16).layerskip == OneExit(8, 7)
    assert make_policy(DecodeSettings(), None, 1).layerskip == OneExit(None, 4)


def test_layerskip_says_where_there_are_heads():
    model, policy = tiny_model(), make_policy(DecodeSettings(layerskip_exit=3), (1, 2), 4)
    heads = random_heads(model, (1, 2))
    check_can_decode(model, [METHODS["adadecode"], METHODS["hf-early-exit"]], policy, heads)
    with pytest.raises(UsageError, match=r"^--layerskip-exit 3: there are no heads at \[3\]; the heads are at 1,2"):
        check_can_decode(model, [LAYERSKIP], policy, heads)
    with pytest.raises(UsageError, match=r"^--layerskip-exit 16: give one from 1 to 15"):
        make_policy(DecodeSettings(layerskip_exit=16), (2, 8), 16)
    with pytest.raises(UsageError, match=r"^--methods hf-early-exit: a model of one layer has no exit"):
        check_can_decode(tiny_model(num_layers=1), [METHODS["hf-early-exit"]], make_policy(DecodeSettings(), None, 1))


def test_a_step_is_wide_enough_for_the_fixed_length():
    for num_drafts, width in ((4, 8), (7, 8), (8, 16)):
        policy = Policy(max_drafts=5, layerskip=OneExit(2, num_drafts))
        assert policy.width == width
        assert {policy.for_method(METHODS[name]).width for name in ("vanilla", "adadecode", "layerskip")} == {width}


DRAW = {
    "draft": st.fixed_dictionaries(
        {
            "family": st.sampled_from(sorted(FAMILIES)),
            "seed": st.integers(0, 3),
            "num_layers": st.integers(1, 5),
            "context_len": st.sampled_from([16, 40, 1024]),
            "vocab_size": st.sampled_from([60, 97, 120]),
        }
    ),
    "draft_gamma": st.sampled_from([0.0, 0.01, 0.2]),
    "family": st.sampled_from(sorted(FAMILIES)),
    "seed": st.integers(0, 3),
    "tied": st.booleans(),
    "layerskip": st.builds(OneExit, st.integers(1, 4), st.integers(1, 9)),
    "max_drafts": st.integers(0, 9),
    "ngram": st.sampled_from([None, 0.0, 0.3]),
    "prompt_len": st.integers(1, 70),
    "prompt_vocab": st.sampled_from([3, 97]),
    "max_new_tokens": st.integers(1, 24),
    "eos": st.sampled_from([(), (3, 9, 11, 17, 29)]),
    "stop_string": st.sampled_from([None, "ab", "ccc", "d"]),
}


def assert_bits_are_vanillas(kernels, dtype, drawn) -> None:
    """Decodes what `drawn` says, see DRAW, by every rival that owes vanilla's output."""
    model = tiny_model(
        drawn["family"], dtype=dtype, kernels=kernels, seed=drawn["seed"], tied=drawn["tied"], num_layers=5
    )
    generator = torch.Generator().manual_seed(drawn["seed"])
    prompt = torch.randint(0, drawn["prompt_vocab"], (drawn["prompt_len"],), generator=generator).tolist()
    stops = None if drawn["stop_string"] is None else letters_stop(drawn["stop_string"])
    request = Request(prompt, drawn["max_new_tokens"], drawn["eos"], record_logits=True, stops=stops)
    policy = Policy(
        max_drafts=drawn["max_drafts"],
        ngram=drawn["ngram"],
        layerskip=drawn["layerskip"],
        draft_gamma=drawn["draft_gamma"],
    )
    draft = tiny_model(dtype=dtype, kernels=kernels, **drawn["draft"])
    heads = random_heads(model, (1, 2, 3, 4), drawn["seed"])
    vanilla = decode(model, METHODS["vanilla"], request, policy)
    for method in (NGRAM, LAYERSKIP, SPECULATIVE):
        decoded = decode(model, method, request, policy, heads, draft)
        assert decoded.generation.output_token_ids == vanilla.generation.output_token_ids, method
        assert decoded.generation.finish_reason == vanilla.generation.finish_reason, method
        assert torch.equal(decoded.logits, vanilla.logits), method


@pytest.mark.parametrize(("kernels", "dtype"), NATIVE_DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=st.fixed_dictionaries(DRAW))
def test_rivals_give_vanillas_tokens_and_bits_with_native_kernels(kernels, dtype, drawn):
    assert_bits_are_vanillas(kernels, dtype, drawn)


@pytest.mark.parametrize(("kernels", "dtype"), EAGER_DTYPES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(drawn=st.fixed_dictionaries(DRAW))
def test_rivals_give_vanillas_tokens_and_bits_with_eager_kernels(kernels, dtype, drawn):
    assert_bits_are_vanillas(kernels, dtype, drawn)


def without_effect(layers: tuple[int, ...]):
    """A random model in which `layers`, counted from 1, add nothing."""
    lm = tiny_lm(num_layers=5, seed=2)
    for layer in layers:
        lm.model.layers[layer - 1].self_attn.o_proj.weight.data.zero_()
        lm.model.layers[layer - 1].mlp.down_proj.weight.data.zero_()
    return lm


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("skipped", [(2,), (2, 4), (3, 4)])
def test_layer_skipping_runs_the_other_layers_and_no_more(kernels, skipped):
    """Left out without a trace where the layers add nothing, and only there."""
    policy, request = Policy(max_drafts=5, skipped=skipped), Request([7, 8, 9], 30, ())
    for lm, is_same in ((without_effect(skipped), True), (without_effect(()), False)):
        model = DecoderModel(lm, kernels)
        skipping = decode(model, METHODS["layer-skipping"], request, policy)
        vanilla = decode(model, METHODS["vanilla"], request, policy).generation
        assert (skipping.generation.output_token_ids == vanilla.output_token_ids) is is_same
        assert skipping.generation.output_token_ids[0] == vanilla.output_token_ids[0], "the prompt passes all layers"
        assert (skipping.generation.layers_run, vanilla.layers_run) == (29 * (5 - len(skipped)), 29 * 5)
        assert skipping.generation.num_drafted == 0
        assert skipping.logits is None


def test_layers_to_skip_lie_between_the_first_and_the_last():
    assert make_policy(DecodeSettings(skip_layers=(2, 7)), None, 8).skipped == (2, 7)
    assert Policy(skipped=(2, 3, 5, 7, 8)).gaps == ((1, 3), (4, 5), (6, 8))
    with pytest.raises(UsageError, match=r"^--skip-layers 2,8: give layers from 2 to 7: the first and last stay"):
        make_policy(DecodeSettings(skip_layers=(2, 8)), None, 8)
    with pytest.raises(UsageError, match=r"^--skip-layers is missing: layer-skipping leaves them out"):
        check_can_decode(tiny_model(), [METHODS["layer-skipping"]], Policy())
