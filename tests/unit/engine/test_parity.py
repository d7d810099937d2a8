"""The parity contract: tokens equal and accepted logits bit-identical to vanilla's at the same width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adadecode.engine.baselines import generate_with_transformers
from adadecode.engine.generate import Decoded, generate
from adadecode.engine.invariance import check_rows_independent
from adadecode.engine.policy import Policy, step_width
from adadecode.errors import RowsDependentError
from adadecode.model.decoder import DecoderModel
from tests.models import FAMILIES, random_heads, tiny_model

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def decode_both(
    model: DecoderModel, prompt: list[int], exits: tuple[int, ...], gamma: float, max_drafts: int, max_new_tokens: int
) -> tuple[Decoded, Decoded]:
    """Vanilla and AdaDecode at the same width, with logits."""
    heads = random_heads(model, exits)
    policy = Policy(exits, (gamma,) * len(exits), max_drafts)
    common = {"width": step_width(max_drafts), "max_new_tokens": max_new_tokens, "record_logits": True}
    return generate(model, prompt, **common), generate(model, prompt, policy=policy, drafter=heads, **common)


def assert_same_bits(vanilla: Decoded, other: Decoded) -> None:
    assert other.generation.output_token_ids == vanilla.generation.output_token_ids
    assert other.generation.finish_reason == vanilla.generation.finish_reason
    assert torch.equal(other.logits, vanilla.logits)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 3),
    tied=st.booleans(),
    exits=st.sets(st.integers(1, 4), min_size=1, max_size=4).map(lambda found: tuple(sorted(found))),
    gamma=st.sampled_from([0.0, 0.02, 0.1, 0.4, 1.0]),
    max_drafts=st.integers(0, 7),
    prompt_len=st.integers(1, 70),
    max_new_tokens=st.integers(1, 24),
)
def test_any_policy_gives_vanillas_tokens_and_bits(
    family, dtype, seed, tied, exits, gamma, max_drafts, prompt_len, max_new_tokens
):
    model = tiny_model(family, dtype=dtype, seed=seed, tied=tied, num_layers=5)
    prompt = torch.randint(0, 97, (prompt_len,), generator=torch.Generator().manual_seed(seed)).tolist()
    vanilla, adadecode = decode_both(model, prompt, exits, gamma, max_drafts, max_new_tokens)
    assert_same_bits(vanilla, adadecode)
    assert len(vanilla.generation.output_token_ids) == max_new_tokens
    if gamma == 1.0 or max_drafts == 0:
        assert adadecode.generation.num_drafted == 0
        assert adadecode.generation.layers_run == vanilla.generation.layers_run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("prompt_len", "max_new_tokens"), [(30, 530), (560, 40)])
def test_bits_hold_past_512_tokens(dtype, prompt_len, max_new_tokens):
    model = tiny_model("llama", dtype=dtype, num_layers=3)
    prompt = [i % 97 for i in range(prompt_len)]
    vanilla, adadecode = decode_both(model, prompt, (1, 2), 0.05, 5, max_new_tokens)
    assert_same_bits(vanilla, adadecode)
    assert adadecode.generation.num_accepted > 0, "the test needs accepted drafts"
    assert adadecode.generation.num_accepted < adadecode.generation.num_drafted, "and rejected ones"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vanilla_repeats_itself_bit_for_bit(dtype):
    model = tiny_model(dtype=dtype)
    runs = [generate(model, [5, 6, 7], width=8, max_new_tokens=40, record_logits=True) for _ in range(2)]
    assert_same_bits(*runs)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_gives_the_same_bits_in_every_slot_and_company(family, dtype, num_threads):
    model = tiny_model(family, dtype=dtype, num_layers=2)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        check_rows_independent(model, 8)
        check_rows_independent(model, 16)
    finally:
        torch.set_num_threads(before)


def test_the_row_check_sees_a_row_that_depends_on_its_company():
    model = tiny_model(num_layers=2)
    model.lm.model.norm.register_forward_hook(lambda _, args, out: out + args[0].mean())
    with pytest.raises(RowsDependentError, match=r"W = 8 .* --threads"):
        check_rows_independent(model, 8)


class RaggedDecoder(DecoderModel):
    """The decoder with the static-shape rule off: a step has as many rows as take part in it."""

    def run_layers(self, hidden, start, stop, active, step, cache):
        rows = active.nonzero()[:, 0]
        cache.decode_at(step.positions[rows])
        groups = step.mask.shape[2] // len(active)
        mask = step.mask[0, 0].view(groups, len(active), -1)[:, rows].reshape(1, 1, groups * len(rows), -1)
        rotary = tuple(table[:, rows] for table in step.rotary)
        out = hidden[rows][None]
        for layer in self._layers[start:stop]:
            out = layer(out, attention_mask=mask, past_key_values=cache, position_embeddings=rotary)
        return hidden.index_copy(0, rows, out[0])


def test_without_static_shapes_the_bits_differ():
    """The teeth of the tests above: float32 bits must move when the rule is off."""
    num_equal = num_accepted = 0
    for seed in range(6):
        model = RaggedDecoder(tiny_model(seed=seed, num_layers=5).lm)
        vanilla, adadecode = decode_both(model, [1, 2, 3], (1, 3), 0.02, 5, 60)
        num_accepted += adadecode.generation.num_accepted
        tokens_equal = vanilla.generation.output_token_ids == adadecode.generation.output_token_ids
        num_equal += tokens_equal and torch.equal(vanilla.logits, adadecode.logits)
    assert num_accepted > 0
    assert num_equal < 6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_float32_tokens_equal_transformers_generate(family, tied):
    for seed in range(3):
        model = tiny_model(family, seed=seed, tied=tied, eos_token_id=[3, 9])
        for prompt in ([7], list(range(20, 60))):
            oracle = generate_with_transformers(model, prompt, max_new_tokens=50)
            ours = generate(model, prompt, width=8, max_new_tokens=50)
            narrow = generate(model, prompt, width=1, max_new_tokens=50)
            assert ours.generation.output_token_ids == oracle.generation.output_token_ids
            assert narrow.generation.output_token_ids == oracle.generation.output_token_ids
            assert ours.generation.finish_reason == oracle.generation.finish_reason
