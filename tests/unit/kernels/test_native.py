"""native.cpp: rows whose bits depend on nothing else, and numbers that agree with the eager kernels'."""

import pytest
import torch

from adadecode.kernels import library
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.native import NativeStep
from adadecode.kernels.weights import Head
from adadecode.model.decoder import DecoderModel
from tests.models import FAMILIES, needs_compiler, tiny_lm, tiny_model

DTYPES = (torch.float32, torch.bfloat16)
PROMPT = [11, 12, 13, 14, 15]
TOKENS = [(7 * i + 3) % 61 for i in range(17)]
# every path of the kernels: whole vectors only, rests everywhere, and one, two and four queries that share keys
SIZES = {
    "tiny": {},
    "rests": {"hidden_size": 42, "intermediate_size": 50, "head_dim": 20, "num_attention_heads": 6, "vocab_size": 65},
    "wide heads": {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64},
    "wider heads with a rest": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 80},
}


@pytest.fixture
def num_threads():
    """Sets torch's number of threads, which native steps take over."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_in_calls(model: DecoderModel, *calls: int) -> NativeStep:
    """A step with TOKENS after PROMPT run through all layers, in calls of so many rows; the last call takes the rest."""
    step = model.new_step(len(TOKENS), 40)
    assert isinstance(step, NativeStep)
    step.prefill(PROMPT)
    step.begin(len(PROMPT))
    step.put(0, TOKENS)
    lo = 0
    for num_rows in (*calls, len(TOKENS)):
        hi = min(lo + num_rows, len(TOKENS))
        if lo < hi:
            step.run(lo, hi, 0, model.num_layers)
        lo = hi
    return step


def assert_same_bits(step: NativeStep, expected: NativeStep) -> None:
    assert torch.equal(step.hidden, expected.hidden)
    assert torch.equal(step.cache.kv, expected.cache.kv)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_a_row_has_the_same_bits_in_calls_of_1_to_17_rows(sizes, family, dtype):
    model = tiny_model(family, kernels="native", dtype=dtype, num_layers=2, **SIZES[sizes])
    expected = run_in_calls(model, *[1] * 17)
    expected.verify(0, 17)
    for num_rows in range(2, 18):
        step = run_in_calls(model, *[num_rows] * (17 // num_rows))
        assert_same_bits(step, expected)
        shifted = run_in_calls(model, 17 - num_rows, num_rows)
        assert_same_bits(shifted, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_a_row_has_the_same_logits_and_proposal_in_calls_of_1_to_17_rows(sizes, dtype):
    model = tiny_model("qwen2", kernels="native", dtype=dtype, num_layers=1, **SIZES[sizes])
    generator = torch.Generator().manual_seed(2)
    matrices = [torch.randn(n, model.width, generator=generator).to(dtype) for n in (model.width, 43)]
    head = Head(tuple(matrices), torch.randperm(97, generator=generator)[:43])
    step = run_in_calls(model)
    proposals = [step.test(head, slot, slot + 1)[0] for slot in range(17)]
    logits, token_ids, tops = [], [], []
    for slot in range(17):  # as slot 0, alone
        step.hidden[0] = run_in_calls(model).hidden[slot]
        [token_id], [top] = step.verify(0, 1)
        logits.append(step.logits[0].clone())
        token_ids.append(token_id)
        tops.append(top)
    step = run_in_calls(model)
    for num_rows in range(1, 18):
        assert step.verify(0, num_rows) == (token_ids[:num_rows], tops[:num_rows])
        assert torch.equal(step.logits[:num_rows], torch.stack(logits[:num_rows]))
        for lo in (0, 17 - num_rows):
            assert step.test(head, lo, lo + num_rows) == proposals[lo : lo + num_rows]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_the_bits_are_the_same_with_any_number_of_threads(sizes, dtype, num_threads):
    model = tiny_model("qwen3", kernels="native", dtype=dtype, num_layers=2, **SIZES[sizes])
    for calls in ([1] * 17, [3, 5], [17]):
        num_threads(1)
        expected = run_in_calls(model, *calls)
        verdict = expected.verify(0, 17)
        for more in (2, 3):
            num_threads(more)
            step = run_in_calls(model, *calls)
            assert_same_bits(step, expected)
            assert step.verify(0, 17) == verdict
            assert torch.equal(step.logits, expected.logits)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_native_and_eager_kernels_compute_the_same_numbers(sizes, family, dtype):
    """After each layer, in the cache and in the logits, within the rounding of the dtype."""
    lm = tiny_lm(family, num_layers=3, **SIZES[sizes]).to(dtype)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 40) for kernels in ("native", "eager"))
    assert isinstance(theirs, EagerStep)
    for step in (ours, theirs):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:6])
    for layer in range(3):
        for step in (ours, theirs):
            step.run(0, 2, layer, layer + 1)
            step.run(2, 6, layer, layer + 1)
        torch.testing.assert_close(ours.hidden[:6], theirs.hidden[:6], **close)
    for step in (ours, theirs):
        step.verify(0, 6)
    torch.testing.assert_close(ours.logits[:6], theirs.logits[:6], **close)
    columns = slice(0, len(PROMPT) + 6)
    torch.testing.assert_close(ours.cache.kv[:, :, :, columns], theirs.cache.kv[:, :, :, columns], **close)


@needs_compiler
@torch.inference_mode()
def test_attention_over_many_columns_agrees_with_the_eager_kernels():
    lm = tiny_lm("qwen3", num_layers=2, head_dim=40)
    prompt = [(5 * i + i // 7) % 97 for i in range(700)]
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 720) for kernels in ("native", "eager"))
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(ours.prefill(prompt), theirs.prefill(prompt), **close)
    for step in (ours, theirs):
        step.begin(700)
        step.put(0, TOKENS[:7])
        step.run(0, 7, 0, 2)
    torch.testing.assert_close(ours.hidden[:7], theirs.hidden[:7], **close)


@needs_compiler
@torch.inference_mode()
def test_activations_of_any_size_agree_with_the_eager_kernels():
    """The exponential in SiLU and softmax, far out on both sides."""
    lm = tiny_lm(num_layers=1)
    lm.model.layers[0].mlp.gate_proj.weight.data.mul_(300.0)
    lm.model.layers[0].self_attn.q_proj.weight.data.mul_(300.0)
    ours, theirs = (DecoderModel(lm, kernels).new_step(8, 40) for kernels in ("native", "eager"))
    for step in (ours, theirs):
        step.prefill(PROMPT)
        step.begin(len(PROMPT))
        step.put(0, TOKENS[:8])
        step.run(0, 8, 0, 1)
    torch.testing.assert_close(ours.hidden, theirs.hidden, rtol=1e-3, atol=1e-3)


# What a compiler may be told besides -march=native: no vectors of 8, vectors of 8, vectors of 16.
INSTRUCTION_SETS = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@torch.inference_mode()
def test_other_instruction_sets_keep_bits_and_numbers_too(instruction_set, uncompiled, monkeypatch):
    if INSTRUCTION_SETS[instruction_set] not in library._processor().split():
        pytest.skip(f"this processor has no {INSTRUCTION_SETS[instruction_set]}")
    flags = [f"-march={instruction_set}" if flag == "-march=native" else flag for flag in library.FLAGS]
    monkeypatch.setattr(library, "FLAGS", (*flags, "-Wno-psabi"))
    for sizes in SIZES.values():
        for dtype in DTYPES:
            lm = tiny_lm("qwen3", num_layers=2, **sizes).to(dtype)
            model = DecoderModel(lm, "native")
            expected = run_in_calls(model, *[1] * 17)
            for num_rows in range(2, 18):
                assert_same_bits(run_in_calls(model, *[num_rows] * (17 // num_rows)), expected)
            eager = DecoderModel(lm, "eager").new_step(8, 40)
            eager.prefill(PROMPT)
            eager.begin(len(PROMPT))
            eager.put(0, TOKENS[:8])
            eager.run(0, 8, 0, 2)
            digits = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(expected.hidden[:8], eager.hidden, rtol=digits, atol=digits)
