"""native.cpp: rows whose bits depend on nothing else, and numbers that agree with the eager kernels'."""

import inspect

import pytest
import torch

from adadecode.kernels import library, native, packed
from adadecode.kernels.eager import EagerStep
from adadecode.kernels.native import NativeStep
from adadecode.kernels.step import Segment
from adadecode.kernels.weights import ExitTest, Gate, Head
from adadecode.model.decoder import DecoderModel
from tests.models import FAMILIES, needs_compiler, tiny_lm, tiny_model

DTYPES = (torch.float32, torch.bfloat16)
PROMPT = [11, 12, 13, 14, 15]
TOKENS = [(7 * i + 3) % 61 for i in range(17)]
# every path of the kernels: whole vectors only, rests everywhere, odd numbers of inputs, and one to four queries that
# share keys
SIZES = {
    "tiny": {},
    "rests": {"hidden_size": 42, "intermediate_size": 50, "head_dim": 20, "num_attention_heads": 6, "vocab_size": 65},
    "odd": {
        "hidden_size": 33,
        "intermediate_size": 45,
        "head_dim": 18,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
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
    torch.testing.assert_close(ours.prefill(prompt).logits, theirs.prefill(prompt).logits, **close)
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


# What a compiler may be told besides -march=native: no vectors of 8, vectors of 8, vectors of 16, dot products of bfloat16.
INSTRUCTION_SETS = {
    "x86-64": "sse2",
    "x86-64-v3": "avx2",
    "x86-64-v4": "avx512f",
    "x86-64-v4 -mavx512bf16": "avx512_bf16",
}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@torch.inference_mode()
def test_other_instruction_sets_keep_bits_and_numbers_too(instruction_set, uncompiled, monkeypatch):
    if INSTRUCTION_SETS[instruction_set] not in library._processor().split():
        pytest.skip(f"this processor has no {INSTRUCTION_SETS[instruction_set]}")
    flags = [flag for flag in library.FLAGS if flag != "-march=native"]
    monkeypatch.setattr(library, "FLAGS", (*flags, *f"-march={instruction_set}".split(), "-Wno-psabi"))
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


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES)
@torch.inference_mode()
def test_a_prompt_in_blocks_has_the_bits_of_one_that_is_run_as_a_whole(sizes, dtype, monkeypatch):
    model = tiny_model("qwen3", kernels="native", dtype=dtype, num_layers=2, **SIZES[sizes])
    block_len = native.BLOCK_LEN
    for length in (1, block_len - 1, block_len, block_len + 1, 2 * block_len, 2 * block_len + 77):
        prompt = [(5 * i + i // 7) % 61 for i in range(length)]
        found = []
        for num_rows in (length, block_len, 100):
            monkeypatch.setattr(native, "BLOCK_LEN", num_rows)
            step = model.new_step(8, length + 10)
            found.append((step.prefill(prompt).logits, step.hidden.clone(), step.cache.kv))
        whole, *in_blocks = found
        for block in in_blocks:
            assert all(torch.equal(a, b) for a, b in zip(whole, block, strict=True)), length


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_what_earlier_calls_left_in_the_scratch_leaves_no_trace(dtype, num_threads):
    num_threads(2)
    model = tiny_model("qwen3", kernels="native", dtype=dtype, num_layers=2, **SIZES["rests"])
    head = Head((torch.randn(43, model.width, generator=torch.Generator().manual_seed(2)).to(dtype),))
    gate = Gate(torch.ones(model.width), 0.0)

    def outcome(left: float) -> list[torch.Tensor]:
        step = model.new_step(len(TOKENS), 40)
        assert isinstance(step, NativeStep)

        def after(call):
            step._scratch.fill_(left)
            return call()

        found = [after(lambda: step.prefill(PROMPT).logits)]
        step.begin(len(PROMPT))
        step.put(0, TOKENS)
        after(lambda: step.run(0, 1, 0, 2))
        after(lambda: step.run(1, 3, 0, 2))
        after(lambda: step.run(3, 17, 0, 2))
        found += [step.hidden, step.cache.kv]
        found.append(torch.tensor(after(lambda: step.verify(0, 17))))
        found.append(torch.tensor(after(lambda: step.test(head, 0, 17))))
        found.append(torch.tensor(after(lambda: step.probe(gate, 3))))
        return [*found, step.logits]

    assert all(torch.equal(a, b) for a, b in zip(outcome(0.0), outcome(float("nan")), strict=True))


@needs_compiler
@torch.inference_mode()
def test_a_head_far_wider_than_the_model_has_room_to_work_in():
    """More outputs than there is scratch for the layers and the vocabulary."""
    model = tiny_model(kernels="native", num_layers=1)
    step = started_at_ones(model)
    num_outputs = 2 * len(step._scratch)
    matrix = torch.zeros(num_outputs, model.width)
    matrix[num_outputs - 5] = 1.0
    [(token_id, _)] = step.test(Head((matrix,)), 0, 1)
    assert token_id == num_outputs - 5
    assert len(step._scratch) > num_outputs


def started_at_ones(model: DecoderModel) -> NativeStep:
    """A step whose hidden states are ones."""
    step = model.new_step(8, 20)
    assert isinstance(step, NativeStep)
    step.hidden.fill_(1.0)
    return step


def test_the_checks_before_memory_is_touched_are_no_asserts():
    """`python -O` drops asserts, and native code would read or write past its buffers."""
    for source in (native, packed):
        assert "assert " not in inspect.getsource(source)


OUTSIDE = {
    "a slot before the first": lambda step, head: step.put(-1, [3]),
    "more tokens than slots": lambda step, head: step.put(7, [3, 4]),
    "an id past the vocabulary": lambda step, head: step.put(0, [97]),
    "a negative id": lambda step, head: step.put(0, [-1]),
    "an id of a prompt past the vocabulary": lambda step, head: step.prefill([1, 97]),
    "a prompt longer than the cache": lambda step, head: step.prefill([1] * 65),
    "rows past the last slot": lambda step, head: step.run(6, 9, 0, 1),
    "a position past the cache": lambda step, head: (step.begin(63), step.run(0, 2, 0, 1)),
    "a negative position": lambda step, head: (step.begin(-1), step.run(0, 1, 0, 1)),
    "a layer past the last": lambda step, head: step.run(0, 1, 1, 3),
    "a layer before the first": lambda step, head: step.run(0, 1, -1, 1),
    "an exit past the last slot": lambda step, head: step.run_to_exit(Segment(0, 9, 0, 1), ExitTest(head), 8),
    "a test before its segment": lambda step, head: step.run_to_exit(Segment(2, 4, 0, 1), ExitTest(head), 1),
    "an exit past the cache": lambda step, head: (
        step.begin(62),
        step.run_to_exit(Segment(0, 3, 0, 1), ExitTest(head), 2),
    ),
    "a test of slots that are not there": lambda step, head: step.test(head, 4, 9),
    "a probe of a slot that is not there": lambda step, head: step.probe(Gate(torch.ones(32), 0.0), 8),
    "a verification of slots that are not there": lambda step, head: step.verify(-1, 2),
}


@needs_compiler
@pytest.mark.parametrize("call", OUTSIDE)
@torch.inference_mode()
def test_what_would_reach_past_a_buffer_is_refused_first(call):
    model = tiny_model(kernels="native", num_layers=2)
    step = started_at_ones(model)
    step.begin(0)
    with pytest.raises(IndexError):
        OUTSIDE[call](step, model.weights.head)


@needs_compiler
@pytest.mark.parametrize(
    "matrices",
    [[torch.zeros(5, 31)], [torch.zeros(5, 32), torch.zeros(9, 6)], [torch.zeros(5, 32, dtype=torch.bfloat16)]],
    ids=["narrower than the model", "two that do not follow", "another dtype"],
)
def test_a_head_that_does_not_fit_its_hidden_states_is_refused_first(matrices):
    step = started_at_ones(tiny_model(kernels="native", num_layers=2))
    for call in (lambda head: step.test(head, 0, 1), lambda head: step.prepare((), [ExitTest(head)])):
        with pytest.raises(ValueError, match="a head of "):
            call(Head(tuple(matrices)))


@needs_compiler
@pytest.mark.parametrize("weights", [torch.ones(31), torch.ones(32).double(), torch.ones(64)[::2]])
def test_a_gate_that_does_not_fit_its_hidden_states_is_refused_first(weights):
    model = tiny_model(kernels="native", num_layers=2)
    step, gate = started_at_ones(model), Gate(weights, 0.0)
    with pytest.raises(ValueError, match="a gate of "):
        step.probe(gate, 0)
    with pytest.raises(ValueError, match="a gate of "):
        step.prepare((), [ExitTest(model.weights.head, gate, 0.5)])
