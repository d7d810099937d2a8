"""What every decode step does, whichever kernels it has: slots, columns, layers, heads."""

import pytest
import torch
from torch import Tensor

from adadecode.kernels.eager import EagerStep
from adadecode.kernels.kv_cache import bucket_columns
from adadecode.kernels.step import Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from tests.models import FAMILIES, KERNELS, KERNELS_AND_DTYPES, NATIVE_DTYPES, needs_compiler, tiny_lm, tiny_model

# Sizes no vector width divides, one query head per key head and many, heads narrower and wider than two vectors.
SIZES = {
    "tiny": {},
    "odd widths": {"hidden_size": 40, "intermediate_size": 50, "vocab_size": 101},
    "one key head": {"num_attention_heads": 7, "num_key_value_heads": 1, "intermediate_size": 33},
    "three queries a key": {"hidden_size": 36, "num_attention_heads": 6, "head_dim": 20, "intermediate_size": 70},
    "as many keys": {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 64},
    "wide heads": {"hidden_size": 72, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 80},
    "wider heads": {"num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 128},
    "narrow heads": {"num_attention_heads": 4, "head_dim": 2},
    "one output more than a tile": {"hidden_size": 33, "intermediate_size": 17, "vocab_size": 65},
}
PROMPT = [11, 12, 13, 14, 15]
TOKENS = [(7 * i + 3) % 61 for i in range(17)]


def started(model: DecoderModel, token_ids: list[int], num_positions: int = 40):
    """A step after PROMPT with `token_ids` before layer 1."""
    step = model.new_step(len(token_ids), num_positions)
    step.prefill(PROMPT)
    step.begin(len(PROMPT))
    step.put(0, token_ids)
    return step


def changed_columns(before: Tensor, after: Tensor) -> list[int]:
    """Columns of `[L, 2, G, S, D]` that differ anywhere."""
    return (before != after).any(dim=-1).flatten(0, 2).any(dim=0).nonzero().flatten().tolist()


@torch.inference_mode()
def logits_by_transformers(model: DecoderModel, token_ids: list[int]) -> Tensor:
    return model.lm(torch.tensor([token_ids])).logits[0]


@torch.inference_mode()
def assert_close_to_transformers(model: DecoderModel) -> None:
    """Prompt, then rows alone and together: the logits of each position within float32 rounding."""
    expected = logits_by_transformers(model, PROMPT + TOKENS)
    step = model.new_step(9, 40)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(step.prefill(PROMPT).logits, expected[len(PROMPT) - 1], **close)
    lo = 0
    for num_rows in (1, 2, 3, 9):
        step.begin(len(PROMPT) + lo)
        step.put(0, TOKENS[lo : lo + num_rows])
        step.run(0, num_rows, 0, model.num_layers)
        token_ids, tops = step.verify(0, num_rows)
        at = slice(len(PROMPT) + lo, len(PROMPT) + lo + num_rows)
        torch.testing.assert_close(step.logits[:num_rows], expected[at], **close)
        assert token_ids == step.logits[:num_rows].argmax(dim=-1).tolist()
        assert tops == step.logits[:num_rows].max(dim=-1).values.tolist()
        lo += num_rows


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_are_close_to_transformers_in_every_family(family, tied, kernels):
    assert_close_to_transformers(tiny_model(family, tied=tied, kernels=kernels))


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("sizes", SIZES)
def test_float32_logits_are_close_to_transformers_at_every_size(sizes, family, kernels):
    assert_close_to_transformers(tiny_model(family, kernels=kernels, **SIZES[sizes]))


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_prompt_of_300_tokens_is_as_good_as_one_token_after_another(kernels, dtype):
    model = tiny_model("qwen3", kernels=kernels, dtype=dtype)
    prompt = [(5 * i + i // 7) % 97 for i in range(300)]
    at_once, one_by_one = (model.new_step(8, 310) for _ in range(2))
    logits = at_once.prefill(prompt).logits
    one_by_one.prefill(prompt[:1])
    for position in range(1, 300):
        one_by_one.begin(position)
        one_by_one.put(0, prompt[position : position + 1])
        one_by_one.run(0, 1, 0, model.num_layers)
    one_by_one.verify(0, 1)
    ours, theirs = (step.cache.kv[:, :, :, :300] for step in (one_by_one, at_once))
    if kernels == "native":
        assert torch.equal(one_by_one.logits[0], logits)
        assert torch.equal(ours, theirs)
    else:
        digits = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
        torch.testing.assert_close(one_by_one.logits[0], logits, rtol=digits, atol=digits)
        torch.testing.assert_close(ours, theirs, rtol=digits, atol=digits)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_preparing_a_step_leaves_no_trace_in_what_it_computes(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    plain, prepared = model.new_step(8, 40), model.new_step(8, 40)
    heads = heads_of(model, 50, dtype)
    prepared.prepare((1, 3, 4), [ExitTest(head) for head in heads])
    for step in (plain, prepared):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:3])
        step.run(0, 3, 0, 4)
    assert torch.equal(prepared.hidden, plain.hidden)
    assert prepared.verify(0, 3) == plain.verify(0, 3)
    assert [prepared.test(head, 0, 3) for head in heads] == [plain.test(head, 0, 3) for head in heads]
    columns = slice(0, plain.cache.scratch)
    assert torch.equal(prepared.cache.kv[:, :, :, columns], plain.cache.kv[:, :, :, columns])


@torch.inference_mode()
def test_rows_that_take_no_part_write_only_to_scratch_with_eager_kernels():
    """Of four rows at positions 5..8 only slots 1 and 2 take part: columns 6 and 7 change, and scratch."""
    model = tiny_model(num_layers=2)
    step = started(model, TOKENS[:4])
    before = step.cache.kv.clone()
    step.run(1, 3, 0, model.num_layers)
    assert changed_columns(before, step.cache.kv) == [6, 7, step.cache.scratch]


@pytest.mark.parametrize(("kernels", "dtype"), NATIVE_DTYPES)
@torch.inference_mode()
def test_rows_that_take_no_part_write_nothing_with_native_kernels(kernels, dtype):
    model = tiny_model(num_layers=2, kernels=kernels, dtype=dtype)
    step = started(model, TOKENS[:4])
    before = step.cache.kv.clone()
    step.run(1, 3, 0, model.num_layers)
    assert changed_columns(before, step.cache.kv) == [6, 7]


@pytest.mark.parametrize("kernels", KERNELS)
@torch.inference_mode()
def test_only_the_layers_that_are_run_write_keys_and_values(kernels):
    model = tiny_model(kernels=kernels)
    step = started(model, TOKENS[:2])
    step.run(0, 2, 0, 1)
    before = step.cache.kv.clone()
    step.run(0, 2, 1, 3)
    assert [bool((before[i] != step.cache.kv[i]).any()) for i in range(4)] == [False, True, True, False]


@pytest.mark.parametrize("kernels", KERNELS)
@torch.inference_mode()
def test_slots_that_take_no_part_keep_their_hidden_states(kernels):
    model = tiny_model(kernels=kernels)
    step = started(model, TOKENS[:4])
    step.run(0, 4, 0, 2)
    before = step.hidden.clone()
    step.run(1, 3, 2, 3)
    assert torch.equal(step.hidden[[0, 3]], before[[0, 3]])
    assert (step.hidden[[1, 2]] != before[[1, 2]]).any(dim=-1).all()


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_layers_run_in_segments_are_layers_run_at_once(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    at_once, by_segment = started(model, TOKENS[:3]), started(model, TOKENS[:3])
    at_once.run(0, 3, 0, 4)
    for start in range(4):
        by_segment.run(0, 3, start, start + 1)
    assert torch.equal(by_segment.hidden, at_once.hidden)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_token_put_beside_one_between_two_layers_starts_at_layer_1(kernels, dtype):
    """Slot 0 is parked at layer 2 while slot 1 comes there; both then go on together."""
    model = tiny_model(kernels=kernels, dtype=dtype)
    expected = started(model, TOKENS[:8])
    expected.run(0, 2, 0, 4)
    step = model.new_step(8, 40)
    step.prefill(PROMPT)
    step.begin(len(PROMPT))
    step.put(0, TOKENS[:1])
    step.run(0, 1, 0, 2)
    step.put(1, TOKENS[1:2])
    step.run(1, 2, 0, 2)
    step.run(0, 2, 2, 4)
    assert torch.equal(step.hidden[:2], expected.hidden[:2])


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_column_is_written_anew_by_the_next_token_there(kernels, dtype):
    """A rejected draft's columns leave no trace in the token that takes its place."""
    model = tiny_model(kernels=kernels, dtype=dtype)
    step, fresh = started(model, [1, 2, 3, 4, 5, 6, 7, 8]), started(model, [1, 50, 51, 52, 53, 54, 55, 56])
    step.run(0, 8, 0, 4)
    step.begin(len(PROMPT) + 1)
    step.put(0, [50, 51])
    step.run(0, 2, 0, 4)
    fresh.run(0, 3, 0, 4)
    assert torch.equal(step.hidden[:2], fresh.hidden[1:3])


@torch.inference_mode()
def test_rows_past_the_cache_stand_on_scratch_with_eager_kernels():
    model = tiny_model(num_layers=2)
    step = model.new_step(8, 10)
    step.prefill(PROMPT)
    scratch = step.cache.scratch
    before = step.cache.kv.clone()
    step.begin(scratch - 2)
    step.put(0, TOKENS[:8])
    step.run(0, 2, 0, 2)
    assert changed_columns(before, step.cache.kv) == [scratch - 2, scratch - 1, scratch]


@pytest.mark.parametrize("context_len", [250, 300])
@torch.inference_mode()
def test_every_row_of_the_widest_graphed_step_has_a_place_at_the_end_of_the_context(context_len):
    """A graphed step has one of few numbers of columns, so scratch may lie past the context, and idle rows before it."""
    model = tiny_model(num_layers=1, context_len=context_len)
    cache = model.weights.new_cache(bucket_columns(context_len, context_len))
    step = EagerStep(model.weights, model.steps.prefill, 72, cache)
    step.begin(context_len - 2)
    step.put(0, TOKENS[:1])
    step.run(0, 1, 0, 1)


@needs_compiler
def test_a_row_past_the_cache_that_takes_part_is_our_own_bug():
    """Native code would write past its buffers."""
    step = tiny_model(kernels="native", num_layers=1).new_step(8, 10)
    step.begin(step.cache.num_columns - 2)
    step.put(0, TOKENS[:3])
    step.run(0, 2, 0, 1)
    with pytest.raises(IndexError, match="3 rows from position 62 on, of 64"):
        step.run(0, 3, 0, 1)


def heads_of(model: DecoderModel, num_outputs: int, dtype: torch.dtype) -> tuple[Head, Head, Head]:
    """A head of one matrix, of two, and of one over a shortlist."""
    generator = torch.Generator().manual_seed(3)
    square, tall = (torch.randn(n, model.width, generator=generator).to(dtype) for n in (model.width, num_outputs))
    token_ids = torch.randperm(1000, generator=generator)[:num_outputs]
    return Head((tall,)), Head((square, tall)), Head((tall,), token_ids)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@pytest.mark.parametrize("num_outputs", [1, 2, 31, 97, 200])
@torch.inference_mode()
def test_a_test_is_the_top_1_of_the_heads_softmax_for_the_slots_asked_about(num_outputs, kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    step = model.new_step(8, 20)
    step.hidden.copy_(torch.randn(8, model.width, generator=torch.Generator().manual_seed(1)))
    digits = {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float16: 5e-3}[dtype]
    for head in heads_of(model, num_outputs, dtype):
        x = model.final_norm(step.hidden).double()
        for matrix in head.matrices:
            x = x @ matrix.double().T
        for lo, hi in ((0, 8), (2, 5), (7, 8)):
            for row, (token_id, probability) in zip(range(lo, hi), step.test(head, lo, hi), strict=True):
                token_ids = head.token_ids.tolist() if head.token_ids is not None else list(range(num_outputs))
                best = token_ids.index(token_id)
                assert 0.0 < probability <= 1.0
                # rounded logits may tie where exact ones do not, so the best is the best up to rounding
                assert x[row, best] >= x[row].max() - 30 * digits
                expected = torch.softmax(x[row], dim=0)[best].item()
                assert probability == pytest.approx(expected, rel=30 * digits, abs=digits)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_heads_ties_go_to_the_lowest_output(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    step = model.new_step(2, 20)
    step.hidden.fill_(1.0)
    matrix = torch.zeros(50, model.width, dtype=dtype)
    matrix[[20, 33, 49]] = 1.0
    shortlist = torch.arange(50).flip(0)
    for head, expected in ((Head((matrix,)), 20), (Head((matrix,), shortlist), 29)):
        [(token_id, probability)] = step.test(head, 0, 1)
        assert token_id == expected
        assert probability == pytest.approx(1 / 3, rel=0.01)


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_row_whose_logits_hold_nan_has_no_top_logit(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    step = model.new_step(8, 20)
    step.hidden.fill_(1.0)
    step.hidden[1, 5] = float("nan")
    _, tops = step.verify(0, 3)
    assert [top == top for top in tops] == [True, False, True]
    assert step.logits[1].isnan().all()


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_a_value_that_only_rounding_makes_infinite_leaves_the_row_before_it_alone(kernels, dtype):
    """In bfloat16 a finite float32 sum above 3.396e38 rounds to infinity when it is stored, and 0 * inf is NaN."""
    lm, poison = tiny_lm(num_layers=1).to(dtype), 50
    with torch.no_grad():
        embeddings, value_row = lm.model.embed_tokens.weight, lm.model.layers[0].self_attn.v_proj.weight[0]
        embeddings[:, 0] = 0.0
        embeddings[poison] = 1.0
        embeddings[poison, 1:25] = 1.0 - 2.0**-8  # the norm makes the first element 1.003
        value_row.zero_()
        value_row[0] = torch.finfo(dtype).max
    model = DecoderModel(lm, kernels)
    alone, beside = started(model, [7] + [8] * 7), started(model, [7, poison] + [8] * 6)
    alone.run(0, 1, 0, 1)
    beside.run(0, 2, 0, 1)
    assert beside.cache.kv.isfinite().all()
    assert torch.equal(beside.hidden[0], alone.hidden[0])


@pytest.mark.parametrize(("kernels", "dtype"), KERNELS_AND_DTYPES)
@torch.inference_mode()
def test_running_to_an_exit_is_running_probing_and_testing(kernels, dtype):
    model = tiny_model(kernels=kernels, dtype=dtype)
    gate = Gate(torch.randn(model.width, generator=torch.Generator().manual_seed(0)), 0.1)
    together, apart = model.new_step(8, 40), model.new_step(8, 40)
    for step in (together, apart):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:3])
        step.run(0, 1, 0, 2)
    apart.run(1, 3, 0, 2)
    chance = apart.probe(gate, 2)
    for head in heads_of(model, 50, dtype):
        for least, first_tested in ((chance - 1e-6, 2), (chance, 2), (chance + 1e-6, 2), (chance + 1e-6, 1)):
            together.put(1, TOKENS[1:3])
            proposals = together.run_to_exit(Segment(1, 3, 0, 2), ExitTest(head, gate, least), first_tested)
            is_skipped = first_tested == 2 and chance < least
            assert proposals == (None if is_skipped else apart.test(head, first_tested, 3))
            assert torch.equal(together.hidden[1:3], apart.hidden[1:3])
        assert together.run_to_exit(Segment(1, 3, 2, 2), ExitTest(head), 2) == apart.test(head, 2, 3)
